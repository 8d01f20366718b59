"""Tasks: the six published questions token for token, and YAML files whose mistakes are named with their cure."""

import json
import re

import pytest
from toy_eeg import write_toy

from dataset.tasks import BINARY_METRICS, MULTICLASS_METRICS, TASKS, Task, find_tasks, first_tokens_differ, load_tasks
from dataset.text import END_TOKEN, SEP_TOKEN, load_tokenizer
from dataset.windows import describe_tasks, open_tasks
from errors import UserError

GOOD = {
    "name": "mine",
    "question": "Is the subject asleep?",
    "answers": "[No, Yes, REM, REM sleep]",
    "dataset": "my_dataset",
}


@pytest.fixture
def write_task(tmp_path):
    """Write GOOD with some fields changed (None: left out) and lines added; returns the path."""

    def write(added="", **changed):
        fields = {key: value for key, value in (GOOD | changed).items() if value is not None}
        path = tmp_path / "task.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in fields.items()) + added)
        return path

    (tmp_path / "my_dataset").mkdir()
    return write


def test_the_six_tasks_are_the_published_tokens(golden):
    tokenizer, reference = load_tokenizer(), json.loads((golden / "tasks.json").read_text())
    assert set(reference) <= set(TASKS)
    for name, rows in reference.items():
        task = TASKS[name]
        assert task.n_classes == len(rows)
        for row in rows.values():
            tokens, positions = task.encode(tokenizer, row["label"])
            assert tokens == row["tokens"]
            assert positions == row["supervised_positions"]
            assert [tokens[position + 1] for position in positions] == row["supervised_tokens"]
            assert task.prompt(tokenizer) == row["prompt"]
            assert tokenizer.decode(tokens[1:]) == row["text"]


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_options_continue_the_prompt_and_read_back(task):
    tokenizer = load_tokenizer()
    prompt, options = task.prompt(tokenizer), task.options(tokenizer)
    assert prompt[0] == SEP_TOKEN and first_tokens_differ(task.options(tokenizer))
    for label, option in enumerate(options):
        assert option[-1] == END_TOKEN
        assert task.encode(tokenizer, label)[0] == prompt + option
        assert task.parse(tokenizer.decode(option)) == label
    assert task.metric_names == (BINARY_METRICS if task.n_classes == 2 else MULTICLASS_METRICS)


def test_answers_that_share_a_first_token_are_found():
    answers = ("sleep stage one", "sleep stage two")
    assert not first_tokens_differ(Task("x", "Which?", answers).options(load_tokenizer()))
    assert first_tokens_differ(Task("x", "Which?", answers, lettered=True).options(load_tokenizer()))


@pytest.mark.parametrize(
    "task, text, label",
    [
        (TASKS["TUAB"], " Yes <|endoftext|> No", 1),
        (TASKS["TUAB"], "no.", 0),
        (TASKS["TUAB"], " None", None),
        (TASKS["TUAB"], "", None),
        (TASKS["TUEV"], "F) ", 5),
        (TASKS["TUEV"], " (b)", 1),
        (TASKS["TUEV"], "G)", None),
        (TASKS["TUEV"], "Artifact", None),  # a word, not the letter A
        (Task("x", "Which?", ("REM", "REM sleep")), " REM sleep ", 1),
        (Task("x", "Which?", ("a+b", "c(d")), " a+b ", 0),
    ],
)
def test_free_answers_are_parsed_or_said_to_be_none(task, text, label):
    assert task.parse(text) == label


def test_a_yaml_task_keeps_the_words_as_written(write_task, tmp_path):
    (task,) = load_tasks([write_task("lettered: true\nmetrics: [kappa, accuracy]\n")])
    assert task.answers == ("No", "Yes", "REM", "REM sleep")  # YAML's own reading of No is the boolean false
    assert task.lettered is True and task.supervise_bracket is True
    assert task.metric_names == ("kappa", "accuracy")
    assert task.dataset == str(tmp_path / "my_dataset")


