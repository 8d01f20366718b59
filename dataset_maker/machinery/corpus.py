"""What every maker shares: raw files to a dataset folder, in parallel and resumably.

Each finished raw file leaves its recordings (HDF5, renamed into place) and then one line in the ledger; a run that was
killed goes on from there. C channels, T samples.
"""

import argparse
import errno
import hashlib
import io
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import parent_process
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from dataset import storage
from dataset.amplitudes import FLAT
from dataset.hdf5 import RATE
from dataset_maker.machinery.ledger import Ledger, describe
from dataset_maker.machinery.preprocessing import CleanEEG, load_recording
from dataset_maker.machinery.sources import Source
from dataset_maker.machinery.splits import unit_of
from errors import UserError, described
from training.numbers import Help

CHUNK_SECONDS = 10  # of HDF5 chunks: measured best for random windows of 4 to 64 s
FLOAT16_MAX = 65504  # uV
SOME_REFUSED = 3  # exit status


@dataclass(frozen=True)
class Piece:
    """A stretch of a clean recording that becomes one recording of the dataset; `rows` count from its own start."""

    name: str
    split: str
    start: int
    stop: int
    rows: Sequence[tuple[int, int, int]] = ()  # labelled windows: start sample, stop sample, label
    notes: tuple[str, ...] = ()


def whole(source, clean, rows=(), notes=()) -> list[Piece]:
    """The usual cut: all of the recording, with the labelled windows `rows`."""
    return [Piece(source.name, source.split, 0, clean.eeg.shape[1], rows, notes)]


@dataclass(frozen=True)
class Recipe:
    """How a corpus becomes a dataset. `cut` is a module-level function, because worker processes import it."""

    name: str
    split_rule: str
    labels: tuple[str, ...] = ()
    channels: tuple[str, ...] | None = None  # None: all of the table
    cut: Callable[[Source, CleanEEG], list[Piece]] = whole
    reader: dict = field(default_factory=dict)  # more arguments of load_recording
    parameters: dict = field(default_factory=dict)  # more of what the maker was asked, for dataset.yaml
    split_by: str = "subject"  # what no split tears apart, see `unit_of`


