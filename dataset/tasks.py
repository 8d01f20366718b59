"""Downstream tasks as rows of data: a question about an EEG window, its answers, and how they become tokens.

After the separator a row reads `Question: <question> Answer: <answer> <end>` or, lettered,
`Question: <question> Options: (A) <answer>. (B) <answer>. Answer: (<letter>) <end>` (NeuroLM, multi-task instruction
tuning). A label is a position in `answers`.
"""

import dataclasses
import re
import string
from dataclasses import dataclass, replace
from pathlib import Path

from dataset.descriptions import check_name, read_yaml
from dataset.labels import match_labels
from dataset.recordings import describe_dataset, find_datasets, places
from dataset.text import load_tokenizer
from errors import UserError

BINARY_METRICS = ("balanced_accuracy", "auc_pr", "auroc", "accuracy")
MULTICLASS_METRICS = ("balanced_accuracy", "kappa", "weighted_f1", "accuracy")
TWO_CLASS_ONLY = ("auc_pr", "auroc", "auc_pr_hard", "auroc_hard")  # hard: of the answers, not of their probabilities
METRICS = tuple(dict.fromkeys(BINARY_METRICS + MULTICLASS_METRICS + TWO_CLASS_ONLY))
MAX_TOKENS = 1024 - 64  # GPT-2 has 1024 positions, a window up to 64 seconds, and text follows the seconds


@dataclass(frozen=True)
class Task:
    """One question put to EEG windows, its answers in label order."""

    name: str
    question: str
    answers: tuple[str, ...]
    lettered: bool = False
    supervise_bracket: bool = True  # lettered answers: the "(" counts in the loss too
    dataset: str | None = None  # a folder; None: the one called `name` under --dataset_dir
    metrics: tuple[str, ...] | None = None  # None: the papers' four for this number of answers
    labels: tuple[str, ...] | None = None  # the dataset's names for the answers; None: the answers, or by place

    @property
    def n_classes(self) -> int:
        """Number of answers."""
        return len(self.answers)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Metrics to report, in the order of the papers' tables."""
        return self.metrics or (BINARY_METRICS if self.n_classes == 2 else MULTICLASS_METRICS)


    def prompt(self, tokenizer) -> list[int]:
        """Tokens that the model is given before it answers; a lettered one ends with the bracket."""
        text = f"Question: {self.question} "
        if self.lettered:
            options = zip(string.ascii_uppercase, self.answers, strict=False)
            text += "Options: " + "".join(f"({letter}) {answer}. " for letter, answer in options)
        return [tokenizer.separator, *tokenizer.encode(text + ("Answer: (" if self.lettered else "Answer:"))]

    def options(self, tokenizer) -> list[list[int]]:
        """For each label the tokens that follow the prompt, up to and including the end token. Raises UserError where
        the tokenizer takes two answers for one."""
        if self.lettered:
            texts = [f"{letter}) " for letter in string.ascii_uppercase[: self.n_classes]]
        else:
            texts = [f" {answer} " for answer in self.answers]
        options = [[*tokenizer.encode(text), tokenizer.end] for text in texts]
        if len(set(map(tuple, options))) < len(options):
            raise UserError(f"task {self.name}: {tokenizer.name} reads two of its answers as the same: {self.answers}")
        return options

    def encode(self, tokenizer, label: int) -> tuple[list[int], list[int]]:
        """Tokens of question and answer, and the supervised positions: those whose next token counts in the loss."""
        prompt = self.prompt(tokenizer)
        tokens = prompt + self.options(tokenizer)[label]
        first = len(prompt) - (2 if self.lettered and self.supervise_bracket else 1)
        return tokens, list(range(first, len(tokens) - 1))

    def parse(self, text: str) -> int | None:
        """Label of a freely generated answer (what follows the prompt), None where it is none of the answers."""
        said = text.split("<|endoftext|>")[0].strip().casefold()
        names = string.ascii_uppercase[: self.n_classes] if self.lettered else self.answers
        bracket = r"\(?" if self.lettered else ""
        patterns = [rf"{bracket}{re.escape(name.casefold())}(?!\w)" for name in names]
        found = [label for label, pattern in enumerate(patterns) if re.match(pattern, said)]
        return max(found, key=lambda label: len(names[label]), default=None)  # "REM sleep" beats "REM"

    def check_labels(self, label_names, source) -> tuple[int, ...]:
        """For each label of a dataset, by its name, the answer that it is; `source` names the dataset.

        A task without `labels` takes names that are no answers by their place. Raises UserError for another number of
        labels, and for names that the task was not made for.
        """
        names, answers = list(label_names), list(self.answers)
        said = f"task {self.name} has answers {answers}, but {source} has labels {names}"
        if len(names) != len(answers):
            raise UserError(f"{said}: give one answer for each label, in label order")
        for wanted in (self.labels or answers, answers):
            places = match_labels(names, wanted)
            if places is not None:
                return places
        if self.labels:
            raise UserError(f"{said}, and was made for {list(self.labels)}: name the labels so, or write an own task")
        return tuple(range(len(names)))


