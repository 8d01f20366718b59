"""A raw file, or an MNE object, to clean EEG, as both papers do it with MNE: channels of the table, band-pass
0.1-75 Hz, notch at the mains frequency, resampling to 200 Hz, uV. What a model should not be fed is refused with its
reason. C channels, E epochs (1 of a recording), T samples.
"""

import os
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import mne
import numpy as np

from dataset.amplitudes import PLAUSIBLE, QUIETEST, SPARSE, describe_loud, find_loud
from dataset.channels import OTHER_NAME, canonical_name
from dataset.hdf5 import RATE
from dataset_maker.machinery.arrays import is_array, read_array
from dataset_maker.machinery.edf import check_edf
from dataset_maker.machinery.filters import convolve, design, resample
from dataset_maker.machinery.limits import bounded_memory, forget, make_room
from errors import UserError, check_file, described

ANNOTATED = "make_custom.py --from_annotations reads them beside it"
LOW, HIGH = 0.1, 75.0  # Hz, the band of both papers
RATES = (20.0, 50_000.0)  # Hz: of amplifiers for EEG; the filters of others would fill the memory
VOLTS = {"nV": 1e-9, "µV": 1e-6, "uV": 1e-6, "mV": 1e-3, "V": 1.0, "n/a": 1.0}  # as MNE has them
BLOCK_BYTES = 2**28  # of float64 signal in memory at once; and of clean EEG, where a scratch file can hold it


@dataclass(frozen=True)
class CleanEEG:
    """A recording ready for the models, and what was done to it."""

    channels: tuple[str, ...]  # names of the table
    eeg: np.ndarray  # (C, T) float32 uV at 200 Hz
    low: float  # Hz
    high: float  # Hz
    notch: float  # Hz, 0: none
    events: tuple[tuple[float, float, str], ...]  # the file's annotations: onset s, duration s, text
    notes: tuple[str, ...]  # what a reader of the report should know
    epoch: int | None = None  # samples of each of the epochs that follow one another in `eeg`; None: a recording


def load_recording(
    source, channels=None, notch=50.0, aliases=None, min_seconds=1.0, trim_end=0.0, array=None, unit=None,
    band=(LOW, HIGH), scratch=None, progress=iter, **options,
) -> CleanEEG:  # fmt: skip
    """Read and clean one raw file, or an MNE Raw or Epochs, which stay as they are.

    channels: names of the table to take, in this order (default: all of the table, in the file's order); notch: mains
    frequency in Hz, 0 for none; aliases: from `load_aliases`; trim_end: seconds to cut off the end; array: the
    `ArrayFormat` of a file that is an array; unit: uV of one of the numbers in any other file, None: as its header
    says; band: Hz, None: it is filtered already, notch included; scratch: a folder
    for a nameless file that holds the EEG of long recordings in place of the memory; progress: around the blocks of
    channels; options: for MNE's reader. Raises UserError naming the file and why it was refused.
    """
    is_file = isinstance(source, str | os.PathLike)
    path = source if is_file else f"the {type(source).__name__} given"
    try:
        with warnings.catch_warnings(record=True) as caught, mne.utils.use_log_level("WARNING"):
            warnings.simplefilter("always")
            raw = _read(source, options, array) if is_file else source
            if _is_epochs(raw) and not raw.preload:
                raw = raw.copy().load_data()
            if is_file and not raw.ch_names:
                raise UserError(f"annotations and no signal: labels of a recording ({ANNOTATED})")
            picked, notes = _pick(raw, channels, aliases)
            scale = dict.fromkeys(picked.values(), 1e6)  # MNE reads V
            if unit and is_file and not is_array(path):
                scale, said = _believe(raw, scale, unit)
                notes += said
            rate = raw.info["sfreq"]
            seconds = (len(raw.times) if _is_epochs(raw) else raw.n_times) / rate
            if not RATES[0] <= rate <= RATES[1]:
                raise UserError(f"sampled at {rate:g} Hz, EEG is at {RATES[0]:g} to {RATES[1]:g}")
            if seconds < min_seconds + trim_end:
                raise UserError(f"too short: {seconds:.1f} s, at least {min_seconds + trim_end:g} s are needed")
            with bounded_memory([source, *map(str, raw.filenames)]) if is_file else nullcontext():
                clean = _clean(raw, picked, scale, seconds - trim_end, notch, band, channels is None, scratch, progress)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # whatever else its content leads to; the type tells a bug from a bad file
        raise UserError(f"{path}: cannot be used: {described(error)}") from error
    said = {" ".join(str(warning.message).split()) for warning in caught if warning.category is RuntimeWarning}
    hardware = ("Channels contain different", "Highpass cutoff")  # settings of the amplifier, not of the data
    said = tuple(sorted(text for text in said if not text.startswith(hardware)))
    return replace(clean, notes=notes + clean.notes + said)


