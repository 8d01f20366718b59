"""Pre-training hours x size against validation loss and a linear probe: a table and a figure, from one command.

python benchmarks/scaling.py --dataset_dir D --datasets eegmmidb --tasks Workload --text_dir text --out_dir runs/scaling

Runs the three stages of NeuroLM for each cell by series.py, the smallest first; run it again and it goes on, --table
shows what is there. Validation loss is that of the tokenizer (stage 1), which all sizes measure in the same unit. Who
is in --datasets must not be tested by --tasks: the leak check refuses it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from evaluation.pooling import group_repeats, pool_runs
from evaluation.results import draw_table, read_run
from training.numbers import natural, nonnegative, positive

COMMON = "--size {size} --dataset_dir {data} --text_dir {text} --num_workers 0 --seed {{seed}} --block_size 256"
RATES = {True: "--learning_rate auto", False: "--learning_rate 0 --min_lr 0 --max_steps 1"}  # trained or not


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--dataset_dir", required=True)
    flag("--datasets", nargs="+", required=True, help="to pre-train on")
    flag("--tasks", nargs="+", required=True, help="to probe")
    flag("--text_dir", required=True)
    flag("--out_dir", required=True)
    flag("--sizes", nargs="+", default=["tiny", "mini", "small"])
    flag("--hours", nargs="+", type=nonnegative, default=[0.0, 0.5, 2.0, 5.0], help="of pre-training; 0: none")
    flag("--epochs", type=positive, default=3, help="of pre-training")
    flag("--folds", type=positive, default=7)
    flag("--seeds", nargs="+", type=natural, default=[0])
    flag("--table", action="store_true", help="run nothing")
    return parser.parse_args(argv)


def main(args):
    out_dir = Path(args.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    variants = {f"{size}-{hours:g}h": plan_cell(args, size, hours) for size in args.sizes for hours in args.hours}
    plan = {"out_dir": str(out_dir), "folds": args.folds, "seeds": args.seeds, "variants": variants}
    (out_dir / "series.yaml").write_text(yaml.safe_dump(plan, sort_keys=False, width=1000))
    if not args.table:
        series = Path(__file__).resolve().parents[1] / "series.py"
        subprocess.run([sys.executable, series, out_dir / "series.yaml"], check=False)  # says itself what failed
    rows = [row for size in args.sizes for hours in args.hours if (row := read_cell(args, size, hours))]
    header = ["size", "hours", "validation loss, stage 1", "probe: dataset", "balanced accuracy", "AUROC or kappa"]
    print(draw_table(header, rows))
    draw(rows, out_dir / "scaling.png")


def plan_cell(args, size: str, hours: float) -> list[str]:
    """The commands of one size and number of hours."""
    common = COMMON.format(size=size, data=args.dataset_dir, text=args.text_dir)
    place = f"{{shared}}/{size}-{hours:g}h-{{seed}}"
    how = f"--datasets {' '.join(args.datasets)} --out_dir {place} {RATES[hours > 0]} --epochs {args.epochs}"
    how += f" --warmup_epochs 0 --hours {hours:g}" if hours else " --warmup_epochs 0"
    return [
        f"train_vq.py {common} {how} --batch_size 8 --text_batch_size 2 --revive_dead_codes 20",
        f"train_pretrain.py {common} {how} --eeg_batch_size 4 --text_batch_size 1",
        f"train_instruction.py {common} --tasks {' '.join(args.tasks)} {{protocol}} --out_dir {{out}} --tune probe "
        f"--NeuroLM_path {place}/checkpoints/NeuroLM-{size}/ckpt.pt --learning_rate auto --eeg_batch_size 16 "
        "--text_batch_size 0",
    ]


def read_cell(args, size: str, hours: float) -> list | None:
    """A row of the table; None where no repeat is complete yet."""
    name, out_dir = f"{size}-{hours:g}h", Path(args.out_dir)
    runs = [read_run(path) for path in sorted((out_dir / name).rglob("results.json"))]
    logs = [out_dir / "shared" / f"{name}-{seed}" / "checkpoints" / "VQ" / "metrics.jsonl" for seed in args.seeds]
    if len(runs) < args.folds * len(args.seeds) or not all(log.is_file() for log in logs):
        return None
    losses = [[json.loads(line).get("val/loss") for line in log.read_text().splitlines()] for log in logs]
    loss = sum([value for value in several if value is not None][-1] for several in losses) / len(losses)
    (dataset, _), results = next(iter(group_repeats(pool_runs(runs, "test")).items()))
    accuracy = sum(result.metrics["balanced_accuracy"] for result in results) / len(results)
    primary = sum(result.primary for result in results) / len(results)
    return [size, f"{hours:g}", f"{loss:.4f}", dataset, f"{accuracy:.3f}", f"{primary:.3f}"]


def draw(rows, path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for size in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == size]
        for axis, column, label in zip(axes, (2, 5), ("validation loss, stage 1", "probe, AUROC/kappa"), strict=True):
            axis.plot([float(row[1]) for row in mine], [float(row[column]) for row in mine], "o-", label=size)
            axis.set(xlabel="hours of pre-training", ylabel=label)
    axes[0].legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    print(f"figure: {path}")


if __name__ == "__main__":
    errors.run(main, get_args)
