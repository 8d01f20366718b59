"""Dataset folders as lists of recordings, and the one reader of their files.

A folder made here has `manifest.csv`, `dataset.yaml` and one HDF5 file a recording in `<split>/`. Folders of the
official projects have no manifest: their HDF5 files (many groups each) and pickles (one sample each) are found in
`<split>/`. C channels, T samples, W labelled windows.
"""

import csv
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from dataset import storage
from dataset.channels import canonical_names, channel_rows
from dataset.descriptions import check_name, read_yaml
from dataset.hdf5 import MAX_SECONDS, RATE, open_eeg, open_file, read_segments
from dataset.pickles import load_sample
from dataset.scan import scan_files
from errors import UserError, check_file

SPLITS = ("train", "val", "test")
_PICKLES = {".pkl", ".pickle"}
_SUFFIXES = {".h5", ".hdf5"} | _PICKLES
MAX_OPEN = 256  # files of a reader
MAX_LABELS = 1000  # of an official dataset, which names none
_MANIFEST_COLUMNS = ("recording", "split", "subject", "channels", "seconds", "windows", "windows_per_label")


@dataclass(frozen=True, slots=True)
class Recording:
    """One continuous recording, known without opening its file."""

    path: Path
    group: str | None  # of the HDF5 file; None: an official pickle
    name: str
    split: str
    subject: str
    channels: tuple[str, ...]
    samples: int
    windows: int = 0  # labelled windows in it
    labels: int | None = None  # number of label names of its dataset; None: not declared
    label: int | None = None  # of the whole sample, in an official pickle
    counts: tuple[int, ...] | None = None  # of its windows, by label; None: not declared
    sha256: str = ""  # of its file; "": not declared
    center: tuple[float, ...] = ()  # uV of each channel, and the factor on what is above: a calibration; (): none
    scale: tuple[float, ...] = ()
    known_as: tuple[str, ...] = ()  # its channels as a model calls their places; (): by their own names


def find_datasets(dataset_dir) -> list[Path]:
    """The dataset folders at each path or address of `dataset_dir` (one, or a list): the folder itself, else its
    sub-folders. Raises UserError where there is none, and for two of one name."""
    found = {}
    for folder in (folder for place in places(dataset_dir) for folder in _find_below(place)):
        if found.setdefault(folder.name, folder) != folder:
            both = f"{storage.shown(found[folder.name])} and {storage.shown(folder)}"
            raise UserError(f"--dataset_dir: two datasets are called {folder.name}, {both}: rename or leave out one")
    return list(found.values())


def places(dataset_dir) -> list:
    """The paths and addresses of a --dataset_dir."""
    return [dataset_dir] if isinstance(dataset_dir, str | Path) else list(dataset_dir)


def _find_below(place) -> list[Path]:
    folder = storage.local(place)
    storage.bring(folder)
    folder = _existing(folder)
    if _is_dataset(folder):
        return [folder]
    found = [child for child in sorted(folder.iterdir()) if child.is_dir() and _is_dataset(child)]
    if not found:
        raise UserError(
            f"{place} holds no dataset: looked for manifest.csv, or recordings ({', '.join(sorted(_SUFFIXES))}) in "
            f"{', '.join(SPLITS)}, in it and in its sub-folders"
        )
    return found


def _existing(folder) -> Path:
    if not Path(folder).is_dir():
        name = storage.shown(folder)
        raise UserError(f"dataset folder {name} does not exist; make one with the scripts of dataset_maker/")
    return Path(folder)


def _is_dataset(folder) -> bool:
    return (folder / "manifest.csv").is_file() or any(next(recording_files(folder / split), None) for split in SPLITS)


