"""predict.py over many files: what it finds and writes; nothing is overwritten, one bad file stops nobody."""

import json
import re
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from test_predict import LABRAM, made, run_predict  # noqa: F401 - made is a fixture

import predict
from dataset_maker.machinery import preprocessing
from dataset_maker.machinery.arrays import SUFFIXES
from dataset_maker.machinery.preprocessing import load_recording
from errors import UserError
from evaluation.figures import plot_answers
from evaluation.inference import UNTRAINED
from evaluation.predictions import find_recordings

ENDS = (".csv", ".json", ".png", "_features.npz")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def run(made, given, out_dir, *more):  # noqa: F811
    words = [*given, "--LaBraM_path", made / LABRAM[1], "--out_dir", out_dir, "--device", "cpu", *more]
    predict.main(predict.get_args([*map(str, words)]))


def test_a_folder_with_a_bad_file(made, tmp_path, capsys):  # noqa: F811
    good = made / "raw" / "Subject00_2.edf"
    for name in ("anna/run.edf", "ben/run.edf"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True)
        shutil.copy(good, tmp_path / "raw" / name)
    touch(tmp_path / "raw", "ben/notes.txt").joinpath("anna", "bad.edf").write_bytes(b"no EDF")
    with pytest.raises(SystemExit) as stop:
        run(made, [tmp_path / "raw"], tmp_path / "out")
    assert stop.value.code == 3
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"summary.csv"} | {f"{name}/run_Workload{end}" for name in ("anna", "ben") for end in ENDS}
    said = capsys.readouterr().out
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    bad = summary[summary["refused"].notna()]
    assert bad["recording"].tolist() == [f"{tmp_path}/raw/anna/bad.edf"] and f"refused: {tmp_path}/raw/anna" in said
    assert summary["windows"].tolist()[1:] == [15, 15] and summary["answer"].isin(["rest", "arithmetic"]).sum() == 2
    assert all(re.search(rf"{name}/run\.edf +Workload +15", said) for name in ("anna", "ben"))  # the printed summary

    stem, table = tmp_path / "out" / "anna" / "run_Workload", pd.read_csv(tmp_path / "out/anna/run_Workload.csv")
    about = json.loads(stem.with_suffix(".json").read_text())
    assert about["mean_probability"]["rest"] == pytest.approx(table["p_rest"].mean(), rel=1e-4)
    assert about["answer"] == summary["answer"][1] and about["warnings"] == [] and about["notch"] == 50
    assert about["channels"][:2] == ["FP1", "FP2"] and about["notes"] == ["channels left out: EEG A2-A1, ECG ECG"]
    assert matplotlib.image.imread(f"{stem}.png").shape[1] == 1680


def test_answers_that_would_overwrite_one_another(made, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="two recordings are called Subject00_2: their answers would share a file"):
        run_predict(made, tmp_path, recordings=("Subject00_2.edf", "else/Subject00_2.edf"))


def test_nothing_is_overwritten(made, tmp_path):  # noqa: F811
    for _ in range(2):
        run(made, [made / "raw" / "Subject00_2.edf"], tmp_path, "--no-figure")
    (tmp_path / "Subject00_2_Workload-3.json").write_text("mine")
    run(made, [made / "raw" / "Subject00_2.edf"], tmp_path, "--no-figure", "--no-features")
    names = {path.name for path in tmp_path.iterdir()}
    expected = {f"Subject00_2_Workload{number}{end}" for number in ("", "-2") for end in (ENDS[0], ENDS[1], ENDS[3])}
    expected |= {"Subject00_2_Workload-3.json", "Subject00_2_Workload-4.csv", "Subject00_2_Workload-4.json"}
    assert names == expected | {"summary.csv", "summary-2.csv", "summary-3.csv"}
    assert (tmp_path / "Subject00_2_Workload-3.json").read_text() == "mine"


def test_what_was_never_learnt_says_so_everywhere(made, tmp_path, capsys, monkeypatch):  # noqa: F811
    titles = []
    monkeypatch.setattr("evaluation.figures.plot_answers", lambda *about: titles.append(about[-1]))
    more = ("--tasks", "TUAB", "Workload", "--window", 20)
    with pytest.raises(UserError, match="does not say that it was trained on TUAB: --untrained asks all the same"):
        run_predict(made, tmp_path, *more)
    assert not list(tmp_path.iterdir())
    run_predict(made, tmp_path, *more, "--untrained")
    assert f"TUAB: {UNTRAINED}" in capsys.readouterr().out
    assert set(pd.read_csv(tmp_path / "Subject00_2_TUAB.csv")["warning"]) == {UNTRAINED}
    assert json.loads((tmp_path / "Subject00_2_TUAB.json").read_text())["warnings"] == [UNTRAINED]
    with np.load(tmp_path / "Subject00_2_TUAB_features.npz") as saved:
        assert str(saved["warning"]) == UNTRAINED
    assert pd.read_csv(tmp_path / "summary.csv", keep_default_na=False)["warning"].tolist() == [UNTRAINED, ""]
    assert UNTRAINED in titles[0] and UNTRAINED not in titles[1]
    assert "warning" not in pd.read_csv(tmp_path / "Subject00_2_Workload.csv")


