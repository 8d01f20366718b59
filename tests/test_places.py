"""A trained model that knows a place by its other name reads it by that one, and says so."""


from test_label_order import tune
from test_labram_scripts import CLASSIFIER, call
from toy_eeg import write_toy

import run_class_finetuning
from dataset.channels import channel_rows, follow_places
from dataset.recordings import open_dataset
from dataset.windows import Windows
from evaluation.results import read_run

OLD, NEW = ("T3", "C3", "T6"), ("T7", "C3", "P8")


def labelled(folder):
    return Windows.labelled(open_dataset(folder, "test"))


def test_only_a_name_that_the_model_lacks_is_exchanged(tmp_path):
    for name, channels in (("old", OLD), ("both", ("T3", "T7"))):
        write_toy(tmp_path / name, channels, seconds=4, splits=[("test", 1)], window=2)
    windows, both = labelled(tmp_path / "old"), labelled(tmp_path / "both")
    assert follow_places([windows], []) == [] == follow_places([windows], [{"channels": list(OLD)}])
    assert windows.about(0)["rows"].tolist() == channel_rows(OLD).tolist()
    said = follow_places([windows, both], [{"channels": ["T7", "C3"]}, {"channels": ["P8"]}, "damaged"])
    assert said == [f"{pair}, the model's name of the place" for pair in ("T3 is read as T7", "T6 is read as P8")]
    assert windows[0]["rows"].tolist() == channel_rows(NEW).tolist()
    assert both.about(0)["rows"].tolist() == channel_rows(("T3", "T7")).tolist()


def test_results_are_those_of_the_models_names(tmp_path, capsys):
    for name, channels in (("data", NEW), ("other", OLD)):  # the same EEG
        write_toy(tmp_path / name / "Toy", channels, 10, (("train", 4), ("val", 2), ("test", 3)), window=2)
    tune(tmp_path, "data")
    answers = []
    for name in ("data", "other"):
        words = ["--dataset_dir", tmp_path / name, "--dataset", "Toy", "--output_dir", tmp_path / name / "out"]
        words += [*CLASSIFIER, "--eval", "--finetune", tmp_path / "out" / "checkpoint-best.pth"]
        call(run_class_finetuning, *words)
        run = read_run(tmp_path / name / "out" / "eval")
        answers.append((run["path"].parent / run["results"][0]["predictions"]).read_text())
    assert "T3 is read as T7" in capsys.readouterr().out
    assert answers[0] == answers[1]
