"""Predictions of all ranks to an Evaluation: gathered, each window once, and scored.

A model is a function `predict(batch) -> (indices (B,), labels (B,), probabilities (B, A))`, see `evaluation.answers`:
    predictions = collect(predict, loader, len(windows))
    result = evaluate(predictions, windows.describe(), name="TUAB", split="test", answers=("No", "Yes"))
n windows · A answers.
"""

from array import array
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch.distributed as dist

from errors import UserError
from evaluation.metrics import (
    bootstrap_intervals,
    count_confusion,
    default_metrics,
    explain_labels,
    primary_metric,
    score_metrics,
)
from evaluation.results import HARD


class Predictions(NamedTuple):
    """Answers to windows 0 .. n - 1, in this order: labels (n,) int, probabilities (n, A) float64."""

    labels: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """What one model did on one split of one dataset."""

    dataset: str
    split: str
    answers: tuple[str, ...]
    metrics: dict[str, float]  # over windows; NaN where undefined
    intervals: dict[str, tuple[float, float]]  # 95 %, over draws of subjects
    recording_metrics: dict[str, float]  # over recordings, of their mean probability; {} where labels change inside one
    confusion: np.ndarray  # (A, A + 1) windows by label and answer, the last column for none of the answers
    unanswered: float  # share of windows without an allowed answer
    notes: list[str]  # what is undefined, and why
    windows: pd.DataFrame  # dataset, split, recording, subject, start, label, p_<answer> of each window

    @property
    def primary(self) -> float:
        """AUROC of two answers, Cohen's kappa of more: what chooses the best epoch."""
        return self.metrics[primary_metric(len(self.answers))]

    @property
    def selection(self) -> float:
        """`primary`; between epochs that are equal in it, the balanced accuracy decides."""
        return self.primary + 1e-6 * self.metrics["balanced_accuracy"]


def collect(predict, batches, n_windows: int) -> Predictions:
    """The predictions of all ranks, each window once, equal on every rank whatever the batches and the shards.

    `predict(batch)` gives indices (B,) in 0 .. n_windows - 1, labels (B,), probabilities (B, A), arrays or tensors. A
    window that came twice counts once. Every rank must call this, also one without batches.
    Raises RuntimeError where a window has no answer or an index is none of the windows, and where another rank fails.
    """
    # one buffer that grows: small arrays kept between the large ones of the batches would break up the memory, by GiB
    kept, width, failure = array("d"), 2, None
    try:
        for batch in batches:
            part = np.column_stack([_to_array(part) for part in predict(batch)])  # index, label, probabilities
            width = part.shape[1]
            kept.frombytes(part.tobytes())
    except Exception as error:  # the other ranks must hear of it, or they would wait for this one's answers
        failure = error
    rows = np.frombuffer(kept).reshape(-1, width)
    if dist.is_available() and dist.is_initialized():
        shards = [None] * dist.get_world_size()
        dist.all_gather_object(shards, (rows, repr(failure) if failure else None))
        rows = np.concatenate([shard for shard, _ in shards if len(shard)] or [rows])
        said = [f"rank {rank}: {failed}" for rank, (_, failed) in enumerate(shards) if failed]
        if said and not failure:
            raise RuntimeError(f"the evaluation failed on another process, {'; '.join(said)}")
    if failure:
        raise failure
    found, first = np.unique(rows[:, 0].astype(int), return_index=True)
    if not n_windows or not np.array_equal(found, np.arange(n_windows)):
        raise RuntimeError(
            f"{len(found)} different windows were answered, expected all of 0 .. {n_windows - 1} "
            f"(first missing: {np.setdiff1d(np.arange(n_windows), found)[:5].tolist()})"
        )
    return Predictions(rows[first, 1].astype(int), rows[first, 2:])


def _to_array(part) -> np.ndarray:
    return np.asarray(part.detach().cpu().double() if hasattr(part, "detach") else part, dtype=float)


def evaluate(predictions, windows, *, name: str, split: str, answers, metrics=None, seed: int = 0) -> Evaluation:
    """Score `predictions` of `windows`, whose columns `recording`, `subject` and `start` are in the windows' order.

    `metrics` are names (default: the papers' four), beside those that choose the best epoch; two answers get the hard
    ones too. `seed` is that of the intervals.
    Raises UserError where probabilities are not finite.
    """
    labels, probabilities = predictions
    n_classes = len(answers)
    broken = np.flatnonzero(~np.isfinite(probabilities).all(1))
    if len(broken):
        raise UserError(
            f"{name} {split}: the model gave no finite probability for {len(broken)} of {len(labels)} windows (first: "
            f"window {broken[0]}): its weights diverged, take an earlier checkpoint or a lower learning rate"
        )
    names = [*(metrics or default_metrics(n_classes)), primary_metric(n_classes), "balanced_accuracy"]
    names = tuple(dict.fromkeys(names + (list(HARD) if n_classes == 2 else [])))
    table = pd.DataFrame({key: list(windows[key]) for key in ("recording", "subject", "start")})
    table.insert(0, "dataset", name)
    table.insert(1, "split", split)
    table["label"] = labels
    for answer, column in zip(answers, probabilities.T, strict=True):
        table[f"p_{answer}"] = column

    notes = explain_labels(labels, answers, names)
    intervals = bootstrap_intervals(labels, probabilities, table["subject"], n_classes, names, seed)
    if not intervals:
        notes.append("one subject only: no intervals")
    per_recording = _score_recordings(table["recording"], predictions, names)
    if not per_recording:
        notes.append("recordings hold windows of several labels: no metrics per recording")
    unanswered = float(np.mean(probabilities.sum(1) == 0))
    if unanswered:
        notes.append(f"{unanswered:.1%} of the windows got none of the answers and count as wrong")
    return Evaluation(
        dataset=name,
        split=split,
        answers=tuple(answers),
        metrics=score_metrics(labels, probabilities, n_classes, names),
        intervals=intervals,
        recording_metrics=per_recording,
        confusion=count_confusion(labels, probabilities, n_classes),
        unanswered=unanswered,
        notes=notes,
        windows=table,
    )


def _score_recordings(recordings, predictions, names) -> dict[str, float]:
    """Metrics of each recording's mean probability; {} where a recording holds windows of several labels."""
    _, first, group = np.unique(recordings.astype(str), return_index=True, return_inverse=True)
    labels = predictions.labels[first]
    if (labels[group] != predictions.labels).any():
        return {}
    sums = np.zeros((len(first), predictions.probabilities.shape[1]))
    np.add.at(sums, group, predictions.probabilities)
    totals = sums.sum(1, keepdims=True)
    means = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
    return score_metrics(labels, means, sums.shape[1], names)


