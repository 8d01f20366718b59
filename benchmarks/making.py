"""Recording-hours made per core-hour, against the same MNE calls written plainly.

python benchmarks/making.py --raw_dir raw/eegmat --files 12

Times are processor time of one process; the files are in the page cache after a first look. "made" is all that a maker
does to a file: reading, checks, filters, writing HDF5 and its sha256.
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import mne
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.channels import canonical_name
from dataset.hdf5 import RATE
from dataset_maker.machinery.arrays import SUFFIXES
from dataset_maker.machinery.corpus import Recipe, make_file
from dataset_maker.machinery.preprocessing import load_recording
from dataset_maker.machinery.sources import Source, find_files


def plain(path, notch) -> np.ndarray:
    """The papers' preprocessing as anyone would write it."""
    raw = mne.io.read_raw(path, preload=True)
    raw.pick([name for name in raw.ch_names if canonical_name(name)])
    return raw.filter(0.1, 75.0).notch_filter(notch).resample(RATE).get_data(units="uV")


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw_dir", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--files", type=int, default=12, help="how many of them, evenly chosen")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--notch", type=float, default=50.0)
    return parser.parse_args(argv)


def main(args):
    warnings.simplefilter("ignore")
    mne.set_log_level("ERROR")
    paths = find_files(args.raw_dir, SUFFIXES, "recordings")
    paths = paths[:: max(1, len(paths) // args.files)][: args.files]
    hours = sum(load_recording(path).eeg.shape[1] for path in paths) / RATE / 3600
    with tempfile.TemporaryDirectory() as folder:
        args.out_dir, args.dtype = Path(folder), "float32"
        sources = [Source(path, f"r{number}", "s", "train") for number, path in enumerate(paths)]
        ways = {
            "plain MNE": lambda: [plain(path, args.notch) for path in paths],
            "load_recording": lambda: [load_recording(path, notch=args.notch) for path in paths],
            "made": lambda: [make_file(args, Recipe("noise", ""), source) for source in sources],
        }
        for name, work in ways.items():
            times = []
            for _ in range(args.repeats):
                begin = time.process_time()
                work()
                times.append(time.process_time() - begin)
            print(f"{name:15} {hours / (min(times) / 3600):7.0f} recording-hours per core-hour")


if __name__ == "__main__":
    errors.run(main, get_args)
