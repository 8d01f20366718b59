"""Runs together: the folds of a series as one set of answers, repeats, and the paired comparison of two methods.

A repeat is all folds of one method, seed and fold seed, or a run on a dataset's own split. R draws of subjects
"""

import numpy as np
import pandas as pd

from errors import UserError, check_file
from evaluation.metrics import bootstrap, interval, primary_metric, score_metrics
from evaluation.results import CALIBRATED, COLUMNS, draw_table
from evaluation.scoring import Evaluation, Predictions, evaluate

PLACE = ["recording", "start"]  # what tells windows apart


def pool_runs(runs, split: str) -> list[dict]:
    """Repeats, as `read_run` gives runs, each with its `evaluations`: folds are put together, other runs stay as they
    are. Raises UserError where a fold is missing or there twice, or where a window or a subject is in two."""
    groups = {}
    for run in runs:
        folds = run["about"].get("folds")
        key = (run["method"], folds, run["about"].get("fold_seed"), run["seed"]) if folds else run["path"].resolve()
        for dataset in (row["dataset"] for row in run["results"] if row["split"] == split):
            groups.setdefault(key, {}).setdefault(dataset, []).append(run)
    return [_pool(parts, split) for parts in groups.values()]


def _pool(parts: dict, split: str) -> dict:
    """One repeat of `parts`, {dataset: its runs}."""
    first = next(iter(parts.values()))[0]
    method, seed, count = first["method"], first["seed"], first["about"].get("folds")
    if count:
        method, seed = f"{method}, {count} folds", (seed, first["about"]["fold_seed"])
    evaluations, scores = [], []
    for dataset, runs in parts.items():
        if count:
            _check_folds(runs, count, f"{dataset}, {first['method']}, seed {seed[0]}, fold seed {seed[1]}")
        result = _evaluate(runs, dataset, split)
        evaluations.append(result)
        scores.append((dataset, split, f"{len(result.windows)} windows", result.metrics))
        recordings = result.windows["recording"].nunique()
        if result.recording_metrics and recordings < len(result.windows):
            scores.append((dataset, split, f"{recordings} recordings", result.recording_metrics))
    return {"path": first["path"], "method": method, "seed": seed, "scores": scores, "evaluations": evaluations}


def _check_folds(runs, count: int, what: str) -> None:
    seen = {}
    for run in runs:
        fold = run["about"].get("fold")
        if fold in seen:
            raise UserError(f"{what}: {seen[fold]} and {run['path']} are both fold {fold}: give each once")
        seen[fold] = run["path"]
    missing = sorted(set(range(count)) - set(seen))
    if missing:
        raise UserError(
            f"{what}: fold {', '.join(map(str, missing))} of {count} is missing: run it, or give none of it"
        )


def _evaluate(runs, dataset: str, split: str) -> Evaluation:
    """The windows of all runs, scored as one set."""
    tables, owner = [], {}  # owner: the run that each subject is in
    for run in runs:
        (row,) = (row for row in run["results"] if (row["dataset"], row["split"]) == (dataset, split))
        table = read_windows(run["path"].parent / row["predictions"], row["answers"])
        for subject in table["subject"].unique():
            if subject in owner:
                raise UserError(f"subject {subject} of {dataset} is in {owner[subject]} and {run['path']}: the folds "
                                "are not of one dataset, make them all again")  # fmt: skip
            owner[subject] = run["path"]
        if table.duplicated(PLACE).any():
            raise UserError(f"{run['path']}: a window of {dataset} is answered twice: run it again")
        tables.append((table, row))
    answers, names = tables[0][1]["answers"], list(tables[0][1]["metrics"])
    if any(row["answers"] != answers for _, row in tables):
        raise UserError(f"{dataset}: the folds from {runs[0]['path']} on have different answers: make them all again")
    windows = pd.concat([table for table, _ in tables], ignore_index=True).sort_values(PLACE, ignore_index=True)
    predictions = Predictions(windows["label"].to_numpy(), windows[[f"p_{name}" for name in answers]].to_numpy())
    try:
        return evaluate(predictions, windows, name=dataset, split=split, answers=answers, metrics=names)
    except (ValueError, TypeError) as error:
        raise UserError(f"{runs[0]['path']}: the answers to the windows of {dataset} are damaged ({error})") from None


def read_windows(path, answers) -> pd.DataFrame:
    """The windows of a run as `write_results` wrote them. Raises UserError."""
    check_file(path)
    try:
        table = pd.read_csv(path, dtype={"recording": str, "subject": str}, keep_default_na=False)
        return table[[*PLACE, "subject", "label", *(f"p_{answer}" for answer in answers)]]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} does not hold a run's answers to windows ({error}): run it again") from None


