"""Recordings as plain arrays: each format gives the same samples, and what contradicts the flags is named."""

import argparse
import gzip
import pickle

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
from raw_files import run_maker, table

from dataset.recordings import RecordingReader, open_dataset, segments
from dataset_maker import make_custom
from dataset_maker.machinery.arrays import ArrayFormat, _unit, read_array
from dataset_maker.machinery.preprocessing import load_recording
from errors import UserError

NAMES, RATE = ("C3", "Cz", "EOG"), 250.0
EEG = np.round(20 * np.random.default_rng(0).standard_normal((3, 2500)), 3)
KNOWN = ArrayFormat(RATE, channels=NAMES)


def write_csv(path, eeg=EEG, names=NAMES, sep=",", **more):
    columns = more | dict(zip(names, eeg, strict=True))
    pd.DataFrame(columns).to_csv(path, index=False, sep=sep)


def write_mat73(path, arrays):
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, (values, kind) in arrays.items():
            file.create_dataset(name, data=np.asarray(values).T).attrs["MATLAB_class"] = np.bytes_(kind)


WRITE = {
    "x.csv": write_csv,
    "semicolon.csv": lambda path: write_csv(path, sep=";"),
    "x.csv.gz": write_csv,
    "channels_first.npy": lambda path: np.save(path, EEG),
    "samples_first.npy": lambda path: np.save(path, EEG.T.astype(np.float32)),
    "x.npz": lambda path: np.savez(path, eeg=EEG, rate=RATE, labels=np.zeros((1, 10))),
    "x.mat": lambda path: scipy.io.savemat(path, {"eeg": EEG, "rate": RATE, "who": "anna", "more": {"x": 1}}),
    "v73.mat": lambda path: write_mat73(path, {"eeg": (EEG, "double"), "who": (np.ones((3, 4), "u2"), "char")}),
}


@pytest.mark.parametrize("name", WRITE)
def test_every_format_gives_the_same_samples(tmp_path, name):
    WRITE[name](tmp_path / name)
    raw = read_array(tmp_path / name, KNOWN)
    assert (tuple(raw.ch_names), raw.info["sfreq"]) == (NAMES, RATE)
    np.testing.assert_allclose(raw.get_data() * 1e6, EEG, rtol=1e-6, atol=1e-6)
    clean = load_recording(tmp_path / name, array=KNOWN)
    assert clean.channels == ("C3", "CZ") and clean.eeg.shape == (2, 2000)
    assert clean.notes == ("channels left out: EOG", "distorted: its 10.0 s are shorter than the filter's 33.0 s")


