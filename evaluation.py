"""Evaluate a model on whole sets: gather every rank's answers, score them, write them, and compare runs.

A script brings one function, `predict(batch) -> (indices (B,), labels (B,), probabilities (B, A))`:
    predictions = collect(predict, loader, len(windows))
    result = evaluate(predictions, windows, name="TUAB", split="test", answers=("No", "Yes"))
    write_results(out_dir, [result], method="NeuroLM-B", seed=0)
    print(results_table([result]))
`python -m evaluation RUN...` puts the results of such runs, mean and standard deviation over those of a method, beside
the published ones. n windows · A answers.
"""

import argparse
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch.distributed as dist

from errors import UserError, run
from metrics import bootstrap_intervals, count_confusion, default_metrics, explain_labels, primary_metric, score_metrics

PUBLISHED = Path(__file__).parent / "docs" / "published.csv"
HARD = ("auc_pr_hard", "auroc_hard")  # of the answers alone, as NeuroLM's published ones are
COLUMNS = {
    "balanced_accuracy": "BAcc",
    "auc_pr": "AUC-PR",
    "auroc": "AUROC",
    "kappa": "kappa",
    "weighted_f1": "weighted F1",
    "accuracy": "accuracy",
    "auc_pr_hard": "AUC-PR hard",
    "auroc_hard": "AUROC hard",
}


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


def collect(predict, batches, n_windows: int) -> Predictions:
    """The predictions of all ranks, each window once, equal on every rank whatever the batches and the shards.

    `predict(batch)` gives indices (B,) in 0 .. n_windows - 1, labels (B,), probabilities (B, A), arrays or tensors. A
    window that came twice counts once. Every rank must call this, also one without batches.
    Raises RuntimeError where a window has no answer or an index is none of the windows.
    """
    rows = []
    for batch in batches:
        indices, labels, probabilities = (_to_array(part) for part in predict(batch))
        rows.append((indices.astype(int), labels.astype(int), probabilities))
    if dist.is_available() and dist.is_initialized():
        shards = [None] * dist.get_world_size()
        dist.all_gather_object(shards, rows)
        rows = [row for shard in shards for row in shard]
    answered = np.concatenate([np.empty(0, dtype=int), *(row[0] for row in rows)])
    found, first = np.unique(answered, return_index=True)
    if not n_windows or not np.array_equal(found, np.arange(n_windows)):
        raise RuntimeError(
            f"{len(found)} different windows were answered, expected all of 0 .. {n_windows - 1} "
            f"(first missing: {np.setdiff1d(np.arange(n_windows), found)[:5].tolist()})"
        )
    _, labels, probabilities = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return Predictions(labels[first], probabilities[first])


def _to_array(part) -> np.ndarray:
    return np.asarray(part.detach().cpu().double() if hasattr(part, "detach") else part, dtype=float)


def evaluate(predictions, windows, *, name: str, split: str, answers, metrics=None, seed: int = 0) -> Evaluation:
    """Score `predictions` of `windows`, whose columns `recording`, `subject` and `start` are in the windows' order.

    `metrics` are names (default: the papers' four); two answers get the hard ones too. `seed` is that of the intervals.
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
    names = tuple(dict.fromkeys([*(metrics or default_metrics(n_classes)), *(HARD if n_classes == 2 else ())]))
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


def write_results(out_dir, evaluations, **about) -> Path:
    """Write `results.json` and, for each evaluation, `predictions_<dataset>_<split>.csv`; returns the former's path.

    `about` (JSON values) is stored with the numbers: `method` names what runs of other seeds share. NaN becomes null.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    results = []
    for result in evaluations:
        csv_name = f"predictions_{result.dataset}_{result.split}.csv"
        _replace(out_dir / csv_name, result.windows.to_csv(index=False))
        results.append(
            {
                "dataset": result.dataset,
                "split": result.split,
                "answers": result.answers,
                "windows": len(result.windows),
                "recordings": result.windows["recording"].nunique(),
                "subjects": result.windows["subject"].nunique(),
                "metrics": _without_nan(result.metrics),
                "intervals_95": result.intervals,
                "recording_metrics": _without_nan(result.recording_metrics),
                "confusion": result.confusion.tolist(),
                "unanswered": result.unanswered,
                "notes": result.notes,
                "predictions": csv_name,
            }
        )
    path = out_dir / "results.json"
    _replace(path, json.dumps({"about": about, "results": results}, indent=1, allow_nan=False) + "\n")
    return path


