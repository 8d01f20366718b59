"""A small evaluation that tests share: three subjects with a recording of each label, five windows in each."""

import numpy as np
import pandas as pd

from evaluation.scoring import Predictions, evaluate


def make_windows():
    recordings = np.repeat([f"s{i}_{j}" for i in range(3) for j in range(2)], 5)
    subjects = [recording[:2] for recording in recordings]
    return pd.DataFrame({"recording": recordings, "subject": subjects, "start": np.tile(range(5), 6)})


def make_predictions(seed=1):
    """Scores that lean to the label."""
    labels = np.tile(np.repeat([0, 1], 5), 3)
    score = np.random.default_rng(seed).random(30) * 0.8 + 0.2 * labels
    return Predictions(labels, np.stack([1 - score, score], 1))


def evaluate_workload(predictions, windows=None, **kwargs):
    windows = make_windows() if windows is None else windows
    return evaluate(predictions, windows, name="Workload", split="test", answers=("No", "Yes"), **kwargs)
