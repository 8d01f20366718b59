"""Simulated corpora other than TUH's: file names, channels, rates and labels as the real ones have them."""

import datetime

import numpy as np

from dataset_maker.simulation.files import START, Corpus, write_edf
from dataset_maker.simulation.signals import STATES, make_ecg, make_eeg, make_noise, noise

EEGMAT = ("Fp1", "Fp2", "F3", "F4", "F7", "F8", "T3", "T4", "C3", "C4", "T5", "T6", "P3", "P4", "O1", "O2", "Fz", "Cz",
          "Pz")  # fmt: skip
CAP_32 = ("Fp1", "Fp2", "AF3", "AF4", "F7", "F3", "Fz", "F4", "F8", "FC5", "FC1", "FC2", "FC6", "T7", "C3", "Cz", "C4",
          "T8", "CP5", "CP1", "CP2", "CP6", "P7", "P3", "Pz", "P4", "P8", "PO3", "PO4", "O1", "Oz", "O2")  # fmt: skip
BCI2000_64 = tuple(
    """
    Fc5. Fc3. Fc1. Fcz. Fc2. Fc4. Fc6. C5.. C3.. C1.. Cz.. C2.. C4.. C6.. Cp5. Cp3. Cp1. Cpz. Cp2. Cp4. Cp6. Fp1. Fpz.
    Fp2. Af7. Af3. Afz. Af4. Af8. F7.. F5.. F3.. F1.. Fz.. F2.. F4.. F6.. F8.. Ft7. Ft8. T7.. T8.. T9.. T10. Tp7. Tp8.
    P7.. P5.. P3.. P1.. Pz.. P2.. P4.. P6.. P8.. Po7. Po3. Poz. Po4. Po8. O1.. Oz.. O2.. Iz..
    """.split()  # noqa: SIM905
)
HEADBAND = ("TP9", "AF7", "AF8", "TP10")
MONTAGES = ((EEGMAT, 250), (CAP_32, 256), (BCI2000_64, 160), (HEADBAND, 256))


def add_workload(corpus: Corpus, subject: str, run: int, names, rate: int, seconds: int, **facts) -> None:
    """A recording of eegmat: rest (run 1) or arithmetic (run 2)."""
    states = [(0, seconds, ("rest", "arithmetic")[run - 1])]
    corpus.record(f"{subject}_{run}.edf", subject, names, rate, seconds, states, **facts)


def write_workload(corpus: Corpus, subjects: int, seconds: int) -> None:
    """eegmat: SubjectNN_1.edf rest, 8 s longer than SubjectNN_2.edf arithmetic; 500 Hz, 19 EEG channels, A2-A1, ECG.

    The amplitude of each recording (11 to 18 uV rms) is drawn without regard to its class.
    """

    def scale(rng, uv):
        uv *= rng.uniform(11, 18) / uv.std()

    names = [f"EEG {name}" for name in EEGMAT]
    body = {"EEG A2-A1": make_noise(4, slope=1.0), "ECG ECG": make_ecg}
    for number in range(subjects):
        for run, length in ((1, seconds + 8), (2, seconds)):
            add_workload(corpus, f"Subject{number:02d}", run, names, 500, length, change=scale, body=body)


def write_workload_awkward(corpus: Corpus, seconds: int) -> None:
    """Lower-case names at 257 Hz; a rest that is shorter than the 60 s used; an arithmetic file in volts."""
    names = [f"eeg {name.lower()}" for name in EEGMAT]
    for name, run, rate, length, facts in (
        ("Subject90", 1, 257, seconds, {"note": "lower-case names, odd rate"}),
        ("Subject90", 2, 257, seconds, {"note": "lower-case names, odd rate"}),
        ("Subject91", 1, 500, 40, {"problem": "short"}),
        ("Subject91", 2, 500, seconds, {"problem": "unit"}),
    ):
        add_workload(corpus, name, run, names, rate, length, **facts)


