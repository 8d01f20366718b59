"""The simulated corpora, read back by MNE: names, rates, durations, amplitudes, labels, classes that can be learnt."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import mne
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import errors
from dataset_maker.machinery.arrays import ArrayFormat, is_array, read_array
from dataset_maker.make_ADHD import SAMPLED, UNIT
from dataset_maker.simulate import LAYOUTS, simulate
from dataset_maker.simulation.layouts import EEGMAT, MONTAGES

ROOT = Path(__file__).resolve().parents[1]
DATA = (".edf", ".bdf", ".eeg", ".fdt", ".cnt", ".gz")
BANDS = ((1, 4), (4, 8), (8, 13), (13, 30), (30, 45))


def read(path):
    """An MNE recording, loaded."""
    if is_array(path):
        return read_array(path, ArrayFormat(SAMPLED, UNIT))
    if path.suffix == ".cnt":
        return mne.io.read_raw_cnt(path, data_format="int32", preload=True, verbose="error")
    return mne.io.read_raw(path, preload=True, verbose="error")


def features(uv, rate):
    """(C, T) -> log power in each band and log of the largest amplitude, by channel (C * 6,)."""
    power = np.abs(np.fft.rfft(uv)) ** 2
    hz = np.fft.rfftfreq(uv.shape[1], 1 / rate)
    bands = [power[:, (hz >= low) & (hz < high)].mean(1) for low, high in BANDS]
    return np.log(np.stack([*bands, np.abs(uv).max(1)])).ravel()


def windows(folder, truth, seconds, names):
    """Whole windows of each event -> features (W, F), log rms (W,), labels (W,), subjects (W,)."""
    rows = []
    for recording in truth:
        raw, rate = read(folder / recording["file"]), recording["rate"]
        picks = [channel for name in names for channel in raw.ch_names if name in channel.replace("-", " ").split()]
        uv = raw.get_data(picks=picks) * 1e6
        for start, stop, label in recording["events"]:
            for begin in np.arange(start, stop - seconds + 1e-6, seconds):
                window = uv[:, round(begin * rate) : round((begin + seconds) * rate)]
                rows.append((features(window, rate), np.log(window.std()), label, recording["subject"]))
    return [np.array(column) for column in zip(*rows, strict=True)]


def across_subjects(inputs, labels, subjects):
    """Balanced accuracy on every third subject of a classifier fitted on the others."""
    test = np.isin(subjects, np.unique(subjects)[::3])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    model.fit(inputs[~test], labels[~test])
    return balanced_accuracy_score(labels[test], model.predict(inputs[test]))


def sums(folder):
    """sha256 of every file under a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    folder = tmp_path_factory.mktemp("Workload")
    return folder, simulate("Workload", folder, seed=3, subjects=12)


def test_workload_looks_like_eegmat(workload):
    folder, truth = workload
    assert [recording["file"] for recording in truth[:3]] == ["Subject00_1.edf", "Subject00_2.edf", "Subject01_1.edf"]
    for recording in truth:
        raw = read(folder / recording["file"])
        assert raw.ch_names == [f"EEG {name}" for name in (*EEGMAT, "A2-A1")] + ["ECG ECG"] == recording["channels"]
        assert raw.info["sfreq"] == 500 and raw.n_times / 500 == recording["seconds"] == recording["events"][0][1]
        rms = raw.get_data(picks=range(19)).std() * 1e6
        assert 10 < rms < 20
    assert truth[0]["seconds"] == 70 and truth[1]["seconds"] == 62
    assert json.loads((folder / "truth.json").read_text())["recordings"] == truth


def test_workload_is_learnt_from_rhythms_not_from_amplitude(workload):
    inputs, amplitude, labels, subjects = windows(*workload, 4, EEGMAT)
    assert inputs.shape == (12 * (17 + 15), 19 * 6)
    assert across_subjects(inputs, labels, subjects) > 0.95
    assert across_subjects(amplitude[:, None], labels, subjects) < 0.7


def test_pretrain_mixes_montages_and_rates(tmp_path):
    truth = simulate("pretrain", tmp_path, subjects=4, seconds=12)
    for recording, (names, rate) in zip(truth, MONTAGES, strict=True):
        raw = read(tmp_path / recording["file"])
        assert (tuple(raw.ch_names), raw.info["sfreq"], raw.n_times) == (names, rate, 12 * rate)
        assert recording["events"][0][0] == 0 and recording["events"][-1][1] == 12


def test_same_seed_same_bytes_whatever_the_hash_seed(tmp_path):
    for hash_seed in ("1", "2"):
        command = ["dataset_maker/simulate.py", "--layout", "custom", "--out_dir", str(tmp_path / hash_seed)]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        options = ["--subjects", "4", "--seconds", "20", "--awkward"]  # each file format
        subprocess.run([sys.executable, *command, *options], cwd=ROOT, env=environment, check=True)
    first = sums(tmp_path / "1")
    assert first == sums(tmp_path / "2") and {Path(file).suffix for file in first} >= {".edf", ".bdf", ".vhdr", ".fdt"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_seed_changes_the_signals_and_nothing_else_does(tmp_path, layout):
    size = {"subjects": 1, "seconds": LAYOUTS[layout].min_seconds}
    simulate(layout, tmp_path / "plain", **size)
    simulate(layout, tmp_path / "other", **size, seed=1)
    simulate(layout, tmp_path / "more", **size | {"subjects": 2}, awkward=True)
    plain, other, more = (sums(tmp_path / name) for name in ("plain", "other", "more"))
    signals = [file for file in plain if Path(file).suffix in DATA and "scoring" not in file]
    assert signals
    for file in signals:
        assert plain[file] == more[file] != other[file]


@pytest.mark.parametrize("name", ["Subject00_1.edf", "truth.json"])
def test_a_folder_with_other_content_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("somebody's recording")
    for out_dir in (tmp_path, tmp_path / name):
        with pytest.raises(errors.UserError, match="holds other files: choose a new folder"):
            simulate("Workload", out_dir)
    assert sorted(tmp_path.iterdir()) == [tmp_path / name] and (tmp_path / name).read_text() == "somebody's recording"


def test_a_folder_of_another_simulation_is_refused(tmp_path):
    simulate("pretrain", tmp_path, subjects=1, seconds=10)
    before = sums(tmp_path)
    with pytest.raises(errors.UserError, match="holds .*'seed': 0.*: choose a new folder"):
        simulate("pretrain", tmp_path, subjects=1, seconds=10, seed=1)
    assert sums(tmp_path) == before


@pytest.mark.parametrize("bad", [{"layout": "TUXX"}, {"subjects": 0}, {"seconds": 10}, {"seed": -1}])
def test_bad_arguments_are_refused(tmp_path, bad):
    with pytest.raises(errors.UserError, match="choose one of|needs at least"):
        simulate(**{"layout": "Workload", "out_dir": tmp_path / "raw"} | bad)
    assert not (tmp_path / "raw").exists()


def test_a_repeated_run_gives_the_same_folder(tmp_path):
    simulate("pretrain", tmp_path, subjects=1, seconds=10)
    before = sums(tmp_path)
    simulate("pretrain", tmp_path, subjects=1, seconds=10)
    assert sums(tmp_path) == before and LAYOUTS["pretrain"].subjects > 1
