"""Evaluation: every window once whatever the batches and processes, results that can be read back and compared."""

import json
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from workload import evaluate_workload, make_predictions, make_windows

from errors import UserError
from evaluation.metrics import score_metrics
from evaluation.results import results_table
from evaluation.scoring import collect


def answer_shares(path):
    """Process r of w answers the windows r, r + w, ... of sets of 1, 2, 7 and 50, in batches of 1, 7 and 64, one of
    them twice; rank 0 writes what was gathered."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1:
        dist.init_process_group("gloo")
    out = {}
    for n in (1, 2, 7, 50):
        labels = torch.arange(n) % 3
        probabilities = torch.softmax(torch.from_numpy(np.random.default_rng(n).normal(size=(n, 3))), 1)
        for size in (1, 7, 64):
            own = torch.arange(n)[rank::world]
            own = torch.cat([own, own[:1]])  # a sampler that pads its shard repeats a window
            batches = own.split(size) if len(own) else []
            seen = collect(lambda at, y=labels, p=probabilities: (at, y[at], p[at].float()), batches, n)
            out.setdefault(n, []).append([seen.labels.tolist(), seen.probabilities.tolist()])
    everyone = [None] * world
    if world > 1:
        dist.all_gather_object(everyone, out)
        assert all(other == out for other in everyone)
        dist.destroy_process_group()
    if rank == 0:
        path.write_text(json.dumps(out))


def test_any_batches_and_processes_gather_the_same(tmp_path):
    texts = []
    for nproc in (1, 2, 3):
        run_processes(nproc, answer_shares, tmp_path / f"{nproc}.json")
        texts.append((tmp_path / f"{nproc}.json").read_text())
    assert texts[0] == texts[1] == texts[2]
    for n, by_size in json.loads(texts[0]).items():
        assert by_size[0] == by_size[1] == by_size[2]
        assert by_size[0][0] == (np.arange(int(n)) % 3).tolist()


def batch_of(indices):
    return np.array(indices), np.zeros(len(indices)), np.tile([0.5, 0.5], (len(indices), 1))


def fail_on_one(folder):
    """Rank 1 cannot answer; each rank writes what it was told."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def predict(batch):
        if rank == 1:
            raise ValueError("recording 7 is broken")
        return [0], [0], [[0.5, 0.5]]

    with pytest.raises((RuntimeError, ValueError)) as caught:
        collect(predict, [0], 1)
    (folder / str(rank)).write_text(str(caught.value))
    dist.destroy_process_group()


def test_a_process_that_fails_does_not_leave_the_others_waiting(tmp_path):
    run_processes(2, fail_on_one, tmp_path)
    failed = "the evaluation failed on another process, rank 1: ValueError('recording 7 is broken')"
    assert [(tmp_path / rank).read_text() for rank in "01"] == [failed, "recording 7 is broken"]


@pytest.mark.parametrize(
    "batches, message",
    [
        ([], r"0 different windows were answered, expected all of 0 \.\. 3 \(first missing: \[0, 1, 2, 3\]"),
        ([[0, 1], [3]], r"3 different windows .*\(first missing: \[2\]"),
        ([[0, 1, 2, 3, 4]], "5 different windows"),
        ([[-1, 0, 1, 2]], r"\(first missing: \[3\]"),
    ],
)
def test_a_lost_or_foreign_window_stops_the_evaluation(batches, message):
    with pytest.raises(RuntimeError, match=message):
        collect(batch_of, batches, 4)


def test_an_evaluation_scores_windows_recordings_and_subjects():
    predictions = make_predictions()
    result = evaluate_workload(predictions)
    names = ("balanced_accuracy", "auc_pr", "auroc", "accuracy", "auc_pr_hard", "auroc_hard")
    assert result.metrics == score_metrics(*predictions, 2, names)
    assert result.primary == result.metrics["auroc"]
    assert result.selection == pytest.approx(result.primary, abs=1e-6) and result.selection > result.primary
    assert result.metrics["auroc_hard"] == pytest.approx(result.metrics["balanced_accuracy"])
    means = predictions.probabilities.reshape(6, 5, 2).mean(1)
    assert result.recording_metrics == score_metrics([0, 1] * 3, means, 2, names)
    for name in names:
        low, high = result.intervals[name]
        assert low <= result.metrics[name] <= high
    assert result.confusion.sum() == 30 and result.unanswered == 0 and result.notes == []
    assert list(result.windows.columns[:6]) == ["dataset", "split", "recording", "subject", "start", "label"]


def test_what_cannot_be_said_is_noted():
    predictions = make_predictions()
    predictions.labels[0], predictions.probabilities[3] = 1, 0
    result = evaluate_workload(predictions, make_windows().assign(subject="only"), metrics=("kappa",))
    assert list(result.metrics) == ["kappa", "auroc", "balanced_accuracy", "auc_pr_hard", "auroc_hard"]
    assert result.recording_metrics == {} and result.intervals == {} and result.unanswered == 1 / 30
    said = " ".join(result.notes)
    for part in ("one subject only", "windows of several labels", "3.3% of the windows got none of the answers"):
        assert part in said
    table = results_table([result])
    assert "Workload test: one subject only: no intervals" in table and "recordings |" not in table


def test_probabilities_that_are_not_finite_stop_with_advice():
    predictions = make_predictions()
    predictions.probabilities[4] = np.nan
    with pytest.raises(UserError, match=r"Workload test: .* 1 of 30 windows \(first: window 4\).*earlier checkpoint"):
        evaluate_workload(predictions)
