"""--resident_recordings: windows are drawn among few recordings at a time, and nothing else about an epoch changes."""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import stages
import torch

from errors import UserError
from training.loading import Loader
from training.sampling import Interleaved, Resident
from training.trainer import Trainer
from utils import start_run

WINDOWS = 80  # of a recording
RECORDINGS = np.repeat(np.arange(600), WINDOWS)
SHAPES = [np.flatnonzero(RECORDINGS % 3 == 0), np.flatnonzero(RECORDINGS % 3)]


class Positions(torch.utils.data.Dataset):
    """Samples that say who read them."""

    def __len__(self):
        return len(RECORDINGS)

    def __getitem__(self, i):
        worker = torch.utils.data.get_worker_info()
        return i, worker.id if worker else 0


def make_loader(rank=0, world=1, batch_size=32, accumulation=1, resident=96, groups=None, **more):
    run = replace(start_run("cpu", seed=3), rank=rank, world_size=world)
    more = {"resident": resident, "recordings": RECORDINGS} | more
    return Loader(Positions(), batch_size, run, list, accumulation, groups=groups, **more)


def read(loader, epoch=0, start=0):
    """The samples (position, worker) of each step."""
    return [sum(micro_batches, []) for micro_batches in loader.epoch(epoch, start)]


def opens(reads, keep=64) -> int:
    """How often recordings are opened by workers that keep so many of them open. reads: (worker, recording)."""
    kept, count = {}, 0
    for worker, recording in reads:
        mine = kept.setdefault(worker, OrderedDict())
        count += recording not in mine
        mine[recording] = None
        mine.move_to_end(recording)
        if len(mine) > keep:
            mine.popitem(last=False)
    return count


def test_without_the_flag_the_order_is_what_it_was():
    assert Interleaved([np.arange(9)]).positions(0, 1, 4).tolist() == [[1, 3, 6, 7], [8, 0, 4, 2]]
    ours, plain = make_loader(resident=None), Interleaved([np.arange(len(RECORDINGS))])
    assert [[i for i, _ in step] for step in read(ours)] == plain.positions(3, 0, 32).tolist()


@pytest.mark.parametrize("groups", [None, SHAPES])
@pytest.mark.parametrize("resident", [1, 5, 96, 4096])
def test_an_epoch_reads_every_window_once_and_follows_from_seed_and_epoch(groups, resident):
    order = Resident(groups or [np.arange(len(RECORDINGS))], RECORDINGS, resident)
    first, again, second = (order.positions(7, epoch, 32) for epoch in (0, 0, 1))
    assert sorted(first.ravel().tolist()) == list(range(len(RECORDINGS)))
    assert (first == again).all() and (first != second).mean() > 0.9
    if groups:
        assert np.isin(first, SHAPES[0]).all(1).sum() == len(SHAPES[0]) // 32
        assert (np.isin(first, SHAPES[0]).all(1) | np.isin(first, SHAPES[1]).all(1)).all()


def test_what_does_not_fill_a_step_is_left_out_and_another_epoch_leaves_out_others():
    order = Resident([np.arange(1000)], RECORDINGS[:1000], 6)
    left = [np.setdiff1d(np.arange(1000), order.positions(0, epoch, 64)) for epoch in range(2)]
    assert len(left[0]) == len(left[1]) == 1000 % 64 and not np.isin(left[0], left[1]).all()


@pytest.mark.parametrize("resident", [24, 96, 300])
def test_few_recordings_at_a_time(resident):
    recordings = RECORDINGS[Resident([np.arange(len(RECORDINGS))], RECORDINGS, resident).positions(0, 0, 32)]
    spans = recordings.reshape(-1, 24 * 32 // 4)  # six steps, a quarter of the turns
    assert max(len(np.unique(span)) for span in spans) <= 2 * resident
    assert np.mean([len(np.unique(step)) for step in recordings]) >= 0.9 * min(resident / 24, 12)


def test_processes_share_out_the_same_steps():
    alone = [sorted(step) for step in read(make_loader())]
    for world, batch_size, accumulation in ((1, 8, 4), (2, 16, 1), (4, 4, 2)):
        ranks = [read(make_loader(rank, world, batch_size, accumulation)) for rank in range(world)]
        assert [sorted(sum(parts, [])) for parts in zip(*ranks, strict=True)] == alone


def test_a_restart_anywhere_reads_what_was_left_also_with_other_workers():
    whole = [[i for i, _ in step] for step in read(make_loader(), epoch=1)]
    for start, workers in ((7, 0), (701, 2)):
        rest = read(make_loader(num_workers=workers), epoch=1, start=start)
        assert [[i for i, _ in step] for step in rest] == whole[start:]


@pytest.mark.parametrize("world, workers, start", [(1, 2, 0), (2, 3, 5)])
def test_few_files_are_opened(world, workers, start):
    """By the workers that really read: each recording by one of them, but for those on the border of two pools."""
    reads = []
    for rank in range(world):
        loader = make_loader(rank, world, 32 // world, num_workers=workers)
        reads += [((rank, w), RECORDINGS[i]) for step in read(loader, start=start) for i, w in step]
    assert opens(reads) < len(reads) / 50
    shuffled = Interleaved([np.arange(len(RECORDINGS))]).positions(3, 0, 32)
    assert opens((0, RECORDINGS[i]) for i in shuffled.ravel()) > len(RECORDINGS) / 2


def test_more_than_workers_keep_open_are_refused():
    with pytest.raises(UserError, match="--resident_recordings 129: a data worker has room for 128, that is 128"):
        make_loader(resident=129)
    make_loader(resident=129, num_workers=2)


def test_a_run_that_was_stopped_goes_on_with_the_recordings_it_started_with(tmp_path, monkeypatch):
    corpus, save = stages.write_corpus(tmp_path), Trainer.save
    flags = ("--resident_recordings", 2, "--save_every_steps", 1, "--max_steps", 4)
    whole = stages.train("vq", corpus, tmp_path / "whole", *flags)

    def save_and_stop(trainer, *arguments):
        save(trainer, *arguments)
        if trainer.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "save", save_and_stop)
        stages.train("vq", corpus, tmp_path / "cut", *flags)
    with pytest.raises(UserError, match="--resident_recordings is 3, was 2"):
        stages.train("vq", corpus, tmp_path / "cut", *flags, "--resident_recordings", 3)
    stages.assert_same_run(stages.train("vq", corpus, tmp_path / "cut", *flags), whole)
