"""Batches: for training in a reproducible order, for evaluation each sample once, on this process's device.

The order follows from (seed, epoch) alone: a resumed run needs no state of random generators or data workers.
"""

import numpy as np
import torch
from torch.utils.data import DataLoader

from dataset.checks import check_finite
from dataset.recordings import MAX_OPEN
from errors import UserError, ignore_signals
from training.sampling import Interleaved, Mixture, Resident
from utils import Run

CHECKED = 8  # batches of a run that are looked at
MEASURED = 16  # steps whose features are measured


class Loader:
    """Training batches in an order that follows from (seed, epoch) alone, whatever the number of processes.

    A step takes `accumulation` micro-batches on every process. With `groups` (arrays of positions in the dataset that
    may share a batch) every step is of one group, and the groups take turns in proportion to their sizes; a `mixture`
    is another order. With `overfit_batches` the first so many steps are read over and over.
    """

    def __init__(self, dataset, batch_size: int, run: Run, collate, accumulation: int = 1, num_workers: int = 0,
                 groups=None, mixture: Mixture | None = None, overfit_batches: int = 0, check=None,
                 resident: int | None = None, recordings=None):  # fmt: skip
        """check: called with the first CHECKED batches; raises UserError for one that cannot be right. resident: draw
        among so many recordings at a time, as `Resident` does; recordings (n,): the number of each sample's."""
        self.check, self.unchecked = check, CHECKED if check else 0
        self.dataset, self.run, self.accumulation = dataset, run, accumulation
        self.batch_size, self.overfit_batches = batch_size, overfit_batches
        groups = [np.arange(len(dataset))] if groups is None else groups
        order = mixture or (Resident(groups, recordings, resident) if resident else Interleaved(groups))
        most = MAX_OPEN // 2 * run.world_size * max(num_workers, 1)  # what has just been read to its end is open, too
        if resident and resident > most:
            raise UserError(
                f"--resident_recordings {resident}: a data worker has room for {MAX_OPEN // 2}, that is {most} with "
                f"{run.world_size} process(es) x --num_workers {num_workers}"
            )
        per_step = batch_size * run.world_size * accumulation
        self.steps_per_epoch, self.samples_per_step = order.steps(per_step), per_step
        sizes = f"{run.world_size} process(es) x batch size {batch_size} x {accumulation} accumulated"
        if self.steps_per_epoch == 0:
            largest = max((len(group) for group in groups), default=0)
            raise UserError(
                f"the training set has {largest} samples{' of one shape' * (len(groups) > 1)}, fewer than the "
                f"{per_step} of one step ({sizes}): take a smaller batch size"
            )
        small = [len(group) for group in groups if len(group) < per_step]
        if small:
            run.say(
                f"{sum(small)} of {len(dataset)} training samples are never drawn: they are of {len(small)} shape(s) "
                f"with fewer samples than the {per_step} of one step ({sizes}); a smaller batch size would use them"
            )
        if not 0 <= overfit_batches <= self.steps_per_epoch:
            raise UserError(f"--overfit_batches {overfit_batches}: the training set has {self.steps_per_epoch} of them")
        self.sampler = _StepSampler(order, per_step, self)
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            collate_fn=collate,
            num_workers=num_workers,
            worker_init_fn=ignore_signals,
            persistent_workers=num_workers > 0,
            pin_memory=run.device.type == "cuda",
        )

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None):
        """For each step from `start` to `stop` of the epoch: the list of its micro-batches, on the device."""
        stop = self.steps_per_epoch if stop is None else stop
        if start >= stop:
            return
        self.sampler.take(epoch, start, stop)
        micro_batches = []
        for batch in self.loader:
            if self.unchecked:
                self.check(batch)
                self.unchecked -= 1
            micro_batches.append(to_device(batch, self.run.device))
            if len(micro_batches) == self.accumulation:
                yield micro_batches
                micro_batches = []

    def to_measure(self):
        """The micro-batches of the first MEASURED steps, on the device: what statistics of the input are taken from."""
        steps = self.epoch(0, 0, min(MEASURED, self.steps_per_epoch))
        return (batch for micro_batches in steps for batch in micro_batches)

    def batch_number(self, step: int) -> int:
        """Which batch the run's step number `step` reads: its own, or one of the `overfit_batches`. What else is drawn
        for a step, such as text, follows from this number."""
        return step % self.overfit_batches if self.overfit_batches else step


class _StepSampler:
    """Batch sampler: this rank's micro-batches of the steps first..last of an epoch."""

    def __init__(self, order, per_step: int, loader: Loader):
        self.order, self.per_step, self.loader = order, per_step, loader
        self.take(0, 0, 0)

    def take(self, epoch: int, first: int, last: int) -> None:
        self.epoch, self.first, self.last = epoch, first, last

    def __len__(self):
        return (self.last - self.first) * self.loader.accumulation

    def __iter__(self):
        loader, epoch, steps = self.loader, self.epoch, range(self.first, self.last)
        if loader.overfit_batches:
            steps = [loader.batch_number(epoch * loader.steps_per_epoch + step) for step in steps]
            epoch = 0
        positions = self.order.positions(loader.run.seed, epoch, self.per_step)
        for step in steps:
            for i in range(loader.accumulation):
                rows = loader.run.rows(i, loader.batch_size)
                yield positions[step, rows.start : rows.stop].tolist()


def evaluation_loader(dataset, batch_size: int, run: Run, collate, num_workers: int = 0, groups=None):
    """Every sample once, a batch from one of the `groups` (as in Loader): the processes take every world_size-th one of
    a group; their counts may differ by one. Raises UserError for a recording whose values are not finite."""
    blocks = []
    for group in [np.arange(len(dataset))] if groups is None else groups:
        mine = group[run.rank :: run.world_size].tolist()
        blocks += [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    loader = DataLoader(
        dataset, batch_sampler=blocks, collate_fn=collate, num_workers=num_workers, worker_init_fn=ignore_signals
    )
    for batch in loader:
        check_finite(batch)
        yield to_device(batch, run.device)


def to_device(batch, device: torch.device):
    """Tensors in nested dictionaries to the device; everything else stays."""
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch
