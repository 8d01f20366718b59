"""Are datasets what their manifests say? Reads every file and prints a line for each problem.

python dataset_maker/check_dataset.py datasets/TUAB datasets/TUSL

Looks at the manifest, files that are missing or not listed, channels, length, windows and labels, sha256, amplitudes
of each recording (NaN, flat, not in uV), and subjects in two splits, also of different datasets. Exit status 1 where
there is a problem.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

import errors
from dataset.amplitudes import find_problem
from dataset.leaks import find_leaks, read_roster
from dataset.recordings import SPLITS, RecordingReader, read_manifest, segments
from dataset.verify import hash_file
from dataset_maker.machinery.splits import HELD
from errors import UserError
from training.numbers import Help, positive

PROBLEMS = 1  # exit status


def check_recording(recording) -> list[str]:
    """What is wrong with one recording of a manifest."""
    if not recording.path.is_file():
        return [f"{recording.path} is missing"]
    found = []
    if recording.sha256 != hash_file(recording.path):
        found.append(f"{recording.path}: its sha256 is not the manifest's ({recording.sha256[:12] or 'none'}...)")
    for check in (check_windows, check_amplitudes):
        try:
            check(recording)
        except UserError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def check_windows(recording) -> None:
    if recording.labels:
        segments(recording)


def check_amplitudes(recording) -> None:
    problem = find_problem(RecordingReader().read(recording, 0, recording.samples), recording.channels)
    if problem:
        raise UserError(f"{recording.path}: {problem}")


def check_listing(folder, recordings) -> list[str]:
    """Files that the manifest does not list."""
    listed = {recording.path for recording in recordings}
    found = (path for split in SPLITS for path in sorted((folder / split).rglob("*.h5")))
    return [f"{path} is not in the manifest" for path in found if path not in listed]


def check_people(folders) -> tuple[list[str], list[str]]:
    """Subjects in two splits of all folders -> problems, and remarks on what is published so or cannot be compared."""
    rosters = [*map(read_roster, folders)]
    trained = [roster.trained(["train"]) for roster in rosters]
    found = find_leaks(trained, rosters, HELD)
    for roster in rosters:  # nor may validation hold whom the test holds, in a dataset
        between = find_leaks([roster.trained(["val"])], [roster], ["test"])
        found.leaks += [line.replace("in training of", "in val of") for line in between.leaks]
    return found.leaks, found.published + found.not_compared


def check_all(recordings, workers):
    """Yield each recording's problems, as processes find them."""
    pool = ProcessPoolExecutor(workers)
    try:
        yield from tqdm(pool.map(check_recording, recordings), total=len(recordings), unit="file")
    except BrokenProcessPool:
        raise UserError("a worker died: a file crashes the HDF5 library, or take fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="dataset folder")
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes (default: all cores)")
    return parser.parse_args(argv)


def main(args):
    recordings, problems, sound = [], [], []
    for folder in args.folders:
        try:
            mine = read_manifest(folder)
            problems += check_listing(folder, mine)
            recordings += mine
            sound.append(folder)
        except UserError as error:
            problems.append(str(error))
    leaks, remarks = check_people(sound)
    problems += leaks
    for found in check_all(recordings, args.workers):
        problems += found
    print("\n".join([f"problem: {line}" for line in problems] + [f"remark: {line}" for line in remarks]))
    print(f"{len(recordings)} recordings of {len(args.folders)} datasets: {len(problems) or 'no'} problems")
    if problems:
        sys.exit(PROBLEMS)


if __name__ == "__main__":
    errors.run(main, get_args)
