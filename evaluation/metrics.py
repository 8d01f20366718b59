"""Classification metrics of whole sets, exact for ties, missing classes and answers that were none of the allowed ones.

n windows · A answers (classes) · G groups (subjects) · R weightings of the groups. A row of `probabilities` (n, A) sums
to 1, or is all zero where the model gave no allowed answer: such a window counts as wrong in every metric.
"""

import numpy as np

from dataset.tasks import BINARY_METRICS, MULTICLASS_METRICS, TWO_CLASS_ONLY

REPLICATES = 1000
ANSWERING = ("score", "score_sum", "score_per_token", "generate")  # ways to get probabilities, see `make_predict`


def primary_metric(n_classes: int) -> str:
    """The metric that chooses the best epoch on validation."""
    return "auroc" if n_classes == 2 else "kappa"


def default_metrics(n_classes: int) -> tuple[str, ...]:
    """The papers' four metrics for this number of classes, in the order of their tables."""
    return BINARY_METRICS if n_classes == 2 else MULTICLASS_METRICS


def most_likely(probabilities):
    """The answer (n,) of each row (n, A), NumPy's or PyTorch's; of two equally likely ones the second: p >= .5."""
    if probabilities.shape[1] == 2:
        return (probabilities[:, 1] >= probabilities[:, 0]) * 1
    return probabilities.argmax(1)


def score_metrics(labels, probabilities, n_classes: int, names=None) -> dict[str, float]:
    """Metrics by name (default: the papers' four) of labels (n,) and probabilities (n, A).

    A metric that the labels leave undefined is NaN; `explain_labels` says why. Raises ValueError for bad rows.
    """
    scorer = _Scorer(labels, probabilities, n_classes)
    values = scorer(names or default_metrics(n_classes), np.ones((1, 1)))
    return {name: float(value[0]) for name, value in values.items()}


def explain_labels(labels, answers, names=None) -> list[str]:
    """Sentences on metrics that are undefined, or mean less than they seem to, because `answers` have no window."""
    names, counts = names or default_metrics(len(answers)), np.bincount(labels, minlength=len(answers))
    missing = [answer for answer, count in zip(answers, counts, strict=True) if count == 0]
    if not missing:
        return []
    notes = [f"no window is {' or '.join(missing)}: balanced accuracy is the mean over the other classes"]
    undefined = [name for name in names if name in (*TWO_CLASS_ONLY, "kappa")]
    if len(missing) == len(answers) - 1 and undefined:
        notes.append(f"all windows are of one class: {', '.join(undefined)} undefined")
    return notes


def count_confusion(labels, probabilities, n_classes: int) -> np.ndarray:
    """Windows by true label (rows) and answer (columns, the last for none of the answers), (A, A + 1) int."""
    return _Scorer(labels, probabilities, n_classes).counts[0].astype(int)


def bootstrap_intervals(labels, probabilities, groups, n_classes: int, names=None, seed=0) -> dict[str, tuple]:
    """95 % percentile intervals of each metric over draws of subjects, see `bootstrap`."""
    drawn = bootstrap(labels, probabilities, groups, n_classes, names, seed)
    return {name: interval(values) for name, values in drawn.items() if np.isfinite(values).any()}


def interval(values) -> tuple[float, float]:
    """95 % percentile interval of draws (R,), without those that are undefined."""
    return tuple(np.quantile(values[np.isfinite(values)], (0.025, 0.975)).tolist())


def bootstrap(labels, probabilities, groups, n_classes: int, names=None, seed=0) -> dict[str, np.ndarray]:
    """Each metric (R,) over REPLICATES draws of whole groups (subjects) with replacement, NaN where a draw leaves it
    undefined. Sets of the same groups get the same draws.

    `groups` (n,) names each window's subject; {} for fewer than two.
    """
    group_names, group_index = np.unique(np.asarray(groups), return_inverse=True)
    if len(group_names) < 2:
        return {}
    n_groups = len(group_names)
    draws = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=REPLICATES)
    return _Scorer(labels, probabilities, n_classes, group_index)(names or default_metrics(n_classes), draws)


