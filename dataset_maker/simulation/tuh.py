"""Simulated Temple University corpora, TUEG, TUAB, TUEV and TUSL: folders, names, channels and label files as there.

The awkward recordings are what real ones contain; their `problem` is set where a maker must refuse them.
"""

from functools import partial

import numpy as np

from dataset.channels import TUH_CHANNELS as CHANNELS
from dataset_maker.simulation.files import Corpus
from dataset_maker.simulation.signals import STATES, TRANSIENTS, add_transient, make_ecg, make_nothing

RATES = (250, 256, 400, 512)
EVENTS = ("spsw", "gped", "pled", "eyem", "artf", "bckg")  # TUEV's classes 1 to 6
# Channels of TUEV's bipolar montage (0 FP1-F7 ... 21 P4-O2) on which an event of each class is marked.
MARKED = {"spsw": (14,), "gped": (3, 7), "pled": (5,), "eyem": (0,), "artf": (8,), "bckg": (10,)}


def patient(number: int) -> str:
    """TUH's eight-letter name of a patient: aaaaaaaa, aaaaaaab, ..."""
    return "aaaaa" + "".join(chr(ord("a") + number // 26**power % 26) for power in (2, 1, 0))


def add_recording(corpus: Corpus, file: str, subject: str, seconds: int, states, *, rate=None, names=None,
                  reference="REF", transients=(), extra=(), **facts) -> None:  # fmt: skip
    """One TUH recording: 23 channels or `names`, EKG, photic and `extra` channels, 60 Hz hum; `transients` as rows of
    events; `states` as of `Corpus.record`."""

    def add_events(rng, uv):
        for start, stop, label in transients:
            if label in TRANSIENTS:
                add_transient(rng, uv, names, rate, start, stop, label)

    rng = corpus.rng(file)
    rate = rate or RATES[rng.integers(len(RATES))]
    names = names or [f"EEG {name}-{reference}" for name in CHANNELS]
    body = {f"EEG EKG1-{reference}": make_ecg} | dict.fromkeys(("PHOTIC-REF", *extra), make_nothing)
    corpus.record(
        *(file, subject, names, rate, seconds, states), rng=rng, mains=60, change=add_events, body=body, **facts
    )


def tueg_file(number: int, folder: str = "01_tcp_ar", session: str = "s001_2015") -> tuple[str, str]:
    """TUEG's path of a patient's recording, and the patient."""
    name = patient(number)
    return f"edf/000/{name}/{session}/{folder}/{name}_{session[:4]}_t000.edf", name


def write_tueg(corpus: Corpus, subjects: int, seconds: int) -> None:
    """TUEG: edf/000/patient/session/01_tcp_ar/patient_session_t000.edf, unlabelled; two states, half the time each."""
    for number in range(subjects):
        file, name = tueg_file(number)
        kinds = corpus.rng(name).choice(["normal", "abnormal", "slow", "N2", "arithmetic"], 2, replace=False)
        states = [(0, seconds / 2, str(kinds[0])), (seconds / 2, seconds, str(kinds[1]))]
        add_recording(corpus, file, name, seconds, states)


def write_tueg_awkward(corpus: Corpus, seconds: int) -> None:
    """Linked ears, lower-case names, extra channels, odd rates, a path with a dot; and what must be refused."""
    add = partial(add_recording, corpus, seconds=seconds, states="normal")
    add(*tueg_file(900, "02_tcp_le"), reference="LE", note="linked ears: only when asked for")
    add(*tueg_file(901), names=[f"eeg {name.lower()}-ref" for name in CHANNELS], note="lower-case names")
    add(*tueg_file(902), extra=("EEG 26-REF", "EMG-REF", "DC1-DC", "IBI", "BURSTS", "SUPPR"), note="extra channels")
    add(*tueg_file(903), rate=257, note="odd rate")
    add(*tueg_file(904, session="s001_2015.05"), note="path with a dot")
    add(*tueg_file(905), rate=128, note="75 Hz lies above Nyquist")
    add(*tueg_file(906), problem="flat")
    add(*tueg_file(907), names=[f"EEG {channel}-REF" for channel in ("FP1", *CHANNELS)], problem="duplicate")
    add_recording(corpus, *tueg_file(908), 5, "normal", problem="short")
    add(*tueg_file(909), problem="unit")
    add(*tueg_file(910), problem="truncated")


def add_tuab(corpus: Corpus, number: int, seconds: int, state="abnormal", split="train", folder="01_tcp_ar",
             session="s001", **facts) -> None:  # fmt: skip
    """A TUAB recording of one state."""
    name, events = patient(number), [(0, seconds, state)]
    file = f"edf/{split}/{state}/{folder}/{name}_{session}_t000.edf"
    add_recording(corpus, file, name, seconds, state, events=events, split=split, **facts)


def write_tuab(corpus: Corpus, subjects: int, seconds: int) -> None:
    """TUAB: edf/{train,eval}/{normal,abnormal}/01_tcp_ar/, every third patient in eval, normal and abnormal in turn."""
    for number in range(subjects):
        add_tuab(corpus, number, seconds, ("normal", "abnormal")[number % 2], "eval" if number % 3 == 2 else "train")


def write_tuab_awkward(corpus: Corpus, seconds: int) -> None:
    """An older release's deeper path, with dots; lower-case names; extra channels; electrodes missing, or flat."""
    older = {"folder": f"01_tcp_ar/000/{patient(900)}/s004_2013.08.15", "session": "s004"}
    add_tuab(corpus, 900, seconds, **older, note="deeper path, with dots")
    lower = {"names": [f"eeg {channel.lower()}-ref" for channel in CHANNELS], "extra": ("EMG-REF", "IBI")}
    add_tuab(corpus, 901, seconds, **lower, note="lower-case names, extra channels")
    add_tuab(corpus, 902, seconds, reference="LE", note="linked ears")
    fewer = [f"EEG {channel}-REF" for channel in CHANNELS[:-2]]
    add_tuab(corpus, 903, seconds, names=fewer, problem="channels", missing_channels=["T1", "T2"])
    add_tuab(corpus, 904, seconds, problem="flat")


def add_tuev(corpus: Corpus, name: str, seconds: int, rows, split="train", folder=None, **facts) -> None:
    """A TUEV recording with its .rec: rows (montage channel, start s, stop s, label), an event once in the EEG."""
    file = f"edf/eval/{name}/bckg_{name}_a_" if split == "eval" else f"edf/train/{folder or name}/{name}_00000001"
    about = {"transients": sorted({row[1:] for row in rows}), "events": [row[1:] for row in rows], "split": split}
    add_recording(corpus, f"{file}.edf", name, seconds, "bckg", **about, **facts)
    lines = [f"{channel},{start:.1f},{stop:.1f},{EVENTS.index(label) + 1}\n" for channel, start, stop, label in rows]
    if rows:
        corpus.text(f"{file}.rec", "".join(lines))


def write_tuev(corpus: Corpus, subjects: int, seconds: int) -> None:
    """TUEV: edf/train/patient/patient_00000001.edf and edf/eval/NNN/bckg_NNN_a_.edf, .rec beside each.

    Events of 1 s, 6 s apart, the six classes in random order; gped is marked on two channels: two rows.
    """
    for number in range(subjects):
        split, name = ("eval", f"{number:03d}") if number % 3 == 2 else ("train", patient(number))
        labels, rows = [], []
        for start in range(3, seconds - 3, 6):
            labels = labels or list(corpus.rng(f"{name} {start}").permutation(EVENTS))
            label = str(labels.pop())
            rows += [(channel, float(start), start + 1.0, label) for channel in MARKED[label]]
        add_tuev(corpus, name, seconds, rows, split)


def write_tuev_awkward(corpus: Corpus, seconds: int) -> None:
    """Events at both ends of a file, one event on five channels, a path with a dot, a recording without its .rec."""
    first, last = (0, 0.0, 1.0, "eyem"), (14, seconds - 1.0, float(seconds), "spsw")
    wide = [(channel, 20.0, 21.0, "gped") for channel in (3, 7, 17, 21, 10)]
    add_tuev(corpus, patient(900), seconds, [first, *wide, last], note="edges, several rows")
    dotted = patient(901)
    add_tuev(corpus, dotted, seconds, [first, last], folder=f"{dotted}.v2", note="path with a dot")
    add_tuev(corpus, patient(902), seconds, (), problem="labels")


def add_tusl(corpus: Corpus, number: int, seconds: int, events, folder="s001_2012/01_tcp_ar", **facts) -> None:
    """A TUSL recording with its .tse_agg; events are rows (start s, stop s, bckg | seiz | slow)."""
    name, states, before = patient(number), [], 0.0
    for start, stop, label in events:
        states += [(before, start, "bckg"), (start, stop, label if label in STATES else "bckg")]
        before = stop
    states.append((before, seconds, "bckg"))
    file = f"edf/{name}/{folder}/{name}_s001_t000"
    add_recording(corpus, f"{file}.edf", name, seconds, states, transients=events, events=events, **facts)
    lines = [f"{start:.4f} {stop:.4f} {label} 1.0000\n" for start, stop, label in events]
    if events:
        corpus.text(f"{file}.tse_agg", "version = tse_v1.0.0\n\n" + "".join(lines))


def write_tusl(corpus: Corpus, subjects: int, seconds: int) -> None:
    """TUSL: edf/patient/session/01_tcp_ar/, events of 10 s every 15 s, the three classes in turn."""
    starts = np.arange(4.5, seconds - 10, 15).tolist()
    events = [(start, start + 10, ("bckg", "seiz", "slow")[place % 3]) for place, start in enumerate(starts)]
    for number in range(subjects):
        add_tusl(corpus, number, seconds, events)


def write_tusl_awkward(corpus: Corpus, seconds: int) -> None:
    """Events at both ends of a file; two files of one name, in folders with dots; a recording without its .tse_agg."""
    events = [(0.0, 10.0, "seiz"), (seconds - 10.0, float(seconds), "slow")]
    for session in ("s001_2012.01", "s001_2012.02"):
        add_tusl(corpus, 900, seconds, events, f"{session}/01_tcp_ar", note="edges, equal names, path with a dot")
    add_tusl(corpus, 901, seconds, events, "s001_2012/02_tcp_le", reference="LE", note="linked ears")
    add_tusl(corpus, 902, seconds, (), problem="labels")
