"""TUAB, the Temple University abnormal EEG corpus: is a recording normal or abnormal?

python dataset_maker/make_TUAB.py --raw_dir raw/tuab --out_dir datasets/TUAB
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
    make,
    recording_names,
    tiles,
    whole,
)
from dataset_maker.machinery.tuh import MAINS, folder_choice, patient_of, split_official

LABELS = ("normal", "abnormal")
WINDOW = 10  # seconds
LAYOUT = "edf/{train,eval}/{normal,abnormal}/01_tcp_ar/*.edf"
SPLIT_RULE = "eval is test; training subjects 80/20 train and val, seeded"


def windows(source, clean):
    """All of the recording, end to end, with the file's label."""
    return whole(source, clean, tiles(0, clean.eeg.shape[1], source.detail, WINDOW * RATE))


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, notch=MAINS)
    return parser.parse_args(argv)


def main(args):
    paths = find_files(args.raw_dir, [".edf"], LAYOUT)
    parts = {}
    for path in paths:
        parts.setdefault(patient_of(path), set()).add(folder_choice(path, args.raw_dir, ("train", "eval")))
    splits = split_official(parts, args.seed)
    sources = [
        Source(path, name, patient_of(path), splits[patient_of(path)], _label(path, args.raw_dir))
        for path, name in zip(paths, recording_names(paths, args.raw_dir), strict=True)
    ]
    recipe = Recipe("TUAB", SPLIT_RULE, LABELS, TUH_CHANNELS, windows, reader={"min_seconds": WINDOW})
    make(args, recipe, sources)


def _label(path, raw_dir) -> int:
    return LABELS.index(folder_choice(path, raw_dir, LABELS))


if __name__ == "__main__":
    errors.run(main, get_args)