def test_names_and_files_load_in_the_order_asked_for(write_task):
    assert [task.name for task in load_tasks(["TUSL", write_task(), "TUAB"])] == ["TUSL", "mine", "TUAB"]
    with pytest.raises(UserError, match=r"unknown task 'TUHH': known are TUAB, TUEV.*\.yaml"):
        load_tasks(["TUHH"])
    for twice in (["TUAB", "TUAB"], ["TUAB", write_task(name="TUAB")]):
        with pytest.raises(UserError, match="two tasks are named 'TUAB'"):
            load_tasks(twice)


MISTAKES = [
    ({"added": "answer: x\n"}, "answer: is no field of a task; known are name, question"),
    ({"question": None}, "question: is missing; add it"),
    ({"dataset": None}, "dataset: is missing; add it"),
    ({"added": "name: other\n"}, "name: is written twice; keep one"),
    ({"name": "a/b"}, "name: 'a/b' must be of letters"),
    ({"name": ".."}, "name: '..' must be of letters"),
    ({"name": ""}, "name: must be a text, not ''"),
    ({"question": "[a, b]"}, "question: must be a text, not ['a', 'b']"),
    ({"question": "why " * 1000}, "question: is 1009 tokens with its options and longest answer, 960 fit; shorten it"),
    ({"answers": "No"}, "answers: must be a list of texts"),
    ({"answers": "{a: b}"}, "answers: must be a list of texts"),
    ({"answers": "[[a], b]"}, "answers: must be a list of texts"),
    ({"answers": "[a, '']"}, "answers: must be a list of texts"),
    ({"answers": "[Yes]"}, "answers: there are 1; give 2 to 26"),
    ({"answers": list(range(27))}, "answers: there are 27; give 2 to 26"),
    ({"answers": "[No, Yes, no]"}, "answers: 'No' is given twice (case does not count); make them differ"),
    ({"answers": "[' No', Yes]"}, "answers: ' No' begins or ends with a space; remove it"),
    ({"added": "lettered: maybe\n"}, "lettered: must be true or false, not 'maybe'"),
    ({"added": "supervise_bracket: [1]\n"}, "supervise_bracket: must be a text"),
    ({"added": "metrics: [f1]\n"}, "metrics: 'f1' is unknown; known are balanced_accuracy"),
    ({"added": "metrics: kappa\n"}, "metrics: must be a list of texts"),
    ({"added": "metrics: [auroc]\n"}, "metrics: auroc is for two answers, here are 4; use balanced_accuracy, kappa"),
    ({"dataset": "nowhere"}, "dataset: no folder nowhere or "),
    ({"added": "answers: [a\n"}, "is not valid YAML"),
]


@pytest.mark.parametrize("change, message", MISTAKES, ids=[message[:30] for _, message in MISTAKES])
def test_a_mistake_names_file_field_and_cure(write_task, change, message):
    path = write_task(**change)
    with pytest.raises(UserError) as caught:
        load_tasks([path])
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot be read"),
        (b"\xff\xfe\xff", "cannot be read"),
        (b"", "must be a mapping"),
        (b"- a", "must be a mapping"),
    ],
)
def test_a_file_that_is_no_task(tmp_path, content, message):
    path = tmp_path / "task.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {message}"):
        load_tasks([path])


def test_yaml_cannot_run_code(write_task, tmp_path):
    path = write_task(question=f"!!python/object/apply:os.system ['touch {tmp_path}/hacked']")
    with pytest.raises(UserError, match="question: must be a text"):
        load_tasks([path])
    assert not (tmp_path / "hacked").exists()


