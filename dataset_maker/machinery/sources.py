"""The raw files of a corpus: found, named, and read of their labels."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dataset_maker.machinery.arrays import stem_of
from errors import UserError, check_file


@dataclass(frozen=True)
class Source:
    """One raw file of a corpus."""

    path: Path
    name: str  # of its recording, unique in the corpus
    subject: str
    split: str
    detail: object = None  # what the recipe's `cut` needs: a label, a label file, ...


def find_files(raw_dir, suffixes, layout, flag="--raw_dir") -> list[Path]:
    """Raw files below a folder, sorted by their path in it. Raises UserError, with the layout, when there is none."""
    raw_dir = Path(raw_dir)
    if not raw_dir.is_dir():
        raise UserError(f"{flag} {raw_dir} does not exist")
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(raw_dir, followlinks=True)
        for name in names
        if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")
    ]
    if not found:
        raise UserError(f"{flag} {raw_dir} holds no {' '.join(suffixes)} file; expected {layout}")
    return sorted(found, key=lambda path: path.relative_to(raw_dir).as_posix())


def find_named(raw_dir, suffixes, pattern, layout) -> dict[Path, re.Match]:
    """`find_files`, with each name's match of a pattern. Raises UserError for a file that is called otherwise."""
    found = {path: re.fullmatch(pattern, path.name) for path in find_files(raw_dir, suffixes, layout)}
    for path, name in found.items():
        if not name:
            raise UserError(f"{path} is not called {layout}; take it out of --raw_dir")
    return found


def recording_names(paths, raw_dir) -> list[str]:
    """A name for each raw file: its stem, or its path in the folder where several files share the stem."""
    repeated = {stem for stem, count in Counter(map(stem_of, paths)).items() if count > 1}
    names = (path.relative_to(raw_dir).as_posix() if stem_of(path) in repeated else stem_of(path) for path in paths)
    return [re.sub(r"[/\s]+", "_", name) for name in names]


def list_sources(paths, raw_dir, subjects, splits, details=None) -> list[Source]:
    """The raw files with the subject, the split and the detail of each."""
    rows = zip(paths, recording_names(paths, raw_dir), subjects, splits, details or [None] * len(paths), strict=True)
    return [Source(*row) for row in rows]


def read_labels(path, parse, form) -> list:
    """What `parse` makes of each line of a label file, without None. Raises UserError when it is missing, or a line is
    not of the `form`."""
    check_file(path)
    found = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            found.append(parse(line))
    except FileNotFoundError:
        raise UserError(f"without labels: no {path.name} beside it") from None
    except (ValueError, IndexError, OSError) as error:
        raise UserError(f"{path.name}, line {len(found) + 1}, is not {form}: {error}") from None
    return [row for row in found if row is not None]
