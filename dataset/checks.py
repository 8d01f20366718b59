"""Is it EEG? Recordings and batches are looked at before a model reads them, whoever made the dataset.

C channels, T samples
"""

from functools import partial

import numpy as np
import torch

from dataset.amplitudes import describe_median, find_problem
from dataset.windows import MICROVOLTS, Windows
from errors import UserError

LOOKED = 4  # windows of a recording


def check_finite(batch: dict) -> None:
    """batch: files (B) and x (B, ...), unless it holds features. Raises UserError naming the recording whose values are
    not finite."""
    if "x" not in batch:
        return
    for x, file in zip(batch["x"], batch["files"], strict=True):
        if not torch.isfinite(x).all():
            raise UserError(f"recording {file} holds NaN or infinite values; its maker refuses such, run it again")


def check_eeg(batch: dict) -> None:
    """batch: x (B, ..., 200) in 100 uV, padded with zeros, and files (B). Raises UserError where values are not finite,
    or too small or large to be uV."""
    check_finite(batch)
    amplitudes = batch["x"][batch["x"] != 0].abs()
    problem = describe_median(MICROVOLTS * amplitudes.median().item() if len(amplitudes) else 0.0, "a batch")
    if problem:
        raise UserError(f"{problem}. Recordings: {', '.join(dict.fromkeys(batch['files']))}")


def check_recordings(windows: Windows, run) -> None:
    """Look at some windows of each recording before a model is judged by them; the processes share the work.

    Raises UserError naming a recording that holds NaN, no signal, or something that cannot be uV.
    """
    own = Windows(windows.recordings, windows.index)  # with files of its own, closed at the end
    numbers, starts = np.unique(windows.index[:, 0], return_index=True)  # windows are sorted by recording
    if all(windows.recordings[number].group is None for number in numbers):
        _check_samples(own)
    else:
        run.share(partial(_check_recording, own), np.split(np.arange(len(windows)), starts[1:]))


def _check_recording(windows: Windows, positions: np.ndarray) -> None:
    recording = windows.recordings[windows.index[positions[0], 0]]
    problem = find_problem(_join(windows, positions, LOOKED), recording.channels)
    if problem:  # perhaps an artefact: what does the whole recording say?
        whole = windows.reader.read(recording, 0, recording.samples)
        problem = find_problem(whole, recording.channels)
    if problem:
        raise UserError(f"recording {recording.name} ({recording.path}) cannot be EEG: {problem}")


def _check_samples(windows: Windows) -> None:
    """Look at some samples of an official folder together: one may be all artefact. Raises UserError naming it."""
    montages = [windows.recordings[number].channels for number in windows.index[:, 0]]
    alike = np.array([i for i, montage in enumerate(montages) if montage == montages[0]])
    problem = find_problem(_join(windows, alike, LOOKED**2), montages[0])
    if problem:
        first = windows.recordings[windows.index[0, 0]]
        raise UserError(f"samples of {len(alike)} files, the first is {first.path}, cannot be EEG: {problem}")


def _join(windows: Windows, positions: np.ndarray, count: int) -> np.ndarray:
    """EEG (C, T) in uV of `count` windows, spread over those at `positions`."""
    chosen = np.unique(np.linspace(0, len(positions) - 1, count).astype(int))
    return MICROVOLTS * np.concatenate([windows[i]["eeg"] for i in positions[chosen]], axis=1)