@pytest.mark.parametrize("flag, value", [("--window", 0), ("--stride", -1), ("--batch_size", 0), ("--notch", -5)])
def test_numbers_that_mean_nothing(made, tmp_path, capsys, flag, value):  # noqa: F811
    with pytest.raises(SystemExit):
        run_predict(made, tmp_path, flag, value)
    assert f"argument {flag}: {value} is not in the range" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_is_found(tmp_path):
    raw = touch(tmp_path / "raw", "a.edf", "a.bdf", "b/a.EDF", "b/x.csv", "b/.hidden.edf", "b/readme.txt")
    suffixes = SUFFIXES

    def names(given):
        found = find_recordings(given, suffixes)
        return {path.relative_to(raw).as_posix(): str(place) for path, place in found.items()}

    assert names([raw]) == {"a.edf": "a.edf", "a.bdf": "a.bdf", "b/a.EDF": "b/a"}  # two a side by side keep their ends
    assert set(find_recordings([raw], (*suffixes, ".csv")).values()) >= {Path("b/x")}
    assert names([raw / "**" / "*.edf"]) == {"a.edf": "a"}
    bids = touch(tmp_path / "bids", "dataset_description.json", "sub-1/eeg/sub-1_task-x_eeg.vhdr", "sub-1/eeg/else.edf")
    (place,) = find_recordings([bids], suffixes).values()
    assert place.as_posix() == "sub-1/eeg/sub-1_task-x_eeg"
    with pytest.raises(UserError, match=r"\*\.fif fits no \.cnt .* file"):
        find_recordings([raw / "*.fif"], suffixes)
    with pytest.raises(UserError, match=r"the folder .*empty holds no \.cnt .* file"):
        find_recordings([touch(tmp_path / "empty", "x.txt")], suffixes)


def test_long_recordings_are_cleaned_outside_the_memory(made, tmp_path, monkeypatch):  # noqa: F811
    """In blocks of one channel, in a file that nobody sees; the numbers are those of the memory."""
    path = made / "raw" / "Subject00_2.edf"
    expected = load_recording(path)
    monkeypatch.setattr(preprocessing, "BLOCK_BYTES", 2**18)
    blocks = []
    clean = load_recording(path, scratch=tmp_path, progress=lambda some: blocks.append(len(some)) or some)
    assert isinstance(clean.eeg, np.memmap) and not list(tmp_path.iterdir()) and blocks == [19]
    assert np.array_equal(clean.eeg, expected.eeg) and clean.channels == expected.channels
    assert not isinstance(load_recording(path).eeg, np.memmap)
    run(made, [path], tmp_path, "--no-figure")
    features = [np.load(tmp_path / "Subject00_2_Workload_features.npz")["features"]]
    monkeypatch.undo()
    run(made, [path], tmp_path / "memory", "--no-figure")
    features.append(np.load(tmp_path / "memory" / "Subject00_2_Workload_features.npz")["features"])
    assert np.array_equal(*features)


@pytest.mark.parametrize("seconds, step", [(30, 4), (8 * 3600, 4), (30, 9)])
def test_a_figure_holds_all_of_a_recording(tmp_path, seconds, step, monkeypatch):
    """At 30 s each sample, at 8 h an envelope that still has the extremes."""
    drawn, unit = [], 1 if seconds == 30 else 3600
    monkeypatch.setattr("evaluation.figures.save", lambda figure, path: drawn.append(figure))
    rng = np.random.default_rng(0)
    eeg = rng.normal(0, 10, (3, seconds * 200)).astype(np.float32)
    eeg[1, eeg.shape[1] // 2] = 500
    starts = np.arange(0, seconds - 4 + 1, step)
    table = pd.DataFrame({"start": starts, "stop": starts + 4, "p_a": 0.75, "p_b": 0.25})
    plot_answers(table, ("a", "b"), eeg, ("C3", "CZ"), [0, 1], tmp_path / "x.png", "x")
    first, second, below = drawn[0].axes
    for row, probability in ((first, 0.75), (second, 0.25)):
        (steps,) = row.patches
        values, edges, _ = steps.get_data()
        assert set(values[np.isfinite(values)]) == {probability} and edges[0] == 0 and len(values) <= 2000
        assert np.nansum(values * np.diff(edges)) == pytest.approx(probability * len(starts) * 4 / unit)
    curves = [line.get_ydata() for line in below.lines] or [c.get_paths()[0].vertices[:, 1] for c in below.collections]
    assert len(curves) == 2 and max(curves[1]) == 0 and max(curves[0]) < 0.9  # it reaches the row above
    assert (len(curves[0]) == 6000) == (seconds == 30) and len(curves[0]) <= 2 * 2500 + 1500
    assert below.get_xlabel() == ("s" if seconds == 30 else "hours") and below.get_xlim()[1] == seconds / unit