class _Scorer:
    """Metrics of fixed windows under many weightings of their groups: what needs sorting is sorted once."""

    def __init__(self, labels, probabilities, n_classes, groups=None):
        self.labels, self.n_classes = np.asarray(labels, dtype=int), n_classes
        probabilities = np.asarray(probabilities, dtype=float).reshape(-1, n_classes)
        self._check(probabilities)
        self.groups = np.zeros(len(self.labels), dtype=int) if groups is None else groups
        answered = probabilities.sum(1) > 0
        predicted = np.where(answered, most_likely(probabilities), n_classes)
        n_groups = self.groups.max(initial=0) + 1
        self.counts = np.zeros((n_groups, n_classes, n_classes + 1))
        np.add.at(self.counts, (self.groups, self.labels, predicted), 1)
        if n_classes == 2:
            wrong = 1 - self.labels  # the score of a window without an answer: the worst for its label
            soft, hard = probabilities[:, 1], (predicted == 1).astype(float)
            self.rankings = {
                "": _Ranking(np.where(answered, soft, wrong), self.labels),
                "_hard": _Ranking(np.where(answered, hard, wrong), self.labels),
            }

    def _check(self, probabilities):
        if len(self.labels) != len(probabilities):
            raise ValueError(f"{len(self.labels)} labels for {len(probabilities)} rows of probabilities")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < self.n_classes:
            raise ValueError(f"labels span {self.labels.min()} .. {self.labels.max()}, not 0 .. {self.n_classes - 1}")
        sums = probabilities.sum(1)
        wrong = np.flatnonzero(~((np.abs(sums - 1) < 1e-3) | (sums == 0)) | (probabilities < 0).any(1))
        if len(wrong):
            raise ValueError(f"{len(wrong)} rows are no probabilities; row {wrong[0]} is {probabilities[wrong[0]]}")

    def __call__(self, names, weights) -> dict[str, np.ndarray]:
        """Metrics by name, each (R,), for weights (R, G) of the groups."""
        values = _count_metrics(np.tensordot(weights, self.counts, 1))
        ranked = [name for name in names if name in TWO_CLASS_ONLY]
        for suffix in {"_hard" if name.endswith("_hard") else "" for name in ranked}:
            curves = [self.rankings[suffix](row[self.groups]) for row in weights]
            values |= dict(zip((f"auroc{suffix}", f"auc_pr{suffix}"), np.array(curves).T, strict=True))
        return {name: values[name] for name in names}


def _count_metrics(counts) -> dict[str, np.ndarray]:
    """Metrics that follow from a confusion matrix (R, A, A + 1), each (R,)."""
    n_classes = counts.shape[1]
    support, answers = counts.sum(2), counts.sum(1)[:, :n_classes]  # (R, A)
    hits, total = np.einsum("raa->ra", counts[:, :, :n_classes]), counts.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = hits.sum(1) / total
        recall = np.where(support > 0, hits / support, 0)
        f1 = np.where(support + answers > 0, 2 * hits / (support + answers), 0)
        chance = (support * answers).sum(1) / total**2
        several = (support > 0).sum(1) > 1
        return {
            "accuracy": accuracy,
            "balanced_accuracy": recall.sum(1) / (support > 0).sum(1),
            "kappa": np.where(several, (accuracy - chance) / (1 - chance), np.nan),
            "weighted_f1": (f1 * support).sum(1) / total,
        }


class _Ranking:
    """AUROC and average precision of fixed scores (n,) and labels 0, 1 (n,); windows of equal score count as tied."""

    def __init__(self, scores, labels):
        self.order = np.argsort(-scores, kind="stable")
        self.positive = labels[self.order] == 1
        ordered = scores[self.order]
        self.ends = np.flatnonzero(np.diff(ordered, append=np.nan) != 0)  # the last window of each run of ties

    def __call__(self, weights) -> tuple[float, float]:
        """(AUROC, AUC-PR) with weights (n,); NaN where one of the labels has no weight."""
        weights = weights[self.order]
        hits = np.cumsum(weights * self.positive)[self.ends]
        alarms = np.cumsum(weights * ~self.positive)[self.ends]
        if not len(hits) or hits[-1] == 0 or alarms[-1] == 0:
            return np.nan, np.nan
        new_hits, new_alarms = np.diff(hits, prepend=0), np.diff(alarms, prepend=0)
        auroc = (new_alarms * (hits - new_hits / 2)).sum() / (hits[-1] * alarms[-1])
        precision = hits / np.maximum(hits + alarms, 1)
        return auroc, (new_hits * precision).sum() / hits[-1]
