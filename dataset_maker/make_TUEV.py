"""TUEV, the Temple University EEG events corpus: which of six events does a window hold?

python dataset_maker/make_TUEV.py --raw_dir raw/tuev --out_dir datasets/TUEV
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.channels import TUH_CHANNELS
from dataset.hdf5 import RATE
from dataset_maker.machinery.corpus import Recipe, arguments, inside, make, whole
from dataset_maker.machinery.sources import read_labels
from dataset_maker.machinery.tuh import MAINS, OFFICIAL_RULE, official_sources, patient_of

LABELS = ("spsw", "gped", "pled", "eyem", "artf", "bckg")  # classes 1 to 6 of the .rec files
AROUND, WINDOW = 2, 5  # seconds before an event of 1 s, and of the whole window
LAYOUT = "edf/{train,eval}/SUBJECT/*.edf with a .rec beside each"
get_args = arguments(__doc__, MAINS)


def read_event(line) -> tuple[float, int]:
    """A line of a .rec file, channel, start s, stop s, class 1-6 -> start s, label from 0. Raises ValueError."""
    _, start, _, number = line.split(",")
    return float(start), range(1, len(LABELS) + 1).index(int(number))


def windows(source, clean):
    """An event and 2 s on both sides of it, moved inside where that crosses an end of the recording."""
    samples, window, rows, moved, beyond = clean.eeg.shape[1], WINDOW * RATE, [], 0, 0
    for event, label in read_labels(source.detail, read_event, "channel,start,stop,1-6"):
        if not 0 <= event < samples / RATE:
            beyond += 1
            continue
        wanted = round((event - AROUND) * RATE)
        start = inside(wanted, window, samples)
        moved += start != wanted
        rows.append((start, start + window, label))
    notes = (f"{moved} windows moved inside",) * bool(moved) + (f"{beyond} events outside left out",) * bool(beyond)
    return whole(source, clean, rows, notes)


def subject_of(path, side) -> str:
    """patient_00000001.edf in train; in eval subjects have numbers and files are called bckg_000_a_.edf."""
    return patient_of(path) if side == "train" else path.parent.name


def main(args):
    recipe = Recipe("TUEV", OFFICIAL_RULE, LABELS, TUH_CHANNELS, windows, reader={"min_seconds": WINDOW})
    make(args, recipe, official_sources(args, LAYOUT, lambda path: path.with_suffix(".rec"), subject_of))


if __name__ == "__main__":
    errors.run(main, get_args)
