"""HMC, the Haaglanden Medisch Centrum sleep staging database: which sleep stage is an epoch of 30 s?

python dataset_maker/make_HMC.py --raw_dir raw/hmc --out_dir datasets/HMC --download
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.hdf5 import RATE
from dataset_maker.machinery.corpus import Recipe, Source, add_arguments, find_files, make, whole
from dataset_maker.machinery.download import add_download_argument, fetch
from errors import check_file

CHANNELS = ("F4", "C4", "O2", "C3")
ALIASES = {"F4-M1": "F4", "C4-M1": "C4", "O2-M1": "O2", "C3-M2": "C3"}
LABELS = ("W", "N1", "N2", "N3", "R")
EPOCH = 30  # seconds
URL = "https://physionet.org/files/hmc-sleep-staging/1.1/"
LAYOUT = "recordings/SN001.edf ... with SN001_sleepscoring.txt beside each"
SHARES = {"train": 100 / 151, "val": 25 / 151}
SPLIT_RULE = "sorted recordings, 100/25/26 of 151, as published"


def read_epochs(path) -> tuple[list[tuple[float, int]], int]:
    """Scored epochs, found by their annotation among any other rows -> (start s, label) each; number of other stages.

    Raises UserError when the scoring is missing or malformed.
    """
    epochs, others = [], 0
    check_file(path)
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            stage = re.search(r"Sleep stage (\w+|\?)", line)
            if not stage:
                continue
            if stage.group(1) not in LABELS:
                others += 1
                continue
            epochs.append((float(line.split(",")[2]), LABELS.index(stage.group(1))))
    except FileNotFoundError:
        raise errors.UserError(f"without labels: no {path.name} beside it") from None
    except (ValueError, IndexError, OSError) as error:
        raise errors.UserError(f"{path.name}: a sleep stage without its onset in the third column: {error}") from None
    return epochs, others


def windows(source, clean):
    """The scored epochs that lie in the recording."""
    epochs, others = read_epochs(source.detail)
    rows = [(round(start * RATE), round(start * RATE) + EPOCH * RATE, label) for start, label in epochs]
    fitting = [row for row in rows if row[0] >= 0 and row[1] <= clean.eeg.shape[1]]
    others += len(rows) - len(fitting)
    return whole(source, clean, fitting, (f"{others} epochs of no stage or outside left out",) * bool(others))


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, notch=50.0)
    add_download_argument(parser, URL)
    return parser.parse_args(argv)


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
