"""What an EDF or BDF file says of itself, held against the file: MNE believes it, reads on, and closes gaps up."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

from errors import UserError

WIDTHS = {".edf": 2, ".bdf": 3}  # bytes a sample
CLOCK = 0.01  # s: what time-stamps may be rounded by
DRIFT = 1e-4  # of the time passed: what two clocks may differ by
ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
SCALES = {104: "physical minimum", 112: "physical maximum", 120: "digital minimum", 128: "digital maximum"}
STAMP = 64  # bytes in which the time-stamp of a record is found


@dataclass(frozen=True)
class Header:
    """The fields of a header that say where samples are. R data records, each of all signals one after another."""

    kind: str  # "EDF+C", "EDF+D", "BDF+D", ...; "" for plain EDF
    start: int  # byte of the first record
    records: int  # R, -1: unknown
    seconds: float  # of a record
    labels: tuple[str, ...]
    samples: tuple[int, ...]  # of each signal in a record


def check_edf(path) -> None:
    """Raise UserError when an EDF or BDF file is shorter than its header says, when its record times are no numbers,
    and when time is missing between its records. Other files pass."""
    path = Path(path)
    width = WIDTHS.get(path.suffix.lower())
    if width is None:
        return
    try:
        with open(path, "rb") as file:
            header = _read_header(file, width)
            record = width * sum(header.samples)
            if record < 1 or min(header.samples) < 0:
                raise ValueError
            present = (path.stat().st_size - header.start) / record
            if present < header.records or (header.records == -1 and present % 1):
                promised = f"its header promises {header.records} data records"
                raise UserError(f"truncated: {promised}, {present:.1f} are there")
            if not (math.isfinite(header.seconds) and header.seconds >= 0):
                raise UserError(f"its header says that a data record lasts {header.seconds:g} s")
            _check_gaps(file, header, width, record, int(present) if header.records == -1 else header.records)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from None
    except (ValueError, OverflowError):
        raise UserError("its EDF header is damaged or cut off") from None


def part_annotations(paths) -> tuple[list[Path], dict[Path, tuple[Path | None, str]]]:
    """Raw files -> those with signals, and of the others {EDF or BDF that holds annotations only: (the recording in its
    folder that begins at the same time and has the name most like its own, a sentence)}."""
    starts, marks = {}, []
    for path in paths:
        width = WIDTHS.get(path.suffix.lower())
        if width:
            try:
                with open(path, "rb") as file:
                    labels = set(_read_header(file, width).labels)
                    file.seek(168)
                    starts[path] = file.read(16)  # date and time
            except (OSError, ValueError, UserError):
                continue  # the report will say what is wrong with it
            if labels <= set(ANNOTATIONS):
                marks.append(path)
    signals, found = [path for path in paths if path not in marks], {}
    for path in marks:
        beside = [other for other in signals if other.parent == path.parent and starts.get(other) == starts[path]]
        alike = {other: len(os.path.commonprefix([other.name, path.name])) for other in beside}
        best = [other for other in beside if alike[other] == max(alike.values()) > 0]
        known = best[0] if len(best) == 1 else None
        whose = f"labels of {known.name}" if known else "and no recording beside it is called alike and begins then"
        found[path] = (known, f"holds annotations only, {whose}")
    return signals, found


def _read_header(file, width) -> Header:
    """Raises ValueError where a field is no number, or the header is not as long as it says, and UserError for a scale
    that no sample of `width` bytes has: MNE goes on without one."""
    fixed = file.read(256)
    start, records, seconds, signals = int(fixed[184:192]), int(fixed[236:244]), fixed[244:252], int(fixed[252:256])
    if signals < 1 or records < -1 or start != 256 * (signals + 1):
        raise ValueError
    header = file.read(256 * signals)
    if len(header) != 256 * signals:
        raise ValueError
    labels = [header[16 * i : 16 * i + 16].decode("latin1").strip() for i in range(signals)]
    sizes = header[216 * signals : 224 * signals]
    samples = [int(sizes[8 * i : 8 * i + 8]) for i in range(signals)]
    for place, what in SCALES.items():
        for i, label in enumerate(labels):
            text = header[place * signals + 8 * i : place * signals + 8 * i + 8]
            value = 0.0 if label in ANNOTATIONS else float(text.replace(b",", b"."))
            if not math.isfinite(value) or ("digital" in what and abs(value) > 2 ** (8 * width)):
                raise UserError(f"its header gives {label} the {what} {value:g}")
    seconds = float(seconds.replace(b",", b"."))
    return Header(fixed[192:197].decode("latin1").strip(), start, records, seconds, tuple(labels), tuple(samples))


def _check_gaps(file, header, width, record, records) -> None:
    """Raise UserError where a record does not begin when the one before has ended, by the time-stamps of EDF+."""
    stamped = [i for i, label in enumerate(header.labels) if label in ANNOTATIONS]
    discontinuous = header.kind.endswith("+D")
    if not stamped or header.seconds == 0:
        if discontinuous:
            raise UserError(f"{header.kind}: discontinuous, and without the times of its data records")
        return
    place = header.start + width * sum(header.samples[: stamped[0]])
    length = min(STAMP, width * header.samples[stamped[0]])
    first = None
    for i in range(records):
        file.seek(place + i * record)
        stamp = _time_stamp(file.read(length))
        if stamp is None:
            if discontinuous:
                raise UserError(f"{header.kind}: its data record {i + 1} does not say when it begins")
            return  # a file that claims to have no gaps, and no clock to hold against it
        first = stamp if first is None else first
        expected = first + i * header.seconds
        if abs(stamp - expected) > CLOCK + DRIFT * i * header.seconds:
            raise UserError(
                f"discontinuous: its data record {i + 1} begins at {stamp:g} s and not at {expected:g}; "
                "cut it into files without gaps"
            )


def _time_stamp(annotations: bytes) -> float | None:
    """Onset of the first annotation of a record, in seconds; None where there is none."""
    try:
        onset = float(annotations.split(b"\x14")[0].split(b"\x15")[0])
    except ValueError:
        return None
    return onset if annotations[:1] in (b"+", b"-") and math.isfinite(onset) else None
