"""On whom a model is trained and judged where that is not the dataset's own split: folds over all subjects, subjects
held out of pre-training, and calibration.

Fold k is the test set, the next one (after the last: the first) validation, the rest training. Subjects stay whole, in
an order that follows from a hash of seed and name: equal on every machine. C channels · T samples
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataset.amplitudes import SPARSE
from dataset.leaks import Roster, read_roster
from dataset.recordings import SPLITS, Recording, RecordingReader, describe_dataset, open_dataset, read_manifest
from errors import UserError

CALIBRATED = 10.0  # uV: what the median absolute amplitude of a channel becomes


@dataclass(frozen=True)
class Protocol:
    """The flags --folds --fold --fold_seed --calibrate; without them, the dataset's own split as it is."""

    folds: int | None = None
    fold: int | None = None
    fold_seed: int = 0
    calibrate: str | None = None

    def __post_init__(self):
        if (self.folds is None) != (self.fold is None):
            raise UserError("--folds K and --fold k belong together: into how many, and which of them is the test set")
        if self.folds is not None and self.folds < 3:
            raise UserError(f"--folds {self.folds}: at least 3 are needed, for training, validation and test")
        if self.folds is not None and not 0 <= self.fold < self.folds:
            raise UserError(f"--fold {self.fold}: {self.folds} folds are numbered 0 to {self.folds - 1}")

    def about(self) -> dict:
        """What results say of it."""
        folds = {"folds": self.folds, "fold": self.fold, "fold_seed": self.fold_seed} if self.folds else {}
        return folds | ({"calibrate": self.calibrate} if self.calibrate else {})

    def open(self, folder, split: str) -> list[Recording]:
        """The recordings of a split, as `open_dataset` gives them. Raises UserError for folds that cannot be made."""
        if self.folds is None:
            found = open_dataset(folder, split)
        else:
            place = self.places(folder)
            parts = sorted({recording.split for recording in read_manifest(folder)})
            found = [recording for part in parts for recording in open_dataset(folder, part)]
            found = [replace(recording, split=split) for recording in found if place[recording.name] == split]
            found.sort(key=lambda recording: recording.name)
        return calibrated(found, folder) if self.calibrate else found

    def places(self, folder) -> dict[str, str]:
        """{recording: split} of a dataset's folds, from its manifest. Raises UserError, also where a split would lack a
        label that the dataset has."""
        recordings = _read_subjects(folder)
        fold_of = assign_folds(recordings, self.folds, self.fold_seed, folder)
        role = {self.fold: "test", (self.fold + 1) % self.folds: "val"}
        places = {recording.name: role.get(fold_of[_subject(recording)], "train") for recording in recordings}
        everywhere = sum(np.array(recording.counts) for recording in recordings)
        for split in SPLITS:
            counts = sum(np.array(recording.counts) for recording in recordings if places[recording.name] == split)
            missing = np.flatnonzero((everywhere > 0) & (counts == 0))
            if len(missing):
                label = describe_dataset(folder)["labels"][missing[0]]
                raise UserError(
                    f"{folder}: with --folds {self.folds} --fold {self.fold} --fold_seed {self.fold_seed} no {split} "
                    f"window is {label}: take fewer folds or another --fold_seed"
                )
        return places


PUBLISHED = Protocol()


def read_protocol(args) -> Protocol:
    return Protocol(args.folds, args.fold, args.fold_seed, args.calibrate)


def assign_folds(recordings, folds: int, seed: int, source) -> dict[str, int]:
    """{subject: fold}. Those with a rare label are dealt first, so that each label is spread over as many folds as it
    can be; folds differ by one subject at most. Raises UserError for more folds than subjects."""
    windows = {}  # of each subject, by label
    for recording in recordings:
        windows[_subject(recording)] = windows.get(_subject(recording), 0) + np.array(recording.counts)
    if folds > len(windows):
        raise UserError(f"--folds {folds}: {source} has {len(windows)} subjects")
    has = {subject: counts > 0 for subject, counts in windows.items()}
    rarest_first = np.argsort(sum(has.values()), kind="stable")

    def order(subject):
        return (~has[subject][rarest_first]).tolist(), hashlib.sha256(f"{seed} {subject}".encode()).digest()

    return {subject: i % folds for i, subject in enumerate(sorted(has, key=order))}


def _read_subjects(folder) -> list[Recording]:
    """All recordings of a dataset, whose subjects are known. Raises UserError where they are not."""
    if not (Path(folder) / "manifest.csv").is_file():
        raise UserError(f"{folder} has no manifest.csv, which says whose recordings they are: no folds without it")
    recordings = read_manifest(folder)
    nameless = [recording.name for recording in recordings if not _subject(recording)]
    if nameless:
        raise UserError(f"{folder}: recording {nameless[0]} has no subject in manifest.csv: no folds without it")
    return recordings


def _subject(recording) -> str:
    return " ".join(recording.subject.split())  # as in `Roster`


# ------------------------------------------------------------------------------------------------- pre-training


def held_out(given) -> list[Roster]:
    """Whom --exclude_fold keeps out, each given as DATASET_DIR, K, k and perhaps SEED: the rows of that fold and of its
    validation fold. Raises UserError."""
    rosters = []
    for words in given:
        try:
            folder, numbers = words[0], [int(word) for word in words[1:]]
            protocol = Protocol(*numbers) if len(numbers) in (2, 3) else None
        except ValueError:
            protocol = None
        if protocol is None:
            raise UserError(f"--exclude_fold {' '.join(words)}: give DATASET_DIR K k, or DATASET_DIR K k SEED")
        places, roster = protocol.places(folder), read_roster(folder)
        rows = tuple(row for row in roster.rows if places[row.recording] != "train")
        rosters.append(replace(roster, rows=rows))
    return rosters


def without(recordings, folder, held: list[Roster]) -> list[Recording]:
    """The recordings of a dataset without those of subjects who are held out. Equal names are one person unless the
    two datasets are known to be of different corpora."""
    if not held:
        return recordings
    mine, names = read_roster(folder), set()
    for roster in held:
        others = mine.name != roster.name and mine.corpus and roster.corpus and mine.corpus != roster.corpus
        names |= set() if others else {row.subject for row in roster.rows}
    return [recording for recording in recordings if _subject(recording) not in names]


# -------------------------------------------------------------------------------------------------- calibration


def calibrated(recordings, folder) -> list[Recording]:
    """The recordings with the `center` and `scale` that bring each channel to median 0 and the same median absolute
    amplitude over all that the dataset holds of this subject, no label read. Raises UserError where subjects are not
    known."""
    whole, reader, measured = {}, RecordingReader(), {}
    for recording in _read_subjects(folder):
        whole.setdefault(_subject(recording), []).append(recording)
    for subject in dict.fromkeys(map(_subject, recordings)):
        values = {}  # channel -> its samples in each recording
        for recording in whole[subject]:
            eeg = reader.read(recording, 0, recording.samples)[:, ::SPARSE]
            for channel, row in zip(recording.channels, eeg, strict=True):
                values.setdefault(channel, []).append(row)
        for channel, rows in values.items():
            row = np.concatenate(rows)
            center = float(np.median(row))
            spread = float(np.median(np.abs(row - center)))
            measured[subject, channel] = (center, CALIBRATED / spread if spread else 1.0)
    found = []
    for recording in recordings:
        pairs = [measured[_subject(recording), channel] for channel in recording.channels]
        center, scale = zip(*pairs, strict=True)
        found.append(replace(recording, center=center, scale=scale))
    return found
