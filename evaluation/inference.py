"""Ask a NeuroLM or a LaBraM classifier about a recording that is in no dataset: its windows, features and answers.

C channels · T samples · W windows · A answers · D width of the features
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from dataset.batches import collate_eeg, collate_montage
from dataset.channels import STANDARD_1020, channel_rows
from dataset.labels import in_order, match_labels, trained_classes
from dataset.tasks import Task, load_tasks, task_of
from dataset.windows import LABRAM_ROWS, MAX_SECONDS, MICROVOLTS, RATE
from dataset_maker.machinery.preprocessing import CleanEEG
from errors import UserError
from evaluation.answers import choose_scoring, is_among, make_predict
from evaluation.metrics import most_likely
from model.labram import Classifier, class_probabilities
from model.neurolm import NeuroLM
from model.weights import read_checkpoint
from training.loading import to_device


@dataclass(frozen=True)
class Question:
    """A task, and the windows that it was learnt on."""

    task: Task
    seconds: int
    channels: tuple[str, ...] | None = None  # None: not known
    trained: bool = True  # the model has learnt this task
    said: str = ""  # of answers that are in another order than they were trained in


def load_model(kind: type, path, names=None, seconds=None) -> tuple[NeuroLM | Classifier, list[Question]]:
    """A trained model, and what to ask it: the tasks `names` (also YAML files), else those it was trained on.

    kind: NeuroLM, or Classifier for a LaBraM, which knows its one task only; seconds: of a window; default: as in the
    training. Raises UserError when the checkpoint does not say, or for a window that is too long, and where the answers
    of a classifier's task are not its classes.
    """
    checkpoint = read_checkpoint(path)
    model = kind.from_checkpoint(checkpoint, str(path))
    if names and kind is Classifier:
        raise UserError(f"--tasks: {path} is a classifier, it knows nothing but {', '.join(checkpoint['classes'])}")
    described = checkpoint.get("tasks", [])
    if not isinstance(described, list):
        raise UserError(f"{path}: its tasks are a {type(described).__name__}, expected a list")
    learnt = [task_of(row, str(path)) for row in described]
    trained = {row["name"]: row for row in described}
    if not names and not trained:
        raise UserError(f"{path} does not say which tasks it was trained on: name them, --tasks TUAB my_task.yaml")
    tasks = load_tasks(names, with_dataset=False) if names else learnt
    questions = []
    for task in tasks:
        row = trained.get(task.name, {})
        length = seconds or row.get("seconds")
        if length is None:
            raise UserError(f"{path} does not say how long the windows of task {task.name} were: give --window SECONDS")
        if not 1 <= length <= MAX_SECONDS:
            raise UserError(f"--window {length}: windows have 1 to {MAX_SECONDS} seconds")
        channels = tuple(row["channels"]) if row else None
        learnt = is_among(task, trained.values())
        given = trained_classes(checkpoint, path) if kind is Classifier else row.get("answers", task.answers)
        task, said = _in_order(task, tuple(given), path, must=kind is Classifier)
        questions.append(Question(task, length, channels, learnt, said))
    return model, questions


def _in_order(task: Task, answers: tuple[str, ...], source, must: bool) -> tuple[Task, str]:
    """The task with its answers in the order that a model was trained on, and a sentence where that is another one."""
    places = match_labels(task.answers, answers)
    if places is None and must:
        raise UserError(f"{source}: its task has answers {list(task.answers)}, its classes are {list(answers)}")
    if places is None or in_order(places):
        return task, ""
    return replace(task, answers=answers), f"task {task.name}: its answers are in the order of {source}"


def choose_channels(clean: CleanEEG, wanted) -> tuple[CleanEEG, str]:
    """The recording with the `wanted` channels that it has, in their order (None: as it is), and a sentence on others.

    Raises UserError when it has none of them.
    """
    if wanted is None:
        return clean, ""
    common = tuple(channel for channel in wanted if channel in clean.channels)
    missing = [channel for channel in wanted if channel not in clean.channels]
    extra = [channel for channel in clean.channels if channel not in wanted]
    if not common:
        raise UserError(
            f"it has none of the channels that the model was trained on ({', '.join(wanted)}), but "
            f"{', '.join(clean.channels)}: name their places in an alias file, --aliases"
        )
    said = [f"without {', '.join(missing)}, which the model was trained on"] if missing else []
    said += [f"not used, as unknown to the model: {', '.join(extra)}"] if extra else []
    eeg = clean.eeg[[clean.channels.index(channel) for channel in common]]
    return replace(clean, channels=common, eeg=eeg), "; ".join(said)


def group_questions(clean: CleanEEG, questions: list[Question], wanted, answer_by: str) -> list[tuple]:
    """Questions about the same windows together -> rows of (recording with their channels, seconds, [(task, way to
    answer it, sentences on both)]); wanted: channels of all, None: those that each question was learnt on."""
    rows = {}
    for question in questions:
        chosen, said = choose_channels(clean, None if wanted else question.channels)
        way, scored = choose_scoring(question.task, question.trained, answer_by)
        row = rows.setdefault((question.seconds, chosen.channels), (chosen, question.seconds, []))
        row[2].append((question.task, way, [note for note in (said, scored) if note]))
    return list(rows.values())


def cut(clean: CleanEEG, seconds: int, stride: float | None = None) -> list[dict]:
    """Windows of a recording every `stride` seconds (default: end to end) as samples, see `dataset.windows.Windows`.

    Raises UserError when the recording is shorter than one window.
    """
    length, step = seconds * RATE, round((stride or seconds) * RATE)
    if step < 1:
        raise UserError(f"--stride {stride:g}: must be above 0 seconds")
    starts = range(0, clean.eeg.shape[1] - length + 1, step)
    if not starts:
        raise UserError(f"too short: {clean.eeg.shape[1] / RATE:.1f} s, a window has {seconds} s")
    scaled, rows = clean.eeg / np.float32(MICROVOLTS), channel_rows(clean.channels)
    about = {"rows": rows, "label": -1, "file": ""}
    return [about | {"eeg": scaled[:, start : start + length], "index": i} for i, start in enumerate(starts)]


def ask(model: NeuroLM | Classifier, task: Task, windows: list[dict], batch_size: int, run, answer_by: str = "score"):
    """One task of `ask_all` -> probabilities (W, A), features (W, D)."""
    (probabilities,), features = ask_all(model, [(task, answer_by)], windows, batch_size, run)
    return probabilities, features


@torch.no_grad()
def ask_all(model: NeuroLM | Classifier, asked: list[tuple[Task, str]], windows: list[dict], batch_size: int, run):
    """Answers to tasks, each with the way to answer it, and features of windows (of `cut`), which are read once for all
    tasks -> list of probabilities (W, A) float64, features (W, D) float32.

    Features are the mean over the tokens of what NeuroLM's tokenizer makes of a window, or what LaBraM's head reads.
    Raises UserError for channels and answers that LaBraM does not have, and where windows, features or answers are not
    finite.
    """
    if isinstance(model, Classifier):
        _check_classifier(windows, *(way for _, way in asked))
        collate, read = collate_montage, partial(_classify, model)
    else:
        predicts = [make_predict(model, task, run, way) for task, way in asked]
        collate, read = collate_eeg, partial(_answer, model, predicts)
    model.eval()
    _check_finite("the recording is not finite", [window["eeg"] for window in windows])
    found, features = [], []
    for start in range(0, len(windows), batch_size):
        batch = to_device(collate(windows[start : start + batch_size]), run.device)
        with run.autocast():
            answers, pooled = read(batch)
        found.append([part.double().cpu().numpy() for part in answers])
        features.append(pooled.float().cpu().numpy())
    probabilities, features = [np.concatenate(parts) for parts in zip(*found, strict=True)], np.concatenate(features)
    for part in (*probabilities, features):
        _check_finite("the model gives no finite answer (its weights diverged, or take --dtype float32)", part)
    return probabilities, features


def _check_finite(problem: str, values) -> None:
    """Raise UserError where the values of a window are not finite."""
    broken = [i for i, value in enumerate(values) if not np.isfinite(value).all()]
    if broken:
        raise UserError(f"{problem} in {len(broken)} of {len(values)} windows, the first is number {broken[0]}")


def _check_classifier(windows: list[dict], answer_by: str) -> None:
    if answer_by != "score":
        raise UserError(f"--answer_by {answer_by}: a LaBraM classifier cannot write, nor score texts")
    beyond = [STANDARD_1020[row] for row in windows[0]["rows"] if row >= LABRAM_ROWS]
    if beyond:
        raise UserError(f"LaBraM has no position for channel {', '.join(beyond)}: choose others with --channels")


def _answer(model: NeuroLM, predicts, batch):
    tokens = model.tokenizer(batch["x"], batch["chans"], batch["time"], batch["valid"])
    batch |= {"features": model.encode(batch, tokens)}
    if len(predicts) > 1:
        batch |= {"memory": model.read(batch)[1]}  # of the EEG, which every question follows
    return [predict(batch)[2] for predict in predicts], tokens.mean(1)  # windows of one recording: nothing is padded


def _classify(model: Classifier, batch):
    pooled = model.pool(batch["x"], batch["chans"])
    return [class_probabilities(model.head(pooled))], pooled


def answer_table(task: Task, probabilities: np.ndarray, starts: np.ndarray, seconds: int) -> pd.DataFrame:
    """A row for each window: start, stop (s), the answer ("" where the model wrote none of them), and p_<answer>."""
    answered = probabilities.sum(1) > 0
    best = [task.answers[label] if ok else "" for label, ok in zip(most_likely(probabilities), answered, strict=True)]
    table = pd.DataFrame({"start": starts, "stop": starts + seconds, "answer": best})
    for answer, column in zip(task.answers, probabilities.T, strict=True):
        table[f"p_{answer}"] = column
    return table


def summarize(task: Task, table: pd.DataFrame) -> str:
    """One line: the answer that is most likely on average, and the share and mean probability of each."""
    means = [table[f"p_{answer}"].mean() for answer in task.answers]
    if not any(means):
        return f"{task.question} none of the answers, in any window"
    shares = [(table["answer"] == answer).mean() for answer in task.answers]
    rows = zip(task.answers, means, shares, strict=True)
    said = ", ".join(f"{answer} {mean:.3f} ({share:.0%} of the windows)" for answer, mean, share in rows)
    return f"{task.question} {task.answers[most_likely(np.array([means]))[0]]}  [mean probability: {said}]"