TASKS = {
    task.name: task
    for task in (
        Task("TUAB", "Is this EEG segment abnormal?", ("No", "Yes"), labels=("normal", "abnormal")),
        Task("TUEV", "Which event type does this EEG segment belong to?",
             ("spike and slow wave", "generalized periodic epileptiform discharge",
              "periodic lateralized epileptiform discharge", "eye movement", "artifact", "background"),
             lettered=True, labels=("spsw", "gped", "pled", "eyem", "artf", "bckg")),
        Task("SEED", "Which emotion type does this EEG segment belong to?", ("Positive", "Neutral", "Negative")),
        Task("HMC", "Which sleep type does this EEG segment belong to?",
             ("Wake", "NREM-1", "NREM-2", "NREM-3", "REM"), lettered=True, labels=("W", "N1", "N2", "N3", "R")),
        Task("Workload", "Is this EEG segment of high workload?", ("No", "Yes"), labels=("rest", "arithmetic")),
        Task("TUSL", "Which type does this EEG segment belong to?", ("background", "seizure", "slowing"),
             lettered=True, supervise_bracket=False, labels=("bckg", "seiz", "slow")),
        # of this project: sets that anyone can have
        Task("MotorImagery", "Which hand does the subject imagine moving?", ("left", "right")),
        Task("ADHD", "Is this EEG segment of a child with ADHD?", ("No", "Yes")),
    )
}  # fmt: skip


def first_tokens_differ(options: list[list[int]]) -> bool:
    """True where the first token tells the answers of `Task.options` apart, so that scoring needs no other."""
    return len({option[0] for option in options}) == len(options)


REQUIRED = ("name", "question", "answers", "dataset")
LISTS, FLAGS = ("answers", "metrics", "labels"), ("lettered", "supervise_bracket")
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")


def load_tasks(names, max_tokens: int = MAX_TOKENS, with_dataset: bool = True) -> list[Task]:
    """Tasks by name (a row of TASKS) or by the path of a YAML file with a Task's fields, in the order asked for.

    with_dataset: the dataset folder that a file names must be there.
    Raises UserError for an unknown name, two tasks of one name, and a mistake in a file, naming file, field and cure.
    """
    tasks = {}
    for name in names:
        is_file = str(name).endswith((".yaml", ".yml"))
        if not is_file and name not in TASKS:
            raise UserError(
                f"unknown task {str(name)!r}: known are {', '.join(TASKS)}; your own is a path of a .yaml file"
            )
        task = read_task(name, max_tokens, with_dataset) if is_file else TASKS[name]
        if task.name in tasks:
            raise UserError(f"two tasks are named {task.name!r} (the second from {name}): rename or remove one")
        tasks[task.name] = task
    return list(tasks.values())


def find_tasks(dataset_dir, names=None) -> dict[Task, Path]:
    """The tasks asked for, or every row of TASKS with a dataset under `dataset_dir` (one, or a list), and its folder.

    A known task's folder is `dataset_dir/<name>`, or `dataset_dir` itself where that is the dataset of this name; a
    task of a YAML file names its own.
    Raises UserError for a task without its dataset, labels that do not fit the answers, and when there is no task.
    """
    tasks = load_tasks(names) if names else []
    needed = not tasks or any(task.dataset is None for task in tasks)
    found = find_datasets(dataset_dir) if needed else ()
    folders = {describe_dataset(folder)["name"]: folder for folder in found} | {folder.name: folder for folder in found}
    where = " and ".join(map(str, places(dataset_dir)))
    tasks = tasks or [task for name, task in TASKS.items() if name in folders]
    if not tasks:
        raise UserError(
            f"{where} holds {', '.join(folders)}, none of the known tasks ({', '.join(TASKS)}); make one with "
            "dataset_maker/make_<task>.py, or describe your own in YAML: --tasks my_task.yaml"
        )
    chosen = {}
    for task in tasks:
        if task.dataset is None and task.name not in folders:
            raise UserError(
                f"task {task.name}: no dataset {task.name} under {where}, which holds {', '.join(folders)}; "
                f"make it with dataset_maker/make_{task.name}.py"
            )
        folder = Path(task.dataset) if task.dataset else folders[task.name]
        labels = describe_dataset(folder)["labels"]
        if labels:
            task.check_labels(labels, folder / "dataset.yaml")
        chosen[task] = folder
    return chosen


def read_task(path, max_tokens: int = MAX_TOKENS, with_dataset: bool = True) -> Task:
    """The task of a YAML file, see `load_tasks`; UserError names the file, the field and the cure."""
    path = Path(path)
    task = make_task(_read_fields(path), path, max_tokens)
    return replace(task, dataset=_find_dataset(path, task.dataset) if with_dataset else None)


