"""Which shards of a maker have failed or are not finished?

python dataset_maker/status.py datasets/TUEG

Reads what the shards write as they go and prints a line for each that has more to do: how far it is, when it last
finished a file, and why it ended, where it could say so. Exit status 1 where there is one.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset import storage
from dataset_maker.machinery.ledger import bring_progress, read_progress

UNFINISHED = 1  # exit status


def describe_shard(progress, shard: int, shards: int, files: int) -> str | None:
    """A line on a shard of a corpus of so many files; None where it is done."""
    path = progress / f"{shard}-of-{shards}.jsonl"
    mine, failed = len(range(shard, files, shards)), path.with_suffix(".failed")
    done = len({record["file"] for record in read_progress(path)}) if path.is_file() else 0
    if done >= mine and not failed.is_file():
        return None
    hours = (time.time() - path.stat().st_mtime) / 3600 if path.is_file() else 0
    since = f", nothing new for {hours:.1f} h" if path.is_file() else ", not started"
    why = f"; it failed: {failed.read_text(encoding='utf-8').strip()}" if failed.is_file() else ""
    return f"--shard {shard}/{shards}: {done} of {mine} files{since}{why}"


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=storage.local, help="--out_dir of the maker")
    return parser.parse_args(argv)


def main(args):
    bring_progress(args.folder)
    progress, name = args.folder / "progress", storage.shown(args.folder)
    shards = sorted(progress.glob("*-of-*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not shards or not (progress / "corpus.json").is_file():
        raise errors.UserError(f"{name} has no progress/: give the --out_dir of a maker that has been started")
    files = json.loads((progress / "corpus.json").read_text())["files"]
    status = {record["file"]: record["status"] for path in shards for record in read_progress(path)}
    refused, n = list(status.values()).count("refused"), int(shards[-1].stem.split("-of-")[1])
    lines = [line for shard in range(n) if (line := describe_shard(progress, shard, n, files))]
    if len(status) >= files:  # another number of shards has made what was left
        lines = [line for line in lines if "failed" in line]
    finished = "manifest.csv is written" if (args.folder / "manifest.csv").is_file() else "no manifest.csv yet"
    print(f"{name}: {len(status)} of {files} files, {refused} of them refused; {finished}")
    print("\n".join(lines or ["no shard has more to do"]))
    if lines:
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    errors.run(main, get_args)
