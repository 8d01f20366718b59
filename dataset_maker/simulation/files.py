"""What the simulator writes: raw EEG files, and the record of what is in them. Data (C, T) in uV.

The same input gives the same bytes on every machine. `annotations` are rows (start s, stop s, text).
"""

import datetime
import gzip
import io
import struct
import zlib
from functools import partial
from pathlib import Path

import edfio
import numpy as np
import scipy.io

from dataset_maker.simulation.signals import FLAT, SPOILT, Subject, make_eeg, scalp_position

START = datetime.datetime(2012, 3, 4, 10, 0, 0)  # every simulated recording starts here


class Corpus:
    """A raw folder being written, and the truth about it: one dict a recording.

    Every recording draws from its own generator, seeded by the corpus's seed and its name, so that none depends on the
    number or order of the others.
    """

    def __init__(self, out_dir, seed: int):
        self.out_dir, self.seed = Path(out_dir), seed
        self.recordings = []

    def rng(self, name: str) -> np.random.Generator:
        """The generator of whatever is called `name` in this corpus."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def subject(self, name: str) -> Subject:
        """The traits of a subject, the same in all of its recordings."""
        rng = self.rng(f"subject {name}")
        return Subject(*(rng.uniform(*limits) for limits in Subject.DRAWN))

    def record(self, file: str, subject: str, names, rate: int, seconds: int, states, *, rng=None, mains=50.0,
               change=None, body=None, problem=None, **facts):  # fmt: skip
        """`add` a recording of a subject who passes through `states`: rows (start s, stop s, state), which are its
        events if `facts` has no others, or one state for all of it.

        rng: whose draws go on (default: the file's); change(rng, uv): of the EEG, in place; body: {name: function(rng,
        rate, samples) -> (T,)} of further channels. A `problem` of SPOILT is made here.
        """
        rng, samples = rng or self.rng(file), seconds * rate
        if isinstance(states, str):
            states = [(0, seconds, states)]
        else:
            facts.setdefault("events", states)
        uv = make_eeg(rng, self.subject(subject), names, rate, samples, states, mains)
        if change:
            change(rng, uv)
        if problem in SPOILT:
            SPOILT[problem](uv)
        if problem == "flat":
            facts["bad_channels"] = [names[FLAT]]
        body = body or {}
        uv = np.concatenate([uv, *(make(rng, rate, samples)[None] for make in body.values())])
        self.add(file, uv, [*names, *body], rate, subject, problem=problem, **facts)

    def add(self, file: str, uv, names, rate: float, subject: str, *, annotations=(), events=(), problem=None, **facts):
        """Write recording `file` (relative) in the format of its suffix, and note what is in it.

        `events` are rows (start s, stop s, label); `problem` is why a maker must refuse it (one that takes any channels
        may drop the `bad_channels` instead); `facts` whatever else is true of the recording: its `split`; or a `note`
        of what is odd about it, which no maker may stumble over.
        """
        path = self.out_dir / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write = write_edf_in_volts if problem == "unit" else WRITERS[path.suffix]
        write(path, uv, names, rate, subject, annotations)
        if problem == "truncated":  # as a broken copy is
            path.write_bytes(path.read_bytes()[:-1000])
        self.recordings.append(
            {
                "file": file,
                "subject": subject,
                "channels": list(names),
                "rate": rate,
                "seconds": uv.shape[1] / rate,
                "events": [list(event) for event in events],
                "problem": problem,
                **facts,
            }
        )

    def text(self, file: str, content: str) -> None:
        """Write a text file beside the recordings."""
        path = self.out_dir / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())  # no newline translation


def write_edf(path: Path, uv, names, rate: float, subject: str, annotations=(), *, limit: float = 3276.7,
              steps: int = 32767, file=edfio.Edf, signal=edfio.EdfSignal) -> None:  # fmt: skip
    """An EDF or BDF file of whole seconds, 0 to limit uV in so many steps; EDF+ where there are annotations."""
    digital = {"physical_dimension": "uV", "physical_range": (-limit, limit), "digital_range": (-steps, steps)}
    rows = zip(names, uv.clip(-limit, limit), strict=True)
    file(
        [signal(row, rate, label=name, **digital) for name, row in rows],
        patient=edfio.Patient(code=subject),
        recording=edfio.Recording(startdate=START.date()),
        starttime=START.time(),
        annotations=[edfio.EdfAnnotation(start, stop - start, text) for start, stop, text in annotations] or None,
    ).write(path)


write_bdf = partial(write_edf, limit=262143, steps=8388576, file=edfio.Bdf, signal=edfio.BdfSignal)


def write_edf_in_volts(path: Path, uv, *about) -> None:
    """A defective EDF file: its numbers are volts, its header says uV."""
    write_edf(path, uv * 1e-6, *about, limit=0.0032)


RAW, OFFSET = 6, 140  # of an amplifier whose numbers are not uV: steps of a uV, and its direct current


def write_csv_gz(path: Path, uv, names, rate: float, subject: str, annotations=()) -> None:
    """A gzipped CSV with a header row, a row a sample, in raw numbers; stored and not compressed, as zlibs differ."""
    numbers = np.round(RAW * uv + OFFSET).T
    lines = [",".join("" if np.isnan(number) else f"{number:.4f}" for number in row) for row in numbers]
    text = "\n".join([",".join(names), *lines]) + "\n"
    path.write_bytes(gzip.compress(text.encode(), compresslevel=0, mtime=0))


def floats(uv) -> bytes:
    """The samples as 32-bit floats, all channels of a sampling time together, rounded as no machine disagrees about."""
    return np.round(uv, 3).T.astype("<f4").tobytes()


def write_brainvision(path: Path, uv, names, rate: float, subject: str, annotations=()) -> None:
    """BrainVision header, markers and 32-bit floats (which can hold NaN): .vhdr, .vmrk, .eeg."""
    data, markers = path.with_suffix(".eeg"), path.with_suffix(".vmrk")
    common = f"[Common Infos]\nCodepage=UTF-8\nDataFile={data.name}\n"
    header = f"Brain Vision Data Exchange Header File Version 1.0\n\n{common}MarkerFile={markers.name}\n"
    header += f"DataFormat=BINARY\nDataOrientation=MULTIPLEXED\nNumberOfChannels={len(names)}\n"
    header += f"SamplingInterval={1e6 / rate:.10g}\n\n[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n\n[Channel Infos]\n"
    header += "".join(f"Ch{number}={name},,1,µV\n" for number, name in enumerate(names, start=1))
    path.write_bytes((header + f"\n[Comment]\nsubject {subject}\n").encode())
    lines = [f"Mk1=New Segment,,1,1,0,{START:%Y%m%d%H%M%S}000000\n"]
    for number, (start, stop, text) in enumerate(annotations, start=2):
        lines.append(f"Mk{number}=Comment,{text},{round(start * rate) + 1},{round((stop - start) * rate)},0\n")
    title = "Brain Vision Data Exchange Marker File, Version 1.0"
    markers.write_bytes(f"{title}\n\n{common}\n[Marker Infos]\n{''.join(lines)}".encode())
    data.write_bytes(floats(uv))


def write_eeglab(path: Path, uv, names, rate: float, subject: str, annotations=()) -> None:
    """EEGLAB: the structure EEG in .set (MATLAB 5), the data in .fdt."""
    data = path.with_suffix(".fdt")
    events = [(text, start * rate + 1, (stop - start) * rate) for start, stop, text in annotations]
    eeg = {
        "setname": path.stem,
        "subject": subject,
        "nbchan": float(len(names)),
        "trials": 1.0,
        "pnts": float(uv.shape[1]),
        "srate": float(rate),
        "xmin": 0.0,
        "xmax": (uv.shape[1] - 1) / rate,
        "data": data.name,
        "chanlocs": np.array([(name,) for name in names], dtype=[("labels", object)]),
        "event": np.array(events, dtype=[("type", object), ("latency", object), ("duration", object)]),
    }
    file = io.BytesIO()
    scipy.io.savemat(file, {"EEG": eeg})
    file.getbuffer()[:116] = b"MATLAB 5.0 MAT-file".ljust(116)  # scipy writes the time of day and the platform there
    path.write_bytes(file.getvalue())
    data.write_bytes(floats(uv))


def write_cnt(path: Path, uv, names, rate: float, subject: str, annotations=()) -> None:
    """Neuroscan continuous file, 32-bit integers in steps of 0.01 uV; annotation texts are trigger numbers 1..65535.

    A header of 900 bytes, 75 bytes a channel, all channels of each sampling time together, the event table.
    """
    step, sensitivity = 0.01, 2.048  # uV of an integer = calibration (1) x sensitivity / 204.8
    channels, samples = uv.shape
    begin = 900 + 75 * channels
    header = bytearray(begin)

    def put(offset, layout, *values):
        struct.pack_into("<" + layout, header, offset, *values)

    put(0, "12s", b"Version 3.0")
    put(121, "20s", subject.encode())
    put(225, "10s12s", f"{START:%m/%d/%y}".encode(), f"{START:%H:%M:%S}".encode())
    put(370, "H", channels)
    put(376, "H", int(rate))
    put(864, "i", samples)
    put(886, "i", begin + 4 * channels * samples)
    put(890, "fi", samples / rate, 0)
    for index, name in enumerate(names):
        start = 900 + 75 * index
        put(start, "10s", name.encode())
        put(start + 19, "ff", *position_or_rim(name, index))
        put(start + 59, "f", sensitivity)
        put(start + 71, "f", 1.0)
    table = b"".join(
        struct.pack("<HBci", int(text), 0, b"\0", begin + 4 * channels * (round(start * rate) + 1))
        for start, _, text in annotations
    )
    with path.open("wb") as file:
        file.write(header)
        for first in range(0, samples, 100_000):
            file.write(np.rint(uv[:, first : first + 100_000].T / step).astype("<i4").tobytes())
        file.write(struct.pack("<Bii", 1, len(table), 0) + table)


def position_or_rim(name: str, index: int) -> tuple[float, float]:
    """Coordinates for a file's header: the electrode's place, or for EOG and the like one outside the head."""
    try:
        return scalp_position(name)
    except ValueError:
        return 1.5, 0.1 * index


WRITERS = {".edf": write_edf, ".bdf": write_bdf, ".vhdr": write_brainvision, ".set": write_eeglab, ".cnt": write_cnt,
           ".gz": write_csv_gz}  # fmt: skip
