"""Is somebody on both sides? Subjects that a model was trained on, held against those that judge it.

When equal names are one person:
- within a dataset: always;
- in two datasets of one corpus (`CORPORA` below, or `corpus: NAME` in dataset.yaml): always;
- in two datasets of different known corpora: never;
- where a corpus is not known: when the name is no mere counter such as "S001" or "7", and for counters too when the two
  datasets share a recording (its name, subject and length). Other counters in both are listed as not comparable.
Nobody can tell who is meant by an empty name or by the numbers that TUEV's evaluation recordings carry for names, nor
who is in a folder without manifest or behind a checkpoint that does not say: that is listed, never called no leaks.

Checkpoints hold hashes of names, so that a later stage can compare without the datasets of an earlier one.
"""

import csv
import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dataset.hdf5 import RATE
from dataset.recordings import SPLITS, describe_dataset
from errors import UserError, check_file

CORPORA = {
    **dict.fromkeys(("TUEG", "TUAB", "TUEV", "TUSL"), "TUH"),
    **{name: name for name in ("HMC", "SEED", "ADHD")},
    "Workload": "eegmat",
    "MotorImagery": "eegmmidb",
}
WITHIN = {"SEED": "clips"}  # by what it is split, as published: every subject is in all splits
PATIENT = {"TUH": re.compile(r"[a-z]{8}|\d{8}")}  # what a corpus calls its subjects, where some have other names
COUNTER = re.compile(
    r"([a-z]{1,3}|subj?|subject|pat|patient|person|participant|control|case|child|user|volunteer)?[-_ .]*\d{1,4}"
    r"|[a-z]{1,2}",
    re.IGNORECASE,
)
DIGITS = 12  # of a hash: 48 bits
SHOWN = 5  # subjects in a message


@dataclass(frozen=True)
class Row:
    """One recording of a manifest."""

    recording: str
    split: str
    subject: str
    samples: int

    @cached_property
    def mark(self) -> str:
        return shorten(f"{self.recording}\0{self.subject}\0{self.samples}")


@dataclass(frozen=True)
class Roster:
    """Who is in a dataset."""

    folder: str  # its name, for messages
    name: str  # of the dataset
    corpus: str | None  # where its subjects have their names from; None: not known
    rows: tuple[Row, ...]
    split_by: str = "subject"  # what its splits keep whole

    @classmethod
    def unknown(cls, name: str) -> "Roster":
        """Of data that nothing is known of: somebody without a name in each split."""
        return cls(name, name, CORPORA.get(name), tuple(Row("", split, "", 0) for split in SPLITS))

    def subjects(self, splits) -> dict[str, str]:
        """{subject: where} of the recordings in some splits, without those who have no name of their own."""
        where = {}
        for row in self._in(splits):
            if self._named(row.subject):
                where.setdefault(row.subject, set()).add(row.split)
        return {subject: " and ".join(sorted(found)) for subject, found in where.items()}

    @property
    def within(self) -> str:
        """A sentence where the dataset's own split has every subject on both sides; "" where it has not."""
        by = WITHIN.get(self.name, "" if self.split_by == "subject" else f"{self.split_by}s")
        return f"{self.folder} is split by {by}, within subjects: results say nothing about other people" if by else ""

    def nameless(self, splits) -> int:
        """How many subjects of some splits cannot be told by their names."""
        return len({row.subject for row in self._in(splits) if not self._named(row.subject)})

    def trained(self, splits) -> dict:
        """The subjects of a training set, hashed, as checkpoints hold them; recordings tell whose counters agree."""
        rows = self._in(splits)
        subjects = {shorten(row.subject) for row in rows if self._named(row.subject)}
        marks = {row.mark for row in rows if COUNTER.fullmatch(row.subject)}
        about = {"dataset": self.folder, "name": self.name, "corpus": self.corpus, "nameless": self.nameless(splits)}
        about["hours"] = round(sum(row.samples for row in rows) / RATE / 3600, 2)
        return about | {"subjects": " ".join(sorted(subjects)), "recordings": " ".join(sorted(marks))}

    def _in(self, splits) -> list[Row]:
        return [row for row in self.rows if row.split in splits]

    def _named(self, subject) -> bool:
        return bool(subject) and (self.corpus not in PATIENT or bool(PATIENT[self.corpus].fullmatch(subject)))


@dataclass
class Findings:
    """What a comparison found, a sentence each."""

    leaks: list[str] = field(default_factory=list)  # somebody is on both sides
    published: list[str] = field(default_factory=list)  # so too, as the dataset's own split has it
    not_compared: list[str] = field(default_factory=list)  # nobody can tell


def shorten(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def read_roster(dataset) -> Roster:
    """Who is in a dataset, given as folder (an official one has no manifest and is `unknown`) or manifest. Raises
    UserError for what is neither."""
    path = Path(dataset)
    if path.is_dir():
        path /= "manifest.csv"
        if not path.is_file() and not (path.parent / "dataset.yaml").is_file():
            return Roster.unknown(Path(dataset).resolve().name)
    check_file(path)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [_read_row(row) for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a dataset or its manifest") from None
    except (KeyError, ValueError, OverflowError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path} is not a manifest: {error}") from None
    folder = path.resolve().parent
    about = describe_dataset(folder) if (folder / "dataset.yaml").is_file() else {"name": folder.name}
    name = str(about["name"])
    corpus = str(about.get("corpus") or "") or CORPORA.get(name)
    return Roster(folder.name, name, corpus, tuple(rows), str(about.get("split_by", "subject")))


def _read_row(row: dict) -> Row:
    subject = " ".join(row["subject"].split())
    return Row(row["recording"], row["split"], subject, round(float(row["seconds"]) * RATE))


def find_leaks(trained: list[dict], held: list[Roster], splits, across: bool = False) -> Findings:
    """Hold the subjects of some `splits` of the datasets `held` against those trained on (of `Roster.trained`).
    across: the split is across subjects, also in datasets whose published one is not."""
    found = Findings()
    for roster in held:
        subjects = roster.subjects(splits)
        marks = {row.mark for row in roster.rows}
        for entry in trained:
            same = roster.name == entry["name"] or (roster.corpus and roster.corpus == entry["corpus"])
            if roster.corpus and entry["corpus"] and not same:
                continue  # other people, whatever they are called
            if roster.nameless(splits) or entry["nameless"]:
                found.not_compared.append(
                    f"{' and '.join(splits)} of {roster.folder} and training of {entry['dataset']}: some subjects have "
                    "no name of their own (a number, no manifest, a checkpoint that does not say on whom it was "
                    "trained), nobody can tell whether they are on both sides"
                )
            comparable = same or not marks.isdisjoint(entry["recordings"].split())
            known = set(entry["subjects"].split())
            for subject in sorted(subject for subject in subjects if shorten(subject) in known):
                line = f"{subject}: in training of {entry['dataset']} and in {subjects[subject]} of {roster.folder}"
                if roster.name == entry["name"] and roster.within and not across:
                    found.published.append(line)
                elif comparable or not COUNTER.fullmatch(subject):
                    found.leaks.append(line)
                else:
                    found.not_compared.append(
                        f"{line}, one person or two: write corpus: NAME into the dataset.yaml of both to tell"
                    )
    return found


def few(lines: list[str]) -> str:
    """Some of many lines, as one."""
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more
