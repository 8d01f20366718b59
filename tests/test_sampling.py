"""Which samples a step reads: shares, lengths, nothing lost, whatever the number of processes and the restarts."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from errors import UserError
from training.loading import Loader
from training.sampling import Mixture, apportion, deal, mixing_shares
from utils import start_run

SIZES, LENGTHS = (600, 60, 12), (230, 76, 120)
GROUPS = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
PER_STEP = 16


def make_mixture(mixing="proportional", temperature=2.0, pool=8):
    return Mixture(GROUPS, mixing_shares(SIZES, mixing, temperature), np.repeat(LENGTHS, SIZES), pool)


def padded_share(mixture, parts):
    """Of all positions when every step is cut into so many micro-batches, each padded to its longest sample."""
    lengths = mixture.lengths[mixture.positions(0, 0, PER_STEP)].reshape(-1, PER_STEP // parts)
    return 1 - lengths.sum() / (lengths.max(1) * lengths.shape[1]).sum()


@pytest.mark.parametrize(
    "mixing, shares",
    [("proportional", (600, 60, 12)), ("balanced", (1, 1, 1)), ("temperature", (600**0.5, 60**0.5, 12**0.5))],
)
def test_groups_have_their_shares(mixing, shares):
    mixture = make_mixture(mixing)
    expected = np.array(shares) / sum(shares)
    np.testing.assert_allclose(mixing_shares(SIZES, mixing, 2.0), expected)
    positions = mixture.positions(0, 3, PER_STEP)
    assert positions.shape == (672 // PER_STEP, PER_STEP) == (mixture.steps(PER_STEP), PER_STEP)
    counts = [np.isin(positions, group).sum() for group in GROUPS]
    assert np.abs(counts - expected * positions.size).max() < 1


@pytest.mark.parametrize("mixing", ["proportional", "balanced", "temperature"])
def test_over_many_epochs_every_sample_of_a_group_is_read_equally_often(mixing):
    mixture = make_mixture(mixing)
    read = Counter(np.concatenate([mixture.positions(5, epoch, PER_STEP).ravel() for epoch in range(20)]).tolist())
    for group in GROUPS:
        counts = [read[i] for i in group.tolist()]
        assert max(counts) - min(counts) <= 1 and min(counts) > 0


def test_an_epoch_in_proportion_reads_every_sample_once():
    assert sorted(make_mixture().positions(1, 0, PER_STEP).ravel().tolist()) == list(range(672))


def test_samples_of_one_length_come_together():
    mixed, sorted_in_step, sorted_in_pool = (make_mixture("balanced", pool=pool) for pool in (1, 1, 8))
    assert padded_share(mixed, 1) > 0.3
    assert padded_share(sorted_in_step, 4) < 0.15
    assert padded_share(sorted_in_pool, 1) < 0.1 and padded_share(sorted_in_pool, 4) < 0.03
    first = mixed.positions(0, 0, PER_STEP)[0]
    assert all(np.isin(first, group).any() for group in GROUPS)  # a pool of one step keeps the mixture


def test_numbers_are_apportioned_and_dealt():
    assert apportion([0.5, 0.3, 0.2], 10) == [5, 3, 2] and apportion([1 / 3] * 3, 10) == [4, 3, 3]
    assert apportion([0.1] * 10, 10) == [1] * 10
    group = np.arange(7)
    whole = deal(group, 0, 50, (1,))
    assert [sorted(whole[i : i + 7]) for i in range(0, 49, 7)] == [list(range(7))] * 7
    assert not np.array_equal(whole[:7], whole[7:14])
    for first, count in ((0, 7), (3, 9), (6, 1), (14, 20), (5, 0)):
        np.testing.assert_array_equal(deal(group, first, count, (1,)), whole[first : first + count])


def test_a_temperature_that_means_nothing_is_refused():
    with pytest.raises(UserError, match="--mixing_temperature 0 must be above 0"):
        mixing_shares(SIZES, "temperature", 0.0)


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 672

    def __getitem__(self, i):
        return i


def read(rank, world, batch_size, accumulation=1, first=(0, 0), **kwargs):
    """The samples of each step of two epochs on one of the processes, from a (epoch, step) on."""
    run = replace(start_run("cpu", seed=3), rank=rank, world_size=world)
    loader = Loader(Numbers(), batch_size, run, list, accumulation, mixture=make_mixture("balanced"), **kwargs)
    steps = [loader.epoch(epoch, first[1] if epoch == first[0] else 0) for epoch in range(first[0], 2)]
    return [sum(micro_batches, []) for epoch in steps for micro_batches in epoch]


def test_processes_share_out_the_same_steps():
    alone = [sorted(step) for step in read(0, 1, 16)]
    for world, batch_size, accumulation in ((1, 4, 4), (2, 8, 1), (4, 2, 2)):
        ranks = [read(rank, world, batch_size, accumulation) for rank in range(world)]
        assert [sorted(sum(parts, [])) for parts in zip(*ranks, strict=True)] == alone


def test_a_restart_anywhere_reads_what_was_left():
    whole = read(0, 1, 16)
    assert read(0, 1, 16, first=(0, 5)) == whole[5:] and read(0, 1, 16, first=(1, 41)) == whole[42 + 41 :]


def test_overfitting_reads_the_same_batches_over_and_over():
    whole, few = read(0, 1, 16), read(0, 1, 16, overfit_batches=4)
    assert few == [whole[i % 4] for i in range(84)]
    assert read(0, 1, 16, first=(1, 3), overfit_batches=4) == few[42 + 3 :]
    with pytest.raises(UserError, match="--overfit_batches 43: the training set has 42 of them"):
        read(0, 1, 16, overfit_batches=43)
