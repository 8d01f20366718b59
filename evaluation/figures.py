"""Figures of a run, drawn without a display: losses, reconstructions, use of a codebook, confusion of answers.

C channels · S seconds · P = 200 samples a second · F frequency bins of 1 Hz · A answers. Every function writes one PNG,
in whole or not at all, and returns its path.
"""

import json
import os
from pathlib import Path

import numpy as np

from dataset.windows import RATE
from dataset_maker.machinery.limits import forget
from errors import UserError, check_file

LOSSES = {"train": {"color": "tab:blue", "lw": 1}, "val": {"color": "tab:red", "marker": "o"}}
RECONSTRUCTED = ("val/raw", "val/frequency", "val/amplitude", "val/phase")  # z-scored: predicting the mean errs by 1
METRICS = ("balanced_accuracy", "auroc", "kappa", "accuracy", "eeg_accuracy", "text_accuracy")
TIMES = ((1, "s", 180), (60, "minutes", 7200), (3600, "hours", float("inf")))  # unit in s, name, longest recording
COLUMNS = 1000  # that a figure can show
ORIGINAL, MODEL = "0.35", "tab:red"  # colours of what was recorded and of what a model makes of it


def plot_losses(metrics_files: dict[str, Path], path) -> Path:
    """A column for each {title: metrics.jsonl}. Above, the loss of training and of validation as the same quantity: the
    sum of the parts that both have, as a tokenizer is validated without its domain losses. Below, its errors of
    reconstruction beside 1, which predicting the mean gives, or the metrics of each validation.

    Raises UserError for a file that is missing or no metrics.jsonl.
    """
    figure = new_figure(4.2 * len(metrics_files), 5.4)
    above, below = figure.subplots(2, len(metrics_files), squeeze=False)
    for axis, lower, (title, file) in zip(above, below, metrics_files.items(), strict=True):
        lines = _read_metrics(Path(file))
        names = {name for line in lines for name in line}
        both = [name for name in sorted(names) if f"train/{name.removeprefix('val/')}" in names - {name}]
        parts = [name[4:] for name in both if name != "val/loss" and not name.endswith("accuracy")] or ["loss"]
        for stage, style in LOSSES.items():
            summed = [f"{stage}/{part}" for part in parts]
            points = [(line["step"], sum(line[name] for name in summed)) for line in lines if _has(line, summed)]
            if points:
                axis.plot(*zip(*points, strict=True), label=stage, **style)
        axis.set(title=title, xlabel="step")
        axis.set_ylabel(" + ".join(parts), fontsize=8)
        _plot_validations(lower, lines)
        for part in (axis, lower):
            if part.lines:
                part.legend(frameon=False, fontsize=8)
    return save(figure, path)


def _has(line: dict, names) -> bool:
    return all(line.get(name) is not None for name in names)


def _plot_validations(axis, lines: list[dict]) -> None:
    """The errors of reconstruction by step, or the metrics by epoch; nothing where there are none."""
    rows = [line for line in lines if any(name.startswith("val") for name in line)]
    errors = [name for name in RECONSTRUCTED if rows and _has(rows[-1], [name])]
    names = dict.fromkeys(name for line in rows for name in line if name.startswith("val"))
    plain = {name for name in names if name.replace("/accuracy", "/balanced_accuracy") in names.keys() - {name}}
    shown = errors or [name for name in names if name.split("/")[-1] in METRICS and name not in plain]
    for name in shown:
        known = [line for line in rows if _has(line, [name])]
        places = [line["step"] for line in known] if errors else range(1, len(known) + 1)
        axis.plot(places, [line[name] for line in known], marker="o", ms=4, label=name)
    if errors:
        axis.axhline(1, color=ORIGINAL, ls="--", lw=0.8, label="predicting the mean")
    axis.set(xlabel="step" if errors else "epoch", ylabel="mean squared error" if errors else "on validation")
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axis.set_visible(bool(shown))


def _read_metrics(path: Path) -> list[dict]:
    check_file(path)
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); expected the metrics.jsonl that a run writes") from None


def plot_reconstruction(signal, decoded_signal, spectrum, decoded_spectrum, channels, path, most: int = 6) -> Path:
    """One window beside its reconstruction, in time and frequency, for the first `most` channels.

    signal, decoded_signal (C, S, P), spectrum, decoded_spectrum (C, S, F): z-scored, as the tokenizers see them;
    channels: C names. The spectra are means over the seconds.
    """
    shown = min(len(channels), most)
    signal, decoded_signal, spectrum, decoded_spectrum = (
        np.asarray(part) for part in (signal, decoded_signal, spectrum, decoded_spectrum)
    )
    figure = new_figure(11, 1 + 1.3 * shown)
    axes = figure.subplots(shown, 2, squeeze=False, sharex="col", width_ratios=(3, 1))
    for row, (in_time, in_frequency) in enumerate(axes):
        seconds = np.arange(signal[row].size) / signal.shape[-1]
        in_time.plot(seconds, signal[row].ravel(), color=ORIGINAL, lw=0.7, label="EEG")
        in_time.plot(seconds, decoded_signal[row].ravel(), color=MODEL, lw=0.9, label="reconstruction")
        in_frequency.plot(spectrum[row].mean(0), color=ORIGINAL, lw=0.9)
        in_frequency.plot(decoded_spectrum[row].mean(0), color=MODEL, lw=0.9)
        in_time.set_ylabel(channels[row], rotation=0, ha="right")
    axes[0, 0].legend(frameon=False, ncols=2, loc="upper right")
    axes[0, 0].set_title("signal, z-scored")
    axes[0, 1].set_title("mean amplitude, z-scored")
    axes[-1, 0].set_xlabel("s")
    axes[-1, 1].set_xlabel("Hz")
    return save(figure, path)