def arguments(doc, notch, *groups, url=None):
    """The `get_args` of a maker with docstring `doc`: the flags of every maker and what `groups` add to the parser.

    notch: the mains frequency where the corpus was recorded; url: where it is public.
    """

    def get_args(argv=None):
        parser = argparse.ArgumentParser(description=doc, formatter_class=Help)
        add = parser.add_argument_group("of every maker").add_argument
        add("--raw_dir", type=Path, required=True, help="folder of the raw files")
        add("--out_dir", type=storage.local, required=True, help="the dataset folder to make, or s3://bucket/folder")
        add("--shard", type=_shard, default=(0, 1), help="part of a job array: i/n, i below n (default: 0/1)")
        add("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
        add("--dtype", choices=("float32", "float16"), default="float32", help="of the stored EEG")
        add("--notch", type=float, default=notch, help=f"mains in Hz, 0: none (default: {notch:g})")
        add("--seed", type=int, default=0, help="of splits by subject")
        if url:
            what = f"fetch the corpus into --raw_dir first, what is missing only (from {url}, or from the mirror URL)"
            add("--download", nargs="?", const=url, metavar="URL", help=what)
        for group in groups:
            group(parser)
        return parser.parse_args(argv)

    return get_args


def _shard(text) -> tuple[int, int]:
    shard, _, shards = text.partition("/")
    if not (shard.isdecimal() and shards.isdecimal() and int(shard) < int(shards)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 0 to n - 1")
    return int(shard), int(shards)


def tiles(start, stop, label, window, stride=None) -> list[tuple[int, int, int]]:
    """Labelled windows of `window` samples that fit between two samples, every `stride` (default: end to end)."""
    return [(first, first + window, label) for first in range(start, stop - window + 1, stride or window)]


def inside(start, window, samples) -> int:
    """The start of a window, moved so that it does not cross an end of its recording."""
    return max(0, min(start, samples - window))


def make(args, recipe, sources, excluded=()) -> None:
    """Make what this shard misses, merge, print a summary. Exits with status 3 when files were refused.

    excluded: (path, reason) of raw files left out on purpose. Raises UserError when names repeat, when a subject is in
    two splits, when the folder was made with other parameters or cannot be written, and when no file was usable.
    """
    name, count = Counter(source.name for source in sources).most_common(1)[0]
    if count > 1:
        raise UserError(f"{count} raw files would all become recording {name}; rename them")
    splits = {}
    for source in sources:
        unit = unit_of(recipe.split_by, source.subject, source.path, args.raw_dir)
        if splits.setdefault(unit, source.split) != source.split:
            both = f"{splits[unit]} and {source.split}"
            raise UserError(f"subject {unit} would be in {both}; {source.path} is the first file to show it")
    ledger = Ledger(args, describe(args, recipe), sources, excluded)
    work = partial(make_file, args, recipe)
    try:
        for record in _run(work, ledger.open_shard(), args.workers, recipe.name):
            ledger.add(record)
        refused = ledger.close_shard()
    except OSError as error:
        ledger.fail(error)
        raise UserError(f"--out_dir {args.out_dir} cannot be written: {error}; mend that and run this again") from None
    except BaseException as error:
        ledger.fail(error)
        raise
    if refused:
        sys.exit(SOME_REFUSED)


def _run(work, sources, workers, title):
    """Yield work(source) as each is done."""
    with tqdm(total=len(sources), desc=title, unit="file") as bar:
        if min(workers, len(sources)) <= 1:
            for source in sources:
                yield work(source)
                bar.update()
            return
        pool = ProcessPoolExecutor(min(workers, len(sources)), initializer=_end_with_parent)
        try:
            for done in as_completed([pool.submit(work, source) for source in sources]):
                yield done.result()
                bar.update()
        except BrokenProcessPool:
            raise UserError(
                "a worker process died, out of memory perhaps: run the same command again with fewer --workers, "
                "it goes on from here"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let no worker outlive a parent that was killed: it would go on writing."""
    parent = parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def make_file(args, recipe, source) -> dict:
    """Clean one raw file and write its recordings -> its record for the ledger."""
    file = source.path.relative_to(args.raw_dir).as_posix()
    record = {"file": file, "name": source.name, "subject": source.subject, "split": source.split}
    try:
        clean = load_recording(source.path, recipe.channels, args.notch, **recipe.reader)
        pieces = [_check_windows(piece, clean, recipe.labels) for piece in recipe.cut(source, clean)]
        notes = [*clean.notes, *(note for piece in pieces for note in piece.notes)]
        if args.dtype == "float16" and np.abs(clean.eeg).max() > FLOAT16_MAX:
            notes.append(f"clipped at {FLOAT16_MAX} uV, as far as float16 goes")
        rows = [_write(args, recipe, source, file, clean, piece) for piece in pieces]
        return record | {"status": "used", "notes": notes, "rows": rows}
    except Exception as error:  # one bad file is its line in the report, whatever it leads to
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:  # of --out_dir, not of this file
            raise
        reason = str(error).removeprefix(f"{source.path}: ") if isinstance(error, UserError) else described(error)
        return record | {"status": "refused", "notes": [reason], "rows": []}


def _check_windows(piece, clean, labels) -> Piece:
    """The piece without windows that hold no EEG. Raises UserError for an impossible window and when none is left."""
    if not labels:
        return piece
    length, kept, flat = piece.stop - piece.start, [], 0
    for start, stop, label in piece.rows:
        if not (0 <= start < stop <= length and 0 <= label < len(labels)):
            raise UserError(f"window {start}-{stop}, label {label}, outside {length} samples or {len(labels)} labels")
        if np.ptp(clean.eeg[:, piece.start + start : piece.start + stop], axis=1).max() < FLAT:
            flat += 1
        else:
            kept.append((start, stop, label))
    if not kept:
        raise UserError(f"no labelled window: {flat} flat ones" if flat else "no labelled window fits in it")
    return replace(piece, rows=kept, notes=piece.notes + (f"{flat} flat windows left out",) * bool(flat))


def write_h5(path, name, eeg, channels, rows=None, **attributes) -> str:
    """Write one recording, group `name` with `eeg` (C, T) in uV and maybe `segments` (W, 3) -> sha256 of the file.

    In HDF5's 1.10 format and with strings of fixed length all that describes the data is under checksums, so that a
    damaged file is refused and does not lead the library astray. The file is put together in memory, as the library
    takes a full disk badly, and gets its name when it is complete.
    """
    attributes = {"chOrder": list(channels), "rsFreq": RATE, "unit": "uV"} | attributes
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("v110", "v110")) as file:
        group = file.create_group(name)
        data = group.create_dataset("eeg", data=eeg, chunks=(len(eeg), min(eeg.shape[1], CHUNK_SECONDS * RATE)))
        for key, value in attributes.items():
            data.attrs[key] = np.char.encode(value, "utf-8") if isinstance(value, str | list) else value
        if rows is not None:
            group["segments"] = np.array(rows, dtype=np.int64).reshape(-1, 3)
    part = path.with_name(path.name + ".part")
    part.write_bytes(image.getbuffer())
    part.replace(path)
    return hashlib.sha256(image.getbuffer()).hexdigest()


def _write(args, recipe, source, file, clean, piece) -> dict:
    """Write one recording -> its row of the manifest."""
    path = args.out_dir / piece.split / f"{piece.name}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    eeg = clean.eeg[:, piece.start : piece.stop]
    if args.dtype == "float16":
        eeg = eeg.clip(-FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)
    attributes = {"lFreq": clean.low, "hFreq": clean.high, "notch": clean.notch, "source": file}
    rows = piece.rows if recipe.labels else None
    sha256 = write_h5(path, piece.name, eeg, clean.channels, rows, **attributes, subject=source.subject)
    storage.publish(path, keep=False)
    counts = Counter(label for _, _, label in piece.rows)
    return {
        "recording": piece.name,
        "split": piece.split,
        "subject": source.subject,
        "channels": " ".join(clean.channels),
        "seconds": eeg.shape[1] / RATE,
        "windows": len(piece.rows),
        "windows_per_label": " ".join(str(counts[label]) for label in range(len(recipe.labels))),
        "sha256": sha256,
    }
