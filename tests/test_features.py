"""Features of the frozen encoder, computed once: the same numbers, resumable, and never those of something else."""

import os
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from toy_eeg import write_toy

from dataset.batches import QuestionCollate, QuestionWindows, collate_eeg
from dataset.tasks import Task
from dataset.text import load_tokenizer
from dataset.windows import open_tasks
from errors import UserError
from model.neural_transformer import NTConfig
from model.neurolm import NeuroLM
from training import feature_cache
from training.feature_cache import cache_features
from utils import start_run

TASK = Task("Toy", "Which rhythm is this?", ("slow", "fast"))


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A model, windows of two montages of training and test, and `cache(...)`, which counts what it encodes."""
    monkeypatch.setattr(feature_cache, "CHUNK", 4)
    folder = write_toy(tmp_path / "data" / "Toy", seconds=20, window=2, splits=(("train", 1), ("test", 1)))
    torch.manual_seed(0)
    model = NeuroLM.from_size("tiny", NTConfig(n_layer=1, n_head=2, n_embd=16), 8).eval()
    sets = {split: open_tasks({TASK: folder}, split) for split in ("train", "test")}
    encoded = []
    model.tokenizer.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))

    def cache(directory=tmp_path / "cache", **changed):
        encoded.clear()
        reading = {"batch_size": 3, "run": start_run("cpu"), **changed}
        cached = cache_features(directory, sets, {TASK: folder}, model, **reading)
        return cached, sum(encoded)

    return SimpleNamespace(folder=folder, model=model, sets=sets, cache=cache, directory=tmp_path / "cache")


def loss_of(model, windows):
    samples = QuestionWindows({TASK: windows})
    batch = QuestionCollate(load_tokenizer())([samples[i] for i in (7, 0, 3)])
    return model(eeg=batch)["eeg"]["loss"]


def test_features_and_losses_are_those_of_the_encoder(toy):
    cached, _ = toy.cache()
    for split in ("train", "test"):
        raw, read = toy.sets[split][TASK], cached[split][TASK]
        assert len(read) == 10 and read.describe() == raw.describe()
        for i in (0, 3, 4, 9):
            batch = collate_eeg([raw[i]])
            expected = toy.model.tokenizer(batch["x"], batch["chans"], batch["time"], None)[0]
            torch.testing.assert_close(torch.from_numpy(read[i]["features"]), expected, rtol=1e-5, atol=1e-6)
            assert read[i]["features"].dtype == np.float32 and "eeg" not in read[i]
            assert {name: read[i][name] for name in ("label", "index", "file")} == {
                name: raw[i][name] for name in ("label", "index", "file")
            }
        torch.testing.assert_close(loss_of(toy.model, read), loss_of(toy.model, raw), rtol=1e-5, atol=1e-5)


def test_only_what_is_missing_is_computed(toy):
    _, encoded = toy.cache()
    assert encoded == 20
    before = {path: path.stat().st_mtime_ns for path in toy.directory.glob("*/*.npy")}
    assert len(before) == 6  # 10 windows are files of 4, 4 and 2
    assert toy.cache()[1] == 0
    lost = sorted(before)[4]
    lost.rename(lost.with_name(".000001.99.tmp"))  # what a kill while it was being written leaves
    assert toy.cache()[1] == 4
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path != lost)


def test_two_processes_share_the_work(toy, monkeypatch):
    monkeypatch.setattr("utils.Run.barrier", lambda run: None)
    whole, _ = toy.cache()
    halves = toy.directory.with_name("halves")
    run = start_run("cpu")
    with pytest.raises(UserError, match="is not shared: .* lacks what others wrote"):
        toy.cache(halves, run=type(run)(0, 2, run.device, run.dtype, run.seed))
    both, encoded = toy.cache(halves, run=type(run)(1, 2, run.device, run.dtype, run.seed))
    assert encoded == 8  # the second of the three files of each set
    for i in range(10):
        np.testing.assert_array_equal(both["train"][TASK][i]["features"], whole["train"][TASK][i]["features"])


@pytest.mark.parametrize("change", ["weights", "configuration", "manifest", "content", "windows", "precision"])
def test_features_of_something_else_are_never_read(toy, change):
    toy.cache()
    if change == "weights":
        with torch.no_grad():
            toy.model.tokenizer.fc_norm.weight[0] += 1e-3
    elif change == "configuration":
        toy.model.tokenizer.config.norm_over_padding = True
    elif change == "manifest":
        with open(toy.folder / "manifest.csv", "a") as file:
            file.write("\n")
    elif change == "content":  # as long and as old as before
        for path in toy.folder.glob("*/*.h5"):
            stat = path.stat()
            with h5py.File(path, "r+") as file:
                file[path.stem]["eeg"][0] += 1
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    elif change == "windows":
        for windows_of in toy.sets.values():
            windows_of[TASK].index[0, 1:3] += 200
    run = start_run("cpu", dtype="bfloat16" if change == "precision" else "auto")
    assert toy.cache(run=run)[1] == 20 and len(list(toy.directory.iterdir())) == 4


def test_a_disk_that_is_too_small_is_said_before_anything_is_computed(toy, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2560))
    needed = 20 * 2 * 2 * 16 * 4  # windows x channels x seconds x width x bytes
    assert needed > 2560
    with pytest.raises(UserError, match=r"--cache_features .* needs 4\.77e-06 GiB more, 2\.38e-06 GiB are free"):
        toy.cache()
    assert "still to compute" in capsys.readouterr().out and not list(toy.directory.glob("*/*.npy"))


def test_a_damaged_file_is_named(toy):
    cached, _ = toy.cache()
    path = sorted(toy.directory.glob("Toy-train-*/*.npy"))[0]
    path.write_bytes(path.read_bytes()[:100])
    feature_cache._open_chunk.cache_clear()
    with pytest.raises(UserError, match=r"features .*000000\.npy cannot be read .*delete this file and run again"):
        cached["train"][TASK][0]
