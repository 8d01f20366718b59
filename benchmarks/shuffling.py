"""What --resident_recordings does to the order of windows, and to how often files are opened.

python benchmarks/shuffling.py --recordings 70000 --windows 80 --processes 8 --num_workers 6

For some K: how many recordings a step is of; how likely two windows of a step, or of steps 1 and 24 apart, are of one
recording, where any two windows of the epoch would be once in `recordings` (the autocorrelation of the order); and how
many files the data workers open for a window.
"""

import argparse
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.recordings import MAX_OPEN
from training.flags import positive
from training.sampling import Interleaved, Resident

LAGS = (0, 1, 24)  # steps


def meeting(steps, lag: int) -> float:
    """How likely a window and another one, `lag` steps later, are of one recording. steps (S, per_step): recordings."""
    pairs = len(steps[0]) * (len(steps[0]) - (lag == 0))
    same = 0
    for now, later in zip(steps[: len(steps) - lag], steps[lag:], strict=True):
        counts = [np.bincount(step, minlength=steps.max() + 1) for step in (now, later)]
        same += (counts[0] * counts[1]).sum() - len(now) * (lag == 0)
    return same / pairs / (len(steps) - lag)


def opens(steps, processes: int, workers: int) -> float:
    """Files opened for a window, by workers that take the steps in turn and keep the last MAX_OPEN open."""
    count = 0
    for process, places in enumerate(np.split(steps, processes, axis=1)):
        for worker in range(workers):
            kept = OrderedDict()
            for recording in places[worker::workers].ravel().tolist():
                count += recording not in kept
                kept[recording] = process
                kept.move_to_end(recording)
                if len(kept) > MAX_OPEN:
                    kept.popitem(last=False)
    return count / steps.size


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=positive, default=70_000)
    parser.add_argument("--windows", type=positive, default=80, help="of a recording, on average")
    parser.add_argument("--batch", type=positive, default=512, help="windows of a step, over all processes")
    parser.add_argument("--processes", type=positive, default=8)
    parser.add_argument("--num_workers", type=positive, default=6)
    parser.add_argument("--resident", type=positive, nargs="+", default=[6144, 3072, 768, 192])
    return parser.parse_args(argv)


def main(args):
    lengths = np.random.default_rng(0).integers(args.windows // 2, args.windows * 3 // 2, args.recordings)
    recordings = np.repeat(np.arange(args.recordings), lengths)
    print("| K | recordings in a step | same, in a step | 1 step apart | 24 steps apart | opens a window |")
    print("|---|---|---|---|---|---|")
    for resident in (None, *args.resident):
        every = [np.arange(len(recordings))]
        order = Resident(every, recordings, resident) if resident else Interleaved(every)
        steps = recordings[order.positions(0, 0, args.batch)]
        middle = steps[len(steps) // 2 :][:200]
        likely = [meeting(middle, lag) for lag in LAGS]
        same = " | ".join(f"1 in {1 / share:,.0f}" if share else "never" for share in likely)
        mixed = np.mean([len(np.unique(step)) for step in middle])
        print(f"| {resident or 'all'} | {mixed:.0f} | {same} | {opens(steps, args.processes, args.num_workers):.4f} |")


if __name__ == "__main__":
    main(get_args())
