"""Evaluate a model on whole sets: gather every rank's answers, score them, write them, and compare runs.

A model is a function `predict(batch) -> (indices (B,), labels (B,), probabilities (B, A))`; `make_predict` gives that
of a NeuroLM:
    predictions = collect(predict, loader, len(windows))
    result = evaluate(predictions, windows.describe(), name="TUAB", split="test", answers=("No", "Yes"))
    report(out_dir, [result], run, method="NeuroLM-B", seed=0)
`python -m evaluation RUN...` puts the results of such runs, mean and standard deviation over those of a method, beside
the published ones. n windows · A answers.
"""

import argparse
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

import errors
from dataset.batches import collate_eeg, collate_montage
from dataset.text import END_TOKEN, load_tokenizer
from errors import UserError
from metrics import bootstrap_intervals, count_confusion, default_metrics, explain_labels, primary_metric, score_metrics
from model.labram import class_probabilities
from results import HARD, PUBLISHED, compare_runs, read_run, results_table, write_results
from training.loading import evaluation_loader

ANSWERING = ("score", "score_sum", "score_per_token", "generate")


class Predictions(NamedTuple):
    """Answers to windows 0 .. n - 1, in this order: labels (n,) int, probabilities (n, A) float64."""

    labels: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """What one model did on one split of one dataset."""

    dataset: str
    split: str
    answers: tuple[str, ...]
    metrics: dict[str, float]  # over windows; NaN where undefined
    intervals: dict[str, tuple[float, float]]  # 95 %, over draws of subjects
    recording_metrics: dict[str, float]  # over recordings, of their mean probability; {} where labels change inside one
    confusion: np.ndarray  # (A, A + 1) windows by label and answer, the last column for none of the answers
    unanswered: float  # share of windows without an allowed answer
    notes: list[str]  # what is undefined, and why
    windows: pd.DataFrame  # dataset, split, recording, subject, start, label, p_<answer> of each window

    @property
    def primary(self) -> float:
        """AUROC of two answers, Cohen's kappa of more: what chooses the best epoch."""
        return self.metrics[primary_metric(len(self.answers))]

    @property
    def selection(self) -> float:
        """`primary`; between epochs that are equal in it, the balanced accuracy decides."""
        return self.primary + 1e-6 * self.metrics["balanced_accuracy"]


def collect(predict, batches, n_windows: int) -> Predictions:
    """The predictions of all ranks, each window once, equal on every rank whatever the batches and the shards.

    `predict(batch)` gives indices (B,) in 0 .. n_windows - 1, labels (B,), probabilities (B, A), arrays or tensors. A
    window that came twice counts once. Every rank must call this, also one without batches.
    Raises RuntimeError where a window has no answer or an index is none of the windows, and where another rank fails.
    """
    rows, failure = [], None
    try:
        for batch in batches:
            indices, labels, probabilities = (_to_array(part) for part in predict(batch))
            rows.append((indices.astype(int), labels.astype(int), probabilities))
    except Exception as error:  # the other ranks must hear of it, or they would wait for this one's answers
        failure = error
    if dist.is_available() and dist.is_initialized():
        shards = [None] * dist.get_world_size()
        dist.all_gather_object(shards, (rows, repr(failure) if failure else None))
        rows = [row for shard, _ in shards for row in shard]
        said = [f"rank {rank}: {failed}" for rank, (_, failed) in enumerate(shards) if failed]
        if said and not failure:
            raise RuntimeError(f"the evaluation failed on another process, {'; '.join(said)}")
    if failure:
        raise failure
    answered = np.concatenate([np.empty(0, dtype=int), *(row[0] for row in rows)])
    found, first = np.unique(answered, return_index=True)
    if not n_windows or not np.array_equal(found, np.arange(n_windows)):
        raise RuntimeError(
            f"{len(found)} different windows were answered, expected all of 0 .. {n_windows - 1} "
            f"(first missing: {np.setdiff1d(np.arange(n_windows), found)[:5].tolist()})"
        )
    _, labels, probabilities = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return Predictions(labels[first], probabilities[first])


