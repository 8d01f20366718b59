"""LaBraM's windows and batches: lengths, strides, one shape a step, the same steps on any number of processes."""

import numpy as np
import pytest
import torch
from toy_eeg import write_toy

from dataset.batches import collate_montage
from dataset.channels import channel_rows
from dataset.recordings import RecordingReader, open_dataset
from dataset.windows import class_names, labelled_folder, labram_labelled_windows, labram_pretraining_windows
from errors import UserError
from training.loading import Loader, evaluation_loader
from utils import Run

MONTAGES = {4: 16, 19: 13, 23: 11, 64: 4}  # channels: seconds of a window


def make_run(rank=0, world_size=1):
    return Run(rank, world_size, torch.device("cpu"), torch.float32, 3)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    return [write_toy(folder / f"C{n}", n, 40, (("train", 2), ("val", 1)), seed=n) for n in MONTAGES]


@pytest.mark.parametrize("stride", [1, 4])
def test_windows_of_256_tokens(mixed, stride):
    windows = labram_pretraining_windows(mixed, "train", stride)
    for recording_number, recording in enumerate(windows.recordings):
        rows = windows.index[windows.index[:, 0] == recording_number]
        seconds = MONTAGES[len(recording.channels)]
        assert set(rows[:, 2] - rows[:, 1]) == {seconds * 200}
        assert rows[:, 1].tolist() == list(range(0, (40 - seconds) * 200 + 1, stride * 200))


def test_a_corpus_for_training_only_needs_another_with_val(mixed, tmp_path):
    alone = write_toy(tmp_path / "alone", splits=(("train", 1),))
    assert len(labram_pretraining_windows([mixed[0], alone], "train", 4).recordings) == 3
    assert [r.name for r in labram_pretraining_windows([mixed[0], alone], "val", 4).recordings] == ["val0"]
    with pytest.raises(UserError, match="alone has no recordings in split 'val'"):
        labram_pretraining_windows([alone], "val", 4)


def test_batch_holds_what_the_files_hold(mixed):
    windows = labram_pretraining_windows(mixed, "train", 1)
    chosen = windows.same_shape()[-1][[3, 5]]
    batch = collate_montage([windows[i] for i in chosen])
    assert batch["keys"] == batch["index"].tolist() == chosen.tolist()
    number, start, stop, _ = windows.index[chosen[1]]
    recording = windows.recordings[number]
    eeg = RecordingReader().read(recording, start, stop)
    np.testing.assert_allclose(batch["x"][1].flatten(1), eeg / 100)
    np.testing.assert_allclose(batch["x"][1, 2, 1], eeg[2, 200:400] / 100)
    assert batch["chans"][1].tolist() == (channel_rows(recording.channels) + 1).tolist()


def steps(windows, batch_size, run, accumulation=1, epoch=0):
    """The window indices of every micro-batch of this rank."""
    loader = Loader(windows, batch_size, run, collate_montage, accumulation, 0, windows.same_shape())
    return [[batch["index"].tolist() for batch in step] for step in loader.epoch(epoch)]


def test_steps_have_one_shape_and_use_every_group_in_proportion(mixed):
    windows = labram_pretraining_windows(mixed, "train", 1)
    shape = {int(i): number for number, group in enumerate(windows.same_shape()) for i in group}
    drawn = [sum(micro_batches, []) for micro_batches in steps(windows, 4, make_run(), 2)]
    kinds = [{shape[i] for i in step} for step in drawn]
    assert all(len(kind) == 1 for kind in kinds)
    for number, group in enumerate(windows.same_shape()):
        places = [place for place, kind in enumerate(kinds) if kind == {number}]
        assert len(places) == len(group) // 8
        gaps = np.diff([-1, *places, len(kinds)])
        assert gaps.max() <= 2 * len(kinds) / len(places) + 2  # spread over the whole epoch
    everything = sum(drawn, [])
    assert len(set(everything)) == len(everything)
    assert steps(windows, 4, make_run(), 2, epoch=1) != steps(windows, 4, make_run(), 2)


def test_the_same_steps_on_any_number_of_processes(mixed):
    windows = labram_pretraining_windows(mixed, "train", 4)
    one = [sorted(step[0]) for step in steps(windows, 4, make_run())]
    accumulated = [sorted(step[0] + step[1]) for step in steps(windows, 2, make_run(), 2)]
    first, second = (steps(windows, 2, make_run(rank, 2)) for rank in range(2))
    two = [sorted(a[0] + b[0]) for a, b in zip(first, second, strict=True)]
    assert one == accumulated == two


def test_evaluation_reads_every_window_once(mixed):
    windows = labram_pretraining_windows(mixed, "val", 4)
    for world_size in (1, 3):
        found = []
        for rank in range(world_size):
            run = make_run(rank, world_size)
            batches = evaluation_loader(windows, 5, run, collate_montage, groups=windows.same_shape())
            found += [i for batch in batches for i in batch["index"].tolist()]
        assert sorted(found) == list(range(len(windows)))


def test_a_shape_with_too_few_windows_is_said(mixed, capsys):
    windows = labram_pretraining_windows(mixed, "train", 4)
    sizes = sorted(map(len, windows.same_shape()))
    Loader(windows, sizes[-1], make_run(), collate_montage, groups=windows.same_shape())
    assert f"{sum(sizes[:-1])} of {len(windows)} training samples are never drawn" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"{sizes[-1]} samples of one shape, fewer than the {sizes[-1] + 1}"):
        Loader(windows, sizes[-1] + 1, make_run(), collate_montage, groups=windows.same_shape())


def test_windows_that_labram_cannot_read(tmp_path):
    long = write_toy(tmp_path / "long", seconds=60, window=20)
    with pytest.raises(UserError, match="windows of 20 s; LaBraM reads 16 s at most"):
        labram_labelled_windows(long, "train")
    bipolar = write_toy(tmp_path / "bipolar", ("C3", "F3-C3"), window=4)
    with pytest.raises(UserError, match=r"LaBraM has no position for channel F3-C3"):
        labram_labelled_windows(bipolar, "train")
    with pytest.raises(UserError, match="no position for channel F3-C3"):
        labram_pretraining_windows([bipolar], "train", 4)
    short = write_toy(tmp_path / "short", seconds=10)
    with pytest.raises(UserError, match="no train recording is as long as one window"):
        labram_pretraining_windows([short], "train", 4)
    with pytest.raises(UserError, match="no labelled windows in split 'train'"):
        labram_labelled_windows(short, "train")


def test_labelled_folder_by_name_or_path(tmp_path):
    folder = write_toy(tmp_path / "data" / "Toy", window=4)
    assert labelled_folder("Toy", tmp_path / "data") == labelled_folder(str(folder), tmp_path) == folder
    with pytest.raises(UserError, match=r"--dataset Other: no such dataset folder, tried .*data/Other and Other"):
        labelled_folder("Other", tmp_path / "data")
    with pytest.raises(UserError, match=r"is a folder of datasets, name one of .*Toy"):
        labelled_folder("data", tmp_path)
    windows = labram_labelled_windows(folder, "train")
    assert class_names(folder, [windows]) == ("slow", "fast")
    assert len(windows) == 3 * 10
    assert [r.name for r in open_dataset(folder, "train")] == ["train0", "train1", "train2"]
