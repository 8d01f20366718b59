"""Which subject belongs to which split: seeded, the same on every machine and for every order of the files."""

import hashlib
from collections import defaultdict

from errors import UserError

TRIES = 1000


def split_subjects(subjects, fractions, seed, labels=None) -> dict[str, str]:
    """Assign each subject to a split.

    subjects: any iterable of names; fractions: {split: share}, in the order in which they are filled, the last taking
    the rest; labels: {subject: set of its labels}, when each split must hold every label. Raises UserError when there
    are fewer subjects than splits, or when no assignment tried gives each split each label.
    """
    subjects = sorted(set(subjects))
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
    splits, assigned, first = list(fractions), {}, 0
    for position, split in enumerate(splits):
        left = len(splits) - position - 1  # each of the splits to come needs a subject
        count = max(1, round(fractions[split] * len(order)))
        stop = len(order) if not left else min(first + count, len(order) - left)
        assigned |= dict.fromkeys(order[first:stop], split)
        first = stop
    return assigned


def _complete(assigned, labels) -> bool:
    held = defaultdict(set)
    for subject, split in assigned.items():
        held[split] |= set(labels[subject])
    everything = set().union(*held.values())
    return all(held[split] == everything for split in set(assigned.values()))