def test_units(tmp_path):
    np.save(tmp_path / "x.npy", EEG)
    expected = load_recording(tmp_path / "x.npy", array=KNOWN).eeg
    for unit, factor in (("uV", 1), ("mV", 1e3), ("V", 1e6), ("raw:0.167", 0.167)):
        np.save(tmp_path / "x.npy", EEG / factor)
        clean = load_recording(tmp_path / "x.npy", array=ArrayFormat(RATE, _unit(unit), NAMES))
        np.testing.assert_allclose(clean.eeg, expected, rtol=1e-4, atol=1e-4)
        assert ("raw numbers, taken as 0.167 uV each" in clean.notes) == unit.startswith("raw")
    for unit in ("nV", "raw", "raw:", "raw:0", "raw:nan", "uV:3", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is not uV, mV, V or raw:FACTOR"):
            _unit(unit)


@pytest.mark.parametrize(
    ("name", "start", "step", "note"),
    [
        ("time", 5.0, 1 / RATE, "column 'time' left out as time, it fits 250 Hz"),
        ("Time (ms)", 0.0, 1000 / RATE, "column 'Time (ms)' left out as time, it fits"),
        ("timestamp", 1e15, 1e6 / RATE, "column 'timestamp' left out as time, it fits"),
        ("", 0, 1, "column '' left out as time, it fits"),
        ("Sample Index", 7, 1, "column 'Sample Index' left out as time"),
    ],
)
def test_a_column_of_time_is_found_and_said(tmp_path, name, start, step, note):
    write_csv(tmp_path / "x.csv", **{name: start + step * np.arange(2500)})
    clean = load_recording(tmp_path / "x.csv", array=KNOWN)
    assert clean.channels == ("C3", "CZ") and any(said.startswith(note) for said in clean.notes)


def spoiled(place, value):
    """EEG with one sample changed, as text or numbers."""
    eeg = EEG.astype(object)
    eeg[place] = value
    return eeg


MISTAKES = {
    "rate": ("x.csv", lambda p: write_csv(p, time=np.arange(2500) / 128), "advances by 0.0078125 a row, 128 Hz if"),
    "back": ("x.csv", lambda p: write_csv(p, time=np.arange(2500) % 9), "'time' is time .* not increase at row 10"),
    "text": ("x.csv", lambda p: write_csv(p, spoiled((1, 41), "bad")), "row 42 of column Cz: 'bad' is no number"),
    "empty cell": ("x.csv", lambda p: write_csv(p, spoiled((0, 9), "")), "NaN or infinite values in C3$"),
    "infinite": ("x.csv", lambda p: write_csv(p, spoiled((1, 9), np.inf)), "NaN or infinite values in CZ$"),
    "no header": ("x.csv", lambda p: np.savetxt(p, EEG.T, delimiter=","), "its first row begins .* must name the chan"),
    "header only": ("x.csv", lambda p: p.write_text("C3,Cz\n"), "holds names of channels and no samples"),
    "nothing": ("x.csv", lambda p: p.write_text(""), "its first row begins ''"),
    "long rows": ("x.csv", lambda p: p.write_text("C3,Cz\n" + "1,2,3\n" * 500), "cannot be read: Parser"),
    "twice": ("x.csv", lambda p: p.write_text("C3,C3\n" + "1,2\n" * 500), "two of its channels are C3"),
    "not gzip": ("x.csv.gz", lambda p: p.write_text("C3\n1\n"), "cannot be read: BadGzipFile"),
    "cut": ("x.csv.gz", lambda p: p.write_bytes(gzip.compress(b"C3\n" + b"1\n" * 999)[:-9]), "truncated"),
    "count": ("x.npy", lambda p: np.save(p, EEG[:2]), "2x2500: no axis is the 3 channels that --channels names"),
    "square": ("x.npy", lambda p: np.save(p, EEG[:, :3]), "an array 3x3: both axes could be the 3 channels"),
    "flat": ("x.npy", lambda p: np.save(p, EEG[0]), "an array 2500 of float64, expected one of numbers"),
    "complex": ("x.npy", lambda p: np.save(p, EEG + 1j), "of complex128, expected one of numbers"),
    "cut npy": ("x.npy", lambda p: (np.save(p, EEG), p.write_bytes(p.read_bytes()[:-8])), "cannot be read: ValueError"),
    "several": ("x.npz", lambda p: np.savez(p, a=EEG, b=EEG), "one with --variable; it holds a 3x2500, b 3x2500"),
    "none": ("x.npz", lambda p: np.savez(p, a=EEG[:2]), "no array of the 3 channels .* it holds a 2x2500"),
    "no numbers": ("x.mat", lambda p: scipy.io.savemat(p, {"who": "anna"}), "it holds no array of numbers"),
    "no mat": ("x.mat", lambda p: p.write_bytes(b"nothing" * 99), "cannot be read"),
    "volts": ("x.npy", lambda p: np.save(p, EEG * 1e-6), "seems to be in V"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_in_one_line(tmp_path, mistake):
    name, write, reason = MISTAKES[mistake]
    write(tmp_path / name)
    with pytest.raises(UserError, match=reason) as caught:
        load_recording(tmp_path / name, array=KNOWN)
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


def test_what_only_the_flags_can_say(tmp_path):
    write_csv(tmp_path / "x.csv")
    np.savez(tmp_path / "x.npz", a=EEG, b=2 * EEG)
    with pytest.raises(UserError, match="does not say its rate: give --rate"):
        load_recording(tmp_path / "x.csv")
    with pytest.raises(UserError, match="have no names: give --channels"):
        load_recording(tmp_path / "x.npz", array=ArrayFormat(RATE))
    with pytest.raises(UserError, match="without PZ; its channels: C3, Cz, EOG"):
        load_recording(tmp_path / "x.csv", ["C3", "PZ"], array=KNOWN)
    raw = read_array(tmp_path / "x.npz", ArrayFormat(RATE, 1.0, NAMES, "b"))
    np.testing.assert_allclose(raw.get_data(), 2e-6 * EEG)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_unpickled(tmp_path):
    bomb = np.array([[Bomb(tmp_path / "hacked")] * 5] * 3, dtype=object)
    np.save(tmp_path / "x.npy", bomb, allow_pickle=True)
    np.savez(tmp_path / "x.npz", eeg=bomb)
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Bomb(tmp_path / "hacked")))
    for name in ("x.npy", "x.npz", "plain.npy"):
        with pytest.raises(UserError, match=f"{name}: cannot be read: ValueError"):
            load_recording(tmp_path / name, array=KNOWN)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("suffix", [".csv.gz", ".npy"])
def test_a_dataset_of_arrays(tmp_path, suffix):
    raw, rows = tmp_path / "raw", ["file,start,stop,label"]
    raw.mkdir()
    for subject in ("anna", "bert", "carl"):
        write_csv(raw / f"{subject}.csv.gz") if suffix == ".csv.gz" else np.save(raw / f"{subject}.npy", EEG / 1e3)
        rows += [f"{subject}{suffix},0,4,left", f"{subject}{suffix},4,8,right"]
    (raw / "labels.csv").write_text("\n".join(rows) + "\n")
    argv = ("--raw_dir", raw, "--out_dir", tmp_path / "out", "--labels", raw / "labels.csv", "--window", 2)
    argv += ("--workers", 1, "--val_fraction", 0.3, "--test_fraction", 0.3, "--subject", "anna|bert|carl")
    with pytest.raises(UserError, match="labels.csv names arrays, which do not say their rate: give --rate"):
        run_maker(make_custom, *argv)
    argv += ("--rate", 250)
    argv += () if suffix == ".csv.gz" else ("--channels", *NAMES, "--unit", "mV")
    run_maker(make_custom, *argv)
    (recording,) = open_dataset(tmp_path / "out", "val")
    assert recording.name in ("anna", "bert", "carl") and recording.channels == ("C3", "CZ")
    assert segments(recording).tolist() == [[0, 400, 0], [400, 800, 0], [800, 1200, 1], [1200, 1600, 1]]
    write_csv(tmp_path / "x.csv")
    expected = load_recording(tmp_path / "x.csv", array=KNOWN).eeg
    np.testing.assert_allclose(RecordingReader().read(recording, 0, 2000), expected, rtol=1e-4, atol=1e-3)
    assert {row["status"] for row in table(tmp_path / "out" / "report.csv")} == {"used"}
    with pytest.raises(UserError, match=r"was made with .*'rate': 250.0.*now .*'rate': 256.0"):
        run_maker(make_custom, *argv, "--rate", 256)
