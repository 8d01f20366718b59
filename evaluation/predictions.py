"""What predict.py reads and writes: recordings of folders and patterns, files that never overwrite one another."""

import glob
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from dataset_maker.machinery.arrays import stem_of
from dataset_maker.machinery.sources import find_files
from errors import UserError
from evaluation.inference import UNTRAINED
from evaluation.metrics import most_likely

ENDS = (".csv", ".json", ".png", "_features.npz")  # of the files of one recording and task


def find_recordings(given, suffixes) -> dict[Path, Path]:
    """{recording: place of its outputs below --out_dir, without an end}, of files, folders, BIDS roots (their *_eeg
    files) and shell patterns; the outputs lie as the recordings do below a folder, or the fixed part of a pattern.

    Raises UserError for a folder or pattern with no recording, and where two would be called the same.
    """
    found = {}
    for word in map(str, given):
        path = Path(word).expanduser()
        if path.is_dir():
            is_bids = (path / "dataset_description.json").is_file()
            ends = [f"_eeg{suffix}" for suffix in suffixes] if is_bids else suffixes
            found |= {inside: inside.relative_to(path) for inside in find_files(path, ends, "recordings", "the folder")}
        elif glob.has_magic(word) and not path.exists():
            fixed = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
            matches = [match for match in matches if match.name.lower().endswith(tuple(suffixes)) and match.is_file()]
            if not matches:
                raise UserError(f"{word} fits no {' '.join(suffixes)} file")
            found |= {match: match.relative_to(Path(*path.parts[:fixed])) for match in matches}
        else:
            found[path] = Path(path.name)
    stems = Counter(place.with_name(stem_of(place)) for place in found.values())
    for path, place in found.items():
        stem = place.with_name(stem_of(place))
        found[path] = stem if stems[stem] == 1 else place
    repeated = sorted({stem_of(place) for place, count in Counter(found.values()).items() if count > 1})
    if repeated:
        raise UserError(
            f"two recordings are called {', '.join(repeated)}: their answers would share a file; give the folder above"
        )
    return found


def unused(stem: Path) -> Path:
    """`stem`, with a number where files of that name are there already."""
    place, number = stem, 1
    while any(Path(f"{place}{end}").exists() for end in ENDS):
        number += 1
        place = Path(f"{stem}-{number}")
    return place


def write_answers(stem: Path, table: pd.DataFrame, about: dict, features, starts) -> Path:
    """CSV, JSON and, where there are features, NPZ of a recording and task, all with the warnings of `about` -> their
    common path without an end."""
    stem, said = unused(stem), "; ".join(about["warnings"])
    table = table.assign(warning=said) if said else table
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(f"{stem}.csv", index=False, float_format="%.6g")
        Path(f"{stem}.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if features is not None:
            np.savez(f"{stem}_features.npz", features=features, start=starts, channels=about["channels"], warning=said)
    except OSError as error:
        raise UserError(f"{stem}.* cannot be written: {error}") from None
    return stem


def describe(question, table: pd.DataFrame) -> dict:
    """The sums over the windows of one recording, and what must be known of the question."""
    task = question.task
    means = {answer: float(table[f"p_{answer}"].mean()) for answer in task.answers}
    best = task.answers[most_likely(np.array([list(means.values())]))[0]] if any(means.values()) else ""
    shares = {answer: float((table["answer"] == answer).mean()) for answer in task.answers}
    return {
        "task": task.name, "question": task.question, "windows": len(table), "seconds": question.seconds,
        "answer": best, "mean_probability": means, "share_of_windows": shares,
        "warnings": [] if question.trained else [UNTRAINED],
    }  # fmt: skip


def summary_row(about: dict) -> dict:
    """The row of a recording and task in summary.csv."""
    row = {name: about[name] for name in ("recording", "task", "windows", "seconds", "answer")}
    probability = about["mean_probability"].get(about["answer"])
    return row | {"probability": probability, "warning": "; ".join(about["warnings"]), "refused": ""}


def write_summary(rows: list[dict], out_dir: Path) -> tuple[Path, str]:
    """summary.csv, a row for each recording and task, or recording that was refused -> its path, and it as text."""
    table = pd.DataFrame(rows).convert_dtypes()
    path = Path(f"{unused(out_dir / 'summary')}.csv")
    table.to_csv(path, index=False, float_format="%.6g")
    short = table.astype(object).fillna("")
    short = short.assign(recording=short["recording"].str[-44:], refused=short["refused"].str[:60])
    return path, short.to_string(index=False, float_format="{:.3f}".format, justify="left")