def read_annotations(path) -> list[tuple[float, float, str]]:
    """A file's annotations: start and stop in s from its beginning, text. Raises UserError naming the file when it
    cannot be read."""
    try:
        with warnings.catch_warnings(), mne.utils.use_log_level("ERROR"):
            warnings.simplefilter("ignore")
            raw = _read(path, {})
            marks = _events(raw) if raw.ch_names else _rows(mne.read_annotations(path))
        return [(start, start + length, text) for start, length, text in marks]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read(path, options, array=None) -> mne.io.BaseRaw:
    check_file(path)
    check_edf(path)
    with _mne_errors("read"), bounded_memory([path]):
        return read_array(path, array) if is_array(path) else mne.io.read_raw(path, preload=False, **options)


@contextmanager
def _mne_errors(what):
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # MNE raises whatever a damaged file leads it to
        raise UserError(f"cannot be {what}: {described(error)}") from None


def _pick(raw, channels, aliases) -> tuple[dict[str, str], tuple[str, ...]]:
    """The channels to keep, {name of the table: name in the file}, and a note on the others."""
    candidates = [name for name, kind in zip(raw.ch_names, raw.get_channel_types(), strict=True) if kind == "eeg"]
    if {"A3", "B3", "C3"} <= set(candidates) and not aliases:
        raise UserError("its channels carry BioSemi's bank labels (A1 A2 ...), not places; name them in an alias file")
    found = {}
    for name in candidates:
        # MNE tells repeated names apart by a running number: FP1-0, FP1-1
        repeated = name.endswith(("-0", "-1")) and {f"{name[:-1]}0", f"{name[:-1]}1"} <= set(candidates)
        place = canonical_name(name[:-2] if repeated else name, aliases)
        if place is None:
            continue
        if place in found and (channels is None or place in channels):
            raise UserError(f"two of its channels are {place}: {found[place]!r} and {name!r}")
        found[place] = name
    renamed = {place: twin for place, twin in ((place, OTHER_NAME.get(place)) for place in channels or ())
               if place not in found and twin in found and twin not in channels}  # fmt: skip
    found |= {place: found[twin] for place, twin in renamed.items()}
    renamed = tuple(f"{place} is its {found[place]}, another name of the place" for place in renamed)
    missing = [place for place in channels or () if place not in found]
    if missing or not found:
        wanted = f"without {', '.join(missing)}" if missing else "without any channel of the table"
        cure = f"; name their places in a YAML file, --aliases, a line each: '{raw.ch_names[0]}': FP1"
        raise UserError(f"{wanted}; its channels: {', '.join(raw.ch_names)}{cure * (not found)}")
    picked = {place: found[place] for place in channels or found}
    left = [name for name in raw.ch_names if name not in picked.values()]
    return picked, renamed + (f"channels left out: {', '.join(left)}",) * bool(left)