def write_pretrain(corpus: Corpus, subjects: int, seconds: int) -> None:
    """An unlabelled corpus of 19 channels at 250 Hz, 32 at 256, 64 at 160 and 4 at 256, in turn; a folder a subject.

    Its states of 8 to 20 s follow one another at random.
    """
    for number in range(subjects):
        name, (channels, rate) = f"P{number:03d}", MONTAGES[number % len(MONTAGES)]
        rng, states, start = corpus.rng(f"{name}/{name}_rest.edf"), [], 0.0
        while start < seconds:
            stop = min(round(start + rng.uniform(8, 20), 2), seconds)
            states.append((start, stop, tuple(STATES)[rng.integers(len(STATES))]))
            start = stop
        corpus.record(f"{name}/{name}_rest.edf", name, channels, rate, seconds, states, rng=rng)


def write_pretrain_awkward(corpus: Corpus, seconds: int) -> None:
    """Each other format; 128 Hz, lower-case names, an ECG, a path with dots; and what must be refused."""
    cases = (
        (".bdf", 257, {"note": "odd rate"}),
        (".vhdr", 250, {"note": "BrainVision"}),
        (".set", 128, {"note": "75 Hz lies above Nyquist"}),
        (".cnt", 200, {"note": "Neuroscan, 32 bits"}),
        (".vhdr", 250, {"problem": "nan"}),
        (".edf", 250, {"problem": "flat"}),
        (".edf", 250, {"problem": "unit"}),
        (".edf", 250, {"problem": "truncated"}),
    )
    names = [channel.lower() for channel in EEGMAT]
    for number, (suffix, rate, facts) in enumerate(cases, start=900):
        file = f"P{number}/v1.0/P{number}_rest.1{suffix}"
        corpus.record(file, f"P{number}", names, rate, seconds, "rest", body={"ecg": make_ecg}, **facts)


SLEEP_NIGHT = ("W", "N1", "N2", "N3", "N2", "R")  # in turn, an epoch each
SLEEP_CHANNELS = ("EEG F4-M1", "EEG C4-M1", "EEG O2-M1", "EEG C3-M2")
SLEEP_BODY = {"EMG chin": make_noise(8, slope=0.0), "EOG E1-M2": make_noise(25, slope=1.5),
              "EOG E2-M2": make_noise(25, slope=1.5), "ECG": make_ecg}  # fmt: skip
SCORING_HEADER = "Date, Time, Recording onset, Duration, Annotation, Linked channel"


def add_sleep(corpus: Corpus, name: str, epochs, seconds: int, **facts) -> None:
    """An HMC recording of the sleep in `epochs`, rows (start s, stop s, stage)."""
    about = {"rng": corpus.rng(name), "body": SLEEP_BODY} | facts
    corpus.record(f"recordings/{name}.edf", name, SLEEP_CHANNELS, 256, seconds, epochs, **about)


def score_sleep(corpus: Corpus, name: str, epochs, *, header=(SCORING_HEADER,), others=()) -> None:
    """The scoring of an HMC recording, as text and as EDF+; `epochs` and `others` are rows (start s, stop s, text)."""
    rows = sorted([(start, stop, f"Sleep stage {stage}") for start, stop, stage in epochs] + list(others))
    lines = list(header)
    for start, stop, text in rows:
        clock = START + datetime.timedelta(seconds=start)
        lines.append(f"{clock:%Y-%m-%d}, {clock:%H:%M:%S}, {start:10g}, {stop - start:10g}, {text}, ")
    corpus.text(f"recordings/{name}_sleepscoring.txt", "\n".join(lines) + "\n")
    scoring = corpus.out_dir / f"recordings/{name}_sleepscoring.edf"
    write_edf(scoring, np.empty((0, 0)), (), 256, name, annotations=rows)


