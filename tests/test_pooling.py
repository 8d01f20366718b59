"""Folds are put together: each window once, metrics as scikit-learn has them, differences as sure as they are."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from errors import UserError
from evaluation.__main__ import get_args, main
from evaluation.metrics import primary_metric
from evaluation.pooling import group_repeats, pool_runs, score_subjects
from evaluation.results import read_run, write_results
from evaluation.scoring import Predictions, evaluate

FOLDS, EACH = 3, 4  # subjects of a fold


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr("evaluation.metrics.REPLICATES", 300)


def write_fold(folder, fold, method="ours", seed=0, lean=0.5, fold_seed=0, subjects=None, starts=8, **about):
    """A run on one fold: four subjects with two recordings of eight windows, whose scores lean to the label."""
    subjects = subjects or [f"s{fold * EACH + i:02}" for i in range(EACH)]
    rows = [(f"{who}_{take}", who, take, start) for who in subjects for take in (0, 1) for start in range(starts)]
    windows = pd.DataFrame(rows, columns=["recording", "subject", "label", "start"])
    labels = windows["label"].to_numpy()
    score = np.random.default_rng([seed, fold]).random(len(labels)) * (1 - lean) + lean * labels
    result = evaluate(
        Predictions(labels, np.stack([1 - score, score], 1)), windows, name="Toy", split="test", answers=("No", "Yes")
    )
    about = {"method": method, "seed": seed, "folds": FOLDS, "fold": fold, "fold_seed": fold_seed, **about}
    write_results(folder, [result], **about)
    return folder


def write_repeat(folder, **options):
    return [write_fold(folder / f"{fold}", fold, **options) for fold in range(FOLDS)]


def read(paths):
    return pool_runs([read_run(path) for path in paths], "test")


def evaluate_runs(capsys, *argv):
    main(get_args([*map(str, argv)]))
    return capsys.readouterr().out


def test_pooled_metrics_are_scikit_learns(tmp_path):
    paths = write_repeat(tmp_path, lean=0.2)
    (repeat,) = read(paths)
    (result,) = repeat["evaluations"]
    windows = pd.concat([pd.read_csv(path / "predictions_Toy_test.csv") for path in paths])
    assert len(result.windows) == len(windows) == FOLDS * EACH * 16
    assert result.windows["subject"].nunique() == 12 and not result.windows.duplicated(["recording", "start"]).any()
    label, score = windows["label"], windows["p_Yes"]
    expected = {
        "balanced_accuracy": balanced_accuracy_score(label, score >= 0.5),
        "auroc": roc_auc_score(label, score),
        "auc_pr": average_precision_score(label, score),
    }
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-12)
    low, high = result.intervals[primary_metric(2)]
    assert low < expected["auroc"] < high
    means = windows.groupby("recording").mean(numeric_only=True)
    assert result.recording_metrics["auroc"] == pytest.approx(roc_auc_score(means["label"], means["p_Yes"]))
    subjects = score_subjects([result]).set_index("subject")
    one = windows[windows["subject"] == "s05"]
    assert subjects.loc["s05", "accuracy"] == pytest.approx(((one["p_Yes"] >= 0.5) == one["label"]).mean())


def test_repeats_are_one_row_with_their_deviation(tmp_path, capsys):
    paths, values = [], []
    for seed, fold_seed in ((0, 0), (1, 0), (0, 1)):
        paths += write_repeat(tmp_path / f"{seed}{fold_seed}", seed=seed, fold_seed=fold_seed, lean=0.1 * seed)
        values.append(read(paths[-FOLDS:])[0]["evaluations"][0].metrics["auroc"])
    said = evaluate_runs(capsys, *paths, "--details", tmp_path / "details.csv")
    (row,) = [line for line in said.splitlines() if "ours, 3 folds, 192 windows" in line]
    assert f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" in row and "here, 3 runs" in row
    assert "24 recordings" in said and "95 %" in said
    details = pd.read_csv(tmp_path / "details.csv")
    assert details["level"].value_counts().to_dict() == {"recording": 24, "subject": 12}


def test_a_fold_that_is_missing_or_there_twice_is_refused(tmp_path):
    paths = write_repeat(tmp_path)
    with pytest.raises(UserError, match=r"Toy, ours, seed 0, fold seed 0: fold 1 of 3 is missing"):
        read([paths[0], paths[2]])
    again = write_fold(tmp_path / "again", 2)
    with pytest.raises(UserError, match=r"2/results.json and .*again/results.json are both fold 2: give each once"):
        read([*paths, again])
    other = write_fold(tmp_path / "again", 2, subjects=["s00", "x1"])
    with pytest.raises(UserError, match=r"subject s00 of Toy is in .* the folds are not of one dataset"):
        read([*paths[:2], other])
    csv = paths[0] / "predictions_Toy_test.csv"
    csv.write_text(csv.read_text() + csv.read_text().splitlines()[-1] + "\n")
    with pytest.raises(UserError, match="a window of Toy is answered twice"):
        read(paths)
    csv.unlink()
    with pytest.raises(UserError, match=r"predictions_Toy_test\.csv"):
        read(paths)


def test_a_paired_comparison_knows_what_is_better_and_what_is_not(tmp_path, capsys):
    better = write_repeat(tmp_path / "better", lean=0.3, method="better")
    ours = write_repeat(tmp_path / "ours", lean=0.0)
    same = write_repeat(tmp_path / "same", lean=0.0, method="same", seed=3)
    said = evaluate_runs(capsys, *better, *same, "--against", *ours)
    rows = {line.split("|")[2].strip(): line for line in said.splitlines() if "(+" in line or "(-" in line}
    p = {name: [float(p) for p in re.findall(r"p (\d\.\d+)", row)] for name, row in rows.items()}
    assert max(p["better, 3 folds"]) < 0.01 and min(p["same, 3 folds"]) > 0.05
    assert len(p) == 2
    difference = np.diff([read(paths)[0]["evaluations"][0].metrics["auroc"] for paths in (ours, better)])[0]
    assert f"AUROC {difference:+.3f} (+" in rows["better, 3 folds"]


def test_only_the_same_windows_are_paired(tmp_path):
    ours, short = write_repeat(tmp_path / "a"), write_repeat(tmp_path / "b", starts=7, method="short")
    with pytest.raises(UserError, match=r"Toy: .* did not answer the same windows of the same subjects"):
        main(get_args([*map(str, [*ours, "--against", *short])]))


def test_calibrated_runs_are_never_mixed_with_others(tmp_path, capsys):
    plain = write_repeat(tmp_path / "plain")
    apart = write_repeat(tmp_path / "apart", calibrate="subject")
    assert sorted(method for _, method in group_repeats(read(plain + apart))) == [
        "ours, 3 folds", "ours, calibrated per subject, 3 folds",
    ]  # fmt: skip
    with pytest.raises(UserError, match="fold 2 of 3 is missing"):
        read([*plain[:2], apart[2]])
    with pytest.raises(UserError, match="calibrated per subject, 3 folds and ours, 3 folds are two protocols"):
        main(get_args([*map(str, [*apart, "--against", *plain])]))
    assert "calibrate" not in json.loads((plain[0] / "results.json").read_text())["about"]
