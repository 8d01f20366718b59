"""Small dataset folders that tests write by hand: sines and noise, any montage, with labels or without."""

import csv

import numpy as np
import yaml
from test_recordings import COLUMNS, write_h5

from dataset.channels import STANDARD_1020

RHYTHMS = (6, 20)  # Hz of label 0 and label 1


def write_toy(folder, channels=("C3", "C4"), seconds=40, splits=(("train", 3), ("val", 1)), window=None, seed=0):
    """A dataset of recordings (split, how many). With `window` (seconds) it is labelled: windows one after another,
    whose rhythm says their label. `channels`: names, or how many of the table's first ones."""
    channels = STANDARD_1020[:channels] if isinstance(channels, int) else channels
    rng = np.random.default_rng(seed)
    rows = []
    for split, count in splits:
        for name in (f"{split}{i}" for i in range(count)):
            time = np.arange(seconds * 200) / 200
            labels = np.zeros(seconds, dtype=int)
            segments = None
            if window:
                labels = np.repeat(np.arange(seconds // window) % 2, window)
                starts = range(0, len(labels) * 200, window * 200)
                segments = [(start, start + window * 200, labels[start // 200]) for start in starts]
                labels = np.pad(labels, (0, seconds - len(labels)))
            rhythm = np.sin(2 * np.pi * np.array(RHYTHMS)[np.repeat(labels, 200)] * time)
            eeg = 30 * rhythm + 10 * rng.standard_normal((len(channels), seconds * 200))
            write_h5(folder / split / f"{name}.h5", eeg.astype("f4"), names=channels, rows=segments)
            counts = np.bincount([row[2] for row in segments], minlength=2) if window else ()
            per_label = " ".join(map(str, counts))
            rows.append((name, split, f"s{name}", " ".join(channels), seconds, sum(counts), per_label, "x"))
    with open(folder / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    about = {"name": folder.name, "labels": ["slow", "fast"] if window else None, "rate": 200}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(about))
    return folder
