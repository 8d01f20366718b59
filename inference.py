"""Ask a NeuroLM about a recording that is in no dataset: its windows, their features, and the answers.

C channels · T samples · W windows · A answers · D width of the tokenizer's features
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
import torch

from checkpointing import read_checkpoint
from dataset.batches import collate_eeg
from dataset.channels import channel_rows
from dataset.tasks import Task, load_tasks
from dataset.windows import MAX_SECONDS, MICROVOLTS, RATE
from dataset_maker.preprocessing import CleanEEG
from errors import UserError
from evaluation import collect, make_predict
from model.neurolm import NeuroLM


@dataclass(frozen=True)
class Question:
    """A task, and the windows that it was learnt on."""

    task: Task
    seconds: int
    channels: tuple[str, ...] | None = None  # None: not known


def load_model(path, names=None, seconds=None) -> tuple[NeuroLM, list[Question]]:
    """A NeuroLM of stage 3, and what to ask it: the tasks `names` (also YAML files), else those it was trained on.

    seconds: of a window; default: as in the training. Raises UserError when the checkpoint does not say, or for a
    window that is too long.
    """
    checkpoint = read_checkpoint(path)
    model = NeuroLM.from_checkpoint(checkpoint, str(path))
    trained = {row["name"]: row for row in checkpoint.get("tasks", [])}
    if not names and not trained:
        raise UserError(f"{path} does not say which tasks it was trained on: name them, --tasks TUAB my_task.yaml")
    tasks = load_tasks(names, with_dataset=False) if names else [_task_of(row) for row in trained.values()]
    questions = []
    for task in tasks:
        row = trained.get(task.name, {})
        length = seconds or row.get("seconds")
        if length is None:
            raise UserError(f"{path} does not say how long the windows of task {task.name} were: give --window SECONDS")
        if not 1 <= length <= MAX_SECONDS:
            raise UserError(f"--window {length}: windows have 1 to {MAX_SECONDS} seconds")
        questions.append(Question(task, length, tuple(row["channels"]) if row else None))
    return model, questions


def _task_of(row: dict) -> Task:
    """The task of a row that `dataset.windows.describe_tasks` made."""
    values = {field.name: row[field.name] for field in fields(Task)}
    return Task(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


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


def ask(model: NeuroLM, task: Task, windows: list[dict], batch_size: int, run, answer_by: str = "score"):
    """Answers and features of windows (of `cut`) -> probabilities (W, A) float64; the mean over the tokens of what the
    tokenizer makes of each window, (W, D) float32."""
    answer, features = make_predict(model, task, run, answer_by), []

    @torch.no_grad()
    def predict(batch):
        with run.autocast():
            tokens = model.tokenizer(batch["x"], batch["chans"], batch["time"], batch["valid"])
        features.append(tokens.float().mean(1).cpu().numpy())  # windows of one recording: nothing is padded
        return answer(batch | {"features": tokens})

    starts = range(0, len(windows), batch_size)
    batches = (collate_eeg(windows[i : i + batch_size]) for i in starts)
    batches = ({k: v.to(run.device) if torch.is_tensor(v) else v for k, v in batch.items()} for batch in batches)
    model.eval()
    return collect(predict, batches, len(windows)).probabilities, np.concatenate(features)


def answer_table(task: Task, probabilities: np.ndarray, starts: np.ndarray, seconds: int) -> pd.DataFrame:
    """A row for each window: start, stop (s), the answer ("" where the model wrote none of them), and p_<answer>."""
    answered = probabilities.sum(1) > 0
    best = [task.answers[label] if ok else "" for label, ok in zip(probabilities.argmax(1), answered, strict=True)]
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
    return f"{task.question} {task.answers[int(np.argmax(means))]}  [mean probability: {said}]"
