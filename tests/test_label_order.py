"""Labels are matched by name: another order is brought into that of the training and said, other names are refused."""

import json
import shutil

import h5py
import numpy as np
import pytest
import stages
import torch
import yaml
from test_labram_scripts import CLASSIFIER, call
from toy_eeg import write_toy

import run_class_finetuning
from dataset.labels import explain_labels, follow_classes, follow_tasks
from dataset.tasks import TASKS, Task, read_task
from dataset.windows import open_tasks
from errors import UserError
from evaluation.inference import load_model
from model.labram import Classifier
from model.weights import read_checkpoint
from training.checkpoints import write_checkpoint


def reverse(folder, names) -> None:
    """The same recordings with their two labels in the other order: in the files, the manifest and the names."""
    for path in folder.glob("*/*.h5"):
        with h5py.File(path, "r+") as file:
            rows = file[path.stem]["segments"]
            rows[:, 2] = 1 - rows[:, 2]
    manifest = folder / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",3 2,", ",2 3,"))
    rename(folder, names)


def rename(folder, names) -> None:
    about = yaml.safe_load((folder / "dataset.yaml").read_text())
    (folder / "dataset.yaml").write_text(yaml.safe_dump(about | {"labels": names}))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A classifier after a few steps on data/Toy, and the same recordings in reversed/Toy and renamed/Toy."""
    folder = tmp_path_factory.mktemp("labels")
    # 3 windows of one label to 2 of the other: an exchange shows in every metric
    write_toy(folder / "data" / "Toy", seconds=10, window=2, splits=(("train", 4), ("val", 2), ("test", 3)))
    for name in ("reversed", "renamed"):
        shutil.copytree(folder / "data", folder / name)
    reverse(folder / "reversed" / "Toy", ["fast", "slow"])
    rename(folder / "renamed" / "Toy", ["cat", "dog"])
    tune(folder, "data")
    return folder


def tune(folder, data, *more, out="out"):
    words = ["--dataset_dir", folder / data, "--dataset", "Toy", "--output_dir", folder / out, *CLASSIFIER]
    call(run_class_finetuning, *words, "--batch_size", 8, "--max_steps", 2, "--warmup_epochs", 0, *more)


def result(folder, name="eval"):
    (row,) = json.loads((folder / "out" / name / "results.json").read_text())["results"]
    return row


def test_eval_maps_another_order_and_leaves_the_results_of_the_training(tuned, capsys):
    trained = (tuned / "out" / "results.json").read_bytes()
    tune(tuned, "data", "--eval")
    expected = result(tuned)
    assert expected["metrics"] == result(tuned, "")["metrics"] and "order" not in capsys.readouterr().out
    tune(tuned, "reversed", "--eval")
    assert capsys.readouterr().out.count("labels fast, slow: they are brought into the order of") == 1
    for name in ("metrics", "recording_metrics", "confusion", "answers", "unanswered"):
        assert result(tuned)[name] == expected[name]
    assert (tuned / "out" / "results.json").read_bytes() == trained


def test_other_names_are_refused(tuned):
    for more in (["--eval"], []):
        with pytest.raises(UserError, match=r"labels \['cat', 'dog'\], but .* was trained on \['slow', 'fast'\]"):
            tune(tuned, "renamed", *more)


def test_a_resumed_run_keeps_its_order(tuned, capsys):
    with pytest.raises(UserError, match=r"; labels is Toy \['fast', 'slow'\], was Toy \['slow', 'fast'\].*ts labels$"):
        tune(tuned, "reversed", "--max_steps", 3)
    capsys.readouterr()
    tune(tuned, "reversed", "--max_steps", 3, "--allow_changed", "datasets", "labels")
    assert "brought into the order of" in capsys.readouterr().out
    state = read_checkpoint(tuned / "out" / "checkpoint.pth")
    assert state["classes"] == ["slow", "fast"] and state["iter_num"] == 3
    assert result(tuned, "")["answers"] == ["slow", "fast"]


def test_a_head_goes_on_for_its_own_classes_only(tuned, capsys):
    start = ("--finetune", tuned / "out" / "checkpoint-best.pth", "--max_steps", 1, "--lr", 0)
    heads = {}
    for data in ("data", "reversed", "renamed"):
        tune(tuned, data, *start, out=data + "-out")
        said = capsys.readouterr().out
        assert ("brought into the order" in said, "its head is left out" in said) == (
            data == "reversed", data == "renamed",
        )  # fmt: skip
        state = read_checkpoint(tuned / f"{data}-out" / "checkpoint.pth")
        heads[data] = state["model"]["head.weight"]
        assert state["classes"] == (["cat", "dog"] if data == "renamed" else ["slow", "fast"])
    assert torch.equal(heads["data"], heads["reversed"]) and not torch.equal(heads["data"], heads["renamed"])


def test_datasets_and_checkpoints_without_names(tmp_path):
    folder = tmp_path / "official"
    folder.mkdir()
    same, none = {"classes": ["slow", "fast"]}, ("0", "1")
    assert follow_classes(folder, none, same, "c.pth", True)[0] == ("slow", "fast")
    assert "does not name its labels" in follow_classes(folder, none, same, "c.pth", True)[3]
    assert follow_classes(folder, none, {"classes": ["0", "1"]}, "c.pth", True)[3] == ""
    toy = write_toy(tmp_path / "toy", window=2)
    for checkpoint in ({}, {"classes": ["0", "1"]}):
        classes, places, _, said = follow_classes(toy, ("slow", "fast"), checkpoint, "c.pth", True)
        assert (classes, places) == (("slow", "fast"), (0, 1)) and "does not name its classes" in said
    with pytest.raises(UserError, match=r"c\.pth: classes = 5, expected a list of names"):
        follow_classes(folder, none, {"classes": 5}, "c.pth", True)


def test_predict_gives_a_classifier_the_order_of_its_classes(tuned, tmp_path):
    state = read_checkpoint(tuned / "out" / "checkpoint-best.pth")
    for answers, said in ((["slow", "fast"], ""), (["fast", "slow"], "its answers are in the order of")):
        write_checkpoint(state | {"tasks": [state["tasks"][0] | {"answers": answers}]}, tmp_path / "c.pth")
        _, (question,) = load_model(Classifier, tmp_path / "c.pth")
        assert question.task.answers == ("slow", "fast") and said in question.said and bool(said) == bool(question.said)
    write_checkpoint(state | {"tasks": [state["tasks"][0] | {"answers": ["cat", "dog"]}]}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"answers \['cat', 'dog'\], its classes are \['slow', 'fast'\]"):
        load_model(Classifier, tmp_path / "c.pth")


def labels(task, folder):
    return open_tasks({task: folder}, "test")[task].index[:, 3].tolist()


def test_a_task_takes_labels_by_the_names_it_was_made_for(tuned, tmp_path):
    expected = labels(Task("x", "?", ("slow", "fast")), tuned / "data" / "Toy")
    assert labels(Task("x", "?", ("slow", "fast")), tuned / "reversed" / "Toy") == expected
    shutil.copytree(tuned / "data" / "Toy", tmp_path / "Workload")
    for names, order in ((["rest", "arithmetic"], 1), (["arithmetic", "rest"], -1), (["yes", "no"], -1)):
        rename(tmp_path / "Workload", names)
        places = {1: [0, 1], -1: [1, 0]}[order]
        assert labels(TASKS["Workload"], tmp_path / "Workload") == np.take(places, expected).tolist()
        assert len(explain_labels({TASKS["Workload"]: tmp_path / "Workload"})) == (order < 0)
    rename(tmp_path / "Workload", ["low", "high"])
    with pytest.raises(UserError, match=r"labels \['low', 'high'\], and was made for \['rest', 'arithmetic'\]"):
        labels(TASKS["Workload"], tmp_path / "Workload")
    own = "name: own\nquestion: Busy?\nanswers: [No, Yes]\ndataset: Workload\nlabels: [high, low]\n"
    (tmp_path / "own.yaml").write_text(own)
    assert labels(read_task(tmp_path / "own.yaml"), tmp_path / "Workload") == np.take([1, 0], expected).tolist()
    (tmp_path / "own.yaml").write_text(own.replace("[high, low]", "[high]"))
    with pytest.raises(UserError, match="labels: must be as many as the answers"):
        read_task(tmp_path / "own.yaml")
    (line,) = explain_labels({Task("x", "?", ("No", "Yes")): tmp_path / "Workload"})
    assert line.endswith("are answered so: low = No, high = Yes")  # by place, and said


def test_eval_only_asks_as_trained(tuned):
    folder = tuned / "data" / "Toy"
    trained = [{"name": "x", "answers": ["Slow", "fast"], "question": "?", "lettered": True}]
    expected = labels(Task("x", "?", ("slow", "fast")), folder)
    for task in (Task("x", "?", ("fast", "slow"), lettered=True), Task("x", "?", ("Fast", "Slow"), lettered=True)):
        (followed,), (line,) = follow_tasks({task: folder}, trained, "c.pt")
        assert followed.answers == ("Slow", "fast") and "are asked as trained" in line
        assert labels(followed, folder) == expected
    assert follow_tasks({TASKS["TUAB"]: folder}, trained, "c.pt") == ({TASKS["TUAB"]: folder}, [])
    assert "question is 'Which?', trained on '?'" in follow_tasks(
        {Task("x", "Which?", ("Slow", "fast"), lettered=True): folder}, trained, "c.pt"
    )[1][0]
    with pytest.raises(UserError, match=r"answers \['a', 'b'\], but c\.pt was trained on \['Slow', 'fast'\]"):
        follow_tasks({Task("x", "?", ("a", "b")): folder}, trained, "c.pt")
    with pytest.raises(UserError, match="'tasks' are not rows"):
        follow_tasks({}, [5], "c.pt")


def test_eval_only_through_the_script(untrained, tmp_path, capsys):
    folder = stages.train("instruction", untrained, tmp_path, "--max_steps", 1, "--gradient_accumulation_steps", 1)
    trained = (folder / "results.json").read_bytes()
    dataset = untrained / "data" / "Toy"
    metrics = []
    for answers in ("[slow, fast]", "[fast, slow]"):
        task = stages.TASK.replace("data/Toy", str(dataset)).replace("[slow, fast]", answers)
        (tmp_path / "task.yaml").write_text(task)
        more = ("--eval_only", "--NeuroLM_path", folder / "ckpt.pt", "--tasks", tmp_path / "task.yaml")
        stages.train("instruction", untrained, tmp_path, *more)
        (row,) = json.loads((folder / "eval_score" / "results.json").read_text())["results"]
        metrics.append(row["metrics"])
        assert ("are asked as trained" in capsys.readouterr().out) == (answers == "[fast, slow]")
    assert metrics[0] == metrics[1]
    assert (folder / "results.json").read_bytes() == trained
