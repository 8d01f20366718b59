"""One HDF5 file of recordings: ours (one group, with `segments`) or an official one (many groups, SEED's trials).

Each group holds `eeg` (C, T) in uV; its attributes hang on `eeg` or on the group. Files are hostile until checked: no
link leaves the file, and no chunk is larger than a machine can hold. C channels, T samples, W labelled windows.
"""

import h5py
import numpy as np

from dataset import storage
from dataset.channels import canonical_names
from errors import UserError, check_file

RATE = 200  # Hz, of everything that the models read
TRIAL_WINDOW = 4  # seconds; SEED's files mark trials, its windows are 4 s long
MAX_CHUNK_BYTES = 256 * 2**20
MAX_STORED_BYTES = 2**20  # of a compressed chunk: the library inflates all of it, up to 1032 times as much
MAX_WINDOWS = 10**6  # labelled ones in a recording
MAX_SECONDS = 10**7  # of a recording: 115 days
# what h5py raises on damaged files
_FAILURES = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError)


def open_file(path, attempts: int = 3) -> h5py.File:
    """Open for reading. Raises UserError when it is no HDF5 file."""
    storage.fetch(path)
    check_file(path)
    try:
        # No chunk cache: random windows never hit it, and without it only the samples asked for are read.
        return h5py.File(path, "r", rdcc_nbytes=0, locking=False)
    except OSError as error:
        if attempts > 1 and storage.shown(path) != str(path):  # another process has just made room in the cache
            return open_file(path, attempts - 1)
        raise UserError(f"{path} is not a readable HDF5 file ({error}); run its maker again") from None


def group_names(file) -> list[str]:
    """The names of a file's recordings, sorted. Raises UserError when it is damaged."""
    try:
        return sorted(file)
    except _FAILURES as error:
        raise UserError(f"{file.filename} is damaged ({error}); run its maker again") from None


def open_eeg(file, group) -> tuple[h5py.Dataset, tuple[str, ...]]:
    """The EEG (C, T) of a group and its channels by the table's names. Raises UserError for anything else."""
    try:
        _check_link(file, group)
        node = file[group]
        eeg = _open_dataset(node, "eeg")
        written = [x.decode() if isinstance(x, bytes) else str(x) for x in _attribute(node, eeg, "chOrder", ())]
        rate = float(_attribute(node, eeg, "rsFreq", 0))
        if eeg.ndim != 2 or eeg.dtype.kind not in "fi" or len(written) != len(eeg) or not eeg.size:
            raise ValueError(f"{len(written)} names in chOrder for eeg {eeg.dtype} {eeg.shape}")
        if eeg.shape[1] > MAX_SECONDS * RATE:
            raise ValueError(f"{eeg.shape[1]} samples, {MAX_SECONDS} s at most")
    except _FAILURES as error:
        raise UserError(f"{file.filename}, group {group}: not a recording: {error}; run its maker again") from None
    if rate != RATE:
        raise UserError(f"{file.filename}, group {group}: sampled at {rate:g} Hz (rsFreq), expected {RATE}")
    return eeg, canonical_names(written, f"{file.filename}, group {group}: ")


def _check_link(node, name) -> None:
    if not isinstance(node.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"its {name} is missing, or links to another file or place")


def _open_dataset(node, name) -> h5py.Dataset:
    """A dataset of a group. Raises ValueError where its values lie elsewhere, or a few would fill the memory."""
    _check_link(node, name)
    data = node[name]
    if not isinstance(data, h5py.Dataset):
        raise ValueError(f"its {name} is no dataset")
    large = np.prod(data.chunks or 1, dtype=float) * max(data.dtype.itemsize, 8) > MAX_CHUNK_BYTES
    if data.is_virtual or data.external or large:
        raise ValueError(f"its {name} is not stored in chunks of seconds")
    _check_filters(data, name)
    return data


def _check_filters(data, name) -> None:
    """Raise ValueError for what inflates to more than its chunk: the library finds out when the memory is full."""
    layout = data.id.get_create_plist()
    filters = [layout.get_filter(i)[0] for i in range(layout.get_nfilters())]
    stored = [0]
    if filters:
        data.id.chunk_iter(lambda chunk: stored.append(chunk.size))
    if max(stored) > MAX_STORED_BYTES or len(set(filters)) < len(filters):
        raise ValueError(f"its {name} is compressed twice, or in chunks of more than {MAX_STORED_BYTES} bytes")


def read_segments(file, group) -> np.ndarray:
    """The labelled windows of a group -> (W, 3) int64: start sample, stop sample, label. Raises UserError."""
    try:
        node = file[group]
        if "segments" in node:
            rows = _open_dataset(node, "segments")
            if rows.ndim != 2 or rows.shape[1] != 3 or rows.dtype.kind not in "iu" or len(rows) > MAX_WINDOWS:
                raise ValueError(f"segments {rows.dtype} {rows.shape}")
            return rows[:].astype(np.int64)
        marks = [np.ravel(_attribute(node, node["eeg"], name, ())) for name in ("trialStart", "trialEnd", "label")]
        return _trial_windows(*(np.asarray(mark, dtype=np.float64) for mark in marks), node["eeg"].shape[1])
    except _FAILURES as error:
        raise UserError(f"{file.filename}, group {group}: labelled windows cannot be read: {error}") from None


def _trial_windows(start, stop, label, samples) -> np.ndarray:
    """SEED's trials (start, stop, label of each) as windows of 4 s."""
    if len(stop) and stop.max() * RATE <= samples:  # the times are seconds, not samples
        start, stop = start * RATE, stop * RATE
    if len(label) and label.min() < 0:  # SEED's own labels: 1 positive, 0 neutral, -1 negative
        label = 1 - label
    step = TRIAL_WINDOW * RATE
    if not np.isfinite(label).all() or not (stop - start).clip(min=0).sum() / step <= MAX_WINDOWS:
        raise ValueError(f"its trials give more than {MAX_WINDOWS} windows, or are no numbers")
    rows = [
        (first, first + step, int(kind))
        for begin, end, kind in zip(start, stop, label, strict=True)
        for first in range(int(begin), int(end) - step + 1, step)
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _attribute(node, eeg, name, default):
    return eeg.attrs[name] if name in eeg.attrs else node.attrs.get(name, default)