def _read_fields(path) -> dict:
    fields = read_yaml(path, as_text=True)  # as written, so that the answer No is not the boolean False
    if not isinstance(fields, dict):
        raise UserError(f"{path}: must be a mapping of fields: {', '.join(REQUIRED)} and the optional ones")
    return fields


def make_task(fields: dict, source, max_tokens: int = MAX_TOKENS) -> Task:
    """The task of these fields, as they are in a file; UserError names `source`, the field and the cure."""
    problem = _find_problem(fields)
    if problem:
        raise UserError(f"{source}: {problem}")
    lists = {field: tuple(fields[field]) for field in LISTS if field in fields}
    flags = {field: fields[field].casefold() in TRUE for field in FLAGS if field in fields}
    task = Task(**(fields | lists | flags))
    tokenizer = load_tokenizer()
    length = len(task.prompt(tokenizer)) + max(map(len, task.options(tokenizer)))
    if length > max_tokens:
        raise UserError(
            f"{source}: question: is {length} tokens with its options and longest answer, {max_tokens} fit; shorten it"
        )
    return task


def task_of(row, source: str) -> Task:
    """The task of a row that `dataset.windows.describe_tasks` put into a checkpoint. Raises UserError, naming `source`,
    for fields of another type and a name that no file can have."""
    kinds = {"name": str, "question": str, "answers": list | tuple, "lettered": bool, "supervise_bracket": bool}
    kinds |= {"dataset": str | None, "metrics": list | tuple | None, "seconds": int, "channels": list | tuple}
    wrong = [name for name, kind in kinds.items() if not isinstance(row, dict) or not isinstance(row.get(name), kind)]
    if not wrong:
        check_name(row["name"], f"{source}, the name of a task")
        lists = {name: row[name] or () for name in ("answers", "metrics", "channels")}
        wrong = [name for name, items in lists.items() if not all(isinstance(item, str) for item in items)]
        wrong += ["answers"] * (len(lists["answers"]) < 2)
        wrong += ["metrics"] * (not set(lists["metrics"]) <= set(METRICS))
    if wrong:
        raise UserError(f"{source}: the tasks in it are damaged ({', '.join(wrong)}); name your own with --tasks")
    values = {field.name: row.get(field.name) for field in dataclasses.fields(Task)}  # older ones lack `labels`
    return Task(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _find_problem(fields: dict) -> str | None:
    """The first mistake in a task's fields as "field: what is wrong; cure"; None where there is none."""
    known = [field.name for field in dataclasses.fields(Task)]
    for field in fields:
        if field not in known:
            return f"{field[:80]}: is no field of a task; known are {', '.join(known)}"
    for field in REQUIRED:
        if field not in fields:
            return f"{field}: is missing; add it"
    for field, value in fields.items():
        if field in LISTS:
            if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
                return f"{field}: must be a list of texts, such as [first, second]"
        elif not isinstance(value, str) or not value.strip():
            return f"{field}: must be a text, not {repr(value)[:80]}"
    for field in FLAGS:
        if fields.get(field, "true").casefold() not in TRUE + FALSE:
            return f"{field}: must be true or false, not {fields[field][:80]!r}"
    if not re.fullmatch(r"\w[\w.-]{,99}", fields["name"]):
        name = fields["name"][:80]
        return f"name: {name!r} must be of letters, digits, '_', '-' and '.', 100 at most: files get this name"
    if len(fields.get("labels", fields["answers"])) != len(fields["answers"]):
        return "labels: must be as many as the answers, in their order"
    return _find_answer_problem(fields["answers"], fields.get("metrics", ()))


def _find_answer_problem(answers: list[str], metrics: list[str]) -> str | None:
    if not 2 <= len(answers) <= len(string.ascii_uppercase):
        return f"answers: there are {len(answers)}; give 2 to {len(string.ascii_uppercase)}"
    folded = [answer.casefold() for answer in answers]
    for answer in answers:
        if answer != answer.strip():
            return f"answers: {answer!r} begins or ends with a space; remove it"
        if folded.count(answer.casefold()) > 1:
            return f"answers: {answer!r} is given twice (case does not count); make them differ"
    for metric in metrics:
        if metric not in METRICS:
            return f"metrics: {metric!r} is unknown; known are {', '.join(METRICS)}"
        if metric in TWO_CLASS_ONLY and len(answers) != 2:
            return f"metrics: {metric} is for two answers, here are {len(answers)}; use {', '.join(MULTICLASS_METRICS)}"
    return None


def _find_dataset(path: Path, dataset: str) -> str:
    """The dataset folder of a task file: as given, else beside the file."""
    tried = [Path(dataset).expanduser(), path.parent / dataset]
    for folder in tried:
        if folder.is_dir():
            return str(folder)
    raise UserError(f"{path}: dataset: no folder {' or '.join(str(folder) for folder in tried)}; correct the path")