def recording_files(folder):
    """Recordings below a folder, lazily and sorted within each folder."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names) if Path(name).suffix in _SUFFIXES)


def describe_dataset(folder) -> dict:
    """What dataset.yaml says, at least `name`, `labels` (names, or None) and `rate`. Raises UserError for a bad one.

    An official folder, without manifest, is described by its own name and no labels.
    """
    folder = Path(folder)
    path = folder / "dataset.yaml"
    if not path.is_file():
        if (folder / "manifest.csv").is_file():
            raise UserError(f"{path} is missing beside manifest.csv; copy it too, or run the maker again")
        return {"name": folder.name, "labels": None, "rate": RATE}
    content = read_yaml(path)
    about = {"name": folder.name, "rate": RATE, "labels": None} | (content if isinstance(content, dict) else {})
    labels = about["labels"]
    named = labels is None or (isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels))
    if not (isinstance(content, dict) and isinstance(about["name"], str) and named):
        raise UserError(f"{path}: expected 'name:', a text, and 'labels:', a list of label names or nothing")
    return about


def open_dataset(folder, split) -> list[Recording]:
    """The recordings of one split of a dataset folder, sorted by name.

    Raises UserError for a missing folder, a split that is missing or empty, a malformed manifest, files that are gone,
    and another sampling rate than 200 Hz.
    """
    folder = _existing(folder)
    if (folder / "manifest.csv").is_file():
        recordings = read_manifest(folder)
        splits = sorted({recording.split for recording in recordings})
        recordings = [recording for recording in recordings if recording.split == split]
        _check_files(folder / split, recordings)
    elif (folder / "dataset.yaml").is_file():
        raise UserError(f"{folder} is not finished: no manifest.csv; run its maker again, it makes what is missing")
    else:
        splits = [name for name in SPLITS if next(recording_files(folder / name), None)]
        recordings = _scan(folder / split, split)
    if not recordings:
        raise UserError(f"{folder} has no recordings in split '{split}'; splits with recordings: {splits or 'none'}")
    return sorted(recordings, key=lambda recording: recording.name)


def read_manifest(folder) -> list[Recording]:
    """The recordings of all splits as a dataset's manifest lists them. Raises UserError for a malformed one."""
    folder = Path(folder)
    about = describe_dataset(folder)
    if about["rate"] != RATE:
        raise UserError(f"{folder} is sampled at {about['rate']} Hz, expected {RATE}; make it again from the raw files")
    path = folder / "manifest.csv"
    labels = len(about["labels"] or ())
    montages = {}  # channels as written -> tuple, one for all recordings that share it
    recordings, folders = {}, {split: folder / split for split in SPLITS}
    check_file(path)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                name, channels = row["recording"], row["channels"]
                check_name(name, "recording")
                if row["split"] not in folders or not 0 <= float(row["seconds"]) <= MAX_SECONDS:
                    raise ValueError(f"{row['seconds']} s in {row['split']}: expected a split, {MAX_SECONDS} s at most")
                if channels not in montages:
                    montages[channels] = tuple(channels.split())
                    channel_rows(montages[channels])
                counts = [int(count) for count in row["windows_per_label"].split()]
                if name in recordings or len(counts) != labels or sum(counts) != int(row["windows"]) * bool(labels):
                    raise ValueError(f"a repeated name, or windows_per_label does not fit the {labels} labels")
                recordings[name] = Recording(
                    folders[row["split"]] / f"{name}.h5",
                    *(name, name, row["split"], row["subject"], montages[channels]),
                    round(float(row["seconds"]) * RATE),
                    int(row["windows"]),
                    labels,
                    counts=tuple(counts),
                    sha256=row.get("sha256") or "",
                )
    except KeyError as error:
        raise UserError(f"{path}: column {error} is missing; expected {', '.join(_MANIFEST_COLUMNS)}") from None
    except (OSError, ValueError, OverflowError, TypeError, AttributeError, csv.Error, UserError) as error:
        raise UserError(f"{path}, row {len(recordings) + 1}: {error}") from None
    return list(recordings.values())


def _check_files(folder, recordings) -> None:
    present = storage.names(folder)
    missing = [recording.path.name for recording in recordings if recording.path.name not in present]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(recordings)} recordings of the manifest are missing in {folder}, the first is "
            f"{missing[0]}; copy them, or run the maker again (it makes only what is missing)"
        )


def _scan(folder, split) -> list[Recording]:
    """The recordings of official files below a folder."""
    folder = folder.absolute()
    paths, recordings = list(recording_files(folder)), []
    for path in (path for path in paths if path.suffix in _PICKLES):
        eeg, written, label = load_sample(path)
        name, channels = path.relative_to(folder).as_posix(), canonical_names(written, f"{path}: ")
        about = (name, split, path.stem.split("_")[0], channels, eeg.shape[1])
        recordings.append(Recording(path, None, *about, windows=int(label is not None), label=label))
    for path, group, channels, samples, windows in scan_files([path for path in paths if path.suffix not in _PICKLES]):
        name = f"{path.relative_to(folder).as_posix()}/{group}"
        recordings.append(Recording(path, group, name, split, group, channels, samples, windows))
    return recordings