def plot_codebook_use(counts, path) -> Path:
    """How often each code was used, the most used first, beside even use; counts (n_codes,)."""
    counts = np.sort(np.asarray(counts, dtype=float))[::-1]
    share = counts / max(counts.sum(), 1)
    used = np.count_nonzero(counts)
    perplexity = np.exp(-np.sum(share[:used] * np.log(share[:used])))
    figure = new_figure(6, 3.2)
    axis = figure.subplots()
    axis.fill_between(np.arange(1, used + 1), share[:used], step="mid", alpha=0.6)
    axis.axhline(1 / len(counts), color=ORIGINAL, ls="--", lw=0.8, label="even use of all codes")
    axis.set(
        xlabel="code, most used first", ylabel="share of tokens", yscale="log", xlim=(0, len(counts)),
        title=f"{used} of {len(counts)} codes used, perplexity {perplexity:.0f}",
    )  # fmt: skip
    axis.legend(frameon=False)
    return save(figure, path)


def plot_confusion(confusion, answers, path, title: str = "") -> Path:
    """Windows by label (rows) and answer (columns): confusion (A, A), or (A, A + 1) where the last column counts
    windows that got none of the answers. Colours are shares of a row."""
    confusion = np.asarray(confusion)
    if confusion.shape[1] > len(answers) and not confusion[:, -1].any():
        confusion = confusion[:, :-1]
    columns = [*answers, "none of them"][: confusion.shape[1]]
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    figure = new_figure(2.2 + 0.8 * len(columns), 1.6 + 0.7 * len(answers))
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(confusion):
        dark = share[row, column] > 0.6
        axis.text(
            column, row, f"{count}\n{share[row, column]:.0%}", ha="center", va="center", color="w" if dark else "k"
        )
    axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axis.set_yticks(range(len(answers)), answers)
    axis.set(xlabel="answer", ylabel="label", title=title)
    return save(figure, path)


def plot_answers(table, answers, eeg, channels, places, path, title: str = "", most: int = 32) -> Path:
    """The probability of each answer over time, a row each, above the EEG of one recording.

    table: start, stop (s) and p_<answer> of each window; eeg (C, T) in uV at 200 Hz, of which rows `places` are drawn
    under the names `channels`, `most` at most. What is more than the figure can show is drawn as its envelope.
    """
    step = -(-len(channels) // most)
    channels, places, seconds = channels[::step], places[::step], eeg.shape[1] / RATE
    unit, name = next((unit, name) for unit, name, longest in TIMES if seconds <= longest)
    heights = [0.45] * len(answers) + [0.5 + 0.3 * len(channels)]
    figure = new_figure(14, 1 + sum(heights))
    *rows, below = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    group = -(-len(table) // COLUMNS)
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        parts = [table[i : i + group] for i in range(0, len(table), group)]
        starts = np.array([part["start"].iloc[0] for part in parts] + [table["stop"].iloc[-1]])
        stops = np.minimum([part["stop"].iloc[-1] for part in parts], starts[1:])
        edges = np.append(np.column_stack([starts[:-1], stops]).ravel(), starts[-1]) / unit  # a gap where none is
        values = np.column_stack([[part[f"p_{answer}"].mean() for part in parts], np.full(len(parts), np.nan)]).ravel()
        row.stairs(values, edges, fill=True, color=f"C{number}", alpha=0.75)
        row.axhline(1 / len(answers), color=ORIGINAL, ls=":", lw=0.8)
        row.set(ylim=(0, 1), yticks=(0, 1))
        row.tick_params(axis="y", labelsize=7)
        row.set_ylabel(answer if len(answer) < 28 else f"{answer[:25]}...", rotation=0, ha="right", va="center")
    rows[0].set_title(title, fontsize=10)
    curves = []
    for place in places:
        curves.append(_envelope(np.array(eeg[place]), 2 * COLUMNS))
        forget(eeg)
    spread = 3 * np.median([np.percentile(np.maximum(high, -low), 95) for _, low, high in curves]) + 1e-3
    for i, (time, low, high) in enumerate(curves):
        ends = [np.clip(end / spread, -1, 1) - i for end in (low, high)]
        if low is high:
            below.plot(time / unit, ends[0], color=ORIGINAL, lw=0.5)
        else:
            below.fill_between(time / unit, *ends, color=ORIGINAL, lw=0.2)
    below.set_yticks(-np.arange(len(channels)), channels, fontsize=8)
    below.set(ylim=(-len(channels), 1), xlim=(0, seconds / unit), xlabel=name)
    below.set_title(f"EEG, {spread:.0f} uV from row to row" + f", every {step} channels" * (step > 1), fontsize=8)
    return save(figure, path)


def _envelope(signal, most: int):
    """signal (T,) -> time in s of at most `most` columns, and the lowest and highest value in each; as it is where it
    is not much longer than that."""
    group = len(signal) // most
    if group < 5:
        return np.arange(len(signal)) / RATE, signal, signal
    parts = signal[: len(signal) // group * group].reshape(-1, group)
    return (np.arange(len(parts)) + 0.5) * group / RATE, parts.min(1), parts.max(1)


def new_figure(width: float, height: float):
    from matplotlib.figure import Figure  # not at the top: most that import this module draw late or never

    return Figure(figsize=(width, height), layout="constrained")


def save(figure, path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)
    return path
