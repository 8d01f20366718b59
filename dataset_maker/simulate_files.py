"""What the simulator writes: raw EEG files, and the record of what is in them. Data (C, T) in uV.

The same input gives the same bytes on every machine.
"""

import datetime
import zlib
from pathlib import Path

import edfio
import numpy as np

from dataset_maker.simulate_signals import Subject, draw_subject

START = datetime.datetime(2012, 3, 4, 10, 0, 0)  # every simulated recording starts here
EDF_LIMIT_UV = 3276.7  # physical range of the 16 bits: steps of 0.1 uV


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
        return draw_subject(self.rng(f"subject {name}"))

    def add(self, file: str, uv, names, rate: float, subject: str, *, write=None, events=(), **facts) -> None:
        """Write recording `file` (relative, with `write(path, uv, names, rate, subject)`) and note what is in it.

        `events` are rows (start s, stop s, label); `facts` whatever else is true of the recording, such as its label,
        its split or the `problem` for which a maker must refuse it.
        """
        path = self.out_dir / file
        path.parent.mkdir(parents=True, exist_ok=True)
        (write or write_edf)(path, uv, names, rate, subject)
        self.recordings.append(
            {
                "file": file,
                "subject": subject,
                "channels": list(names),
                "rate": rate,
                "seconds": uv.shape[1] / rate,
                "events": [list(event) for event in events],
                **facts,
            }
        )


def write_edf(path: Path, uv, names, rate: float, subject: str, annotations=(), unit_uv: float = 1.0) -> None:
    """An EDF file of whole seconds, EDF+ when there are `annotations`, rows (start s, stop s, text).

    `unit_uv` other than 1 writes numbers in a unit of so many uV under a header that still says uV (a defect).
    """
    limit = EDF_LIMIT_UV / unit_uv
    signals = [
        edfio.EdfSignal(
            np.clip(row / unit_uv, -limit, limit),
            rate,
            label=name,
            physical_dimension="uV",
            physical_range=(-limit, limit),
            digital_range=(-32767, 32767),
        )
        for name, row in zip(names, uv, strict=True)
    ]
    notes = [edfio.EdfAnnotation(start, stop - start, text) for start, stop, text in annotations]
    edf = edfio.Edf(
        signals,
        patient=edfio.Patient(code=subject),
        recording=edfio.Recording(startdate=START.date()),
        starttime=START.time(),
        annotations=notes or None,
    )
    edf.write(path)