def _believe(raw, scale, unit) -> tuple[dict[str, float], tuple[str, ...]]:
    """{name in the file: uV of what MNE reads} where one of the file's numbers is `unit` uV, and a note on it."""
    usual = "V" if str(raw.filenames[0]).endswith(".fif") else "µV"  # what MNE takes where a format has no units
    units = {name: getattr(raw, "_orig_units", {}).get(name, usual) for name in scale}
    unknown = {said for said in units.values() if said not in VOLTS}
    if unknown:
        raise UserError(f"--unit: its header has the unit {', '.join(sorted(unknown))}, which is no voltage")
    said = f"numbers taken as {unit:g} uV each, its header has {', '.join(sorted(set(units.values())))}"
    return {name: unit / VOLTS[said] for name, said in units.items()}, (said,)


def _clean(raw, picked, scale, seconds, notch, band, flat_ok, scratch, progress) -> CleanEEG:
    """Filter and resample the picked channels, in blocks that bound the memory of long recordings."""
    rate, stop = raw.info["sfreq"], round(seconds * raw.info["sfreq"])
    kernels, low, high, notch, notes = _design(raw.info, notch, band)
    if kernels and len(kernels[0]) > stop:
        cure = ", or filter before cutting into epochs and say that it is clean" * _is_epochs(raw)
        notes += (f"distorted: its {seconds:.1f} s are shorter than the filter's {len(kernels[0]) / rate:.1f} s{cure}",)
    epoch, epochs = round(RATE / rate * stop), len(raw) if _is_epochs(raw) else 1
    if not epochs:
        raise UserError("it holds no epoch")
    block = max(1, BLOCK_BYTES // (8 * stop * epochs))
    sparse = max(SPARSE, epoch * epochs >> 20)  # every so many samples are enough for a median
    places, kept, flat, some = list(picked), [], [], []
    eeg = make_room((len(places), epoch * epochs), scratch, BLOCK_BYTES)
    for first in progress(range(0, len(places), block)):
        names = {place: picked[place] for place in places[first : first + block]}
        still, rows = _clean_block(raw, names, scale, stop, kernels, flat_ok)
        flat += still
        eeg[len(kept) : len(kept) + len(rows)] = rows
        kept += [place for place in names if place not in still]
        some += [np.abs(rows[:, ::sparse])]
        forget(eeg)
    if not kept:
        raise UserError("flat: no channel ever changes")
    some = np.concatenate(some)
    loud, odd = _find_odd(np.median(some, axis=1), kept, loud_ok=flat_ok)
    rows = [row for row, place in enumerate(kept) if place not in loud]
    for place, row in enumerate(rows):
        if place != row:
            eeg[place] = eeg[row]
            forget(eeg)
    eeg = eeg[: len(rows)]
    _check_amplitude(some[rows])
    notes += (f"flat channels dropped: {', '.join(flat)}",) * bool(flat) + odd
    names = tuple(kept[row] for row in rows)
    return CleanEEG(names, eeg, low, high, notch, _events(raw), notes, epoch if _is_epochs(raw) else None)


def _is_epochs(raw) -> bool:
    return hasattr(raw, "drop_log")


def _clean_block(raw, names, scale, stop, kernels, flat_ok) -> tuple[list[str], np.ndarray]:
    """Of some channels {name of the table: name in the file} those that are flat, and the others' clean EEG (C, T)."""
    with _mne_errors("read"):
        if _is_epochs(raw):
            data = np.array(raw.get_data(list(names.values())).swapaxes(0, 1)[..., :stop])  # (C, E, samples) V
        else:
            data = raw.get_data(list(names.values()), stop=stop)[:, None]
    data *= np.array([scale[name] for name in names.values()])[:, None, None]
    still = _flat(data.reshape(len(data), -1), names)
    if not flat_ok and still:
        raise UserError(f"flat: {', '.join(still)} never changes")
    data = data[[place not in still for place in names]] if still else data
    with _mne_errors("filtered"):
        rows = _filter(data.reshape(-1, stop), raw.info["sfreq"], kernels)
    return still, rows.reshape(len(data), data.shape[1] * rows.shape[1])


def _events(raw) -> tuple[tuple[float, float, str], ...]:
    if _is_epochs(raw):
        return ()
    return _rows(raw.annotations, raw.first_time)


def _rows(marks, first_time=0.0) -> tuple[tuple[float, float, str], ...]:
    rows = zip(marks.onset - first_time, marks.duration, marks.description, strict=True)
    return tuple((float(onset), float(duration), str(text)) for onset, duration, text in rows)


def _design(info, notch, band) -> tuple[tuple, float, float, float, tuple[str, ...]]:
    """The filters' kernels, their band and notch (Hz) as the sampling rate allows, and notes on what had to differ."""
    if band is None:
        return (), info["highpass"], info["lowpass"], 0.0, ()
    (low, high), rate, notes = band, info["sfreq"], ()
    if high >= rate / 2:
        high = round(0.99 * rate / 2, 2)
        notes += (f"band's upper edge moved to {high:g} Hz: sampled at {rate:g} Hz",)
    if notch and notch + 1 >= rate / 2:
        notes += (f"no notch at {notch:g} Hz: sampled at {rate:g} Hz",)
        notch = 0.0
    return design(rate, low, high, notch), low, high, float(notch), notes


def _flat(data, places) -> list[str]:
    """The channels that never change. Raises UserError for NaN and infinite values."""
    spans = dict(zip(places, np.ptp(data, axis=1), strict=True))
    broken = [place for place, span in spans.items() if not np.isfinite(span)]
    if broken:
        raise UserError(f"NaN or infinite values in {', '.join(broken)}")
    return [place for place, span in spans.items() if span == 0]


def _filter(data, rate, kernels) -> np.ndarray:
    """Band-pass, notch and resample (channels, samples) float64, changing it -> float32 at 200 Hz."""
    if kernels:
        data -= data.mean(axis=1, keepdims=True)  # what an amplifier's offset does at the edges of a short recording
    for kernel in kernels:
        convolve(data, kernel)
    return resample(data, rate) if rate != RATE else data.astype(np.float32)


def _find_odd(medians, places, loud_ok) -> tuple[dict[str, float], tuple[str, ...]]:
    """The channels that hold no EEG in uV, as an open electrode or another unit gives, by their median absolute
    amplitude; notes on these and on odd ones. Raises UserError naming them when a channel may not be missing, or most
    of them are such."""
    loud = find_loud(medians, places)
    if loud and (not loud_ok or 2 * len(loud) > len(places)):
        cure = "correct its unit in the file, or make the dataset without it (make_custom.py --channels)"
        raise UserError(f"{describe_loud(loud)}: {cure}")
    notes = (f"channels dropped: {describe_loud(loud)}",) * bool(loud)
    rest = [(place, value) for place, value in zip(places, medians, strict=True) if place not in loud]
    odd = [f"{place} {value:.2g}" for place, value in rest if not QUIETEST <= value <= PLAUSIBLE[1]]
    return loud, notes + (f"channels of unlikely median amplitude, in uV: {', '.join(odd)}",) * bool(odd)


def _check_amplitude(amplitudes) -> None:
    """Refuse a signal of these absolute values that cannot be EEG in uV, with the unit or factor suspected."""
    median = float(np.median(amplitudes))
    if PLAUSIBLE[0] <= median <= PLAUSIBLE[1]:
        return
    factor = 15.0 / max(median, 1e-12)  # 15 uV is typical
    if factor > 1:
        unit, factor = ("V", 1e6) if factor > 3e4 else ("mV", 1e3)
    else:
        unit, factor = "nV or raw counts", 10.0 ** np.round(np.log10(factor))
    raise UserError(
        f"median absolute amplitude {median:.3g} uV, EEG has {PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g}: it seems to be in "
        f"{unit} (factor {factor:.0e} suspected); correct the unit in the file, or say it where there is a --unit"
    )