def _without_nan(metrics) -> dict:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _replace(path: Path, text: str):
    """Write a file in whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def results_table(evaluations) -> str:
    """One Markdown table in the papers' form, a row for each dataset, split and level, and the notes under it."""
    names = [name for name in COLUMNS if name not in HARD and any(name in result.metrics for result in evaluations)]
    rows, notes = [], []
    for result in evaluations:
        primary = primary_metric(len(result.answers))
        interval = result.intervals.get(primary)
        said = f"{COLUMNS[primary]} {interval[0]:.3f} .. {interval[1]:.3f}" if interval else "-"
        levels = [("windows", len(result.windows), result.metrics, said)]
        if result.recording_metrics:
            levels.append(("recordings", result.windows["recording"].nunique(), result.recording_metrics, "-"))
        for level, count, metrics, interval_said in levels:
            cells = [_format([metrics[name]]) if name in metrics else "-" for name in names]
            rows.append([result.dataset, result.split, f"{count} {level}", *cells, interval_said])
        notes += [f"{result.dataset} {result.split}: {note}" for note in result.notes]
    header = ["dataset", "split", "of", *(COLUMNS[name] for name in names), "95 % interval (subjects)"]
    return "\n".join([_draw_table(header, rows), *notes])


def _format(values) -> str:
    """One value, or mean +- sample standard deviation of several; "undefined" where one is NaN."""
    if any(value is None or math.isnan(value) for value in values):
        return "undefined"
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _draw_table(header, rows) -> str:
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    cells = [[str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def read_run(path) -> dict:
    """A run's results.json, given the file or its folder; UserError where it is missing or not such a file."""
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [(row["dataset"], row["split"], row["metrics"], row["recording_metrics"]) for row in content["results"]]
        return {"path": path, "method": content["about"].get("method", path.parent.name), "rows": rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no results.json of a run ({error!r}): give folders that an evaluation wrote"
        ) from error


def compare_runs(runs, published: pd.DataFrame, split: str) -> str:
    """For each dataset a Markdown table of the published rows and of `runs` (as read_run gives them), by method."""
    ours = {}  # dataset -> (method, level) -> the metrics of each run
    for item in runs:
        for dataset, row_split, metrics, recording_metrics in item["rows"]:
            if row_split == split:
                methods = ours.setdefault(dataset, {})
                methods.setdefault((item["method"], "windows"), []).append(metrics)
                if recording_metrics:
                    methods.setdefault((item["method"], "recordings"), []).append(recording_metrics)
    if not ours:
        raise UserError(f"none of the runs has results on split {split!r}: choose another --split")
    tables = []
    for dataset, methods in ours.items():
        known = published[published["dataset"] == dataset].to_dict("records")
        names = [name for name in COLUMNS if any(name in metrics for group in methods.values() for metrics in group)]
        rows = []
        for row in known:
            cells = ["-" if math.isnan(row.get(name, math.nan)) else f"{row[name]:.4f}" for name in names]
            rows.append([row["method"], *cells, row["source"]])
        for (method, level), group in methods.items():
            cells = [_format([metrics.get(name) for metrics in group]) for name in names]
            rows.append([f"{method}, {level}", *cells, f"{len(group)} runs here" if len(group) > 1 else "1 run here"])
        header = ["method", *(COLUMNS[name] for name in names), "source"]
        tables.append(f"{dataset} ({split})\n\n{_draw_table(header, rows)}")
    return "\n\n".join(tables)


def get_args(argv=None):
    parser = argparse.ArgumentParser(description="Merge the results of runs beside the published ones.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that hold a results.json, or such files")
    parser.add_argument("--split", default="test")
    parser.add_argument("--published", default=PUBLISHED, help="CSV of published results")
    return parser.parse_args(argv)


def main(args):
    runs = [read_run(path) for path in args.runs]
    paths = [item["path"].resolve() for item in runs]
    if len(set(paths)) < len(paths):
        raise UserError("a run is given twice: name each one once")
    try:
        published = pd.read_csv(args.published)
    except (OSError, ValueError) as error:
        raise UserError(f"--published {args.published} cannot be read: {error}") from error
    print(compare_runs(runs, published, args.split))


if __name__ == "__main__":
    run(main, get_args)
