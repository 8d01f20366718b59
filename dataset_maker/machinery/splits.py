"""Which subject belongs to which split: seeded, the same on every machine and for every order of the files."""

import argparse
import hashlib
import re
from collections import Counter, defaultdict

from dataset.leaks import read_roster
from errors import UserError

TRIES = 1000
HELD = ("val", "test")
SHOWN = 30  # subjects in a message
SHARES = {"val": 0.2, "test": 0.2, "train": 0.6}  # of subjects, where nothing is published
UNITS = ("subject", "session", "run")  # what no split tears apart
BIDS = re.compile(r"(?<![^/_])sub-[^/_.]+")
SESSION = re.compile(r"(?<![a-z0-9])(ses|session|day|visit|night)([-_ ]*\d+|[-_ ][a-z0-9]+)", re.IGNORECASE)
PART = re.compile(  # folders inside that of a person
    r"(ses|session|day|visit|night|run|block|part|rec|recording)s?([-_ ]*\d*|[-_ ]\w+)"
    r"|v\d+(\.\d+)*|eeg|edf|bdf|raw|data",
    re.IGNORECASE,
)


def add_subject_arguments(parser) -> None:
    """The flags that tell a file's subject, for `find_subject`, and what is kept together, for `unit_of`."""
    what = "regular expression of the subject in a file's path below --raw_dir (default: a sub-XX in the path, else "
    what += "the folder that holds the file; folders such as session_1, run2 and eeg belong to the one above)"
    parser.add_argument("--subject", type=_pattern, help=what)
    what = "what lies in one split as a whole: run and session are for data of a single subject (default: subject)"
    parser.add_argument("--split_by", choices=UNITS, default="subject", help=what)


def _pattern(text) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def find_subject(path, raw_dir, pattern=None) -> str:
    """The subject of a file: the first match of a pattern in its path below raw_dir; without pattern its BIDS entity,
    else the folder that holds it. Raises UserError when the pattern matches nothing."""
    place = path.relative_to(raw_dir)
    found = (pattern or BIDS).search(place.as_posix())
    if found:
        return found.group()
    if pattern:
        raise UserError(f"{path}: --subject {pattern.pattern!r} matches nothing in its path")
    folders = (folder for folder in reversed(place.parts[:-1]) if not PART.fullmatch(folder))
    return next(folders, raw_dir.resolve().name)


def unit_of(split_by, subject, path, raw_dir) -> str:
    """What no split may tear apart: a subject, a subject's session, or a run. Raises UserError without a session."""
    place = path.relative_to(raw_dir).as_posix()
    if split_by != "session":
        return subject if split_by == "subject" else place
    session = SESSION.search(place)
    if not session:
        raise UserError(f"{path}: --split_by session finds none in its path, such as ses-1, session_b or day2")
    return f"{subject} {session.group().lower()}"


def split_files(args, subjects: dict, fractions) -> dict:
    """Print whom {file: its subject} names, so that a wrong rule shows before hours are spent -> {file: split}.

    args: raw_dir, split_by, seed; fractions: of `split_subjects`, None: the files have their splits.
    """
    counts = Counter(subjects.values())
    shown = ", ".join(f"{subject} ({count})" for subject, count in sorted(counts.items())[:SHOWN])
    more = f", and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    print(f"{len(counts)} subjects (their files): {shown}{more}")
    if fractions is None:
        return {}
    units = {path: unit_of(args.split_by, subject, path, args.raw_dir) for path, subject in subjects.items()}
    try:
        splits = split_subjects(units.values(), fractions, args.seed)
    except UserError as error:
        cure = "give --subject REGEX if they are more people, --split_by session or run if they are not"
        raise UserError(f"{error}; {cure}" if args.split_by == "subject" else str(error)) from None
    return {path: splits[unit] for path, unit in units.items()}


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
