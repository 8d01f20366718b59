"""Datasets in object storage, on fsspec's memory:// and file://: a bounded cache, cuts, full disks, two processes."""

import errno
import io
import multiprocessing
import os
import shutil

import fsspec
import numpy as np
import pytest
from raw_files import contents, run_maker, write_workload
from toy_eeg import write_toy

from dataset import storage
from dataset.hdf5 import open_file
from dataset.recordings import RecordingReader, find_datasets, open_dataset
from dataset.verify import hash_file
from dataset.windows import labelled_folder, pretraining_folders
from dataset_maker import make_Workload, status
from errors import UserError
from training.provenance import describe_data

SPLITS = (("train", 6), ("val", 1))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "WAITS", (0, 0, 0))
    return tmp_path / "cache"


@pytest.fixture
def bucket(cache, tmp_path):
    """memory://bucket with two datasets, and the folder that they are copies of."""
    for name in ("Toy", "Other"):
        write_toy(tmp_path / "sets" / name, splits=SPLITS, window=4 if name == "Toy" else None)
    files = fsspec.filesystem("memory")
    files.put(f"{tmp_path}/sets/", "/bucket/", recursive=True)
    yield tmp_path / "sets"
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def recordings_in(folder):
    return sorted(path for path in folder.rglob("*") if ".h5" in path.name)


def test_a_dataset_is_read_as_a_local_one_and_only_what_is_opened_is_fetched(bucket, cache):
    (other, toy) = find_datasets("memory://bucket")
    assert (other.name, toy.name, storage.shown(toy)) == ("Other", "Toy", "memory://bucket/Toy")
    assert pretraining_folders("memory://bucket") == [other]
    assert labelled_folder("Toy", ["memory://bucket"]) == labelled_folder("memory://bucket/Toy", "./") == toy
    ours, theirs = open_dataset(toy, "train"), open_dataset(bucket / "Toy", "train")
    assert not recordings_in(cache)
    np.testing.assert_array_equal(RecordingReader().read(ours[2], 0, 900), RecordingReader().read(theirs[2], 0, 900))
    assert recordings_in(cache) == [ours[2].path] and hash_file(ours[3].path) == hash_file(theirs[3].path)
    about, local = (describe_data([folder])["Toy"] for folder in (toy, bucket / "Toy"))
    assert about == local | {"path": "memory://bucket/Toy"}


def test_a_changed_manifest_empties_the_cache_of_its_recordings(bucket, cache):
    (toy,) = find_datasets("memory://bucket/Toy")
    for recording in open_dataset(toy, "train"):
        open_file(recording.path).close()
    find_datasets("memory://bucket/Toy")
    assert len(recordings_in(cache)) == 6
    shutil.rmtree(bucket / "Toy")
    write_toy(bucket / "Toy", splits=(("train", 2),), window=4, seed=1)
    fsspec.filesystem("memory").put(f"{bucket}/Toy/", "/bucket/Toy/", recursive=True)
    (toy,) = find_datasets("memory://bucket/Toy")
    recordings = open_dataset(toy, "train")
    assert len(recordings) == 2 and not recordings_in(cache)
    assert hash_file(recordings[0].path) == hash_file(bucket / "Toy" / "train" / "train0.h5")


def test_the_cache_keeps_its_size_and_what_was_used_last(bucket, cache, monkeypatch):
    recordings = open_dataset(find_datasets("memory://bucket/Toy")[0], "train")
    size = (bucket / "Toy" / "train" / "train0.h5").stat().st_size
    monkeypatch.setenv("NEUROLM_CACHE_GB", str(3.5 * size / 1e9))
    for i, recording in enumerate(recordings):
        os.utime(recordings[0].path, (9e9, 9e9)) if i else None
        open_file(recording.path).close()
        assert sum(path.stat().st_size for path in recordings_in(cache)) <= 3.5 * size
    assert {recordings[0].path, recordings[5].path} <= set(recordings_in(cache))
    monkeypatch.setenv("NEUROLM_CACHE_GB", str(0.5 * size / 1e9))
    with pytest.raises(UserError, match=r"memory://bucket/Toy/train has a file of \d+ bytes, NEUROLM_CACHE_GB allows"):
        storage.fetch(next(recording.path for recording in recordings if not recording.path.is_file()))
    monkeypatch.setenv("NEUROLM_CACHE_GB", "much")
    with pytest.raises(UserError, match="NEUROLM_CACHE_GB is 'much', expected a number"):
        storage.fetch(next(recording.path for recording in recordings if not recording.path.is_file()))


def test_a_cut_connection_is_tried_again_and_then_one_line(bucket, cache, monkeypatch):
    recordings = open_dataset(find_datasets("memory://bucket/Toy")[0], "train")
    files, cuts = type(fsspec.filesystem("memory")), ["cut", "short"]
    whole = files._open

    def cut(self, path, *arguments, **more):
        if cuts and cuts.pop() == "cut":
            raise ConnectionResetError("reset by peer")
        return whole(self, path, *arguments, **more) if not cuts else io.BytesIO(b"half of it")

    monkeypatch.setattr(files, "_open", cut)
    open_file(recordings[0].path).close()
    cuts += ["cut"] * 9
    with pytest.raises(UserError, match=r"memory://bucket/Toy/train/train1\.h5 cannot be .* 3 times .*reset by peer"):
        open_file(recordings[1].path)
    assert recordings_in(cache) == [recordings[0].path] and len(cuts) == 6