def segments(recording) -> np.ndarray:
    """The labelled windows of a recording -> (W, 3) int64: start sample, stop sample, label from 0.

    Raises UserError for a window outside the recording, for a label that the dataset does not have, and where the file
    is not as long as the manifest says, or holds other channels or windows.
    """
    if recording.group is None:
        rows = [] if recording.label is None else [(0, recording.samples, recording.label)]
        rows = np.array(rows, dtype=np.int64).reshape(-1, 3)
    else:
        with open_file(recording.path) as file:
            eeg, channels = open_eeg(file, recording.group)
            samples = eeg.shape[1]
            rows = read_segments(file, recording.group)
    start, stop, label = rows.T
    if (start < 0).any() or (stop <= start).any() or (stop > recording.samples).any():
        raise UserError(f"{recording.path}: a labelled window lies outside its {recording.samples} samples")
    labels = recording.labels if recording.labels is not None else MAX_LABELS
    if (label < 0).any() or (label >= labels).any():
        found = sorted(set(label.tolist()))
        raise UserError(f"{recording.path}: labels {[*found[:4], *found[4:][-1:]]}, but the dataset names {labels}")
    if recording.group is not None:
        _check_shape(recording, channels, samples)
    if recording.counts:
        found = tuple(np.bincount(label, minlength=recording.labels).tolist())
        if found != recording.counts:
            raise UserError(
                f"{recording.path} holds {len(rows)} windows ({_by_label(found)}), the manifest says "
                f"{recording.windows} ({_by_label(recording.counts)}): one of them is not what the maker wrote; run it "
                "again"
            )
    return rows


def _by_label(counts) -> str:
    return ", ".join(f"{count} of label {label}" for label, count in enumerate(counts))


def _check_shape(recording, channels, samples) -> None:
    """Raise UserError where a file holds other channels or another length than its manifest says."""
    if samples != recording.samples or channels != recording.channels:
        raise UserError(
            f"{recording.path} holds {len(channels)} channels x {samples} samples, its manifest says "
            f"{len(recording.channels)} x {recording.samples}; run its maker again"
        )


class RecordingReader:
    """Reads windows of any recording; keeps at most `max_open` open, each opened in the process that uses it."""

    def __init__(self, max_open=MAX_OPEN):
        self.max_open = max_open
        self._open = OrderedDict()  # (path, group) -> its eeg, the least recently used first; closes when dropped
        self._checked = set()  # (path, group) of recordings that are what their manifest says
        self._process = os.getpid()

    def __reduce__(self):
        return RecordingReader, (self.max_open,)

    def read(self, recording, start, stop) -> np.ndarray:
        """EEG of samples start to stop -> (C, stop - start) float32 uV. Raises UserError naming the file and reason."""
        if not 0 <= start < stop <= recording.samples:
            raise UserError(f"{recording.path}: samples {start} to {stop} asked for, it has {recording.samples}")
        if recording.group is None:
            return load_sample(recording.path)[0][:, start:stop]
        try:
            return self._eeg(recording)[:, start:stop].astype(np.float32, copy=False)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"{recording.path} is damaged ({error}); run its maker again") from None

    def _eeg(self, recording) -> h5py.Dataset:
        if self._process != os.getpid():  # after a fork the parent's handles are not ours
            self.__init__(self.max_open)
        key = (recording.path, recording.group)
        if key not in self._open:
            if len(self._open) >= self.max_open:
                self._open.popitem(last=False)
            self._open[key] = self._open_eeg(recording)
        self._open.move_to_end(key)
        return self._open[key]

    def _open_eeg(self, recording) -> h5py.Dataset:
        file = open_file(recording.path)  # h5py closes it when its last dataset is dropped
        if (recording.path, recording.group) in self._checked:  # checking costs as much as opening
            return file[recording.group]["eeg"]
        eeg, channels = open_eeg(file, recording.group)
        _check_shape(recording, channels, eeg.shape[1])
        self._checked.add((recording.path, recording.group))
        return eeg
