"""The results of evaluations: written to a folder, drawn as one table, compared with other runs and published ones.

A run's folder holds `results.json` and a CSV of each window's probabilities for every dataset and split.
"""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from errors import UserError, check_file
from evaluation.metrics import primary_metric
from training.logger import make_folder, replace_text

PUBLISHED = Path(__file__).parents[1] / "docs" / "published.csv"
CALIBRATED = ", calibrated per subject"  # of a method's name: runs of this protocol never share a row with others
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


def write_results(out_dir, evaluations, **about) -> Path:
    """Write `results.json` and, for each evaluation, `predictions_<dataset>_<split>.csv`; returns the former's path.

    `about` is stored with the numbers: `method` names what runs of other seeds share. NaN becomes null.
    """
    out_dir = Path(out_dir)
    make_folder(out_dir)
    results = []
    for result in evaluations:
        csv_name = f"predictions_{result.dataset}_{result.split}.csv"
        replace_text(out_dir / csv_name, result.windows.to_csv(index=False))
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
    replace_text(path, json.dumps({"about": about, "results": results}, indent=1, allow_nan=False, default=str) + "\n")
    return path


def _without_nan(metrics) -> dict:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def results_table(evaluations) -> str:
    """One Markdown table in the papers' form, a row for each dataset, split and level, and the notes under it."""
    names = [name for name in COLUMNS if name not in HARD and any(name in result.metrics for result in evaluations)]
    rows, notes = [], []
    for result in evaluations:
        primary = primary_metric(len(result.answers))
        interval = result.intervals.get(primary)
        said = f"{COLUMNS[primary]} {interval[0]:.3f} .. {interval[1]:.3f}" if interval else "-"
        levels = [("windows", len(result.windows), result.metrics, said)]
        recordings = result.windows["recording"].nunique()
        if result.recording_metrics and recordings < len(result.windows):
            levels.append(("recordings", recordings, result.recording_metrics, "-"))
        for level, count, metrics, interval_said in levels:
            cells = [_format([metrics[name]] if name in metrics else []) for name in names]
            rows.append([result.dataset, result.split, f"{count} {level}", *cells, interval_said])
        notes += [f"{result.dataset} {result.split}: {note}" for note in result.notes]
    header = ["dataset", "split", "of", *(COLUMNS[name] for name in names), "95 % interval (subjects)"]
    return "\n".join([draw_table(header, rows), *notes])


def _format(values) -> str:
    """One value, or mean +- sample standard deviation of several; "-" for none, "undefined" where one is NaN."""
    if not values:
        return "-"
    if any(value is None or math.isnan(value) for value in values):
        return "undefined"
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def draw_table(header, rows) -> str:
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    cells = [[str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def read_run(path) -> dict:
    """A run's results.json, given the file or its folder: path, method, seed, `about` and `results` as they are there,
    and `scores`, which are (dataset, split, what was counted, metrics by name). Raises UserError where it is missing or
    no such file."""
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    check_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        about, scores = content["about"], []
        for row in content["results"]:
            scores.append((row["dataset"], row["split"], f"{row['windows']} windows", dict(row["metrics"])))
            if row["recording_metrics"] and row["recordings"] < row["windows"]:
                metrics = dict(row["recording_metrics"])
                scores.append((row["dataset"], row["split"], f"{row['recordings']} recordings", metrics))
        numbers = [about.get(name) for name in ("folds", "fold", "fold_seed")]
        if numbers[0] and not all(isinstance(number, int) for number in numbers):
            raise ValueError(f"folds, fold, fold_seed: {numbers}")
        method = about.get("method", path.parent.name) + CALIBRATED * bool(about.get("calibrate"))
        run = {"path": path, "method": method, "seed": about.get("seed"), "scores": scores}
        return run | {"about": about, "results": content["results"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no results.json of a run ({error!r}): give folders that an evaluation wrote"
        ) from error


def group_runs(runs, split: str) -> dict[str, dict]:
    """{dataset: {(method, what was counted): the metrics of each run}} of `runs` (of read_run).

    Raises UserError for a run given twice, also under another path, and where no run has the split.
    """
    _refuse_twice(runs)
    groups = {}
    for item in runs:
        for dataset, row_split, counted, metrics in item["scores"]:
            if row_split == split:
                groups.setdefault(dataset, {}).setdefault((item["method"], counted), []).append(metrics)
    if not groups:
        raise UserError(f"none of the runs has results on split {split!r}: choose another --split")
    return groups


def compare_runs(runs, published: pd.DataFrame, split: str) -> str:
    """For each dataset a Markdown table of the published rows (test split) and of `runs`, by method; see group_runs."""
    tables = []
    for dataset, methods in group_runs(runs, split).items():
        names = [name for name in COLUMNS if any(name in metrics for group in methods.values() for metrics in group)]
        rows = []
        for known in published[published["dataset"] == dataset].to_dict("records") if split == "test" else []:
            cells = [f"{known[name]:.4f}" if known.get(name, math.nan) > 0 else "-" for name in names]
            rows.append([known["method"], *cells, known["source"]])
        for (method, counted), group in methods.items():
            cells = [_format([metrics[name] for metrics in group if name in metrics]) for name in names]
            rows.append([f"{method}, {counted}", *cells, f"here, {len(group)} run{'s' * (len(group) > 1)}"])
        header = ["method", *(COLUMNS[name] for name in names), "source"]
        tables.append(f"{dataset} ({split})\n\n{draw_table(header, rows)}")
    return "\n\n".join(tables)


def _refuse_twice(runs):
    """A run that counts twice would make the standard deviation too small."""
    seen = {}
    for item in runs:
        key = (item["method"], item["seed"]) if item["seed"] is not None else item["path"].resolve()
        if key in seen:
            raise UserError(
                f"{seen[key]} and {item['path']} are both method {item['method']!r} with seed {item['seed']}: give "
                "each run once, and methods that differ other names"
            )
        seen[key] = item["path"]


def report(out_dir, evaluations, run, **about) -> None:
    """Write the results and print their table, on the main process."""
    if run.main:
        path = write_results(out_dir, evaluations, **about)
        said = "".join(f"{line}\n" for line in about.get("within_subjects", ()))
        print(f"\n{results_table(evaluations)}\n{said}written to {path}")
