"""--calibrate subject: amplitudes of subjects are brought together without a label, and under a name of its own."""

import json

import h5py
import numpy as np
import pytest
from test_folds import finetune
from toy_eeg import write_toy

import baselines
from dataset.protocol import CALIBRATED, Protocol
from dataset.recordings import open_dataset
from dataset.windows import Windows
from errors import UserError
from evaluation.inference import load
from training.feature_cache import describe_features
from utils import start_run

TASK = "name: Toy\nquestion: Which rhythm is this?\nanswers: [slow, fast]\ndataset: Toy\n"


@pytest.fixture
def toy(tmp_path):
    folder = write_toy(tmp_path / "Toy", seconds=12, window=2, splits=(("train", 4), ("val", 2), ("test", 2)))
    with h5py.File(folder / "test" / "test1.h5", "r+") as file:
        eeg = file["test1/eeg"]
        eeg[0] = 8 * eeg[0] + 30  # one channel of one subject is loud and off
    return folder


def test_each_channel_of_each_subject_becomes_equally_large(toy):
    plain = Windows.labelled(open_dataset(toy, "test"))
    ours = Windows.labelled(Protocol(calibrate="subject").open(toy, "test"))
    for number in (0, 1):
        mine = np.flatnonzero(ours.index[:, 0] == number)
        eeg = np.concatenate([ours[i]["eeg"] for i in mine], axis=1) * 100
        np.testing.assert_allclose(np.median(np.abs(eeg), axis=1), CALIBRATED, rtol=0.05)
        assert np.abs(np.median(eeg, axis=1)).max() < 1
        raw = np.concatenate([plain[i]["eeg"] for i in mine], axis=1)
        assert np.corrcoef(raw[0], eeg[0])[0, 1] > 0.9999
    assert ours.relabelled([1, 0])[0]["eeg"].tobytes() == ours[0]["eeg"].tobytes()
    run = start_run("cpu")
    keys = [describe_features(windows, toy, run) for windows in (plain, ours)]
    assert keys[0] != keys[1] and "calibration" not in keys[0]  # nor do their cached features mix


def test_no_label_is_read(toy):
    first = Protocol(calibrate="subject").open(toy, "test")
    for path in toy.rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            rows = file[path.stem]["segments"]
            rows[:, 2] = 1 - rows[:, 2]
    again = Protocol(calibrate="subject").open(toy, "test")
    assert [(r.center, r.scale) for r in first] == [(r.center, r.scale) for r in again]


def test_a_calibrated_model_is_not_asked_about_plain_eeg(toy, tmp_path):
    about = finetune(toy, tmp_path / "out", "--calibrate", "subject")["about"]
    assert about["calibrate"] == "subject" and "folds" not in about
    best = tmp_path / "out" / "checkpoint-best.pth"
    with pytest.raises(UserError, match=r"checkpoint-best.pth was trained with --calibrate subject"):
        finetune(toy, tmp_path / "again", "--eval", "--finetune", best)
    with pytest.raises(UserError, match=r"checkpoint-best.pth was trained with --calibrate subject"):
        load(best)
    with pytest.raises(UserError, match=r"--calibrate is None, was 'subject'|--calibrate is nothing, was 'subject'"):
        finetune(toy, tmp_path / "out")


def test_baselines_standardize_the_features_of_each_subject(toy, tmp_path):
    (tmp_path / "task.yaml").write_text(TASK)
    argv = ["--tasks", tmp_path / "task.yaml", "--folds", 4, "--fold", 1]
    for name, more in (("plain", []), ("apart", ["--calibrate", "subject"])):
        baselines.main(baselines.get_args([*map(str, [*argv, "--out_dir", tmp_path / name, *more])]))
    about = [json.loads(path.read_text())["about"] for path in (tmp_path / "apart").rglob("results.json")]
    assert len(about) == 5 and all(row["calibrate"] == "subject" and row["fold"] == 1 for row in about)
    windows = {split: Windows.labelled(Protocol(4, 1).open(toy, split)) for split in ("train", "test")}
    rng = np.random.default_rng(0)
    features = {split: 3 + 5 * rng.standard_normal((len(w), 4)) for split, w in windows.items()}
    baselines.calibrate(features, windows)
    subjects = np.array(windows["test"].describe()["subject"])
    for subject in set(subjects):
        mine = features["test"][subjects == subject]
        np.testing.assert_allclose(mine.mean(0), 0, atol=1e-9)
        np.testing.assert_allclose(mine.std(0), 1, atol=1e-9)
