"""Simulated corpora other than TUH's: file names, channels, rates and labels as the real ones have them."""

import numpy as np

from dataset_maker.simulate_files import Corpus
from dataset_maker.simulate_signals import STATES, make_ecg, make_eeg, noise

EEGMAT = ("Fp1", "Fp2", "F3", "F4", "F7", "F8", "T3", "T4", "C3", "C4", "T5", "T6", "P3", "P4", "O1", "O2", "Fz", "Cz",
          "Pz")  # fmt: skip
CAP_32 = ("Fp1", "Fp2", "AF3", "AF4", "F7", "F3", "Fz", "F4", "F8", "FC5", "FC1", "FC2", "FC6", "T7", "C3", "Cz", "C4",
          "T8", "CP5", "CP1", "CP2", "CP6", "P7", "P3", "Pz", "P4", "P8", "PO3", "PO4", "O1", "Oz", "O2")  # fmt: skip
BCI2000_64 = ("Fc5.", "Fc3.", "Fc1.", "Fcz.", "Fc2.", "Fc4.", "Fc6.", "C5..", "C3..", "C1..", "Cz..", "C2..", "C4..",
              "C6..", "Cp5.", "Cp3.", "Cp1.", "Cpz.", "Cp2.", "Cp4.", "Cp6.", "Fp1.", "Fpz.", "Fp2.", "Af7.", "Af3.",
              "Afz.", "Af4.", "Af8.", "F7..", "F5..", "F3..", "F1..", "Fz..", "F2..", "F4..", "F6..", "F8..", "Ft7.",
              "Ft8.", "T7..", "T8..", "T9..", "T10.", "Tp7.", "Tp8.", "P7..", "P5..", "P3..", "P1..", "Pz..", "P2..",
              "P4..", "P6..", "P8..", "Po7.", "Po3.", "Poz.", "Po4.", "Po8.", "O1..", "Oz..", "O2..",
              "Iz..")  # fmt: skip
HEADBAND = ("TP9", "AF7", "AF8", "TP10")
MONTAGES = ((EEGMAT, 250), (CAP_32, 256), (BCI2000_64, 160), (HEADBAND, 256))


def write_workload(corpus: Corpus, subjects: int, seconds: int) -> None:
    """eegmat: SubjectNN_1.edf rest, 8 s longer than SubjectNN_2.edf arithmetic; 500 Hz, 19 EEG channels, A2-A1, ECG.

    The amplitude of each recording (11 to 18 uV rms) is drawn without regard to its class.
    """
    for number in range(subjects):
        name = f"Subject{number:02d}"
        for run, state in ((1, "rest"), (2, "arithmetic")):
            file = f"{name}_{run}.edf"
            rng, length = corpus.rng(file), seconds + 8 * (run == 1)
            samples = length * 500
            eeg = make_eeg(rng, corpus.subject(name), EEGMAT, 500, samples, [(0, length, state)])
            eeg *= rng.uniform(11, 18) / eeg.std()
            ears = 4 * noise(rng, 1, samples, 500, slope=1.0)
            uv = np.concatenate([eeg, ears, make_ecg(rng, 500, samples)[None]])
            channels = [f"EEG {channel}" for channel in (*EEGMAT, "A2-A1")] + ["ECG ECG"]
            corpus.add(file, uv, channels, 500, name, events=[(0, length, state)])


def random_states(rng, seconds: float, states=tuple(STATES), least: float = 8.0, most: float = 20.0) -> list:
    """States that follow one another at random -> rows (start s, stop s, state) that cover `seconds`."""
    rows, start = [], 0.0
    while start < seconds:
        stop = min(round(start + rng.uniform(least, most), 2), seconds)
        rows.append((start, stop, states[rng.integers(len(states))]))
        start = stop
    return rows


def write_pretrain(corpus: Corpus, subjects: int, seconds: int) -> None:
    """An unlabelled corpus of 19 channels at 250 Hz, 32 at 256, 64 at 160 and 4 at 256, in turn; a folder a subject."""
    for number in range(subjects):
        name, (channels, rate) = f"P{number:03d}", MONTAGES[number % len(MONTAGES)]
        file = f"{name}/{name}_rest.edf"
        rng = corpus.rng(file)
        states = random_states(rng, seconds)
        uv = make_eeg(rng, corpus.subject(name), channels, rate, seconds * rate, states)
        corpus.add(file, uv, channels, rate, name, events=states)
