"""HMC, the Haaglanden Medisch Centrum sleep staging database: which sleep stage is an epoch of 30 s?

python dataset_maker/make_HMC.py --raw_dir raw/hmc --out_dir datasets/HMC --download
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.hdf5 import RATE
from dataset_maker.machinery.corpus import Recipe, arguments, make, whole
from dataset_maker.machinery.download import fetch
from dataset_maker.machinery.sources import Source, find_files, read_labels

CHANNELS = ("F4", "C4", "O2", "C3")
ALIASES = {"F4-M1": "F4", "C4-M1": "C4", "O2-M1": "O2", "C3-M2": "C3"}
LABELS = ("W", "N1", "N2", "N3", "R")
EPOCH = 30  # seconds
URL = "https://physionet.org/files/hmc-sleep-staging/1.1/"
LAYOUT = "recordings/SN001.edf ... with SN001_sleepscoring.txt beside each"
SHARES = {"train": 100 / 151, "val": 25 / 151}
SPLIT_RULE = "sorted recordings, 100/25/26 of 151, as published"
get_args = arguments(__doc__, 50.0, url=URL)


def read_epoch(line) -> tuple[float, str] | None:
    """A line of a scoring -> start s and stage of its epoch, None for other annotations. Raises ValueError."""
    stage = re.search(r"Sleep stage (\w+|\?)", line)
    return (float(line.split(",")[2]), stage[1]) if stage else None


def windows(source, clean):
    """The scored epochs that lie in the recording."""
    epochs = read_labels(source.detail, read_epoch, "a sleep stage with its onset in the third column")
    rows = [(round(start * RATE), LABELS.index(stage)) for start, stage in epochs if stage in LABELS]
    last = clean.eeg.shape[1] - EPOCH * RATE
    rows = [(start, start + EPOCH * RATE, label) for start, label in rows if 0 <= start <= last]
    others = len(epochs) - len(rows)
    return whole(source, clean, rows, (f"{others} epochs of no stage or outside left out",) * bool(others))


def main(args):
    if args.download:
        fetch(args.download, args.raw_dir, r"recordings/SN\d+(\.edf|_sleepscoring\.txt)")
    paths = [path for path in find_files(args.raw_dir, [".edf"], LAYOUT) if re.fullmatch(r"SN\d+", path.stem)]
    if not paths:
        raise errors.UserError(f"--raw_dir {args.raw_dir} holds no recording; expected {LAYOUT}")
    paths.sort(key=lambda path: path.stem)
    train, val = (round(share * len(paths)) for share in SHARES.values())
    splits = ["train"] * train + ["val"] * val + ["test"] * (len(paths) - train - val)
    sources = [
        Source(path, path.stem, path.stem, split, path.with_name(f"{path.stem}_sleepscoring.txt"))
        for path, split in zip(paths, splits, strict=True)
    ]
    reader = {"min_seconds": EPOCH, "aliases": ALIASES}
    make(args, Recipe("HMC", SPLIT_RULE, LABELS, CHANNELS, windows, reader), sources)


if __name__ == "__main__":
    errors.run(main, get_args)
