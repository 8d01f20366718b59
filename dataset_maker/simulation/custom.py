"""Simulated data of a user's own: a folder of recordings with a CSV of labels, and a BIDS root.

Both hold the same experiment: imagined movement of the left or right hand for 4 s, every 7 s, 32 channels.
"""

import json
from functools import partial

import numpy as np

from dataset_maker.simulation.files import Corpus
from dataset_maker.simulation.layouts import CAP_32

LABELS = ("left hand", "right hand")
FORMATS = ((".edf", 250), (".bdf", 256), (".vhdr", 500), (".set", 250))


def add_session(corpus: Corpus, file: str, subject: str, rate: int, seconds: int, *, names=CAP_32, **facts) -> None:
    """One recording of the experiment, as many trials of one hand as of the other but for one, all annotated."""
    rng, starts = corpus.rng(file), np.arange(2.0, seconds - 4, 7)
    hands = rng.permutation(np.arange(starts.size) % 2)
    trials = [(start, start + 4, LABELS[hand]) for start, hand in zip(starts.tolist(), hands, strict=True)]
    corpus.record(file, subject, names, rate, seconds, trials, rng=rng, annotations=trials, **facts)


def table(header, rows, delimiter: str) -> str:
    """A CSV or TSV table as text."""
    return "".join(delimiter.join(map(str, row)) + "\n" for row in (header, *rows))


def write_labels(corpus: Corpus, more=()) -> None:
    """labels.csv: file, start, stop, label, subject; a row for each event written so far, and `more` rows."""
    rows = [
        (recording["file"], start, stop, label, recording["subject"])
        for recording in corpus.recordings
        for start, stop, label in recording["events"]
    ]
    corpus.text("labels.csv", table(("file", "start", "stop", "label", "subject"), [*rows, *more], ","))


def write_custom(corpus: Corpus, subjects: int, seconds: int) -> None:
    """A folder a subject, in turn .edf (EDF+), .bdf, .vhdr and .set, two sessions each, and labels.csv at the top."""
    for number in range(1, subjects + 1):
        suffix, rate = FORMATS[(number - 1) % len(FORMATS)]
        for session in ("a", "b"):
            add_session(corpus, f"anna{number:02d}/session_{session}{suffix}", f"anna{number:02d}", rate, seconds)
    write_labels(corpus)


def write_custom_awkward(corpus: Corpus, seconds: int) -> None:
    """Odd rates, lower-case names, dots in a path, bad recordings; labels of no recording and past an end."""
    add = partial(add_session, corpus, seconds=seconds)
    lower = [name.lower() for name in CAP_32]
    add("berta.90/session.1.edf", "berta.90", 257, names=lower, note="lower-case names, odd rate, path with dots")
    add("berta91/session_a.vhdr", "berta91", 128, note="75 Hz lies above Nyquist")
    add("berta92/session_a.vhdr", "berta92", 250, problem="nan")
    for number, problem in ((93, "flat"), (94, "unit"), (95, "truncated")):
        add(f"berta{number}/session_a.edf", f"berta{number}", 250, problem=problem)
    missing = ("nobody/session_a.edf", 2.0, 6.0, LABELS[0], "nobody")
    beyond = ("anna01/session_a.edf", seconds - 1.0, seconds + 3.0, LABELS[1], "anna01")
    write_labels(corpus, [missing, beyond])


def add_bids(corpus: Corpus, folder: str, name: str, suffix: str, rate: int, seconds: int, *, more=(), **facts) -> None:
    """A recording of a BIDS root, `folder`/eeg/`name`_eeg, with _eeg.json, _channels.tsv and _events.tsv beside it;
    `more` events go into the latter only."""
    prefix = f"{folder}/eeg/{name}"
    add_session(corpus, f"{prefix}_eeg{suffix}", name.split("_")[0], rate, seconds, **facts)
    about = {"TaskName": "hands", "SamplingFrequency": rate, "PowerLineFrequency": 50, "EEGReference": "average",
             "SoftwareFilters": "n/a"}  # fmt: skip
    corpus.text(f"{prefix}_eeg.json", json.dumps(about, indent=1) + "\n")
    channels = [(channel, "EEG", "uV") for channel in corpus.recordings[-1]["channels"]]
    corpus.text(f"{prefix}_channels.tsv", table(("name", "type", "units"), channels, "\t"))
    events = [*corpus.recordings[-1]["events"], *more]
    rows = [(start, "n/a" if stop is None else stop - start, label) for start, stop, label in events]
    corpus.text(f"{prefix}_events.tsv", table(("onset", "duration", "trial_type"), rows, "\t"))


def write_bids(corpus: Corpus, subjects: int, seconds: int) -> None:
    """A BIDS root: sub-NN/eeg/sub-NN_task-hands_eeg.*, every second subject with ses-01 and ses-02."""
    corpus.text("dataset_description.json", json.dumps({"Name": "hands", "BIDSVersion": "1.10.0"}) + "\n")
    names = [f"sub-{number:02d}" for number in range(1, subjects + 1)]
    corpus.text("participants.tsv", table(("participant_id", "age"), [(name, 30) for name in names], "\t"))
    for number, name in enumerate(names):
        suffix, rate = FORMATS[number % len(FORMATS)]
        if number % 2:
            for session in ("ses-01", "ses-02"):
                add_bids(corpus, f"{name}/{session}", f"{name}_{session}_task-hands", suffix, rate, seconds)
        else:
            add_bids(corpus, name, f"{name}_task-hands", suffix, rate, seconds)


def write_bids_awkward(corpus: Corpus, seconds: int) -> None:
    """Two runs, an odd rate, events of no or unknown label and no duration; a recording with NaN."""
    more = [(1.0, None, "n/a"), (1.5, 2.5, "instruction")]
    for run, rate in ((1, 257), (2, 250)):
        stem = f"sub-90_task-hands_run-{run}"
        add_bids(corpus, "sub-90", stem, ".edf", rate, seconds, more=more, note="runs, other events")
    add_bids(corpus, "sub-91", "sub-91_task-hands", ".vhdr", 250, seconds, problem="nan")
