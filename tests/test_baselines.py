"""The baselines that any model has to beat."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics import roc_auc_score
from toy_eeg import write_toy

import baselines
from dataset.recordings import open_dataset
from dataset.tasks import Task
from dataset.windows import Windows
from errors import UserError
from model.inputs import log_band_power

TASK = "name: Toy\nquestion: Which rhythm is this?\nanswers: [slow, fast]\ndataset: Toy\n"


@pytest.fixture
def task(tmp_path):
    (tmp_path / "task.yaml").write_text(TASK)
    write_toy(tmp_path / "Toy", 3, seconds=66, window=2, splits=(("train", 2), ("val", 1), ("test", 1)))
    return tmp_path


def run(folder):
    baselines.main(baselines.get_args(["--tasks", str(folder / "task.yaml"), "--out_dir", str(folder / "runs")]))
    rows = {}
    for path in (folder / "runs").rglob("results.json"):
        written = json.loads(path.read_text())
        rows[written["about"]["method"]] = written["results"][0]
    return rows


def test_each_does_what_its_name_says(task, capsys):
    rows = run(task)
    power = rows["logistic regression on log band power"]
    assert power["metrics"]["balanced_accuracy"] == 1 and power["windows"] == 33
    for name in ("tangent space", "tangent space and log band power"):
        row = rows[f"logistic regression on {name}"]
        assert row["metrics"]["balanced_accuracy"] == 1 and row["windows"] == 33
    assert rows["majority"]["metrics"]["balanced_accuracy"] == 0.5
    assert rows["majority"]["metrics"]["auroc"] == 0.5
    assert np.array(rows["majority"]["confusion"])[:, 0].tolist() == [17, 16]  # 17 + 17 slow, 16 + 16 fast ones trained
    assert 0.25 < rows["chance"]["metrics"]["balanced_accuracy"] < 0.75
    assert "C = 1e-05 by validation, auroc 1.000" in capsys.readouterr().out


def test_other_montages_are_compared_at_the_channels_they_share(tmp_path):
    def windows(*montages):
        places = [tmp_path / "".join(names) for names in montages]
        folders = [write_toy(*toy, 8, (("train", 1),), window=2) for toy in zip(places, montages, strict=True)]
        return Windows.labelled([recording for folder in folders for recording in open_dataset(folder, "train")])

    task = Task("Toy", "Which rhythm is this?", ("slow", "fast"))
    sets = {"train": windows(["C3", "C4", "OZ"], ["FP1", "OZ", "C3"])}
    features = baselines.read_features(task, sets)["train"]
    assert features.shape == (8, 2 * 6 + 5 * 3)
    powers = features[:, :12]
    for i, places in ((0, [0, 2]), (5, [2, 1])):  # C3 and OZ, wherever they stand
        expected = log_band_power(torch.from_numpy(sets["train"][i]["eeg"][places])).flatten()
        np.testing.assert_array_equal(powers[i], expected)
        tangents = baselines.tangent_space(sets["train"][i]["eeg"][places])
        np.testing.assert_allclose(features[i, 12:], tangents, rtol=1e-6)
    with pytest.raises(UserError, match="no channel is in all recordings"):
        baselines.read_features(task, {"train": windows(["C4"]), "test": windows(["OZ"])})


def test_the_tangent_space_is_the_logarithm_of_the_shrunk_covariances():
    rng = np.random.default_rng(0)
    eeg = (rng.standard_normal((4, 4)) @ rng.standard_normal((4, 800))).astype(np.float32)
    spectrum, hertz, expected = np.fft.rfft(eeg), np.fft.rfftfreq(800, 1 / 200), []
    for low, high in baselines.FILTER_BANK:
        covariance = np.cov(np.fft.irfft(spectrum * ((hertz >= low) & (hertz < high)), 800), bias=True)
        shrunk = 0.95 * covariance + 0.05 * np.trace(covariance) / 4 * np.eye(4)
        expected.append(scipy.linalg.logm(shrunk)[np.triu_indices(4)])
    np.testing.assert_allclose(baselines.tangent_space(eeg), np.concatenate(expected), rtol=1e-4, atol=1e-4)
    assert np.isfinite(baselines.tangent_space(np.zeros((4, 200), np.float32))).all()


def coupled(rng, labels):
    """Windows (3, 400) of equal power, whose first two channels rise together or against each other by their label."""
    common, own = rng.standard_normal((2, len(labels), 3, 400))
    sign = np.where(labels, 1, -1)[:, None]
    common[:, 1] = sign * common[:, 0]
    return (common + own).astype(np.float32)


def test_only_the_tangent_space_sees_coupling_and_nothing_sees_shuffled_labels():
    rng = np.random.default_rng(0)
    task, labels = Task("Toy", "Coupled?", ("no", "yes")), {}
    power, tangent = {}, {}
    for split in ("train", "val", "test"):
        labels[split] = np.arange(120) % 2
        eeg = coupled(rng, labels[split])
        power[split] = log_band_power(torch.from_numpy(eeg)).flatten(1).numpy()
        tangent[split] = np.stack([baselines.tangent_space(window) for window in eeg])

    def score(features, labels):
        return roc_auc_score(labels["test"], baselines.fit_regression(task, features, labels)[:, 1])

    assert score(tangent, labels) > 0.99 and 0.35 < score(power, labels) < 0.65
    shuffled = {split: rng.permutation(values) for split, values in labels.items()}
    assert 0.35 < score(tangent, shuffled) < 0.65 and 0.35 < score(power, shuffled) < 0.65


def test_one_label_is_nothing_to_fit():
    task = Task("Toy", "Which rhythm is this?", ("slow", "fast"))
    powers = {split: np.random.default_rng(0).standard_normal((4, 6)) for split in ("train", "val", "test")}
    mixed, one = np.array([0, 1, 0, 1]), np.zeros(4, dtype=int)
    with pytest.raises(UserError, match="task Toy: all training windows have one label"):
        baselines.fit_regression(task, powers, {"train": one, "val": mixed})
    with pytest.raises(UserError, match="task Toy: all validation windows have one label, auroc cannot choose"):
        baselines.fit_regression(task, powers, {"train": mixed, "val": one})


def test_an_output_folder_that_cannot_be_made_is_named(task):
    (task / "runs").write_text("a file")
    with pytest.raises(UserError, match="chance cannot be made .*choose another output folder"):
        run(task)
