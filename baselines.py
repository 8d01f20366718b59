"""What any model of EEG has to beat on a labelled dataset: chance, the most common answer, and logistic regression on
log band power, on covariances between channels in their tangent space, and on both.

python baselines.py --tasks Workload --dataset_dir datasets --out_dir runs/baselines
python -m evaluation runs/baselines/*/* runs/neurolm/checkpoints/instruction-B

Band power is that of six frequency bands at every channel. The tangent space is the matrix logarithm of the covariance
in each of five bands, shrunk a little (log-Euclidean, Arsigny et al. 2007; Barachant et al. 2012). Features are
standardized and the regression is fitted on the training windows; validation chooses its regularisation. Each method
writes <out_dir>/<task>/<method>/results.json. C channels · W windows
"""

import argparse
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import errors
from dataset.labels import explain_labels
from dataset.protocol import read_protocol
from dataset.tasks import find_tasks
from dataset.windows import open_tasks
from errors import UserError
from evaluation.metrics import primary_metric, score_metrics
from evaluation.results import report
from evaluation.scoring import Predictions, evaluate
from model.inputs import BANDS, RATE, SMALLEST, log_band_power
from training.flags import add_protocol_flags
from training.numbers import Help, natural
from training.screening import screen
from utils import start_run

STRENGTHS = 10.0 ** np.arange(-5, 3)  # C of the logistic regression, the inverse of its regularisation

FILTER_BANK = ((1, 4), (4, 8), (8, 13), (13, 30), (30, 45))  # Hz, of the covariances
SHRINKAGE = 0.05  # share of the mean power, which makes covariances of few seconds invertible


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    flag = parser.add_argument
    flag("--dataset_dir", default="./", help="folder of the known tasks' dataset folders")
    flag("--tasks", nargs="+", help="names, or YAML files of own ones; default: every known one under dataset_dir")
    flag("--out_dir", default="./", help="where the results go")
    flag("--seed", type=natural, default=1337, help="of the chance")
    add_protocol_flags(flag)
    flag("--verify", action="store_true", help="hold the sha256 of every file against its manifest first")
    flag("--allow_leak", action="store_true", help="go on with subjects who are on both sides; results say so")
    return parser.parse_args(argv)


def main(args):
    run = start_run("cpu", seed=args.seed)
    tasks = find_tasks(args.dataset_dir, args.tasks)
    for line in explain_labels(tasks):
        run.say(line)
    protocol = read_protocol(args)
    drawn = [args.seed, args.fold, args.fold_seed] if args.folds else args.seed  # other chances in other folds
    plain = replace(protocol, calibrate=None)  # here the features are calibrated, not the EEG
    sets = {split: open_tasks(tasks, split, plain) for split in ("train", "val", "test")}
    read = {split: [*windows_of.values()] for split, windows_of in sets.items()}
    _, found = screen(args, run, read, tasks.values(), protocol=protocol)
    for task in tasks:
        windows = {split: set_of[task] for split, set_of in sets.items()}
        labels = {split: w.index[:, 3] for split, w in windows.items()}
        features = read_features(task, windows)
        if protocol.calibrate:
            calibrate(features, windows)
        power = len(common_channels(task, windows)) * len(BANDS)  # as many features are band power
        columns = {
            "log band power": slice(power),
            "tangent space": slice(power, None),
            "tangent space and log band power": slice(None),
        }
        methods = {
            "chance": np.random.default_rng(drawn).dirichlet(np.ones(task.n_classes), len(labels["test"])),
            "majority": always_most_common(labels["train"], task.n_classes, len(labels["test"])),
        }
        for name, chosen in columns.items():
            part = {split: rows[:, chosen] for split, rows in features.items()}
            methods[f"logistic regression on {name}"] = fit_regression(task, part, labels, name)
        for method, probabilities in methods.items():
            about = {"name": task.name, "split": "test", "answers": task.answers, "metrics": task.metrics}
            result = evaluate(Predictions(labels["test"], probabilities), windows["test"].describe(), **about)
            run.say(f"\n{method}")
            report(Path(args.out_dir, task.name, method.replace(" ", "_")), [result], run, method=method, **found)


