"""From raw EDF to a table of answers: the whole of NeuroLM at size tiny, on simulated EEG or on a folder of eegmat.

make demo                          simulated recordings; fails unless the test balanced accuracy is above 0.9
make demo RAW=/path/to/eegmat      the same on PhysioNet's "EEG During Mental Arithmetic Tasks"

Every command it runs is printed. Recordings, models, results and figures are in demo/ afterwards.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import errors
from errors import UserError
from evaluation import figures
from training.numbers import Help

ROOT = Path(__file__).resolve().parent
PASS = 0.9  # test balanced accuracy on the simulated task
STAGES = {"tokenizer": "VQ", "pre-training": "NeuroLM-tiny", "instruction tuning": "instruction-tiny"}


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--raw", help="folder of eegmat's EDF files; default: simulated ones")
    parser.add_argument("--out_dir", default="demo", help="folder that is made anew")
    parser.add_argument("--seed", type=int, default=1337, help="of recordings and training")
    return parser.parse_args(argv)


def main(args):
    out_dir = Path(args.out_dir).resolve()
    raw, datasets = out_dir / "raw", out_dir / "datasets"
    started = time.monotonic()
    for folder in (raw, datasets, out_dir / "checkpoints"):  # an earlier demo's
        shutil.rmtree(folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------- recordings to datasets
    corpora = ["Workload"]
    if not args.raw:
        corpora = ["pretrain", "Workload"]
        for layout in corpora:
            run("dataset_maker/simulate.py", layout=layout, out_dir=raw / layout, seed=args.seed)
        run("dataset_maker/make_h5dataset_for_pretrain.py", raw_dir=raw / "pretrain", out_dir=datasets / "pretrain",
            val_fraction=0.2)  # fmt: skip
    raw_workload = Path(args.raw).resolve() if args.raw else raw / "Workload"
    run("dataset_maker/make_Workload.py", raw_dir=raw_workload, out_dir=datasets / "Workload")
    run("text_dataset_maker/prepare.py", "--overwrite", source="stdlib", out_dir=out_dir / "text")

    # ------------------------------------------------------------------------------------------- the three stages
    common = {"size": "tiny", "dataset_dir": datasets, "out_dir": out_dir, "seed": args.seed, "num_workers": 0}
    run("train_vq.py", datasets=corpora, epochs=3, warmup_epochs=1, batch_size=8, text_batch_size=2, block_size=256,
        learning_rate=5e-4, revive_dead_codes=20, **common)  # fmt: skip
    run("train_pretrain.py", "--band_power", datasets=corpora, epochs=1, max_steps=60, warmup_epochs=0,
        eeg_batch_size=4, text_batch_size=1, block_size=128, learning_rate=1e-3, **common)  # fmt: skip
    run("train_instruction.py", tasks="Workload", epochs=4, eeg_batch_size=16, text_batch_size=0, dropout=0.1,
        learning_rate=1e-3, **common)  # fmt: skip

    # ---------------------------------------------------------------------------------------- figures and verdict
    folders = {title: out_dir / "checkpoints" / stage for title, stage in STAGES.items()}
    metrics = {title: folder / "metrics.jsonl" for title, folder in folders.items()}
    drawn = [figures.plot_losses(metrics, out_dir / "losses.png")]
    for figure in (figure for folder in folders.values() for figure in sorted((folder / "figures").glob("*.png"))):
        drawn.append(Path(shutil.copy(figure, out_dir / figure.name)))
    results = json.loads((folders["instruction tuning"] / "results.json").read_text())["results"]
    accuracy = next(row["metrics"]["balanced_accuracy"] for row in results if row["split"] == "test")
    minutes = (time.monotonic() - started) / 60
    print(f"\nfigures: {', '.join(str(path) for path in drawn)}")
    print(f"{minutes:.1f} minutes, test balanced accuracy {accuracy:.3f}")
    if not args.raw and accuracy <= PASS:
        raise UserError(f"the task can be learnt to a balanced accuracy above {PASS}, this run has {accuracy:.3f}")


def run(script: str, *switches: str, **flags) -> None:
    """Run a script of the project as a user would, and stop with it when it fails."""
    command = [script, *switches]
    for name, value in flags.items():
        command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    print(f"\n$ python {' '.join(command)}", flush=True)
    done = subprocess.run([sys.executable, *command], cwd=ROOT)
    if done.returncode:
        raise UserError(f"{script} ended with status {done.returncode}; its message is above")


if __name__ == "__main__":
    errors.run(main, get_args)
