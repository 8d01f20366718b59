"""TUAB, the Temple University abnormal EEG corpus: is a recording normal or abnormal?

python dataset_maker/make_TUAB.py --raw_dir raw/tuab --out_dir datasets/TUAB
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.channels import TUH_CHANNELS
from dataset.hdf5 import RATE
from dataset_maker.machinery.corpus import Recipe, arguments, make, tiles, whole
from dataset_maker.machinery.tuh import MAINS, OFFICIAL_RULE, folder_choice, official_sources, patient_of

LABELS = ("normal", "abnormal")
WINDOW = 10  # seconds
LAYOUT = "edf/{train,eval}/{normal,abnormal}/01_tcp_ar/*.edf"
get_args = arguments(__doc__, MAINS)


def windows(source, clean):
    """All of the recording, end to end, with the file's label."""
    return whole(source, clean, tiles(0, clean.eeg.shape[1], source.detail, WINDOW * RATE))


def main(args):
    def label_of(path):
        return LABELS.index(folder_choice(path, args.raw_dir, LABELS))

    recipe = Recipe("TUAB", OFFICIAL_RULE, LABELS, TUH_CHANNELS, windows, reader={"min_seconds": WINDOW})
    make(args, recipe, official_sources(args, LAYOUT, label_of, lambda path, _: patient_of(path)))


if __name__ == "__main__":
    errors.run(main, get_args)
