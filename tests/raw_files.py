"""Raw files for the makers' tests, and what a run left behind."""

import csv
import hashlib
from pathlib import Path

import numpy as np
from edfio import Edf, EdfSignal

from text_dataset_maker import prepare

EEGMAT = tuple("FP1 FP2 F3 F4 F7 F8 T3 T4 C3 C4 T5 T6 P3 P4 O1 O2 FZ CZ PZ".split())  # noqa: SIM905


def write_edf(path, seconds=62, rate=200, channels=EEGMAT, scale=20.0, change=None, seed=0):
    """A small EDF of noise in uV under eegmat's channel names."""
    data = scale * np.random.default_rng(seed).standard_normal((len(channels), seconds * rate)).cumsum(1)
    data -= data.mean(1, keepdims=True)
    data *= scale / data.std()
    if change:
        change(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    limits = (-400 * scale / 20, 400 * scale / 20)
    signals = [
        EdfSignal(row, rate, label=f"EEG {name}", physical_dimension="uV", physical_range=limits)
        for name, row in zip(channels, data.clip(*limits), strict=True)
    ]
    Edf(signals).write(path)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def contents(folder, without=None):
    """sha256 of each file, {path in the folder: sum}, leaving out one sub-folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != without]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_maker(maker, *argv, status=0):
    """Run a maker as its script does -> nothing; checks the exit status."""
    try:
        maker.main(maker.get_args([str(word) for word in argv]))
    except SystemExit as stop:
        assert stop.code == status
    else:
        assert status == 0


def write_text(folder):
    """train.bin and val.bin as the script makes them, of a page of this repository: Python's help takes longer."""
    argv = ["--source", "files", "--files", Path(__file__).parents[1] / "README.md", "--out_dir", folder]
    prepare.main(prepare.get_args([*map(str, argv)]))


def write_workload(folder):
    """Eight recordings of four subjects in eegmat's layout."""
    for subject in (3, 26, 31, 4):
        for run in (1, 2):
            write_edf(folder / f"Subject{subject:02}_{run}.edf", seed=10 * subject + run)
    return folder