def write_hmc(corpus: Corpus, subjects: int, seconds: int) -> None:
    """HMC: recordings/SNnnn.edf and SNnnn_sleepscoring.txt (and .edf), 30 s epochs W N1 N2 N3 N2 R over and over."""
    for number in range(1, subjects + 1):
        starts = range(0, seconds - 29, 30)
        shift = int(corpus.rng(f"night {number}").integers(len(SLEEP_NIGHT)))
        epochs = [(start, start + 30, SLEEP_NIGHT[(shift + start // 30) % len(SLEEP_NIGHT)]) for start in starts]
        add_sleep(corpus, f"SN{number:03d}", epochs, seconds)
        score_sleep(corpus, f"SN{number:03d}", epochs)


def write_hmc_awkward(corpus: Corpus, seconds: int) -> None:
    """A header of three lines, other annotations, epochs off the 30 s grid, an epoch after the end, no scoring."""
    header = ("# Scored by: two scorers", "# Epoch: 30 s", SCORING_HEADER)
    starts = range(15, min(seconds - 29, 180), 30)
    epochs = [(start, start + 30, SLEEP_NIGHT[place]) for place, start in enumerate(starts)]
    others = [(0, 0, "Lights off@@EEG F4-M1"), (47, 62, "Arousal"), (100, 100, "Lights on@@EEG F4-M1")]
    add_sleep(corpus, "SN901", epochs, seconds, note="three-line header, other rows")
    score_sleep(corpus, "SN901", epochs, header=header, others=others)
    after = [(seconds, seconds + 30, "Sleep stage W"), (seconds - 40, seconds - 10, "Sleep stage ?")]
    add_sleep(corpus, "SN902", epochs[:1], seconds, note="one epoch after the end, one not scored")
    score_sleep(corpus, "SN902", epochs[:1], others=after)
    add_sleep(corpus, "SN903", epochs, seconds, events=[], problem="labels")


SEED_62 = ("FP1", "FPZ", "FP2", "AF3", "AF4", "F7", "F5", "F3", "F1", "FZ", "F2", "F4", "F6", "F8", "FT7", "FC5", "FC3",
           "FC1", "FCZ", "FC2", "FC4", "FC6", "FT8", "T7", "C5", "C3", "C1", "CZ", "C2", "C4", "C6", "T8", "TP7", "CP5",
           "CP3", "CP1", "CPZ", "CP2", "CP4", "CP6", "TP8", "P7", "P5", "P3", "P1", "PZ", "P2", "P4", "P6", "P8", "PO7",
           "PO5", "PO3", "POZ", "PO4", "PO6", "PO8", "CB1", "O1", "OZ", "O2", "CB2")  # fmt: skip
SEED_STARTS = (24, 289, 550, 782, 1049, 1260, 1483, 1747, 1993, 2283, 2550, 2812, 3072, 3332, 3598)
SEED_STOPS = (264, 526, 757, 1023, 1235, 1458, 1722, 1967, 2259, 2525, 2788, 3046, 3308, 3573, 3806)
SEED_LABELS = tuple({"H": "positive", "N": "neutral", "S": "negative"}[letter] for letter in "HNSSNHSNHHNSNHS")
SEED_SECONDS = 3810


def write_seed(corpus: Corpus, subjects: int, seconds: int) -> None:
    """SEED: n_1.cnt with 62 channels, M1, M2, VEO, HEO; 200 Hz instead of 1000; 15 film clips.

    A recording of 3810 s has the published times; of another length, the same times in proportion.
    """
    for number in range(1, subjects + 1):
        add_seed(corpus, f"{number}_1.cnt", f"{number:02d}", SEED_62, seconds)


def write_seed_awkward(corpus: Corpus, seconds: int) -> None:
    """Lower-case names, an ECG channel, a path with dots; a recording that ends inside the last clip."""
    lower = tuple(channel.lower() for channel in SEED_62)
    add_seed(corpus, "day.2/91_1.cnt", "91", lower, seconds, extra=("ECG",), note="lower case, path with a dot")
    add_seed(corpus, "92_1.cnt", "92", SEED_62, seconds, length=seconds * 95 // 100, note="the last clip is cut short")


def add_seed(corpus: Corpus, file: str, subject: str, names, seconds: int, *, length=None, extra=(), **facts) -> None:
    """A SEED recording of `length` (default: all) of `seconds`, made minute by minute to spare memory."""
    rate, length, rng = 200, length or seconds, corpus.rng(file)
    scalp = [*names, "M1", "M2"]
    channels = [*scalp, "VEO", "HEO", *extra]
    times = np.array([SEED_STARTS, SEED_STOPS]).T * seconds / SEED_SECONDS
    trials = [(*np.round(row, 3).tolist(), label) for row, label in zip(times, SEED_LABELS, strict=True)]
    uv = np.empty((len(channels), length * rate), np.float32)
    for first in range(0, length, 60):
        last = min(first + 60, length)
        states = [(max(start, first) - first, min(stop, last) - first, label) for start, stop, label in trials
                  if start < last and stop > first]  # fmt: skip
        samples, part = (last - first) * rate, slice(first * rate, last * rate)
        uv[: len(scalp), part] = make_eeg(rng, corpus.subject(subject), scalp, rate, samples, states)
        uv[len(scalp) :, part] = 25 * noise(rng, 2 + len(extra), samples, rate, slope=1.5)
    corpus.add(file, uv, channels, rate, subject, events=trials, **facts)


IMAGERY = {"T0": "rest", "T1": "left hand", "T2": "right hand"}  # annotation: state
TRIAL = 4.1  # seconds, of rest and of imagery in turn


def add_imagery(corpus: Corpus, subject: str, run: int, seconds: int, **facts) -> None:
    """An eegmmidb run: rest and a cued fist in turn, all annotated."""
    file = f"{subject}/{subject}R{run:02d}.edf"
    rng, times = corpus.rng(file), np.arange(0, seconds, TRIAL).round(1).tolist()
    hands = rng.permutation(np.arange(len(times) // 2) % 2)
    texts = [f"T{1 + hands[place // 2]}" if place % 2 else "T0" for place in range(len(times))]
    trials = [(start, round(min(start + TRIAL, seconds), 1), text) for start, text in zip(times, texts, strict=True)]
    states = [(start, stop, IMAGERY[text]) for start, stop, text in trials]
    about = {"annotations": trials, "events": trials, "rng": rng, "mains": 60.0} | facts
    corpus.record(file, subject, BCI2000_64, 160, seconds, states, **about)


def write_imagery(corpus: Corpus, subjects: int, seconds: int) -> None:
    """eegmmidb: SnnnRrr.edf (EDF+), runs 4, 8, 12 of imagined fists; 64 channels at 160 Hz, names with dots."""
    for number in range(1, subjects + 1):
        for run in (4, 8, 12):
            add_imagery(corpus, f"S{number:03d}", run, seconds)


def write_imagery_awkward(corpus: Corpus, seconds: int) -> None:
    """A run of real movement, a subject whose timings are wrong, and a run that was cut off."""
    add_imagery(corpus, "S001", 3, seconds, note="not imagined", excluded=True)
    add_imagery(corpus, "S088", 4, seconds, note="a subject to leave out", excluded=True)
    add_imagery(corpus, "S200", 4, seconds, problem="truncated")


ADHD_19 = ("Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "F7", "F8", "T7", "T8", "P7", "P8", "Fz", "Cz",
           "Pz")  # fmt: skip
GROUPS = {"A": ("ADHD", "arithmetic"), "C": ("control", "rest")}  # letter of a child: label, state


def add_child(corpus: Corpus, name: str, seconds: int, **facts) -> None:
    """A child's recording of the ADHD set, a CSV at 128 Hz in raw numbers."""
    label, state = GROUPS[name[0]]
    about = {"events": [(0, seconds, label)], "rng": corpus.rng(name)} | facts
    corpus.record(f"{name}.csv.gz", name, ADHD_19, 128, seconds, state, **about)


def write_adhd(corpus: Corpus, subjects: int, seconds: int) -> None:
    """ADHD: An.csv.gz and Cn.csv.gz in turn; a child with ADHD takes half as long again."""
    for number in range(subjects):
        letter = "AC"[number % 2]
        add_child(corpus, f"{letter}{number // 2 + 1}", seconds * 3 // 2 if letter == "A" else seconds)


def write_adhd_awkward(corpus: Corpus, seconds: int) -> None:
    """A flat channel, empty cells, a recording shorter than a window, and one cut off."""
    add_child(corpus, "A90", seconds, problem="flat")
    add_child(corpus, "C90", seconds, problem="nan")
    add_child(corpus, "A91", 3, problem="short")
    add_child(corpus, "C91", seconds, problem="truncated")
