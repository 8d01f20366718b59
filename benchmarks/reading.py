"""What reading costs: random windows, memory over many reads, and opening a large manifest.

python benchmarks/reading.py --recordings 200 --reads 10000

Makes recordings of noise in a temporary folder (1.1 GB by default), which the page cache then holds. Times are
processor time of one process: the cost of the code, not of a disk or of other programs.
"""

import argparse
import csv
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.channels import TUH_CHANNELS
from dataset.hdf5 import RATE
from dataset.recordings import RecordingReader, open_dataset
from dataset_maker.machinery.corpus import write_h5
from dataset_maker.machinery.ledger import MANIFEST


def make_dataset(folder, recordings, seconds, dtype, files=True) -> None:
    """A dataset of noise in our layout; without `files` only the manifest and empty files."""
    eeg = 20 * np.random.default_rng(0).standard_normal((len(TUH_CHANNELS), seconds * RATE)).astype(dtype)
    (folder / "train").mkdir(parents=True)
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"name": "noise", "labels": None, "rate": RATE}))
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(MANIFEST)
        for number in range(recordings):
            name = f"r{number:06}"
            writer.writerow((name, "train", f"s{number // 3}", " ".join(TUH_CHANNELS), seconds, 0, "", "0" * 64))
            path = folder / "train" / f"{name}.h5"
            if files:
                write_h5(path, name, eeg, TUH_CHANNELS)
            else:
                path.touch()


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=300, help="of each recording")
    parser.add_argument("--window", type=int, default=10, help="seconds")
    parser.add_argument("--reads", type=int, default=10_000)
    parser.add_argument("--max_open", type=int, nargs="+", default=[256, 64], help="open files of a reader, each tried")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--rows", type=int, default=70_000, help="of the large manifest")
    return parser.parse_args(argv)


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder, "noise"), args.recordings, args.seconds, args.dtype)
        recordings = open_dataset(Path(folder, "noise"), "train")
        length, samples = args.window * RATE, args.seconds * RATE
        for max_open in args.max_open:
            rng, reader = np.random.default_rng(1), RecordingReader(max_open)
            for part in ("first", "second"):
                which = rng.integers(args.recordings, size=args.reads // 2)
                starts = rng.integers(samples - length, size=args.reads // 2)
                begin = time.process_time()
                for number, start in zip(which, starts, strict=True):
                    reader.read(recordings[number], int(start), int(start) + length)
                cost = (time.process_time() - begin) / len(which) * 1e3
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(f"max_open {max_open}, {part} half: {cost:.3f} ms a read, peak memory {memory:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder, "large"), args.rows, 1500, args.dtype, files=False)
        begin = time.process_time()
        found = len(open_dataset(Path(folder, "large"), "train"))
        print(f"manifest of {found} recordings opened in {time.process_time() - begin:.2f} s")


if __name__ == "__main__":
    errors.run(main, get_args)
