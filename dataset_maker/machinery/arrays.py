"""EEG in plain arrays, which say neither their rate nor their unit: CSV, NumPy and MATLAB files. C channels, T samples.

A CSV has a header row of channel names and a row a sample. The others hold one array (C, T) or (T, C) and no names.
Nothing is unpickled. Libraries are imported where a kind of file needs them: --help has to answer at once.
"""

import argparse
import csv
import gzip
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError

NAMELESS = (".npy", ".npz", ".mat")
ARRAYS = (".csv", ".csv.gz", *NAMELESS)
SUFFIXES = (".cnt", ".edf", ".bdf", ".gdf", ".vhdr", ".set", ".fif")  # of recordings, which MNE reads
UNITS = {"uV": 1.0, "mV": 1e3, "V": 1e6}  # in uV
MAT_CLASSES = ("double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
TIME = re.compile(r"(time|timestamp|t|sample|index)?s?[\W_]*(s|sec|seconds|ms|us|number|index)?\W*", re.IGNORECASE)


@dataclass(frozen=True)
class ArrayFormat:
    """What an array does not say of itself."""

    rate: float  # Hz
    unit: float = 1.0  # of its numbers, in uV
    channels: tuple[str, ...] | None = None  # names of its channels where it holds none
    variable: str | None = None  # the array's name in a file that holds several


def add_array_arguments(parser) -> None:
    """The flags of what arrays do not say, for `array_format`."""
    parser.add_argument("--rate", type=_above_zero, help=f"Hz of {' '.join(ARRAYS)} files")
    add_unit_argument(parser)
    parser.add_argument("--variable", help="the array to read where a .npz or .mat file holds several")


def add_unit_argument(parser) -> None:
    """The unit of a file's numbers, which outranks its header."""
    what = "of the numbers in the files: uV, mV, V, or raw:FACTOR to uV (default: as the header says; uV in arrays)"
    parser.add_argument("--unit", type=_unit, help=what)


def array_format(args) -> ArrayFormat | None:
    """The arrays' format as the flags give it; None: arrays are not expected."""
    return args.rate and ArrayFormat(args.rate, args.unit or 1.0, tuple(args.channels or ()) or None, args.variable)


def describe_array(rate, unit, channels) -> ArrayFormat:
    """The format of an array in memory, spelled as the flags spell it. Raises UserError."""
    try:
        names = None if channels is None else tuple(map(str, channels))
        return ArrayFormat(_above_zero(rate), _unit(str(unit)), names)
    except argparse.ArgumentTypeError as error:
        raise UserError(str(error)) from None


def _unit(text) -> float:
    kind, _, factor = text.partition(":")
    return _above_zero(factor if kind == "raw" else UNITS.get(text, ""), text, "uV, mV, V or raw:FACTOR")


def _above_zero(number, text=None, wanted="a rate in Hz above 0") -> float:
    try:
        if 0 < float(number) < np.inf:
            return float(number)
    except (ValueError, TypeError):
        pass  # refused below, like other numbers
    raise argparse.ArgumentTypeError(f"{text or number!r} is not {wanted}")


def is_array(path) -> bool:
    return Path(path).name.lower().endswith(ARRAYS)


def is_nameless(path) -> bool:
    """True for arrays whose channels have no names of their own: --channels names all of them."""
    return Path(path).name.lower().endswith(NAMELESS)


def stem_of(path) -> str:
    """A file's name without its suffix, or both of .csv.gz."""
    return re.sub(r"(\.csv\.gz|(?<!^)\.[^.]*)$", "", path.name, flags=re.IGNORECASE)


def read_array(path, known: ArrayFormat | None):
    """The array in a file as an MNE recording. What is worth a note is a RuntimeWarning. Raises UserError with the
    reason where the array is not what `known` says."""
    path = Path(path)
    if known is None:
        raise UserError("an array does not say its rate: give --rate, and --unit where it is not uV")
    if is_nameless(path):
        if not known.channels:
            raise UserError("its channels have no names: give --channels, a name for each in their order")
        names = known.channels
        data = _orient(_find(path, len(names), known.variable), len(names))
    else:
        names, data = _read_csv(path, known.rate)
    if known.unit not in UNITS.values():
        warnings.warn(f"raw numbers, taken as {known.unit:g} uV each", RuntimeWarning, stacklevel=2)
    return as_mne(data, names, known)


def as_mne(data, names, known: ArrayFormat):
    """An array (C, T) as an MNE recording, (E, C, T) as epochs; names: of its C channels."""
    import mne  # not at the top: predict.py --help need not wait for it

    data = np.array(data, dtype=np.float64)  # a copy of what may be mapped
    data *= known.unit * 1e-6
    info = mne.create_info(list(names), known.rate, "eeg")
    return (mne.io.RawArray if data.ndim == 2 else mne.EpochsArray)(data, info, verbose="ERROR")


def _read_csv(path, rate) -> tuple[list[str], np.ndarray]:
    """Names of the channels, and their samples (C, T) without a column of time."""
    import pandas as pd

    with _open_text(path) as file:
        header = file.readline()
        delimiter = max(",;\t", key=header.count)
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        if not any(names) or pd.to_numeric(pd.Series(names), errors="coerce").notna().any():
            raise UserError(f"its first row begins {header[:40].strip()!r}, it must name the channels")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # of text, named below
            table = pd.read_csv(file, sep=delimiter, header=None, names=range(len(names)), index_col=False)
    if not len(table):
        raise UserError("it holds names of channels and no samples")
    times = [place for place, name in enumerate(names) if TIME.fullmatch(name) and table[place].notna().any()][:1]
    for place, column in table.items():
        if column.dtype.kind not in "iuf" and place not in times:
            bad = pd.to_numeric(column, errors="coerce").isna() & column.notna()
            row = int(bad.to_numpy().argmax())
            raise UserError(f"row {row + 1} of column {names[place]}: {str(column[row])!r} is no number")
    for place in times:
        _check_time(table[place], names[place], rate)
    kept = [place for place in range(len(names)) if place not in times]
    return [names[place] for place in kept], table[kept].to_numpy(np.float64).T


@contextmanager
def _open_text(path):
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", newline="", encoding="utf-8-sig") as file:
            yield file
    except EOFError:
        raise UserError("truncated: its compressed content ends too early") from None


def _check_time(column, name, rate) -> None:
    """Say that a column is time, and refuse one that contradicts the rate; seconds, ms, us, or a counter of samples."""
    if column.dtype.kind not in "iuf":
        warnings.warn(f"column {name!r} left out as time, not compared with the rate", RuntimeWarning, stacklevel=2)
        return
    time = column.to_numpy(np.float64)
    if not (np.diff(time) > 0).all():
        raise UserError(f"its column {name!r} is time and does not increase at row {np.argmin(np.diff(time) > 0) + 2}")
    step = (time[-1] - time[0]) / max(len(time) - 1, 1)
    if len(time) > 1 and not any(abs(step * per / unit - 1) < 0.01 for per, unit in
                                 ((1, 1), (rate, 1), (rate, 1e3), (rate, 1e6))):  # fmt: skip
        raise UserError(
            f"its column {name!r} advances by {step:.6g} a row, {1 / step:.4g} Hz if in seconds; --rate says {rate:g}"
        )
    warnings.warn(f"column {name!r} left out as time, it fits {rate:g} Hz", RuntimeWarning, stacklevel=2)


def _find(path, channels, variable) -> np.ndarray:
    """The array (2-D, numeric) of a NumPy or MATLAB file, the only one with so many channels or the one named."""
    import h5py
    import scipy.io

    suffix = path.suffix.lower()
    if suffix == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a false shape cannot fill the memory
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[_choose({name: arrays[name].shape for name in arrays.files}, channels, variable)]
    if h5py.is_hdf5(path):  # MATLAB 7.3
        with h5py.File(path) as file:
            numeric = {
                name: item.shape
                for name, item in file.items()
                if isinstance(item, h5py.Dataset) and item.attrs.get("MATLAB_class", b"double").decode() in MAT_CLASSES
            }
            return file[_choose(numeric, channels, variable)][()]
    numeric = {name: shape for name, shape, kind in scipy.io.whosmat(path) if kind in MAT_CLASSES}
    name = _choose(numeric, channels, variable)
    return scipy.io.loadmat(path, variable_names=[name])[name]


def _choose(shapes, channels, variable) -> str:
    """The name of the array to read among {name: shape}."""
    fitting = [name for name, shape in shapes.items() if len(shape) == 2 and channels in shape and max(shape) > 1]
    fitting = [name for name in fitting if variable in (None, name)]
    if len(fitting) == 1:
        return fitting[0]
    held = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()) or "no array of numbers"
    if fitting:
        raise UserError(f"several arrays have {channels} channels, choose one with --variable; it holds {held}")
    wanted = f"no array {variable}" if variable else "no array"
    raise UserError(f"{wanted} of the {channels} channels that --channels names; it holds {held}")


def _orient(array, channels) -> np.ndarray:
    """(C, T) of (C, T) or (T, C), by the number of channels named."""
    shape = "x".join(map(str, array.shape))
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise UserError(f"an array {shape} of {array.dtype}, expected one of numbers, channels x samples")
    if array.shape.count(channels) != 1:
        both = "both axes could be" if channels in array.shape else "no axis is"
        raise UserError(f"an array {shape}: {both} the {channels} channels that --channels names")
    return array if array.shape[0] == channels else array.T
