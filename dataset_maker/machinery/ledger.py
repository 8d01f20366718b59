"""What a maker has done so far, and the manifest, report and summary made of it.

`progress/<i>-of-<n>.jsonl` gets one line a finished raw file. The run that completes the last file of the corpus writes
`manifest.csv` and `report.csv` from the lines of all shards, which may run at the same time and end in any order: each
writes files of its own, and none waits for another. `progress/corpus.json` says of how many files the corpus is, and
`<i>-of-<n>.failed` why a shard has ended; status.py reads them. An --out_dir in object storage is made in the cache:
recordings leave it one by one, a shard's lines every PUBLISHED of them.
"""

import contextlib
import json

import mne
import numpy as np
import pandas as pd
import yaml

from dataset import storage
from dataset.descriptions import read_yaml
from dataset.hdf5 import RATE
from dataset.recordings import SPLITS
from dataset_maker.machinery.preprocessing import HIGH, LOW
from errors import UserError, described

VERSION = 2  # of what makers write; raised when the same raw file would give other bytes
MANIFEST = ("recording", "split", "subject", "channels", "seconds", "windows", "windows_per_label", "sha256")
REPORT = ("file", "status", "recordings", "notes")
PUBLISHED = 64  # lines


def describe(args, recipe) -> dict:
    """The content of dataset.yaml: all that the recordings depend on, nothing of the machine."""
    within = {} if recipe.split_by == "subject" else {"split_by": recipe.split_by}  # subjects are in several splits
    return within | {
        "name": recipe.name,
        "labels": list(recipe.labels) or None,
        "rate": RATE,
        "unit": "uV",
        "band": [LOW, HIGH],
        "notch": args.notch,
        "dtype": args.dtype,
        "channels": list(recipe.channels) if recipe.channels else None,
        "split": recipe.split_rule,
        "seed": args.seed,
        "parameters": recipe.parameters,
        "maker_version": VERSION,
        "made_with": {"mne": mne.__version__},
    }


def replace_text(path, text, part) -> None:
    """Write a file as a whole or not at all, by way of `part` in the same file system."""
    part.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be any bytes
    part.replace(path)
    storage.publish(path)


def bring_progress(out_dir, but=()) -> None:
    """Of a dataset in object storage: bring what its shards have written, except for some names."""
    storage.bring(out_dir)
    if storage.shown(out_dir) != str(out_dir):
        for path in (out_dir / "progress" / name for name in storage.names(out_dir / "progress") - set(but)):
            path.unlink(missing_ok=True)
            storage.fetch(path)


