"""ADHD: EEG of children with ADHD and of controls during a visual task (IEEE DataPort 10.21227/rzfh-zn36), as CSV.

python dataset_maker/make_ADHD.py --raw_dir raw/adhd --out_dir datasets/ADHD

The numbers are not in uV; UNIT brings their median absolute amplitude to that of EEG, one factor for all children, so
that differences between them stay. Children took as long as they needed, which tells the label: each gives at most
MOST windows, spread evenly over the recording.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import errors
from dataset.hdf5 import RATE
from dataset_maker.machinery.arrays import ArrayFormat
from dataset_maker.machinery.corpus import Recipe, arguments, make, whole
from dataset_maker.machinery.sources import Source, find_named
from dataset_maker.machinery.splits import SHARES, split_subjects

CHANNELS = tuple("FP1 FP2 F3 F4 C3 C4 P3 P4 O1 O2 F7 F8 T7 T8 P7 P8 FZ CZ PZ".split())  # noqa: SIM905
LABELS = ("control", "ADHD")  # C*, A*
SAMPLED = 128.0  # Hz
UNIT = 0.167  # uV: the median over 44 children is 90 raw after filtering, that of EEG about 15 uV
WINDOW, MOST = 4, 20  # seconds; windows of a child
LAYOUT = "A1.csv.gz ... (ADHD) and C1.csv.gz ... (control)"
SPLIT_RULE = "by child, 60/20/20, both labels in each part"
get_args = arguments(__doc__, 50.0)


def spread(source, clean):
    """At most MOST windows that do not overlap, evenly over the recording."""
    last, window = clean.eeg.shape[1] - WINDOW * RATE, WINDOW * RATE
    starts = np.linspace(0, last, min(MOST, last // window + 1)).astype(int).tolist()
    return whole(source, clean, [(start, start + window, source.detail) for start in starts])


def main(args):
    found = find_named(args.raw_dir, [".csv.gz", ".csv"], r"(([AC])\d+)(?i:\.csv(\.gz)?)", LAYOUT)
    labels = {name[1]: LABELS.index("ADHD" if name[2] == "A" else "control") for name in found.values()}
    splits = split_subjects(labels, SHARES, args.seed, {child: {label} for child, label in labels.items()})
    sources = [Source(path, name[1], name[1], splits[name[1]], labels[name[1]]) for path, name in found.items()]
    reader = {"min_seconds": WINDOW, "array": ArrayFormat(SAMPLED, UNIT)}
    recipe = Recipe("ADHD", SPLIT_RULE, LABELS, CHANNELS, spread, reader, {"unit": UNIT, "windows": MOST})
    make(args, recipe, sources)


if __name__ == "__main__":
    errors.run(main, get_args)
