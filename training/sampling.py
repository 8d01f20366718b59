"""Which samples the steps of an epoch read: it follows from (seed, epoch) alone, whatever the number of processes.

An order says how many steps of `per_step` samples an epoch has, and which: `steps(per_step)` and
`positions(seed, epoch, per_step)` -> (steps, per_step) int64, positions in the dataset.

A process takes the same places of every step, and its data workers take its steps in turn: `Resident` keeps windows of
one recording to the places and turns of one worker, whatever the numbers of processes and workers are.
"""

import numpy as np

from errors import UserError

MIXINGS = ("proportional", "balanced", "temperature")
TURNS = (24, 12, 8, 6, 4, 3, 2, 1)  # steps after which a data worker is at the same recordings again


class Interleaved:
    """Every step is of one group of samples, and the groups take turns in proportion to their sizes.

    Incomplete steps, of each group, are left out; another epoch leaves out others.
    """

    def __init__(self, groups):
        self.groups = groups

    def steps(self, per_step: int) -> int:
        return sum(len(group) // per_step for group in self.groups)

    def positions(self, seed: int, epoch: int, per_step: int) -> np.ndarray:
        random_numbers = np.random.default_rng([seed, epoch])
        steps, moments = [], []
        for group in self.groups:
            order = random_numbers.permutation(group)
            steps.append(order[: len(order) // per_step * per_step].reshape(-1, per_step))
            moments.append((np.arange(len(steps[-1])) + random_numbers.random()) / max(len(steps[-1]), 1))
        return np.concatenate(steps)[np.argsort(np.concatenate(moments), kind="stable")]


class Resident(Interleaved):
    """As Interleaved, but windows are drawn among few recordings at a time, which a reader can keep open.

    An epoch's recordings, in random order, are dealt out to pools. A pool fills some places of every 24th step (of
    fewer `TURNS` where few recordings are resident): from some recordings until all is read, then from the next ones.
    """

    def __init__(self, groups, recordings, resident: int):
        """recordings (n,): the number of each sample's recording; resident: of so many, over all processes and groups,
        are windows drawn at a time."""
        super().__init__(groups)
        self.recordings, self.resident = recordings, resident

    def positions(self, seed: int, epoch: int, per_step: int) -> np.ndarray:
        random_numbers = np.random.default_rng([seed, epoch])
        counts = [len(group) // per_step for group in self.groups]
        moments = [(np.arange(count) + random_numbers.random()) / max(count, 1) for count in counts]
        groups = np.repeat(np.arange(len(counts)), counts)[np.argsort(np.concatenate(moments), kind="stable")]
        positions = np.empty((len(groups), per_step), dtype=np.int64)
        for number, group in enumerate(self.groups):
            resident = max(1, self.resident * len(group) // sum(map(len, self.groups)))
            turns = next(turns for turns in TURNS if turns <= resident)
            pools = max(n for n in range(1, per_step + 1) if per_step % n == 0 and n * turns <= resident)
            places = random_numbers.permutation(self.recordings.max() + 1)[self.recordings[group]]
            order, steps = group[np.argsort(places, kind="stable")], np.flatnonzero(groups == number)
            shares = np.diff(np.arange(turns * pools + 1) * resident // (turns * pools)).reshape(turns, pools)
            for turn in range(turns):
                mine = steps[steps % turns == turn]
                dealt, order = np.split(order, [len(mine) * per_step])
                parts = zip(np.split(dealt, pools), shares[turn], strict=True)
                rows = np.stack([self._draw(*part, random_numbers) for part in parts])
                rows = rows.reshape(pools, len(mine), per_step // pools)
                positions[mine] = rows.swapaxes(0, 1).reshape(len(mine), per_step)
        return positions

    def _draw(self, pool, each: int, random_numbers) -> np.ndarray:
        """A pool's windows, which are sorted by recording: so many recordings at a time, their windows shuffled."""
        nth = np.cumsum(np.diff(self.recordings[pool], prepend=self.recordings[pool[:1]]) != 0)  # recording of the pool
        return pool[np.lexsort((random_numbers.random(len(pool)), nth // each))]


class Mixture:
    """Groups of samples mixed in given shares; samples of similar length share a micro-batch.

    Each group is a deck of cards that is dealt on from epoch to epoch and shuffled anew when it is used up: whatever
    its share, none of its samples is read twice before all were read. An epoch reads as many samples as there are.
    """

    def __init__(self, groups, shares, lengths, pool: int = 1):
        """groups: arrays of positions; shares: of each group, summing to 1; lengths (n,): of each sample; pool: of so
        many steps the samples are sorted by length and cut into steps. 1, as officially: a step keeps the whole
        mixture, and a group its share of the loss; more: less padding, but many steps are of one group."""
        self.groups, self.shares, self.lengths, self.pool = groups, np.asarray(shares), np.asarray(lengths), pool

    def steps(self, per_step: int) -> int:
        return sum(map(len, self.groups)) // per_step

    def positions(self, seed: int, epoch: int, per_step: int) -> np.ndarray:
        steps = self.steps(per_step)
        counts = apportion(self.shares, steps * per_step)
        dealt = [
            deal(group, count * epoch, count, (seed, number))
            for number, (group, count) in enumerate(zip(self.groups, counts, strict=True))
        ]
        random_numbers = np.random.default_rng([seed, epoch])
        order = random_numbers.permutation(np.concatenate(dealt))
        pools = np.split(order, range(self.pool * per_step, len(order), self.pool * per_step))
        by_length = [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        return random_numbers.permutation(np.concatenate(by_length).reshape(steps, per_step))


def mixing_shares(sizes, mixing: str, temperature: float) -> np.ndarray:
    """The share of each group of samples. mixing: "proportional" to its size; "balanced", all alike; "temperature", as
    its size to the power of 1 / temperature. Raises UserError for a temperature that is not above 0."""
    if not temperature > 0:
        raise UserError(f"--mixing_temperature {temperature:g} must be above 0; 1 is proportional, large is balanced")
    power = dict(zip(MIXINGS, (1.0, 0.0, 1 / temperature), strict=True))[mixing]
    weights = np.asarray(sizes, dtype=float) ** power
    return weights / weights.sum()


def apportion(shares, total: int) -> list[int]:
    """Whole numbers in the given shares that add up to `total` (largest remainders)."""
    exact = np.asarray(shares) * total
    counts = np.floor(exact + 1e-9).astype(int)
    largest = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[largest] += 1
    return counts.tolist()


def deal(group: np.ndarray, first: int, count: int, key: tuple[int, ...]) -> np.ndarray:
    """Cards first .. first + count - 1 of an endless deck: shuffled copies of `group`, one after another."""
    n = len(group)
    passes = range(first // n, -(-(first + count) // n))
    cards = [np.random.default_rng([*key, number]).permutation(group) for number in passes]
    return np.concatenate([group[:0], *cards])[first % n :][:count]
