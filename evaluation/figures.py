"""Figures of a run, drawn without a display: losses, reconstructions, use of a codebook, confusion of answers.

C channels · S seconds · P = 200 samples a second · F frequency bins of 1 Hz · A answers. Every function writes one PNG,
in whole or not at all, and returns its path.
"""

import json
import os
from pathlib import Path

import numpy as np

from errors import UserError, check_file

LOSSES = {"train/loss": {"color": "tab:blue", "lw": 1}, "val/loss": {"color": "tab:red", "marker": "o"}}
ORIGINAL, MODEL = "0.35", "tab:red"  # colours of what was recorded and of what a model makes of it


def plot_losses(metrics_files: dict[str, Path], path) -> Path:
    """The loss of training and validation over the steps, a panel for each {title: metrics.jsonl}.

    Raises UserError for a file that is missing or no metrics.jsonl.
    """
    figure = _new_figure(4.2 * len(metrics_files), 3.2)
    axes = figure.subplots(1, len(metrics_files), squeeze=False)[0]
    for axis, (title, file) in zip(axes, metrics_files.items(), strict=True):
        lines = _read_metrics(Path(file))
        for name, style in LOSSES.items():
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, **style)
        axis.set(title=title, xlabel="step", ylabel="loss")
        if axis.lines:
            axis.legend(frameon=False)
    return _save(figure, path)


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
    figure = _new_figure(11, 1 + 1.3 * shown)
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
    return _save(figure, path)


def plot_codebook_use(counts, path) -> Path:
    """How often each code was used, the most used first, beside even use; counts (n_codes,)."""
    counts = np.sort(np.asarray(counts, dtype=float))[::-1]
    share = counts / max(counts.sum(), 1)
    used = np.count_nonzero(counts)
    perplexity = np.exp(-np.sum(share[:used] * np.log(share[:used])))
    figure = _new_figure(6, 3.2)
    axis = figure.subplots()
    axis.fill_between(np.arange(1, used + 1), share[:used], step="mid", alpha=0.6)
    axis.axhline(1 / len(counts), color=ORIGINAL, ls="--", lw=0.8, label="even use of all codes")
    axis.set(
        xlabel="code, most used first", ylabel="share of tokens", yscale="log", xlim=(0, len(counts)),
        title=f"{used} of {len(counts)} codes used, perplexity {perplexity:.0f}",
    )  # fmt: skip
    axis.legend(frameon=False)
    return _save(figure, path)


def plot_confusion(confusion, answers, path, title: str = "") -> Path:
    """Windows by label (rows) and answer (columns): confusion (A, A), or (A, A + 1) where the last column counts
    windows that got none of the answers. Colours are shares of a row."""
    confusion = np.asarray(confusion)
    if confusion.shape[1] > len(answers) and not confusion[:, -1].any():
        confusion = confusion[:, :-1]
    columns = [*answers, "none of them"][: confusion.shape[1]]
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    figure = _new_figure(2.2 + 0.8 * len(columns), 1.6 + 0.7 * len(answers))
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
    return _save(figure, path)


def _new_figure(width: float, height: float):
    from matplotlib.figure import Figure  # not at the top: most that import this module draw late or never

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)
    return path
