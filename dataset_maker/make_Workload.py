"""Workload: the PhysioNet set "EEG During Mental Arithmetic Tasks" (eegmat), rest against arithmetic.

python dataset_maker/make_Workload.py --raw_dir raw/eegmat --out_dir datasets/Workload --download
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.hdf5 import RATE
from dataset_maker.machinery.corpus import Recipe, arguments, make, tiles, whole
from dataset_maker.machinery.download import fetch
from dataset_maker.machinery.sources import Source, find_named

CHANNELS = tuple("FP1 FP2 F3 F4 F7 F8 T3 T4 C3 C4 T5 T6 P3 P4 O1 O2 FZ CZ PZ".split())  # noqa: SIM905
LABELS = ("rest", "arithmetic")  # SubjectNN_1, SubjectNN_2
LAST, WINDOW, STRIDE = 60, 4, 2  # seconds
RECORDINGS = r"Subject(\d\d)_([12])\.edf"
URL = "https://physionet.org/files/eegmat/1.0.0/"
# `digest` of the 72 recordings' published sums
CHECKSUMS = "8f55c11e06d7672ecd982ba1a14f417b862e52ec5989689c1f46ae5253b776f5"
LAYOUT = "SubjectNN_1.edf (rest) and SubjectNN_2.edf (arithmetic)"
SPLIT_RULE = "subjects 00-25 train, 26-30 val, 31 and later test, as published"
get_args = arguments(__doc__, 50.0, url=URL)


def last_minute(source, clean):
    """Windows of 4 s every 2 s in the last 60 s, all with the file's label."""
    stop = clean.eeg.shape[1]
    return whole(source, clean, tiles(stop - LAST * RATE, stop, source.detail, WINDOW * RATE, STRIDE * RATE))


def main(args):
    if args.download:
        fetch(args.download, args.raw_dir, RECORDINGS, CHECKSUMS)
    sources = []
    for path, name in find_named(args.raw_dir, [".edf"], RECORDINGS, LAYOUT).items():
        subject, run = name.groups()
        split = "train" if int(subject) <= 25 else "val" if int(subject) <= 30 else "test"
        sources.append(Source(path, path.stem, f"Subject{subject}", split, detail=int(run) - 1))
    recipe = Recipe("Workload", SPLIT_RULE, LABELS, CHANNELS, last_minute, reader={"min_seconds": LAST})
    make(args, recipe, sources)


if __name__ == "__main__":
    errors.run(main, get_args)
