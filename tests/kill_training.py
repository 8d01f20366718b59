"""Kill a stage of NeuroLM with SIGKILL at random moments, resume it, and compare with a run that nobody stopped.

python tests/kill_training.py --stage pretrain --kills 20
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import stages  # noqa: E402


def start(stage: str, corpus, out_dir, *more):
    """The stage as a process of its own: a fork, which starts at once."""

    def work():
        log = os.open(out_dir / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        stages.train(stage, corpus, out_dir, "--save_every_steps", 1, *more)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def wait_for_moment(process, folder: Path, chance: random.Random) -> str:
    """Let the process live until a random moment: while it starts, between two saves, or while it saves."""
    newest, writing = folder / "ckpt.pt", folder / ".ckpt.pt.tmp"
    kind = chance.choice(["starting", "training", "saving", "saving"])
    if kind == "starting":
        time.sleep(chance.uniform(0, 1))
        return kind
    before = newest.stat().st_mtime_ns if newest.exists() else 0
    while process.is_alive() and not (newest.exists() and newest.stat().st_mtime_ns > before):
        time.sleep(0.001)
    if kind == "training":
        time.sleep(chance.uniform(0, 1))
        return kind
    while process.is_alive() and not writing.exists():
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, 0.1))
    return f"saving, {'half' if writing.exists() else 'just'} written"


def kill_and_resume(stage: str, corpus, out_dir, kills: int, seed: int = 0, *more) -> list[str]:
    """Run a stage that is killed `kills` times -> at which kind of moment; fewer when it ends before that."""
    out_dir.mkdir(parents=True, exist_ok=True)
    folder, chance, moments = out_dir / "checkpoints" / stages.FOLDERS[stage], random.Random(seed), []
    while len(moments) < kills:
        process = start(stage, corpus, out_dir, *more)
        moment = wait_for_moment(process, folder, chance)
        if not process.is_alive():
            break
        process.kill()
        process.join()
        moments.append(moment)
    last = start(stage, corpus, out_dir, *more)
    last.join()
    if last.exitcode:
        raise RuntimeError((out_dir / "log").read_text()[-3000:])
    return moments


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=stages.SCRIPTS, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12, help="of 5 steps: must outlast the kills")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(args):
    folder = Path(tempfile.mkdtemp())
    corpus = stages.write_corpus(folder / "corpus")
    stages.train_all(corpus)
    more = ["--epochs", args.epochs, "--num_workers", 1]
    for name, kills in (("whole", 0), ("killed", args.kills)):
        moments = kill_and_resume(args.stage, corpus, folder / name, kills, args.seed, *more)
    whole, killed = (folder / name / "checkpoints" / stages.FOLDERS[args.stage] for name in ("whole", "killed"))
    stages.assert_same_run(killed, whole)
    counts = ", ".join(f"{moments.count(moment)} {moment}" for moment in sorted(set(moments)))
    print(f"{args.stage}: killed {len(moments)} times ({counts}), then equal bit for bit to a run that was not")


if __name__ == "__main__":
    main(get_args())
