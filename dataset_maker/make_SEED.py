"""SEED: emotions while watching 15 film clips, positive, neutral or negative.

python dataset_maker/make_SEED.py --raw_dir raw/SEED_RAW_EEG --out_dir datasets/SEED
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.hdf5 import RATE
from dataset_maker.machinery.corpus import Piece, Recipe, arguments, make, tiles
from dataset_maker.machinery.sources import find_files, list_sources

CHANNELS = tuple(
    """
    FP1 FPZ FP2 AF3 AF4 F7 F5 F3 F1 FZ F2 F4 F6 F8 FT7 FC5 FC3 FC1 FCZ FC2 FC4 FC6 FT8 T7 C5 C3 C1 CZ C2 C4 C6 T8
    TP7 CP5 CP3 CP1 CPZ CP2 CP4 CP6 TP8 P7 P5 P3 P1 PZ P2 P4 P6 P8 PO7 PO5 PO3 POZ PO4 PO6 PO8 CB1 O1 OZ O2 CB2
    """.split()  # noqa: SIM905
)
LABELS = ("positive", "neutral", "negative")
STARTS = (24, 289, 550, 782, 1049, 1260, 1483, 1747, 1993, 2283, 2550, 2812, 3072, 3332, 3598)  # of the clips, seconds
STOPS = (264, 526, 757, 1023, 1235, 1458, 1722, 1967, 2259, 2525, 2788, 3046, 3308, 3573, 3806)
CLIPS = tuple("HNS".index(letter) for letter in "HNSSNHSNHHNSNHS")  # labels
SPLITS = {"train": slice(0, 9), "val": slice(9, 12), "test": slice(12, 15)}
WINDOW = 4  # seconds
LAYOUT = "1_1.cnt ... 15_3.cnt, subject and session"
SPLIT_RULE = "clips of each recording in time order, 9/3/3, as published"
get_args = arguments(__doc__, 50.0)


def clips(source, clean):
    """A piece for each split: its clips and what lies between them."""
    pieces, clips = [], list(zip(STARTS, STOPS, CLIPS, strict=True))
    for split, part in SPLITS.items():
        first = round(clips[part][0][0] * RATE)
        last = min(round(clips[part][-1][1] * RATE), clean.eeg.shape[1])
        rows = [
            row
            for start, stop, label in clips[part]
            for row in tiles(round(start * RATE) - first, min(round(stop * RATE), last) - first, label, WINDOW * RATE)
        ]
        whole = last == round(clips[part][-1][1] * RATE)
        notes = () if whole else (f"{split}: the recording ends before its last clip does",)
        pieces.append(Piece(f"{source.name}_{split}", split, first, last, rows, notes))
    return pieces


def main(args):
    paths = find_files(args.raw_dir, [".cnt"], LAYOUT)
    subjects = [path.stem.split("_")[0] for path in paths]
    reader = {"data_format": "int32", "min_seconds": STARTS[12] + WINDOW}  # something of each split must be there
    sources = list_sources(paths, args.raw_dir, subjects, ["all"] * len(paths))
    make(args, Recipe("SEED", SPLIT_RULE, LABELS, CHANNELS, clips, reader), sources)


if __name__ == "__main__":
    errors.run(main, get_args)
