"""What any model of EEG has to beat on a labelled dataset: chance, the most common answer, and logistic regression on
log band power.

python baselines.py --tasks Workload --dataset_dir datasets --out_dir runs/baselines
python -m evaluation runs/baselines/*/* runs/neurolm/checkpoints/instruction-B

Logistic regression reads the log power of six frequency bands at every channel, standardized, and is fitted on the
training windows; validation chooses its regularisation. Each method writes <out_dir>/<task>/<method>/results.json.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import errors
from dataset.labels import explain_labels
from dataset.tasks import find_tasks
from dataset.windows import open_tasks
from errors import UserError
from evaluation import Predictions, evaluate, report
from metrics import primary_metric, score_metrics
from model.inputs import BANDS, log_band_power
from training.flags import natural
from utils import start_run

STRENGTHS = 10.0 ** np.arange(-5, 3)  # C of the logistic regression, the inverse of its regularisation


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--dataset_dir", default="./", help="folder of the known tasks' dataset folders")
    flag("--tasks", nargs="+", help="names, or YAML files of own ones; default: every known one under dataset_dir")
    flag("--out_dir", default="./")
    flag("--seed", type=natural, default=1337, help="of the chance")
    return parser.parse_args(argv)


def main(args):
    run = start_run("cpu", seed=args.seed)
    tasks = find_tasks(args.dataset_dir, args.tasks)
    for line in explain_labels(tasks):
        run.say(line)
    sets = {split: open_tasks(tasks, split) for split in ("train", "val", "test")}
    for task in tasks:
        windows = {split: set_of[task] for split, set_of in sets.items()}
        labels = {split: w.index[:, 3] for split, w in windows.items()}
        powers = read_powers(task, windows)
        methods = {
            "chance": np.random.default_rng(args.seed).dirichlet(np.ones(task.n_classes), len(labels["test"])),
            "majority": always_most_common(labels["train"], task.n_classes, len(labels["test"])),
            "logistic regression on log band power": fit_regression(task, powers, labels),
        }
        for method, probabilities in methods.items():
            about = {"name": task.name, "split": "test", "answers": task.answers, "metrics": task.metrics}
            result = evaluate(Predictions(labels["test"], probabilities), windows["test"].describe(), **about)
            run.say(f"\n{method}")
            report(Path(args.out_dir, task.name, method.replace(" ", "_")), [result], run, method=method)


def read_powers(task, windows) -> dict[str, np.ndarray]:
    """Log band power at the channels that all recordings have, of each window of each split (W, channels * bands)."""
    montages = [recording.channels for w in windows.values() for recording in w.recordings]
    common = [channel for channel in montages[0] if all(channel in montage for montage in montages)]
    if not common:
        raise UserError(f"task {task.name}: no channel is in all recordings, logistic regression needs the same ones")
    powers = {}
    for split, w in windows.items():
        powers[split] = np.empty((len(w), len(common) * len(BANDS)), dtype=np.float32)
        for i, number in enumerate(w.index[:, 0]):
            places = [w.recordings[number].channels.index(channel) for channel in common]
            powers[split][i] = log_band_power(torch.from_numpy(w[i]["eeg"][places])).flatten()
    return powers


def always_most_common(labels, n_classes: int, count: int) -> np.ndarray:
    """The most common of `labels` for certain, `count` times over (count, n_classes)."""
    return np.tile(np.eye(n_classes)[np.bincount(labels, minlength=n_classes).argmax()], (count, 1))


def fit_regression(task, powers, labels) -> np.ndarray:
    """Probabilities of the test windows (W, A), with the regularisation that answers validation best. Raises UserError
    where the training windows have one answer only, or validation leaves every choice undefined."""
    n_classes = task.n_classes
    if len(set(labels["train"])) < 2:
        raise UserError(f"task {task.name}: all training windows have one label, there is nothing to fit")
    metric = primary_metric(n_classes)
    best, chosen = -np.inf, None
    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=5000))
        model.fit(powers["train"], labels["train"])
        answered = _probabilities(model, powers["val"], n_classes)
        score = score_metrics(labels["val"], answered, n_classes, [metric])[metric]
        if score > best:
            best, chosen = score, model
    if chosen is None:
        raise UserError(f"task {task.name}: all validation windows have one label, {metric} cannot choose")
    print(f"C = {chosen[-1].C:g} by validation, {metric} {best:.3f}")
    return _probabilities(chosen, powers["test"], n_classes)


def _probabilities(model, powers, n_classes: int) -> np.ndarray:
    """(W, n_classes), with 0 for classes that the training did not have."""
    probabilities = np.zeros((len(powers), n_classes))
    probabilities[:, model.classes_] = model.predict_proba(powers)
    return probabilities


if __name__ == "__main__":
    errors.run(main, get_args)
