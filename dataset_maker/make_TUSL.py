"""TUSL, the Temple University slowing corpus: background, seizure or slowing?

python dataset_maker/make_TUSL.py --raw_dir raw/tusl --out_dir datasets/TUSL
"""

import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.channels import TUH_CHANNELS
from dataset.hdf5 import RATE
from dataset_maker.machinery.corpus import Recipe, arguments, inside, make, tiles, whole
from dataset_maker.machinery.sources import find_files, list_sources, read_labels
from dataset_maker.machinery.splits import SHARES, split_subjects
from dataset_maker.machinery.tuh import MAINS, patient_of

LABELS = ("bckg", "seiz", "slow")
WINDOW = 10  # seconds
FORM = "'start stop class probability'"
LAYOUT = "edf/**/*.edf with a .tse_agg beside each"
SPLIT_RULE = "by subject, 60/20/20, seeded, each class in each split"
get_args = arguments(__doc__, MAINS)


def read_event(line) -> tuple[float, float, str] | None:
    """A line of a .tse_agg file -> start s, stop s, class; None for others. Raises ValueError, IndexError."""
    words = line.split()
    return (float(words[0]), float(words[1]), words[2]) if words and words[0] != "version" else None


def windows(source, clean):
    """10 s from the start of each event, and again every 10 s where an event is that long."""
    samples, window, rows, others = clean.eeg.shape[1], WINDOW * RATE, [], 0
    for start, stop, label in read_labels(source.detail, read_event, FORM):
        if label not in LABELS or not 0 <= start < samples / RATE:
            others += 1
            continue
        first, last = round(start * RATE), min(round(stop * RATE), samples)
        first = inside(first, window, samples)
        rows += tiles(first, max(last, first + window), LABELS.index(label), window)
    return whole(source, clean, rows, (f"{others} events of other classes or outside left out",) * bool(others))


def labels_of(path) -> set[str]:
    try:
        return {label for *_, label in read_labels(path, read_event, FORM)} & set(LABELS)
    except errors.UserError:  # the same error refuses the file when its turn comes
        return set()


def main(args):
    paths = find_files(args.raw_dir, [".edf"], LAYOUT)
    subjects, events = [patient_of(path) for path in paths], [path.with_suffix(".tse_agg") for path in paths]
    labels = defaultdict(set)
    for subject, path in zip(subjects, events, strict=True):
        labels[subject] |= labels_of(path)
    splits = split_subjects(labels, SHARES, args.seed, labels)
    sources = list_sources(paths, args.raw_dir, subjects, map(splits.get, subjects), events)
    make(args, Recipe("TUSL", SPLIT_RULE, LABELS, TUH_CHANNELS, windows, reader={"min_seconds": WINDOW}), sources)


if __name__ == "__main__":
    errors.run(main, get_args)
