"""Which subject belongs to which split: seeded, the same on every machine and for every order of the files."""

import argparse
import hashlib
import re
from collections import defaultdict

from dataset.leaks import read_roster
from errors import UserError

TRIES = 1000
HELD = ("val", "test")
SHARES = {"val": 0.2, "test": 0.2, "train": 0.6}  # of subjects, where nothing is published
SUBJECT = "[^/_.]+"  # the first folder below --raw_dir, or a file's name, up to its first _ or .


def add_subject_argument(parser) -> None:
    """The flag that tells a file's subject, for `find_subject`."""
    what = "regular expression of the subject in a file's path below --raw_dir (default: %(default)s)"
    parser.add_argument("--subject", type=_pattern, default=SUBJECT, help=what)


def _pattern(text) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def find_subject(path, raw_dir, pattern) -> str:
    """The first match of a pattern in a file's path below raw_dir. Raises UserError when there is none."""
    found = pattern.search(path.relative_to(raw_dir).as_posix())
    if not found:
        raise UserError(f"{path}: --subject {pattern.pattern!r} matches nothing in its path")
    return found.group()


def split_subjects(subjects, fractions, seed, labels=None) -> dict[str, str]:
    """Assign each subject to a split.

    subjects: any iterable of names; fractions: {split: share}, in the order in which they are filled, the last taking
    the rest; labels: {subject: set of its labels}, when each split must hold every label. Raises UserError for shares
    outside 0 to 1, for fewer subjects than splits, and when no assignment tried gives each split each label.
    """
    subjects = sorted(set(subjects))
    if min(fractions.values()) < 0:
        shares = ", ".join(f"{split} {share:g}" for split, share in fractions.items())
        raise UserError(f"shares of the splits {shares}: each lies between 0 and 1, all add up to 1")
    wanted = {split: share for split, share in fractions.items() if share > 0}
    if len(subjects) < len(wanted):
        raise UserError(
            f"{len(subjects)} subjects cannot fill the splits {', '.join(wanted)}: each needs one; set a share to 0"
        )
    for attempt in range(TRIES if labels else 1):
        assigned = _assign(subjects, wanted, f"{seed}/{attempt}")
        if not labels or _complete(assigned, labels):
            return assigned
    raise UserError(f"no split of {len(subjects)} subjects found in which {', '.join(wanted)} all hold every label")


def _assign(subjects, fractions, salt) -> dict[str, str]:
    order = sorted(subjects, key=lambda subject: hashlib.sha256(f"{salt}/{subject}".encode()).digest())
    assigned, first = {}, 0
    for left, split in zip(reversed(range(len(fractions))), fractions, strict=True):
        count = max(1, round(fractions[split] * len(order)))
        stop = min(first + count, len(order) - left) if left else len(order)  # those to come need a subject each
        assigned |= dict.fromkeys(order[first:stop], split)
        first = stop
    return assigned


def _complete(assigned, labels) -> bool:
    held = defaultdict(set)
    for subject, split in assigned.items():
        held[split] |= set(labels[subject])
    return all(part == set().union(*held.values()) for part in held.values())


def held_out(datasets) -> dict[str, str]:
    """Subjects in the val or test split of any dataset -> {subject: where}, for a corpus that is to train on none.

    Says which datasets hold out recordings of subjects without a name. Raises UserError for what is no dataset.
    """
    held = {}
    for dataset in datasets:
        roster = read_roster(dataset)
        if nameless := roster.nameless(HELD):
            print(f"warning: {roster.folder}: {nameless} of its subjects carry no names and cannot be excluded")
        held |= {subject: f"{split} of {roster.folder}" for subject, split in roster.subjects(HELD).items()}
    return held
