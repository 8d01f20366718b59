"""What the makers of the Temple University corpora share: patients, references, and the split of TUAB and TUEV."""

import re
from collections import defaultdict

from dataset_maker.machinery.sources import Source, find_files, list_sources
from dataset_maker.machinery.splits import split_subjects
from errors import UserError

MAINS = 60.0  # Hz; the official code takes 50 although the recordings are American
OFFICIAL_RULE = "eval is test; training subjects 80/20 train and val, seeded"
REFERENCE_FOLDER = re.compile(r"\d\d_tcp_(ar|le)(_a)?")


def patient_of(path) -> str:
    """The patient of a file called patient_session_....edf."""
    return path.stem.split("_")[0]


def reference_of(path, raw_dir) -> str | None:
    """The reference that a file's folders name: "ar" averaged, "le" linked ears, None where they name none."""
    found = [REFERENCE_FOLDER.fullmatch(part) for part in path.relative_to(raw_dir).parts]
    return next((match.group(1) for match in found if match), None)


def folder_choice(path, raw_dir, choices) -> str:
    """Which of `choices` is among a file's folders. Raises UserError when none is."""
    parts = path.absolute().relative_to(raw_dir.absolute().parent).parts
    found = [part for part in parts if part in choices]
    if not found:
        raise UserError(f"{path} lies in none of the folders {', '.join(choices)}; take the corpus's own layout")
    return found[0]


def split_official(parts, seed) -> dict[str, str]:
    """{subject: split} of a corpus split into train and eval: eval is test, of the other subjects a fifth is val.

    parts: {subject: set of "train", "eval"}. Raises UserError when a subject is in both.
    """
    both = [subject for subject, where in parts.items() if len(where) > 1]
    if both:
        raise UserError(f"subject {both[0]} is both in train and in eval; take its files out of one of them")
    splits = {subject: "test" for subject, where in parts.items() if where == {"eval"}}
    training = [subject for subject, where in parts.items() if where == {"train"}]
    return splits | (split_subjects(training, {"val": 0.2, "train": 0.8}, seed) if training else {})


def official_sources(args, layout, detail_of, subject_of) -> list[Source]:
    """The raw files of such a corpus; subject_of(path, side) names the subject of a file in "train" or "eval"."""
    paths = find_files(args.raw_dir, [".edf"], layout)
    sides = [folder_choice(path, args.raw_dir, ("train", "eval")) for path in paths]
    subjects, parts = [*map(subject_of, paths, sides)], defaultdict(set)
    for subject, side in zip(subjects, sides, strict=True):
        parts[subject].add(side)
    splits = split_official(parts, args.seed)
    return list_sources(paths, args.raw_dir, subjects, map(splits.get, subjects), [*map(detail_of, paths)])
