"""Ask a NeuroLM or a LaBraM classifier about EEG that is in no dataset: its features and answers.

    model = load("runs/neurolm/checkpoints/instruction-B/ckpt-best.pt")
    model.features(raw)
    model.answer(raw)

C channels · E epochs · T samples · W windows · A answers · D width of the features
"""

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch

from dataset.channels import load_aliases
from dataset.labels import in_order, match_labels, trained_classes
from dataset.tasks import Task, load_tasks, make_task, task_of
from dataset.windows import MAX_SECONDS, RATE
from dataset_maker.machinery.preprocessing import CleanEEG
from errors import UserError
from evaluation.answers import choose_scoring, is_among, make_predict
from evaluation.metrics import most_likely
from evaluation.reading import Cut, batches, choose_channels, cut, extract, fill, read_eeg, stored_filters
from model.labram import Classifier, class_probabilities
from model.neurolm import NeuroLM
from model.weights import read_checkpoint
from training.padding import QUESTION_TOKENS, choose_padding
from training.screening import check_calibration
from utils import Run, choose_device, choose_dtype

UNTRAINED = "the model was not trained on this question: its answers are a guess until they are tested"


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
    check_calibration(checkpoint, path)
    model = kind.from_checkpoint(checkpoint, str(path))
    if names and kind is Classifier:
        classes = checkpoint.get("classes", ["classes that it does not name"])
        raise UserError(f"--tasks: {path} is a classifier, it knows nothing but {', '.join(classes)}")
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
        length = row.get("seconds") if seconds is None else seconds
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


def group_questions(clean: CleanEEG, questions: list[Question], wanted, answer_by: str, model=None) -> list[tuple]:
    """Questions about the same windows together -> rows of (channels, seconds, [(question, way to answer it, sentences
    on both)]); wanted: channels of all, None: those that each question was learnt on; model: who is asked."""
    rows = {}
    for question in questions:
        channels, missing = choose_channels(clean, None if wanted else question.channels)
        way, scored = choose_scoring(question.task, question.trained, answer_by, model)
        asked = rows.setdefault((tuple(channels), question.seconds), [])
        asked.append((question, way, [*filter(None, (missing, scored))]))
    return [(channels, seconds, asked) for (channels, seconds), asked in rows.items()]


def ask(model: NeuroLM | Classifier, task: Task, windows: Sequence, batch_size: int, run, answer_by: str = "score"):
    """One task of `ask_all` -> probabilities (W, A), features (W, D)."""
    (probabilities,), features = ask_all(model, [(task, answer_by)], windows, batch_size, run)
    return probabilities, features


@torch.no_grad()
def ask_all(model: NeuroLM | Classifier, asked: list[tuple[Task, str]], windows: Sequence, batch_size: int, run,
            progress=iter):  # fmt: skip
    """Answers to tasks, each with the way to answer it, and features of windows (of `cut`), which are read once for all
    tasks -> list of probabilities (W, A) float64, features (W, D) float32.

    Features are the mean over the tokens of what NeuroLM's tokenizer makes of a window, or what LaBraM's head reads.
    progress: around the batches. Raises UserError for channels and answers that LaBraM does not have, and where
    windows, features or answers are not finite.
    """
    if isinstance(model, Classifier):
        for way in (way for _, way in asked if way != "score"):
            raise UserError(f"--answer_by {way}: a LaBraM classifier cannot write, nor score texts")
        read = partial(_classify, model)
    else:
        read = partial(_answer, model, [make_predict(model, task, run, way) for task, way in asked])
    whole, *probabilities, features = fill(_read_all(read, batches(model, windows, batch_size, run, progress), run),
                                           len(windows))  # fmt: skip
    _check_finite("the recording is not finite", whole)
    for values in (*probabilities, features):
        _check_finite(
            "the model gives no finite answer (its weights diverged, or take --dtype float32)",
            np.isfinite(values).all(1),
        )
    return probabilities, features


def _read_all(read, given, run):
    """For each batch whether its windows are finite, the probabilities of each task, the features."""
    for batch in given:
        with run.autocast():
            answers, pooled = read(batch)
        finite = batch["x"].isfinite().flatten(1).all(1)
        yield [part.cpu().numpy() for part in (finite, *(answer.double() for answer in answers), pooled.float())]


def _check_finite(problem: str, whole) -> None:
    """Raise UserError where the values of a window are not finite."""
    broken = np.flatnonzero(np.logical_not(whole))
    if len(broken):
        raise UserError(f"{problem} in {len(broken)} of {len(whole)} windows, the first is number {broken[0]}")


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


# ------------------------------------------------------------------------------------------------------ in a notebook