def test_a_full_disk_makes_room_and_then_says_so(bucket, cache, monkeypatch):
    recordings = open_dataset(find_datasets("memory://bucket/Toy")[0], "train")
    for recording in recordings[:4]:
        open_file(recording.path).close()
    copy, full = shutil.copyfileobj, [1]

    def no_room(*arguments):
        if full and full.pop():
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(*arguments)

    monkeypatch.setattr(shutil, "copyfileobj", no_room)
    open_file(recordings[4].path).close()
    assert 0 < len(recordings_in(cache)) < 4
    full += [1] * 9
    with pytest.raises(UserError, match=r"the disk of NEUROLM_CACHE .*cache is full: memory://bucket/Toy/train/train5"):
        open_file(recordings[5].path)


def test_what_is_not_there_or_not_allowed_is_named(bucket, cache, monkeypatch):
    with pytest.raises(UserError, match="dataset folder memory://bucket/Typo does not exist"):
        find_datasets("memory://bucket/Typo")
    with pytest.raises(UserError, match=r"nonsense:// cannot be opened \(ValueError: Protocol not known: nonsense\)"):
        find_datasets("nonsense://bucket")
    with pytest.raises(UserError, match="expected memory://bucket/folder, without"):
        find_datasets("memory://bucket/../Toy")
    (toy,) = find_datasets("memory://bucket/Toy")
    recordings = open_dataset(toy, "train")
    fsspec.filesystem("memory").rm_file("/bucket/Toy/train/train4.h5")
    with pytest.raises(UserError, match="memory://bucket/Toy/train/train4.h5 is not there"):
        open_file(recordings[4].path)
    with pytest.raises(UserError, match=r"1 of 6 recordings of the manifest are missing .*train4\.h5"):
        open_dataset(toy, "train")
    refuse = PermissionError("InvalidAccessKeyId")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "ls", lambda *_, **__: (_ for _ in ()).throw(refuse))
    with pytest.raises(UserError, match=r"memory://bucket: access denied .*InvalidAccessKeyId.*check the keys"):
        find_datasets("memory://bucket")


def test_several_roots(bucket, cache, tmp_path):
    write_toy(tmp_path / "more" / "Third")
    roots = ["memory://bucket", str(tmp_path / "more")]
    assert [folder.name for folder in find_datasets(roots)] == ["Other", "Toy", "Third"]
    assert labelled_folder("Third", roots) == tmp_path / "more" / "Third"
    write_toy(tmp_path / "more" / "Toy", window=4)
    with pytest.raises(UserError, match="two datasets are called Toy, memory://bucket/Toy and .*more/Toy: rename"):
        find_datasets(roots)
    with pytest.raises(UserError, match="--dataset Toy: there are two, memory://bucket/Toy and .*more/Toy; give"):
        labelled_folder("Toy", roots)


def read_all(url, seed, results):
    recordings = open_dataset(find_datasets(url)[0], "train")
    order = np.random.default_rng(seed).integers(len(recordings), size=60)
    results.put([(int(i), float(RecordingReader().read(recordings[i], 0, 8000).sum())) for i in order])


def test_two_processes_share_a_small_cache(bucket, cache, monkeypatch):
    size = (bucket / "Toy" / "train" / "train0.h5").stat().st_size
    monkeypatch.setenv("NEUROLM_CACHE_GB", str(3 * size / 1e9))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=read_all, args=(f"file://{bucket}/Toy", seed, results)) for seed in (0, 1)]
    for process in processes:
        process.start()
    found = [pair for _ in processes for pair in results.get(timeout=60)]
    for process in processes:
        process.join()
    theirs = open_dataset(bucket / "Toy", "train")
    expected = {i: float(RecordingReader().read(theirs[i], 0, 8000).sum()) for i in range(6)}
    assert len(found) == 120 and all(total == expected[i] for i, total in found)
    assert sum(path.stat().st_size for path in recordings_in(cache)) <= 3 * size
    assert not [path for path in recordings_in(cache) if path.suffix == ".part"]


def test_makers_write_there(cache, tmp_path, capsys):
    raw = write_workload(tmp_path / "raw")
    run_maker(make_Workload, "--raw_dir", raw, "--out_dir", tmp_path / "W", "--workers", 1)
    argv = ("--raw_dir", raw, "--out_dir", "memory://made/W", "--workers", 1, "--shard")
    run_maker(make_Workload, *argv, "1/2")
    assert not recordings_in(cache)
    shutil.rmtree(cache)  # the other shard is on another machine
    with pytest.raises(SystemExit):
        status.main(status.get_args(["memory://made/W"]))
    assert "--shard 0/2: 0 of 4 files, not started" in capsys.readouterr().out
    run_maker(make_Workload, *argv, "0/2")
    status.main(status.get_args(["memory://made/W"]))
    assert "8 of 8 files, 0 of them refused; manifest.csv is written\nno shard has more" in capsys.readouterr().out
    fsspec.filesystem("memory").get("/made/W/", f"{tmp_path}/back/", recursive=True)
    assert contents(tmp_path / "back", without="progress") == contents(tmp_path / "W", without="progress")
    assert len(open_dataset(find_datasets("memory://made")[0], "train")) == 4
    fsspec.filesystem("memory").store.clear()