def test_labels_of_a_dataset_must_fit_the_answers():
    task = TASKS["TUSL"]
    for names in (["background", "seizure", "slowing"], ["bckg", "seiz", "slow"]):  # the latter are its maker's
        assert task.check_labels(names, "TUSL/dataset.yaml") == (0, 1, 2)
    own = Task("mine", "Asleep?", ("no", "yes"))
    assert own.check_labels(["wake", "sleep"], "mine/dataset.yaml") == (0, 1)  # other words are for the user to judge
    with pytest.raises(UserError, match="TUSL/dataset.yaml has labels .*one answer for each label"):
        task.check_labels(["bckg", "seiz"], "TUSL/dataset.yaml")
    assert task.check_labels(["Seizure", "background", "slowing"], "TUSL/dataset.yaml") == (1, 0, 2)
    with pytest.raises(UserError, match=r"labels \['a', 'b', 'c'\], and was made for \['bckg', 'seiz', 'slow'\]"):
        task.check_labels(["a", "b", "c"], "TUSL/dataset.yaml")


def make_dataset(folder, name, labels):
    folder.mkdir(parents=True)
    (folder / "manifest.csv").write_text("")
    (folder / "dataset.yaml").write_text(json.dumps({"name": name, "labels": labels}))  # JSON is YAML
    return folder


def test_tasks_find_their_datasets(tmp_path, write_task):
    tusl = make_dataset(tmp_path / "data" / "TUSL", "TUSL", ["bckg", "seiz", "slow"])
    workload = make_dataset(tmp_path / "data" / "eegmat", "Workload", ["rest", "arithmetic"])
    make_dataset(tmp_path / "data" / "other", "other", ["a", "b"])
    assert find_tasks(tmp_path / "data") == {TASKS["Workload"]: workload, TASKS["TUSL"]: tusl}
    assert find_tasks(tmp_path / "data", ["TUSL"]) == {TASKS["TUSL"]: tusl}
    with pytest.raises(UserError, match=r"task HMC: no dataset HMC under .*data, which holds .*make_HMC\.py"):
        find_tasks(tmp_path / "data", ["HMC"])
    with pytest.raises(UserError, match=r"other.*none of the known tasks \(TUAB"):
        find_tasks(tmp_path / "data" / "other")
    (tmp_path / "my_dataset").rmdir()
    make_dataset(tmp_path / "my_dataset", "mine", ["no", "yes"])
    with pytest.raises(UserError, match=r"task mine has answers .*my_dataset/dataset\.yaml has labels \['no', 'yes'\]"):
        find_tasks(tmp_path / "data", [write_task()])
    for dataset_dir in (tmp_path / "data", tmp_path / "nowhere"):  # own tasks need no --dataset_dir
        (task,) = find_tasks(dataset_dir, [write_task(answers="[No, Yes]")])
        assert task.dataset == str(tmp_path / "my_dataset")
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_tasks(tmp_path / "nowhere", ["TUSL", write_task(answers="[No, Yes]")])


def test_a_task_needs_labelled_windows(tmp_path):
    task = Task("mine", "Asleep?", ("no", "yes"))
    folders = {task: write_toy(tmp_path / "unlabelled", splits=(("test", 1),))}
    with pytest.raises(UserError, match=r"task mine: .*unlabelled has no labelled windows in split 'test'"):
        open_tasks(folders, "test")
    with pytest.raises(UserError, match=r"unlabelled has no recordings in split 'train'"):
        open_tasks(folders, "train")


def test_a_checkpoint_remembers_its_tasks(tmp_path):
    folder = write_toy(tmp_path / "toy", ("C3", "C4", "O1"), 20, (("train", 2),), window=5)
    task = Task("mine", "Asleep?", ("no", "yes"), metrics=("accuracy",), dataset="elsewhere")
    (row,) = describe_tasks(open_tasks({task: folder}, "train"))
    assert row["seconds"] == 5 and row["channels"] == ["C3", "C4", "O1"] and row["dataset"] is None
    assert (row["name"], row["answers"], row["metrics"]) == ("mine", ("no", "yes"), ("accuracy",))