class TrainedModel:
    """A model and what is known of its training; see `load`.

    Its methods take EEG as a path, an MNE Raw or Epochs, an array (C, T) or (E, C, T) with ch_names, sfreq (Hz) and
    unit (uV, mV, V or raw:FACTOR), or what `read` made of these. A recording is cut into windows as long as in the
    training, an epoch is a window. What a reader should know, such as channels left out, is a warning.
    """

    def __init__(self, model, questions: list[Question], checkpoint: dict, source: str, seconds, batch_size: int, run):
        """seconds: of a window; None: as in the training, if it is known."""
        self.model, self.questions, self.source, self.batch_size, self.run = model, questions, source, batch_size, run
        self.band, self.notch, self.unsure = stored_filters(checkpoint, source)
        learnt = questions[0] if questions else Question(None, seconds)
        self.usual = replace(learnt, seconds=learnt.seconds if seconds is None else seconds)

    def read(self, eeg, ch_names=None, sfreq=None, unit=None, *, clean=False, notch=None, aliases=None) -> CleanEEG:
        """The EEG filtered as in the training, at 200 Hz in uV, to be given to the other methods.

        clean: it is filtered already; notch: mains frequency in Hz, 0: none, default: as in the training; aliases:
        path of a YAML file of channel names and their places. Raises UserError for what is no EEG.
        """
        if isinstance(eeg, CleanEEG):
            return eeg
        given = {"band": None if clean else self.band, "notch": self.notch if notch is None else notch}
        found = read_eeg(eeg, ch_names, sfreq, unit, **given, aliases=load_aliases(aliases) if aliases else None)
        _warn(found.notes + (self.unsure,) * (notch is None and not clean and bool(self.unsure)))
        return found

    def features(self, eeg, ch_names=None, sfreq=None, unit=None, *, level="tokenizer", layer=-1, pool="mean",
                 stride=None, **reading) -> np.ndarray:  # fmt: skip
        """Features of each window -> (W, D) float32; pool="channels": (W, C, D), None: (W, C, S, D).

        level, layer, pool: see `evaluation.reading.extract`; channels are in the order of the training; stride:
        seconds from window to window; reading: of `read`.
        """
        windows = self._cut(self.read(eeg, ch_names, sfreq, unit, **reading), self.usual, stride)
        return extract(self.model, windows, self.batch_size, self.run, level, layer, pool)

    def answer(self, eeg, ch_names=None, sfreq=None, unit=None, *, stride=None, answer_by="score", **reading):
        """The answers to all questions of the training -> a table with a row for each question and window: task,
        start, stop (s), or epoch, answer, and p_<answer>."""
        if not self.questions:
            raise UserError(f"{self.source} does not say what it was trained on: ask(), or load(..., tasks=[...])")
        clean = self.read(eeg, ch_names, sfreq, unit, **reading)
        tables = [self._tabulate(clean, question, stride, answer_by) for question in self.questions]
        return pd.concat(tables, ignore_index=True)

    def ask(self, eeg, question: str, answers, ch_names=None, sfreq=None, unit=None, *, stride=None,
            answer_by="score", **reading):  # fmt: skip
        """As `answer`, to a question of your own, with a warning where the model was not trained on it."""
        if isinstance(self.model, Classifier):
            known = ", ".join(self.questions[0].task.answers)
            raise UserError(f"{self.source} is a classifier, it knows nothing but {known}")
        listed = answers if isinstance(answers, str) else list(answers)
        fields = {"name": "own", "question": question, "answers": listed, "dataset": "none"}
        task = replace(make_task(fields, "ask()"), dataset=None)
        learnt = [known for known in self.questions if known.trained and is_among(task, [vars(known.task)])]
        chosen = learnt[0] if learnt else replace(self.usual, task=task, trained=False, said="")
        return self._tabulate(self.read(eeg, ch_names, sfreq, unit, **reading), chosen, stride, answer_by)

    def _cut(self, clean: CleanEEG, question: Question, stride) -> Cut:
        if question.seconds is None and clean.epoch is None:
            raise UserError(f"{self.source} does not say how long its windows were: load(..., window=SECONDS)")
        channels, said = choose_channels(clean, question.channels)
        windows = cut(clean, question.seconds, stride, channels)
        notes = [said] if said else []
        if clean.epoch and clean.epoch % RATE:
            notes.append(f"epochs of {clean.epoch / RATE:g} s are cut to {windows.seconds}: windows have whole seconds")
        if question.seconds not in (None, windows.seconds):
            notes.append(f"windows of {windows.seconds} s, not of {question.seconds} s as in the training")
        _warn(notes)
        return windows

    def _tabulate(self, clean: CleanEEG, question: Question, stride, answer_by) -> pd.DataFrame:
        task, windows = question.task, self._cut(clean, question, stride)
        way, scored = choose_scoring(task, question.trained, answer_by, self.model)
        _warn(filter(None, (question.said, scored, "" if question.trained else f"{task.question} {UNTRAINED}")))
        probabilities, _ = ask(self.model, task, windows, self.batch_size, self.run, way)
        table = answer_table(task, probabilities, np.array(windows.starts) / RATE, windows.seconds)
        if clean.epoch:
            table = table.drop(columns=["start", "stop"])
            table.insert(0, "epoch", range(len(table)))
        table.insert(0, "task", task.name)
        return table


def _warn(sentences) -> None:
    for sentence in sentences:
        level = next(i for i, frame in enumerate(inspect.stack(0), start=1) if frame.filename != __file__)
        warnings.warn(sentence, stacklevel=level)  # at the line that called us


def load(path, *, tasks=None, window=None, device="auto", dtype="auto", batch_size=64, official_padding=None):
    """A trained NeuroLM or LaBraM classifier for a notebook -> TrainedModel; the checkpoint says which it is.

    tasks: names, or YAML files of own ones, default: those of the training; window: seconds, default: as in the
    training; official_padding: for released NeuroLMs, see docs/differences.md. Raises UserError.
    """
    checkpoint = read_checkpoint(path)
    kind = Classifier if "classes" in checkpoint else NeuroLM
    if window is not None and window not in range(1, MAX_SECONDS + 1):
        raise UserError(f"window={window}: windows have 1 to {MAX_SECONDS} whole seconds")
    if tasks or checkpoint.get("tasks"):
        model, questions = load_model(kind, path, tasks, window)
    else:
        model, questions = kind.from_checkpoint(checkpoint, str(path)), []
    place = choose_device(device)
    run = Run(0, 1, place, choose_dtype(dtype, place), seed=0)
    if kind is NeuroLM:
        choose_padding(model.tokenizer, official_padding, QUESTION_TOKENS, run)
    return TrainedModel(model.to(place).eval(), questions, checkpoint, str(path), window, batch_size, run)
