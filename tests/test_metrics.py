"""Metrics: those of scikit-learn on ties and missing classes; undefined ones are NaN and said so."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from evaluation.metrics import (
    bootstrap_intervals,
    count_confusion,
    default_metrics,
    explain_labels,
    primary_metric,
    score_metrics,
)

ALL = ("balanced_accuracy", "kappa", "weighted_f1", "accuracy")
RANKED = ("auroc", "auc_pr", "auroc_hard", "auc_pr_hard")


def draw(rng, n_classes, n, present=None):
    """Labels among `present`, and probabilities of few distinct values: many ties."""
    labels = rng.choice(np.arange(n_classes) if present is None else present, n)
    weights = rng.integers(1, 4, (n, n_classes)).astype(float)
    return labels, weights / weights.sum(1, keepdims=True)


def reference(labels, probabilities, n_classes):
    answers = probabilities.argmax(1) if n_classes > 2 else (probabilities[:, 1] >= 0.5).astype(int)  # official
    expected = {
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, answers),
        "kappa": sklearn_metrics.cohen_kappa_score(labels, answers),
        "weighted_f1": sklearn_metrics.f1_score(labels, answers, average="weighted", zero_division=0),
        "accuracy": sklearn_metrics.accuracy_score(labels, answers),
    }
    if n_classes == 2:
        for suffix, scores in (("", probabilities[:, 1]), ("_hard", answers)):
            expected[f"auroc{suffix}"] = sklearn_metrics.roc_auc_score(labels, scores)
            expected[f"auc_pr{suffix}"] = sklearn_metrics.average_precision_score(labels, scores)
    return expected


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("n_classes", [2, 3, 6])
@pytest.mark.parametrize("n", [3, 7, 500])
def test_metrics_are_scikit_learns(n_classes, n):
    rng = np.random.default_rng([n_classes, n])
    for trial in range(20):
        present = None if trial % 2 else rng.choice(n_classes, 2, replace=False)  # two classes of several
        labels, probabilities = draw(rng, n_classes, n, present)
        if len(set(labels)) > 1:
            expected = reference(labels, probabilities, n_classes)
            assert score_metrics(labels, probabilities, n_classes, tuple(expected)) == pytest.approx(
                expected, abs=1e-12
            )


def test_known_answers():
    labels = [0, 0, 1, 1]
    right, opposite = np.eye(2)[labels], np.eye(2)[[1, 1, 0, 0]]
    assert score_metrics(labels, right, 2) == dict.fromkeys(default_metrics(2), 1.0)
    assert score_metrics(labels, opposite, 2) == {"balanced_accuracy": 0, "auc_pr": 0.5, "auroc": 0, "accuracy": 0}
    assert score_metrics(labels, np.full((4, 2), 0.5), 2) == dict.fromkeys(default_metrics(2), 0.5)
    scores = score_metrics([0, 1, 2, 2], np.eye(3)[[0, 1, 2, 0]], 3)
    assert scores == pytest.approx(
        {"balanced_accuracy": 2.5 / 3, "kappa": 7 / 11, "weighted_f1": (2 / 3 + 1 + 4 / 3) / 4, "accuracy": 0.75}
    )
    assert (primary_metric(2), primary_metric(3)) == ("auroc", "kappa")


def test_one_class_is_undefined_and_said_so():
    labels, probabilities = np.ones(5, dtype=int), np.full((5, 2), 0.5)
    scores = score_metrics(labels, probabilities, 2, ALL + RANKED)
    assert {name for name, value in scores.items() if np.isnan(value)} == {"kappa", *RANKED}
    absent, undefined = explain_labels(labels, ("No", "Yes"))
    assert absent.startswith("no window is No: balanced accuracy")
    assert undefined == "all windows are of one class: auc_pr, auroc undefined"
    (absent,) = explain_labels([0, 2], ("a", "b", "c", "d"))
    assert absent.startswith("no window is b or d: ")
    assert explain_labels([0, 1], ("No", "Yes")) == []


def test_no_answer_counts_as_wrong():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0, 0], [0.2, 0.8], [0, 0]])
    scores = score_metrics(labels, probabilities, 2, ("accuracy", "balanced_accuracy", "auroc", "auroc_hard"))
    assert scores["accuracy"] == scores["balanced_accuracy"] == scores["auroc_hard"] == 0.5
    assert scores["auroc"] == sklearn_metrics.roc_auc_score(labels, [0.1, 1, 0.8, 0])
    np.testing.assert_array_equal(count_confusion(labels, probabilities, 2), [[1, 0, 1], [0, 1, 1]])
    kappa = sklearn_metrics.cohen_kappa_score(labels, [0, 2, 1, 2])
    assert score_metrics(labels, probabilities, 2, ("kappa",))["kappa"] == pytest.approx(kappa)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_intervals_are_those_of_resampled_subjects(n_classes):
    """Each weighted draw equals scoring the windows of the drawn subjects, written out."""
    rng = np.random.default_rng(0)
    labels, probabilities = draw(rng, n_classes, 120)
    subjects = np.array([f"s{i}" for i in rng.integers(0, 8, 120)])
    names = ALL + (RANKED if n_classes == 2 else ())
    intervals = bootstrap_intervals(labels, probabilities, subjects, n_classes, names, seed=5)
    assert intervals == bootstrap_intervals(labels, probabilities, subjects, n_classes, names, seed=5)
    assert intervals != bootstrap_intervals(labels, probabilities, subjects, n_classes, names, seed=6)

    draws = np.random.default_rng(5).multinomial(8, np.full(8, 1 / 8), size=1000)
    values = {name: [] for name in names}
    for counts in draws:
        windows = np.concatenate([np.flatnonzero(subjects == f"s{s}") for s in range(8) for _ in range(counts[s])])
        for name, value in score_metrics(labels[windows], probabilities[windows], n_classes, names).items():
            values[name].append(value)
    for name in names:
        assert intervals[name] == pytest.approx(tuple(np.quantile(values[name], (0.025, 0.975))), abs=1e-12)


def test_intervals_of_few_subjects():
    labels, probabilities = np.array([0, 0, 1, 1]), np.eye(2)[[0, 0, 1, 1]]
    assert bootstrap_intervals(labels, probabilities, ["a"] * 4, 2) == {}
    intervals = bootstrap_intervals(labels, probabilities, ["a", "a", "b", "b"], 2)  # half of the draws have one class
    assert intervals["auroc"] == (1, 1)
    never = bootstrap_intervals(np.ones(4, dtype=int), probabilities, ["a", "a", "b", "b"], 2)
    assert "auroc" not in never and never["accuracy"] == (0, 1)


@pytest.mark.parametrize(
    "labels, probabilities, message",
    [
        ([0, 1], [[0.5, 0.5]], "2 labels for 1 rows"),
        ([0, 2], [[0.5, 0.5]] * 2, r"labels span 0 \.\. 2"),
        ([-1, 0], [[0.5, 0.5]] * 2, r"labels span -1 \.\. 0"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.6]], "1 rows are no probabilities; row 1"),
        ([0, 1], [[1.5, -0.5], [0.5, 0.5]], "1 rows are no probabilities; row 0"),
        ([0, 1], [[np.nan, 0.5], [0.5, 0.5]], "1 rows are no probabilities; row 0"),
    ],
)
def test_rows_that_are_no_probabilities_are_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        score_metrics(labels, probabilities, 2)
