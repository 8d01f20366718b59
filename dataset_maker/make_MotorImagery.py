"""MotorImagery: the PhysioNet motor movement/imagery set (eegmmidb), imagined fists: the left or the right one?

python dataset_maker/make_MotorImagery.py --raw_dir raw/eegmmidb --out_dir datasets/MotorImagery --download
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.hdf5 import RATE
from dataset_maker.machinery.corpus import Recipe, arguments, make, whole
from dataset_maker.machinery.download import fetch
from dataset_maker.machinery.sources import Source, find_named
from dataset_maker.machinery.splits import SHARES, split_subjects

CUES = {"T1": 0, "T2": 1}
LABELS = ("left", "right")
RUNS = ("04", "08", "12")  # the others are rest, real movement, or both fists and both feet
WINDOW = 4  # seconds from the cue
UNUSABLE = ("S088", "S089", "S092", "S100")
URL = "https://physionet.org/files/eegmmidb/1.0.0/"
LAYOUT = "S001R04.edf S001R08.edf S001R12.edf ..., in folders or not"
SPLIT_RULE = "by subject, 60/20/20"
get_args = arguments(__doc__, 60.0, url=URL)


def cues(source, clean):
    """The 4 s from each cue; other annotations are rest."""
    starts = [(round(start * RATE), CUES[text]) for start, _, text in clean.events if text in CUES]
    rows = [(start, start + WINDOW * RATE, label) for start, label in starts]
    fitting = [row for row in rows if row[1] <= clean.eeg.shape[1]]
    left = len(rows) - len(fitting)
    return whole(source, clean, fitting, (f"{left} cues left out: the recording ends within {WINDOW} s",) * bool(left))


def unused(subject, run) -> str:
    """Why a recording is left out on purpose, empty for one that is used."""
    if subject in UNUSABLE:
        return f"subject {subject} was recorded at another rate or with other timings"
    return "" if run in RUNS else f"run {run} is not of imagined left and right fists: {', '.join(RUNS)} are"


def main(args):
    if args.download:
        fetch(args.download, args.raw_dir, rf"(S\d{{3}}/)?S\d{{3}}R({'|'.join(RUNS)})\.edf")
    named = find_named(args.raw_dir, [".edf"], r"(S\d{3})R(\d\d)\.edf", LAYOUT)
    excluded = [(path, reason) for path, name in named.items() if (reason := unused(*name.groups()))]
    found = {path: name[1] for path, name in named.items() if not unused(*name.groups())}
    if not found:
        raise errors.UserError(f"--raw_dir {args.raw_dir} holds no usable run; expected {LAYOUT}")
    splits = split_subjects(found.values(), SHARES, args.seed)
    sources = [Source(path, path.stem, subject, splits[subject]) for path, subject in found.items()]
    recipe = Recipe("MotorImagery", SPLIT_RULE, LABELS, cut=cues, reader={"min_seconds": WINDOW})
    make(args, recipe, sources, excluded)


if __name__ == "__main__":
    errors.run(main, get_args)
