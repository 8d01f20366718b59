"""Pictures of results: calibration, subjects one by one, and runs beside the published rows.

A answers · B bins of confidence. `python -m evaluation RUN... --figure FOLDER` draws them.
"""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from errors import check_file
from evaluation.figures import MODEL, ORIGINAL, new_figure, plot_losses, save
from evaluation.metrics import most_likely
from evaluation.results import group_runs

BINS = 10
BAR = "balanced_accuracy"
FEWEST = 5  # windows of a subject that a score is drawn of


def _judge(windows: pd.DataFrame, answers) -> tuple[np.ndarray, np.ndarray]:
    """Of each window the probability of the answer given, and whether it is right; none of the answers is wrong."""
    probabilities = windows[[f"p_{answer}" for answer in answers]].to_numpy()
    confidence = probabilities.max(1)
    return confidence, (most_likely(probabilities) == windows["label"].to_numpy()) & (confidence > 0)


def plot_calibration(windows: pd.DataFrame, answers, path, title: str = ""):
    """Is an answer given with 80 % right in 80 % of the cases? windows: columns label and p_<answer>, as an evaluation
    writes them. The confidence in the answer given, in bins, against the share of right ones, and how many windows."""
    confidence, right = _judge(windows, answers)
    edges = np.linspace(1 / len(answers), 1, BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    mean, share = (np.bincount(bins, values, BINS) / np.maximum(count, 1) for values in (confidence, right))
    error = float((count * np.abs(mean - share)).sum() / max(len(windows), 1))
    figure = new_figure(4.2, 4.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot(edges[[0, -1]], edges[[0, -1]], color=ORIGINAL, ls="--", lw=0.8, label="calibrated")
    above.plot(mean[count > 0], share[count > 0], color=MODEL, marker="o", label=f"calibration error {error:.3f}")
    above.set(ylabel="share of right answers", ylim=(0, 1.02), title=title)
    above.legend(frameon=False, loc="lower right")
    below.bar(edges[:-1], count, np.diff(edges), align="edge", color=ORIGINAL, alpha=0.5, edgecolor="w")
    below.set(xlabel="probability of the answer given", ylabel="windows", xlim=edges[[0, -1]])
    return save(figure, path)


def plot_subjects(windows: pd.DataFrame, answers, path, title: str = ""):
    """The accuracy of each subject, worst first, with its 95 % interval (Wilson) over windows, and chance. windows: as
    in `plot_calibration`, with subject. Windows of one recording are alike: the intervals are narrow for what they say
    about the next subject."""
    _, right = _judge(windows, answers)
    table = pd.DataFrame({"subject": windows["subject"].astype(str), "right": right}).groupby("subject")["right"]
    table = table.agg(["mean", "count"]).sort_values("mean")
    table = table[table["count"] >= min(FEWEST, table["count"].max())]
    tests = [binomtest(round(share * count), int(count)) for share, count in table.to_numpy()]
    low, high = zip(*(test.proportion_ci(method="wilson") for test in tests), strict=True)
    figure = new_figure(max(4.5, 1.5 + 0.28 * len(table)), 3.6)
    axis = figure.subplots()
    axis.vlines(range(len(table)), low, high, color=ORIGINAL, lw=1.2)
    axis.plot(range(len(table)), table["mean"], "o", color=MODEL, label="one subject")
    axis.axhline(right.mean(), color=MODEL, lw=0.8, label=f"all windows {right.mean():.2f}")
    axis.axhline(1 / len(answers), color=ORIGINAL, ls=":", lw=0.8, label="even odds")
    axis.set_xticks(range(len(table)), table.index, rotation=90 if len(table) > 8 else 0, fontsize=8)
    axis.set(ylabel="accuracy", ylim=(0, 1.02), title=title)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return save(figure, path)


def plot_bars(rows: dict[str, tuple[list[float], bool]], metric: str, path, title: str = ""):
    """Methods side by side: {name: (values of its runs, whether it is published)}; the mean, and the standard deviation
    of several."""
    figure = new_figure(7, 1.2 + 0.32 * len(rows))
    axis = figure.subplots()
    for place, (values, published) in enumerate(rows.values()):
        mean, spread = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else None
        axis.barh(place, mean, xerr=spread, color=ORIGINAL if published else MODEL, alpha=0.5 if published else 0.85)
        axis.text(mean + (spread or 0) + 0.01, place, f"{mean:.3f}", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [name if len(name) < 60 else f"{name[:57]}..." for name in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel=metric, title=title, xlim=(0, 1.08))
    return save(figure, path)


def draw_runs(runs, folders, published: pd.DataFrame, split: str, out_dir) -> list:
    """Draw what `folders` and their results `runs` (of read_run) hold -> paths: learning curves; of each run's answers
    on a split the calibration and the subjects; and bars of all runs beside the published rows of each dataset."""
    names = [folder.resolve().name for folder in folders]
    titles = [str(folder) if names.count(name) > 1 else name for folder, name in zip(folders, names, strict=True)]
    logs = {title: folder / "metrics.jsonl" for title, folder in zip(titles, folders, strict=True)}
    logs = {title: path for title, path in logs.items() if path.is_file()}
    drawn = [plot_losses(logs, out_dir / "curves.png")] if logs else []
    for number, run in enumerate(runs, 1):
        end = f"-{number}" * (len(runs) > 1)
        for row in (row for row in run["results"] if row["split"] == split):
            path, name = run["path"].with_name(row["predictions"]), f"{row['dataset']}{end}.png"
            check_file(path)
            about = pd.read_csv(path), row["answers"]
            title = f"{row['dataset']} ({split}), {run['method']}"
            drawn.append(plot_calibration(*about, out_dir / f"calibration_{name}", title))
            drawn.append(plot_subjects(*about, out_dir / f"subjects_{name}", title))
    for dataset, methods in group_runs(runs, split).items() if runs else ():
        rows = published[published["dataset"] == dataset].to_dict("records") if split == "test" else []
        bars = {f"{row['method']} (published)": ([row[BAR]], True) for row in rows if row.get(BAR, 0) > 0}
        bars |= {f"{method}, {counted}": ([metrics[BAR] for metrics in group], False)
                 for (method, counted), group in methods.items() if counted.endswith("windows")}  # as published
        drawn.append(plot_bars(bars, "balanced accuracy", out_dir / f"bars_{dataset}.png", f"{dataset} ({split})"))
    return drawn
