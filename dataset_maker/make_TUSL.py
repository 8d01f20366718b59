"""TUSL, the Temple University slowing corpus: background, seizure or slowing?

python dataset_maker/make_TUSL.py --raw_dir raw/tusl --out_dir datasets/TUSL
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.channels import TUH_CHANNELS
from dataset.hdf5 import RATE
from dataset_maker.machinery.corpus import (
    Recipe,
    Source,
    add_arguments,
    find_files,
    inside,
    make,
    recording_names,
    tiles,
    whole,
)
from dataset_maker.machinery.splits import split_subjects
from dataset_maker.machinery.tuh import MAINS, patient_of
from errors import check_file

LABELS = ("bckg", "seiz", "slow")
WINDOW = 10  # seconds
LAYOUT = "edf/**/*.edf with a .tse_agg beside each"
SHARES = {"val": 0.2, "test": 0.2, "train": 0.6}
SPLIT_RULE = "by subject, 60/20/20, seeded, each class in each split"


def read_events(path) -> list[tuple[float, float, str]]:
    """Rows of a .tse_agg file: start s, stop s, class. Raises UserError when it is missing or malformed."""
    check_file(path)
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        return [(float(line[0]), float(line[1]), line[2]) for line in lines if line and line[0] != "version"]
    except FileNotFoundError:
        raise errors.UserError(f"without labels: no {path.name} beside it") from None
    except (ValueError, IndexError, OSError) as error:
        raise errors.UserError(f"{path.name} is not lines of 'start stop class probability': {error}") from None


def windows(source, clean):
    """10 s from the start of each event, and again every 10 s where an event is that long."""
    samples, window, rows, others = clean.eeg.shape[1], WINDOW * RATE, [], 0
    for start, stop, label in read_events(source.detail):
        if label not in LABELS or not 0 <= start < samples / RATE:
            others += 1
            continue
        first, last = round(start * RATE), min(round(stop * RATE), samples)
        first = inside(first, window, samples)
        rows += tiles(first, max(last, first + window), LABELS.index(label), window)
    return whole(source, clean, rows, (f"{others} events of other classes or outside left out",) * bool(others))


def labels_of(path) -> set[str]:
    try:
        return {label for *_, label in read_events(path.with_suffix(".tse_agg"))} & set(LABELS)
    except errors.UserError:  # the same error refuses the file when its turn comes
        return set()


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, notch=MAINS)
    return parser.parse_args(argv)


def main(args):
    paths = find_files(args.raw_dir, [".edf"], LAYOUT)
    labels = {}
    for path in paths:
        labels[patient_of(path)] = labels.get(patient_of(path), set()) | labels_of(path)
    splits = split_subjects(labels, SHARES, args.seed, labels)
    sources = [
        Source(path, name, patient_of(path), splits[patient_of(path)], path.with_suffix(".tse_agg"))
        for path, name in zip(paths, recording_names(paths, args.raw_dir), strict=True)
    ]
    make(args, Recipe("TUSL", SPLIT_RULE, LABELS, TUH_CHANNELS, windows, reader={"min_seconds": WINDOW}), sources)


if __name__ == "__main__":
    errors.run(main, get_args)