def _to_array(part) -> np.ndarray:
    return np.asarray(part.detach().cpu().double() if hasattr(part, "detach") else part, dtype=float)


def evaluate(predictions, windows, *, name: str, split: str, answers, metrics=None, seed: int = 0) -> Evaluation:
    """Score `predictions` of `windows`, whose columns `recording`, `subject` and `start` are in the windows' order.

    `metrics` are names (default: the papers' four), beside those that choose the best epoch; two answers get the hard
    ones too. `seed` is that of the intervals.
    Raises UserError where probabilities are not finite.
    """
    labels, probabilities = predictions
    n_classes = len(answers)
    broken = np.flatnonzero(~np.isfinite(probabilities).all(1))
    if len(broken):
        raise UserError(
            f"{name} {split}: the model gave no finite probability for {len(broken)} of {len(labels)} windows (first: "
            f"window {broken[0]}): its weights diverged, take an earlier checkpoint or a lower learning rate"
        )
    names = [*(metrics or default_metrics(n_classes)), primary_metric(n_classes), "balanced_accuracy"]
    names = tuple(dict.fromkeys(names + (list(HARD) if n_classes == 2 else [])))
    table = pd.DataFrame({key: list(windows[key]) for key in ("recording", "subject", "start")})
    table.insert(0, "dataset", name)
    table.insert(1, "split", split)
    table["label"] = labels
    for answer, column in zip(answers, probabilities.T, strict=True):
        table[f"p_{answer}"] = column

    notes = explain_labels(labels, answers, names)
    intervals = bootstrap_intervals(labels, probabilities, table["subject"], n_classes, names, seed)
    if not intervals:
        notes.append("one subject only: no intervals")
    per_recording = _score_recordings(table["recording"], predictions, names)
    if not per_recording:
        notes.append("recordings hold windows of several labels: no metrics per recording")
    unanswered = float(np.mean(probabilities.sum(1) == 0))
    if unanswered:
        notes.append(f"{unanswered:.1%} of the windows got none of the answers and count as wrong")
    return Evaluation(
        dataset=name,
        split=split,
        answers=tuple(answers),
        metrics=score_metrics(labels, probabilities, n_classes, names),
        intervals=intervals,
        recording_metrics=per_recording,
        confusion=count_confusion(labels, probabilities, n_classes),
        unanswered=unanswered,
        notes=notes,
        windows=table,
    )


def _score_recordings(recordings, predictions, names) -> dict[str, float]:
    """Metrics of each recording's mean probability; {} where a recording holds windows of several labels."""
    _, first, group = np.unique(recordings.astype(str), return_index=True, return_inverse=True)
    labels = predictions.labels[first]
    if (labels[group] != predictions.labels).any():
        return {}
    sums = np.zeros((len(first), predictions.probabilities.shape[1]))
    np.add.at(sums, group, predictions.probabilities)
    totals = sums.sum(1, keepdims=True)
    means = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
    return score_metrics(labels, means, sums.shape[1], names)


def answer_tasks(model, windows, split, batch_size, run, num_workers=0, answer_by="score", trained=None):
    """Let a NeuroLM answer the labelled windows of each task, {task: Windows} -> list of Evaluation; `answer_by` as in
    `make_predict`; trained: a checkpoint's rows of the tasks that it has learnt, None: these. See `choose_scoring`."""
    model.eval()
    evaluations = []
    for task, task_windows in windows.items():
        batches = evaluation_loader(task_windows, batch_size, run, collate_eeg, num_workers)
        way, said = choose_scoring(task, trained is None or is_among(task, trained), answer_by)
        predictions = collect(make_predict(model, task, run, way), batches, len(task_windows))
        about = {"name": task.name, "split": split, "answers": task.answers, "metrics": task.metrics}
        evaluations.append(evaluate(predictions, task_windows.describe(), **about))
        evaluations[-1].notes.extend([said] if said else [])
    return evaluations


def is_among(task, rows) -> bool:
    """Whether a checkpoint's rows of tasks (of `describe_tasks`) have this question with these answers."""
    known = [row for row in rows if isinstance(row, dict) and row.get("question") == task.question]
    return any(row.get("answers") in (task.answers, list(task.answers)) for row in known)


