"""Damaged and hostile files, hundreds: each is read or refused with its reason; none crashes, hangs or runs code."""

import pickle

import h5py
import numpy as np
import pytest
from raw_files import write_edf

from dataset import scan
from dataset.pickles import load_sample
from dataset.recordings import RecordingReader, open_dataset, segments
from dataset_maker.machinery.corpus import write_h5
from dataset_maker.machinery.preprocessing import load_recording
from errors import UserError

NAMES = ("FP1", "FP2", "CZ", "PZ")


def mutate(content: bytes, rng) -> bytes:
    """Truncate, flip bytes, overwrite with noise or with one byte; more often than not near the start."""
    damaged = bytearray(content)
    reach = min(len(damaged), 4096) if rng.random() < 0.7 else len(damaged)
    first, length = int(rng.integers(reach)), int(rng.integers(1, 64))
    match rng.integers(4):
        case 0:
            return bytes(damaged[: rng.integers(len(damaged))])
        case 1:
            for place in rng.integers(reach, size=rng.integers(1, 20)):
                damaged[place] = rng.integers(256)
        case 2:
            damaged[first : first + length] = rng.bytes(length)
        case 3:
            damaged[first : first + length] = bytes([rng.choice([0, 127, 255])]) * length
    return bytes(damaged)


def survive(path, content, use, times, seed) -> int:
    """Use so many mutations of a file -> how many were refused; each refusal names the file."""
    rng, refused = np.random.default_rng(seed), 0
    for _ in range(times):
        path.write_bytes(mutate(content(rng) if callable(content) else content, rng))
        try:
            use()
        except UserError as error:
            assert path.name in str(error) and "\n" not in str(error)
            refused += 1
    return refused


@pytest.fixture
def toy(tmp_path):
    """A dataset of ours with one recording."""
    eeg = np.random.default_rng(0).standard_normal((4, 2000)).astype("f4")
    folder = tmp_path / "Toy"
    (folder / "train").mkdir(parents=True)
    write_h5(folder / "train" / "x.h5", "x", eeg, NAMES, [(0, 800, 0), (800, 1600, 1)], subject="s", notch=50.0)
    (folder / "dataset.yaml").write_text("name: Toy\nlabels: [rest, task]\nrate: 200\n")
    columns = "recording,split,subject,channels,seconds,windows,windows_per_label,sha256"
    (folder / "manifest.csv").write_text(f"{columns}\nx,train,s,FP1 FP2 CZ PZ,10,2,1 1,0\n")
    return folder


def test_recordings(toy):
    (recording,) = open_dataset(toy, "train")

    def use():
        assert segments(recording).shape == (2, 3)
        assert RecordingReader().read(recording, 100, 1900).shape == (4, 1800)

    assert 40 < survive(recording.path, recording.path.read_bytes(), use, 150, 1) < 150


@pytest.mark.parametrize("file", ["manifest.csv", "dataset.yaml"])
def test_manifests(toy, file):
    content = (toy / file).read_bytes()
    for seed in range(50):
        (toy / file).write_bytes(mutate(content, np.random.default_rng(seed)))
        try:
            open_dataset(toy, "train")
        except UserError as error:
            assert str(toy) in str(error)


def test_pickles(tmp_path):
    path = tmp_path / "x.pkl"
    sample = {"X": np.ones((4, 50)), "ch_names": list(NAMES), "y": np.int64(1)}

    def content(rng):
        return pickle.dumps(sample, protocol=int(rng.integers(6)))

    assert 75 < survive(path, content, lambda: load_sample(path), 150, 2) < 150


def test_edf(tmp_path):
    path = tmp_path / "x.edf"
    write_edf(path, seconds=6, channels=NAMES)
    assert 20 < survive(path, path.read_bytes(), lambda: load_recording(path), 150, 3) < 150


def test_official_hdf5_is_looked_at_by_a_child_that_may_die(tmp_path, monkeypatch):
    path = tmp_path / "train" / "x.h5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        eeg = file.create_dataset("s1/eeg", data=np.ones((4, 900)))
        eeg.attrs.update({"rsFreq": 200, "chOrder": list(NAMES)})
    content = path.read_bytes()
    assert 0 < survive(path, content, lambda: open_dataset(tmp_path, "train"), 10, 4) <= 10
    path.write_bytes(content)
    for child, silence in (("import os; os.abort()", 60), ("import time; time.sleep(60)", 0.5)):
        monkeypatch.setattr(scan, "CHILD", child)
        monkeypatch.setattr(scan, "SILENCE", silence)
        with pytest.raises(UserError, match=r"x\.h5 is so damaged that the HDF5 library hangs or crashes"):
            open_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "shape", "chunks", "reason"),
    [
        ("eeg", (4, 2**40), (4, 2**27), "not stored in chunks of seconds"),
        ("segments", (2**40, 3), (2**24, 3), "labelled windows cannot be read"),
    ],
)
def test_bombs(toy, name, shape, chunks, reason):
    """Compressed chunks or empty space that would fill the memory when read."""
    (recording,) = open_dataset(toy, "train")
    with h5py.File(recording.path, "a") as file:
        attributes = dict(file["x/eeg"].attrs)
        del file["x"][name]
        file["x"].create_dataset(name, shape, "i8", chunks=chunks, compression="gzip")
        file["x/eeg"].attrs.update(attributes)
    with pytest.raises(UserError, match=rf"x\.h5.*{reason}"):
        segments(recording)