def read_progress(path) -> list[dict]:
    """The records of one shard."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]  # a killed run may leave half a line


class Ledger:
    """The records of a dataset folder; `open_shard` tells what is to do, `add` notes it, `close_shard` merges."""

    def __init__(self, args, description, sources, excluded):
        self.out_dir, self.raw_dir, self.shard = args.out_dir, args.raw_dir, args.shard
        self.description, self.sources = description, sources
        self.excluded = [(path.relative_to(args.raw_dir).as_posix(), reason) for path, reason in excluded]
        self.progress = args.out_dir / "progress"
        self.mine = self.progress / f"{args.shard[0]}-of-{args.shard[1]}.jsonl"
        self.part, self.failed = self.mine.with_suffix(".part"), self.mine.with_suffix(".failed")
        self.unpublished = 0

    def open_shard(self) -> list:
        """Prepare the folder -> the sources that this shard has still to make; refused ones are tried again.

        Raises UserError when the folder was made with other parameters.
        """
        self.progress.mkdir(parents=True, exist_ok=True)
        bring_progress(self.out_dir, [self.mine.name] * self.mine.is_file())
        self._check_description()
        replace_text(self.progress / "corpus.json", json.dumps({"files": len(self.sources)}), self.part)
        storage.remove(self.failed)
        self._tidy()
        records, there = self._records(), self._present()
        mine = self.sources[self.shard[0] :: self.shard[1]]
        todo = [source for source in mine if not self._final(records, there, source, ("used",))]
        for source in todo:  # made for another split before: that recording would stay behind
            for record in records.get(self._file(source), ()):
                for row in record["rows"]:
                    storage.remove(self._h5(row))
        return todo

    def add(self, record) -> None:
        with open(self.mine, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.unpublished += 1
        if self.unpublished % PUBLISHED == 0:
            storage.publish(self.mine)

    def fail(self, error) -> None:
        """Note why this shard ends before its time, where that can still be written."""
        with contextlib.suppress(OSError, UserError):
            replace_text(self.failed, described(error) + "\n", self.part)

    def close_shard(self) -> int:
        """Merge when every source is made or refused; print a summary -> the number of files refused."""
        self._tidy()
        bring_progress(self.out_dir, [self.mine.name])
        records, there = self._records(), self._present()
        final = [self._final(records, there, source) for source in self.sources]
        missing = final.count(None)
        final = [record for record in final if record]
        refused = [record for record in final if record["status"] == "refused"]
        for record in refused[:5]:
            line = f"refused {record['file']}: {'; '.join(record['notes'])}"
            print(line.encode(errors="backslashreplace").decode())
        if missing:
            print(f"{missing} of {len(self.sources)} files are left to other shards; the last one writes the manifest")
        else:
            self._merge(final)
        print(f"{len(final) - len(refused)} files used, {len(refused)} refused")
        return len(refused)

    def _check_description(self) -> None:
        path = self.out_dir / "dataset.yaml"
        if not path.is_file():
            replace_text(path, yaml.safe_dump(self.description, sort_keys=False), self.part)
            return
        try:
            before = read_yaml(path)
            compared = [key for key in self.description if key != "made_with"]
            changed = [key for key in compared if before.get(key) != self.description[key]]
        except (UserError, AttributeError):
            raise UserError(f"{path} is damaged; remove --out_dir {self.out_dir} and run this again") from None
        if changed:
            before, now = ({key: str(made.get(key))[:60] for key in changed} for made in (before, self.description))
            was = ", ".join(f"{key} {before[key]} (now {now[key]})" for key in changed)
            raise UserError(f"--out_dir {self.out_dir} was made with {was}; take the same, or another --out_dir")

    def _records(self) -> dict[str, list[dict]]:
        """All shards' records by raw file."""
        records = {}
        for path in sorted(self.progress.glob("*.jsonl")):
            for record in read_progress(path):
                records.setdefault(record["file"], []).append(record)
        return records

    def _tidy(self) -> None:
        """Sort this shard's lines, the last one of each file, so that a killed and a clean run end with the same."""
        self.mine.touch()
        records = {record["file"]: record for record in read_progress(self.mine)}
        lines = [json.dumps(records[file]) + "\n" for file in sorted(records)]
        replace_text(self.mine, "".join(lines), self.part)

    def _file(self, source) -> str:
        """Its path in the raw folder; as text, which is ten times as fast as pathlib's way."""
        return source.path.as_posix().removeprefix(f"{self.raw_dir.as_posix().rstrip('/')}/")

    def _h5(self, row):
        return self.out_dir / row["split"] / f"{row['recording']}.h5"

    def _present(self) -> set[str]:
        """The recordings that are there: listing a folder asks a file system once, not for each file."""
        return {f"{split}/{name}" for split in SPLITS for name in storage.names(self.out_dir / split)}

    def _final(self, records, there, source, status=("used", "refused")) -> dict | None:
        """The record that holds of a raw file: the one whose recordings are there, else that of its refusal."""
        found = {}
        for record in records.get(self._file(source), ()):
            same = (record["name"], record["subject"], record["split"]) == (source.name, source.subject, source.split)
            whole = all(f"{row['split']}/{row['recording']}.h5" in there for row in record["rows"])
            if record["status"] == "refused" or (same and whole):
                found.setdefault(record["status"], record)
        return next((found[name] for name in status if name in found), None)

    def _merge(self, records) -> None:
        rows = sorted((row for record in records for row in record["rows"]), key=lambda row: row["recording"])
        report = [
            {
                "file": record["file"],
                "status": record["status"],
                "recordings": " ".join(row["recording"] for row in record["rows"]),
                "notes": "; ".join(record["notes"]),
            }
            for record in records
        ]
        report += [{"file": file, "status": "excluded", "notes": reason} for file, reason in self.excluded]
        self._write_table("report.csv", REPORT, sorted(report, key=lambda row: row["file"]))
        if not rows:
            raise UserError(f"no file of {self.raw_dir} was usable; the reasons are in {self.out_dir / 'report.csv'}")
        self._write_table("manifest.csv", MANIFEST, rows)
        self._print_summary(rows)
        lost = {record["split"] for record in records} - {row["split"] for row in rows} - {"all"}
        for split in sorted(lost):
            print(f"warning: {split} is empty, all of its files were refused; another --seed splits differently")

    def _write_table(self, name, columns, rows) -> None:
        text = pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n")
        replace_text(self.out_dir / name, text, self.part)

    def _print_summary(self, rows) -> None:
        labels, rows = self.description["labels"] or [], pd.DataFrame(rows)
        where = storage.shown(self.out_dir)
        print(f"\n{self.description['name']} in {where} (manifest.csv, report.csv, dataset.yaml)")
        print(f"{'split':8}{'recordings':>12}{'subjects':>10}{'hours':>10}{'windows':>10}  windows per label")
        for split in sorted(set(rows["split"]), key=SPLITS.index):
            mine = rows[rows["split"] == split]
            counts = np.sum([[int(count) for count in text.split()] for text in mine["windows_per_label"]], axis=0)
            per_label = ", ".join(f"{label} {count}" for label, count in zip(labels, counts, strict=True))
            print(
                f"{split:8}{len(mine):12}{mine['subject'].nunique():10}{mine['seconds'].sum() / 3600:10.2f}"
                f"{mine['windows'].sum():10}  {per_label}"
            )
            if labels and np.count_nonzero(counts) < 2:
                print(f"warning: {split} holds one class only, which every trainer refuses: take another --seed")