def group_repeats(repeats) -> dict[tuple, list[Evaluation]]:
    """{(dataset, method): the evaluations of its repeats}."""
    groups = {}
    for repeat in repeats:
        for result in repeat["evaluations"]:
            groups.setdefault((result.dataset, repeat["method"]), []).append(result)
    return groups


def score_subjects(results: list[Evaluation], by: str = "subject") -> pd.DataFrame:
    """For each subject, or each recording: its windows, and their accuracy and balanced accuracy, means over the
    repeats."""
    rows = []
    for result in results:
        columns = [f"p_{answer}" for answer in result.answers]
        for name, table in result.windows.groupby(by):
            scores = score_metrics(table["label"], table[columns], len(columns), ["accuracy", "balanced_accuracy"])
            rows.append({by: name, "windows": len(table), **scores})
    return pd.DataFrame(rows).groupby(by, as_index=False).mean()


def interval_table(groups: dict) -> str:
    """What each method of each dataset is sure of: 95 % intervals over subjects, of the mean over its repeats."""
    rows = []
    for (dataset, method), results in groups.items():
        subjects = score_subjects(results)
        lowest = subjects.loc[subjects["accuracy"].idxmin()]
        drawn = _draws(results)
        cells = ["{:.3f} .. {:.3f}".format(*interval(values)) for values in drawn.values()]
        spread = f"{subjects['accuracy'].mean():.3f} ± {subjects['accuracy'].std():.3f}"
        rows.append([dataset, method, *cells, spread, f"{lowest['subject']} {lowest['accuracy']:.3f}"])
    header = ["dataset", "method", "BAcc, 95 %", "AUROC or kappa, 95 %", "accuracy of subjects", "lowest"]
    return draw_table(header, rows)


def _draws(results: list[Evaluation]) -> dict[str, np.ndarray]:
    """Balanced accuracy and the primary metric over draws of subjects, mean of the repeats, {name: (R,)}."""
    count = len(results[0].answers)
    names = ["balanced_accuracy", primary_metric(count)]
    drawn = []
    for result in results:
        columns = [f"p_{answer}" for answer in result.answers]
        table = result.windows
        drawn.append(bootstrap(table["label"], table[columns], table["subject"], count, names))
    if not all(drawn):
        raise UserError(f"{results[0].dataset}: one subject only, nothing can be said over subjects")
    return {name: np.mean([values[name] for values in drawn], axis=0) for name in names}


def compare_methods(ours: dict, theirs: dict) -> str:
    """Each method of `ours` against each of `theirs` (of `group_repeats`) on the same windows: the difference, its 95 %
    interval and its two-sided p, by the same draws of subjects for both. Raises UserError for other windows, and where
    no two can be compared."""
    rows, refused = [], "no dataset of these runs is among the others"
    for (dataset, method), results in ours.items():
        for (other, reference), others in theirs.items():
            if other != dataset or method == reference:
                continue
            if (CALIBRATED in method) != (CALIBRATED in reference):
                refused = f"{method} and {reference} are two protocols, which are not compared"
                continue
            _check_pair(results, others, f"{dataset}: {method} and {reference}")
            drawn, against = _draws(results), _draws(others)
            cells = []
            for name in drawn:
                means = [np.mean([result.metrics[name] for result in several]) for several in (results, others)]
                difference = drawn[name] - against[name]
                difference = difference[np.isfinite(difference)]
                sides = [(np.sum(difference <= 0) + 1), (np.sum(difference >= 0) + 1)]
                p = min(1.0, 2 * min(sides) / (len(difference) + 1))
                low, high = interval(difference)
                cells.append(f"{COLUMNS[name]} {means[0] - means[1]:+.3f} ({low:+.3f} .. {high:+.3f}) p {p:.3f}")
            rows.append([dataset, method, reference, *cells])
    if not rows:
        raise UserError(f"--against: {refused}")
    return draw_table(["dataset", "method", "against", "balanced accuracy", "AUROC or kappa"], rows)


def _check_pair(results, others, what: str) -> None:
    first = results[0].windows[[*PLACE, "subject", "label"]]
    for result in (*results, *others):
        if not first.equals(result.windows[[*PLACE, "subject", "label"]]):
            raise UserError(f"{what} did not answer the same windows of the same subjects: they cannot be paired")
