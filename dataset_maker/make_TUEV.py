"""TUEV, the Temple University EEG events corpus: which of six events does a window hold?

python dataset_maker/make_TUEV.py --raw_dir raw/tuev --out_dir datasets/TUEV
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
    whole,
)
from dataset_maker.machinery.tuh import MAINS, folder_choice, patient_of, split_official
from errors import check_file

LABELS = ("spsw", "gped", "pled", "eyem", "artf", "bckg")  # classes 1 to 6 of the .rec files
AROUND, WINDOW = 2, 5  # seconds before an event of 1 s, and of the whole window
LAYOUT = "edf/{train,eval}/SUBJECT/*.edf with a .rec beside each"
SPLIT_RULE = "eval is test; training subjects 80/20 train and val, seeded"


def read_events(path) -> list[tuple[float, int]]:
    """Rows of a .rec file (channel, start s, stop s, class 1-6) -> (start s, label from 0) of each, as published."""
    events = []
    check_file(path)
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            _, start, _, label = line.split(",")
            events.append((float(start), range(len(LABELS))[int(label) - 1 if int(label) > 0 else len(LABELS)]))
    except FileNotFoundError:
        raise errors.UserError(f"without labels: no {path.name} beside it") from None
    except (ValueError, IndexError, OSError) as error:
        raise errors.UserError(f"{path.name}, line {len(events) + 1}, is not channel,start,stop,1-6: {error}") from None
    return events


def windows(source, clean):
    """An event and 2 s on both sides of it, moved inside where that crosses an end of the recording."""
    samples, window, rows, moved, beyond = clean.eeg.shape[1], WINDOW * RATE, [], 0, 0
    for event, label in read_events(source.detail):
        start = round((event - AROUND) * RATE)
        if not 0 <= event < samples / RATE:
            beyond += 1
            continue
        moved += start != inside(start, window, samples)
        start = inside(start, window, samples)
        rows.append((start, start + window, label))
    notes = (f"{moved} windows moved inside",) * bool(moved) + (f"{beyond} events outside left out",) * bool(beyond)
    return whole(source, clean, rows, notes)


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, notch=MAINS)
    return parser.parse_args(argv)


def main(args):
    paths = find_files(args.raw_dir, [".edf"], LAYOUT)
    sides = [folder_choice(path, args.raw_dir, ("train", "eval")) for path in paths]
    # patient_00000001.edf in train; in eval subjects have numbers and files are called bckg_000_a_.edf
    names = zip(paths, sides, strict=True)
    subjects = [patient_of(path) if side == "train" else path.parent.name for path, side in names]
    parts = {}
    for subject, side in zip(subjects, sides, strict=True):
        parts.setdefault(subject, set()).add(side)
    splits = split_official(parts, args.seed)
    sources = [
        Source(path, name, subject, splits[subject], path.with_suffix(".rec"))
        for path, name, subject in zip(paths, recording_names(paths, args.raw_dir), subjects, strict=True)
    ]
    make(args, Recipe("TUEV", SPLIT_RULE, LABELS, TUH_CHANNELS, windows, reader={"min_seconds": WINDOW}), sources)


if __name__ == "__main__":
    errors.run(main, get_args)
