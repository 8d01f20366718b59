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


def write_tuab(corpus: Corpus, subjects: int, seconds: int) -> None:
    """TUAB: edf/{train,eval}/{normal,abnormal}/01_tcp_ar/, every third patient in eval, normal and abnormal in turn."""
    for number in range(subjects):
        name, state = patient(number), ("normal", "abnormal")[number % 2]
        split = "eval" if number % 3 == 2 else "train"
        file = f"edf/{split}/{state}/01_tcp_ar/{name}_s001_t000.edf"
        add_recording(corpus, file, name, seconds, state, events=[(0, seconds, state)], split=split)


def write_tuab_awkward(corpus: Corpus, seconds: int) -> None:
    """An older release's deeper path, with dots; lower-case names; extra channels; electrodes missing, or flat."""
    events = [(0, seconds, "abnormal")]
    add = partial(add_recording, corpus, seconds=seconds, states="abnormal", events=events, split="train")
    top, names = "edf/train/abnormal/01_tcp_ar", [patient(number) for number in range(900, 905)]
    older = f"{top}/000/{names[0]}/s004_2013.08.15/{names[0]}_s004_t000.edf"
    add(older, names[0], note="deeper path, with dots")
    lower = {"names": [f"eeg {channel.lower()}-ref" for channel in CHANNELS], "extra": ("EMG-REF", "IBI")}
    add(f"{top}/{names[1]}_s001_t000.edf", names[1], **lower, note="lower-case names, extra channels")
    add(f"{top}/{names[2]}_s001_t000.edf", names[2], reference="LE", note="linked ears")
    fewer = [f"EEG {channel}-REF" for channel in CHANNELS[:-2]]
    add(f"{top}/{names[3]}_s001_t000.edf", names[3], names=fewer, problem="channels", missing_channels=["T1", "T2"])
    add(f"{top}/{names[4]}_s001_t000.edf", names[4], problem="flat")


def add_tuev(corpus: Corpus, file: str, subject: str, seconds: int, rows, **facts) -> None:
    """A TUEV recording with its .rec: rows (montage channel, start s, stop s, label), an event once in the EEG."""
    events = sorted({row[1:] for row in rows})
    marks = [(start, stop, label) for _, start, stop, label in rows]
    add_recording(corpus, file, subject, seconds, "bckg", transients=events, events=marks, **facts)
    lines = [f"{channel},{start:.1f},{stop:.1f},{EVENTS.index(label) + 1}\n" for channel, start, stop, label in rows]
    corpus.text(file.removesuffix(".edf") + ".rec", "".join(lines))


def write_tuev(corpus: Corpus, subjects: int, seconds: int) -> None:
    """TUEV: edf/train/patient/patient_00000001.edf and edf/eval/NNN/bckg_NNN_a_.edf, .rec beside each.

    Events of 1 s, 6 s apart, the six classes in random order; gped is marked on two channels: two rows.
    """
    for number in range(subjects):
        split = "eval" if number % 3 == 2 else "train"
        name = f"{number:03d}" if split == "eval" else patient(number)
        file = f"edf/eval/{name}/bckg_{name}_a_.edf" if split == "eval" else f"edf/train/{name}/{name}_00000001.edf"
        labels, rows = [], []
        for start in range(3, seconds - 3, 6):
            labels = labels or list(corpus.rng(f"{name} {start}").permutation(EVENTS))
            label = str(labels.pop())
            rows += [(channel, float(start), start + 1.0, label) for channel in MARKED[label]]
        add_tuev(corpus, file, name, seconds, rows, split=split)


def write_tuev_awkward(corpus: Corpus, seconds: int) -> None:
    """Events at both ends of a file, one event on five channels, a path with a dot, a recording without its .rec."""
    name, dotted, unmarked = (patient(number) for number in (900, 901, 902))
    edges = [(0, 0.0, 1.0, "eyem"), (14, seconds - 1.0, float(seconds), "spsw")]
    wide = [(channel, 20.0, 21.0, "gped") for channel in (3, 7, 17, 21, 10)]
    file = f"edf/train/{name}/{name}_00000001.edf"
    add_tuev(corpus, file, name, seconds, edges[:1] + wide + edges[1:], split="train", note="edges, several rows")
    file = f"edf/train/{dotted}.v2/{dotted}_00000001.edf"
    add_tuev(corpus, file, dotted, seconds, edges, split="train", note="path with a dot")
    file = f"edf/train/{unmarked}/{unmarked}_00000001.edf"
    add_recording(corpus, file, unmarked, seconds, "bckg", split="train", problem="labels")


def add_tusl(corpus: Corpus, file: str, subject: str, seconds: int, events, **facts) -> None:
    """A TUSL recording with its .tse_agg; events are rows (start s, stop s, bckg | seiz | slow)."""
    states, before = [], 0.0
    for start, stop, label in events:
        states += [(before, start, "bckg"), (start, stop, label if label in STATES else "bckg")]
        before = stop
    states.append((before, seconds, "bckg"))
    add_recording(corpus, file, subject, seconds, states, transients=events, events=events, **facts)
    lines = [f"{start:.4f} {stop:.4f} {label} 1.0000\n" for start, stop, label in events]
    corpus.text(file.removesuffix(".edf") + ".tse_agg", "version = tse_v1.0.0\n\n" + "".join(lines))


def write_tusl(corpus: Corpus, subjects: int, seconds: int) -> None:
    """TUSL: edf/patient/session/01_tcp_ar/, events of 10 s every 15 s, the three classes in turn."""
    for number in range(subjects):
        name = patient(number)
        starts = np.arange(4.5, seconds - 10, 15).tolist()
        events = [(start, start + 10, ("bckg", "seiz", "slow")[place % 3]) for place, start in enumerate(starts)]
        add_tusl(corpus, f"edf/{name}/s001_2012/01_tcp_ar/{name}_s001_t000.edf", name, seconds, events)


def write_tusl_awkward(corpus: Corpus, seconds: int) -> None:
    """Events at both ends of a file; two files of one name, in folders with dots; a recording without its .tse_agg."""
    name = patient(900)
    events = [(0.0, 10.0, "seiz"), (seconds - 10.0, float(seconds), "slow")]
    for session in ("s001_2012.01", "s001_2012.02"):
        file = f"edf/{name}/{session}/01_tcp_ar/{name}_s001_t000.edf"
        add_tusl(corpus, file, name, seconds, events, note="edges, equal names, path with a dot")
    name = patient(901)
    file = f"edf/{name}/s001_2012/02_tcp_le/{name}_s001_t000.edf"
    add_tusl(corpus, file, name, seconds, events, reference="LE", note="linked ears")
    name = patient(902)
    file = f"edf/{name}/s001_2012/01_tcp_ar/{name}_s001_t000.edf"
    add_recording(corpus, file, name, seconds, "bckg", problem="labels")