def common_channels(task, windows) -> list[str]:
    """The channels that all recordings of all splits have. Raises UserError when there is none."""
    montages = [recording.channels for w in windows.values() for recording in w.recordings]
    common = [channel for channel in montages[0] if all(channel in montage for montage in montages)]
    if not common:
        raise UserError(f"task {task.name}: no channel is in all recordings, logistic regression needs the same ones")
    return common


def read_features(task, windows) -> dict[str, np.ndarray]:
    """What logistic regression reads of each window of each split, at the channels that all recordings have: log band
    power (C * 6), then the tangent space (5 * C * (C + 1) / 2) -> (W, both) float32."""
    common, features = common_channels(task, windows), {}
    width = len(common) * len(BANDS) + len(FILTER_BANK) * len(common) * (len(common) + 1) // 2
    for split, w in windows.items():
        features[split] = np.empty((len(w), width), dtype=np.float32)
        for i, number in enumerate(w.index[:, 0]):
            eeg = w[i]["eeg"][[w.recordings[number].channels.index(channel) for channel in common]]
            features[split][i] = np.concatenate([log_band_power(torch.from_numpy(eeg)).flatten(), tangent_space(eeg)])
    return features


def calibrate(features, windows) -> None:
    """Standardize features over all windows of each subject, in place; no label is read."""
    subjects = {split: np.array(w.describe()["subject"]) for split, w in windows.items()}
    for subject in np.unique(np.concatenate([*subjects.values()])):
        mine = np.concatenate([features[split][subjects[split] == subject] for split in features])
        mean, std = mine.mean(0), mine.std(0)
        for split, rows in features.items():
            of_subject = subjects[split] == subject
            rows[of_subject] = (rows[of_subject] - mean) / np.where(std > 0, std, 1)


def tangent_space(eeg) -> np.ndarray:
    """eeg (C, T) in 100 uV -> logarithm of its covariance in each of FILTER_BANK, upper triangles (5 * C(C+1)/2,).

    A band's covariance is summed over the bins of the spectrum in it, the upper edge excluded.
    """
    channels, samples = eeg.shape
    spectrum = np.fft.rfft(eeg.astype(np.float64))
    rows, columns = np.triu_indices(channels)
    logarithms = []
    for low, high in FILTER_BANK:
        band = spectrum[:, ceil(low * samples / RATE) : ceil(high * samples / RATE)]
        covariance = (band @ band.conj().T).real * (2 / samples**2)
        ridge = SHRINKAGE * np.trace(covariance) / channels + SMALLEST
        values, vectors = np.linalg.eigh((1 - SHRINKAGE) * covariance + ridge * np.eye(channels))
        logarithms.append(((vectors * np.log(values)) @ vectors.T)[rows, columns])
    return np.concatenate(logarithms)


def always_most_common(labels, n_classes: int, count: int) -> np.ndarray:
    """The most common of `labels` for certain, `count` times over (count, n_classes)."""
    return np.tile(np.eye(n_classes)[np.bincount(labels, minlength=n_classes).argmax()], (count, 1))


def fit_regression(task, features, labels, name="features") -> np.ndarray:
    """Probabilities of the test windows (W, A), with the regularisation that answers validation best. Raises UserError
    where the training windows have one answer only, or validation leaves every choice undefined."""
    n_classes = task.n_classes
    if len(set(labels["train"])) < 2:
        raise UserError(f"task {task.name}: all training windows have one label, there is nothing to fit")
    metric = primary_metric(n_classes)
    best, chosen = -np.inf, None
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=5000))
        model.fit(features["train"], labels["train"])
        answered = _probabilities(model, features["val"], n_classes)
        score = score_metrics(labels["val"], answered, n_classes, [metric])[metric]
        if score > best:
            best, chosen = score, model
    if chosen is None:
        raise UserError(f"task {task.name}: all validation windows have one label, {metric} cannot choose")
    print(f"{task.name}, {name}: C = {chosen[-1].C:g} by validation, {metric} {best:.3f}")
    return _probabilities(chosen, features["test"], n_classes)


def _probabilities(model, features, n_classes: int) -> np.ndarray:
    """(W, n_classes), with 0 for classes that the training did not have."""
    probabilities = np.zeros((len(features), n_classes))
    probabilities[:, model.classes_] = model.predict_proba(features)
    return probabilities


if __name__ == "__main__":
    errors.run(main, get_args)