def choose_scoring(task, trained: bool, answer_by: str) -> tuple[str, str]:
    """The way to answer a task (`answer_by` of `make_predict`), and a sentence where "score" becomes another one.

    The sum of a long answer's log-likelihoods is lower for its length alone. A model trained on the task has learnt to
    take that into account, so that the sum is its posterior; one that was never asked it has not: where the answers
    then differ in their number of tokens, "score" is "score_per_token".
    """
    lengths = {len(option) for option in task.options(load_tokenizer())}
    if answer_by != "score" or trained or len(lengths) == 1:
        return answer_by, ""
    return "score_per_token", (
        f"not a task of the training, and its answers have {min(lengths)} to {max(lengths)} tokens: scored by their "
        "log-likelihood per token (--answer_by score_sum: by its sum, which prefers short answers)"
    )


def classify_windows(model, windows, answers, *, name, split, batch_size, run, num_workers=0) -> Evaluation:
    """Let a LaBraM classifier label the labelled windows (Windows) of one dataset."""
    model.eval()

    @torch.no_grad()
    def predict(batch):
        with run.autocast():
            logits = model(batch["x"], batch["chans"])
        return batch["index"], batch["label"], class_probabilities(logits)

    batches = evaluation_loader(windows, batch_size, run, collate_montage, num_workers, windows.same_shape())
    predictions = collect(predict, batches, len(windows))
    return evaluate(predictions, windows.describe(), name=name, split=split, answers=answers)


def make_predict(model, task, run, answer_by: str = "score"):
    """The `predict` of a NeuroLM and a task, for `collect`.

    answer_by: "score" and "score_sum" give each allowed answer the softmax of its log-likelihood (of its first token
    where that tells the answers apart); "score_per_token" that of its mean over all tokens of the answer, its end
    included; "generate" lets the model write, and parses what it wrote: probability 1 for one answer, 0 for all where
    it wrote none of them.
    """
    tokenizer = load_tokenizer()
    options = task.options(tokenizer)
    prompt = torch.tensor(task.prompt(tokenizer), device=run.device)
    per_token = answer_by == "score_per_token"

    def ask(batch):
        return batch | {"tokens": prompt.expand(len(batch["label"]), -1)}

    def score(batch):
        with run.autocast():
            likelihoods = model.score_answers(ask(batch), options, whole=per_token or not task.first_tokens_differ)
        likelihoods = likelihoods.double()
        if per_token:
            likelihoods = likelihoods / likelihoods.new_tensor([len(option) for option in options])
        return batch["index"], batch["label"], likelihoods.softmax(-1)

    def generate(batch):
        with run.autocast():
            written = model.generate(ask(batch), max(map(len, options)), END_TOKEN)
        probabilities = torch.zeros(len(written), len(options))
        for row, ids in enumerate(written.tolist()):
            if min(ids) < 0:
                probabilities[row] = torch.nan
                continue
            label = task.parse(tokenizer.decode(ids))
            if label is not None:
                probabilities[row, label] = 1
        return batch["index"], batch["label"], probabilities

    return generate if answer_by == "generate" else score


def report(out_dir, evaluations, run, **about) -> None:
    """Write the results and print their table, on the main process."""
    if run.main:
        path = write_results(out_dir, evaluations, **about)
        print(f"\n{results_table(evaluations)}\nwritten to {path}")


def get_args(argv=None):
    parser = argparse.ArgumentParser(description="Merge the results of runs beside the published ones.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that hold a results.json, or such files")
    parser.add_argument("--split", default="test")
    parser.add_argument("--published", default=PUBLISHED, help="CSV of published results")
    return parser.parse_args(argv)


def main(args):
    runs = [read_run(path) for path in args.runs]
    try:
        published = pd.read_csv(args.published)
    except (OSError, ValueError) as error:
        raise UserError(f"--published {args.published} cannot be read: {error}") from error
    print(compare_runs(runs, published, args.split))


if __name__ == "__main__":
    errors.run(main, get_args)
