"""Dataset folders and their reader: our layout, the official ones, and files that are not what they seem."""

import csv
import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
import yaml

from dataset.recordings import RecordingReader, describe_dataset, find_datasets, open_dataset, segments
from errors import UserError

NAMES = ("FP1", "F7-T7", "CZ")
COLUMNS = ("recording", "split", "subject", "channels", "seconds", "windows", "windows_per_label", "sha256")


def write_h5(path, eeg, group=None, names=NAMES, rate=200, rows=None, **attributes):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "a") as file:
        group = file.create_group(group or path.stem)
        data = group.create_dataset("eeg", data=eeg, chunks=(len(eeg), min(400, eeg.shape[1])))
        data.attrs.update({"chOrder": list(names), "rsFreq": rate} | attributes)
        if rows is not None:
            group["segments"] = np.array(rows, dtype=np.int64)


def write_folder(folder, rows, labels=("rest", "task")):
    """Our layout, by hand; rows (recording, split, seconds, windows per label)."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, split, seconds, counts in rows:
            per_label = " ".join(map(str, counts))
            writer.writerow((name, split, "s" + name, " ".join(NAMES), seconds, sum(counts), per_label, "x"))
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"name": "Toy", "labels": list(labels), "rate": 200}))


@pytest.fixture
def toy(tmp_path):
    rng = np.random.default_rng(0)
    eeg = {name: rng.standard_normal((3, 2000)).astype("f4") for name in ("b", "a", "c")}
    for name, data in eeg.items():
        split = "val" if name == "c" else "train"
        write_h5(tmp_path / "Toy" / split / f"{name}.h5", data, rows=[(0, 800, 0), (400, 1200, 1)])
    write_folder(tmp_path / "Toy", [(n, "val" if n == "c" else "train", 10.0, (1, 1)) for n in eeg])
    return tmp_path / "Toy", eeg


def test_manifest_segments_and_windows(toy):
    folder, eeg = toy
    assert find_datasets(folder) == find_datasets(folder.parent) == [folder]
    assert describe_dataset(folder)["labels"] == ["rest", "task"]
    recordings = open_dataset(folder, "train")
    assert [(r.name, r.subject, r.channels, r.samples, r.windows) for r in recordings] == [
        ("a", "sa", NAMES, 2000, 2),
        ("b", "sb", NAMES, 2000, 2),
    ]
    assert segments(recordings[0]).tolist() == [[0, 800, 0], [400, 1200, 1]]
    reader = RecordingReader(max_open=1)
    for recording in recordings + recordings:
        window = reader.read(recording, 399, 1600)
        assert window.dtype == np.float32
        np.testing.assert_array_equal(window, eeg[recording.name][:, 399:1600])


def test_float16_files_are_read_as_float32(toy):
    folder, eeg = toy
    (folder / "train" / "a.h5").unlink()
    write_h5(folder / "train" / "a.h5", eeg["a"].astype(np.float16))
    window = RecordingReader().read(open_dataset(folder, "train")[0], 0, 2000)
    assert window.dtype == np.float32
    np.testing.assert_allclose(window, eeg["a"], rtol=1e-3)


def read_elsewhere(reader, recording, queue):
    queue.put(reader.read(recording, 0, 200))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_with_open_files_works_in_a_worker(toy, method):
    folder, eeg = toy
    recording = open_dataset(folder, "train")[0]
    reader = RecordingReader()
    reader.read(recording, 0, 200)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=read_elsewhere, args=(reader, recording, queue))
    worker.start()
    np.testing.assert_array_equal(queue.get(timeout=60), eeg["a"][:, :200])
    worker.join()


def test_official_hdf5_with_many_groups_and_trials(tmp_path):
    eeg = np.random.default_rng(0).standard_normal((3, 4000))
    path = tmp_path / "SEED" / "test" / "deeper" / "seed.hdf5"
    write_h5(path, eeg, group="sub2", names=["EEG FP1-REF", "f7-t7", "Cz"])
    write_h5(path, eeg, group="sub1", trialStart=[1, 10], trialEnd=[9, 15], label=[1, -1])
    first, second = open_dataset(tmp_path / "SEED", "test")
    assert (first.group, second.group, second.channels) == ("sub1", "sub2", NAMES)
    assert segments(first).tolist() == [[200, 1000, 0], [1000, 1800, 0], [2000, 2800, 2]]
    assert segments(second).shape == (0, 3)
    np.testing.assert_allclose(RecordingReader().read(second, 5, 3000), eeg[:, 5:3000], rtol=1e-6)


@pytest.mark.parametrize("protocol", range(6))
def test_official_pickles(tmp_path, protocol):
    eeg = np.random.default_rng(0).standard_normal((23, 2000))
    folder = tmp_path / "TUEV" / "train" / "deeper"
    folder.mkdir(parents=True)
    names = [f"EEG {name}-REF" for name in ("FP1", "FP2")]
    sample = {"X": np.asfortranarray(eeg[:2]), "ch_names": names, "y": np.int64(1)}
    (folder / "b_1.pkl").write_bytes(pickle.dumps(sample, protocol=protocol))
    (folder / "a_1.pkl").write_bytes(pickle.dumps({"signal": eeg, "label": np.array([6.0])}, protocol=protocol))
    first, second = open_dataset(tmp_path / "TUEV", "train")
    assert (first.subject, first.samples, second.channels) == ("a", 2000, ("FP1", "FP2"))
    assert segments(first).tolist() == [[0, 2000, 5]]
    assert segments(second).tolist() == [[0, 2000, 1]]
    np.testing.assert_array_equal(RecordingReader().read(second, 100, 900), eeg[:2, 100:900].astype("f4"))


def test_what_is_missing_is_named(toy, tmp_path):
    folder, _ = toy
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_dataset(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=r"split 'test'; splits with recordings: \['train', 'val'\]"):
        open_dataset(folder, "test")
    (folder / "train" / "b.h5").unlink()
    with pytest.raises(UserError, match=r"1 of 2 recordings.*first is b\.h5"):
        open_dataset(folder, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="looked for manifest.csv"):
        find_datasets(tmp_path / "empty")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("FP1 F7-T7 CZ", "FP1 NOSE CZ", "unknown channel NOSE"),
        ("10.0", "ten", "could not convert"),
        ("1 1,x", "2,x", "windows_per_label does not fit the 2 labels"),
        ("seconds", "minutes", "column 'seconds' is missing"),
        ("sb,", "sb", "row 1"),
    ],
)
def test_a_malformed_manifest_is_named(toy, old, new, reason):
    folder, _ = toy
    path = folder / "manifest.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=rf"manifest\.csv.*{reason}"):
        open_dataset(folder, "train")


def test_another_sampling_rate_is_refused(toy, tmp_path):
    folder, eeg = toy
    (folder / "dataset.yaml").write_text("name: Toy\nlabels: [rest, task]\nrate: 256\n")
    with pytest.raises(UserError, match="256 Hz, expected 200"):
        open_dataset(folder, "train")
    write_h5(tmp_path / "B" / "train" / "x.h5", eeg["a"], rate=256)
    with pytest.raises(UserError, match=r"x\.h5.*256 Hz"):
        open_dataset(tmp_path / "B", "train")


def test_bad_files_are_named(toy):
    folder, eeg = toy
    a, b = open_dataset(folder, "train")
    reader = RecordingReader()
    a.path.write_bytes(a.path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"a\.h5 is not a readable HDF5 file"):
        reader.read(a, 0, 200)
    b.path.unlink()
    write_h5(b.path, eeg["b"][:, :1000], rows=[(0, 800, 2)])
    with pytest.raises(UserError, match=r"b\.h5 holds 3 channels x 1000 samples, its manifest says 3 x 2000"):
        reader.read(b, 0, 200)
    with pytest.raises(UserError, match=r"b\.h5: labels \[2\], but the dataset names 2"):
        segments(b)
    with pytest.raises(UserError, match="samples 1900 to 2100"):
        reader.read(b, 1900, 2100)


def test_links_to_other_files_are_refused(toy):
    folder, _ = toy
    with h5py.File(folder / "train" / "b.h5", "a") as file:
        del file["b"]["eeg"]
        file["b"]["eeg"] = h5py.ExternalLink("a.h5", "/a/eeg")
    with pytest.raises(UserError, match=r"b\.h5.*links to another file"):
        RecordingReader().read(open_dataset(folder, "train")[1], 0, 200)


def test_a_manifest_is_opened_without_opening_files(tmp_path):
    rows = [(f"r{i:05}", "train", 600.0, (0, 3)) for i in range(2000)]
    write_folder(tmp_path / "Big", rows)
    (tmp_path / "Big" / "train").mkdir()
    for name, *_ in rows:
        (tmp_path / "Big" / "train" / f"{name}.h5").touch()  # empty: opening one would fail
    recordings = open_dataset(tmp_path / "Big", "train")
    assert (len(recordings), recordings[-1].name, recordings[0].samples) == (2000, "r01999", 120_000)
