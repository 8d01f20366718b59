"""The results of runs, mean and standard deviation over those of a method, beside the published ones; and pictures.

python -m evaluation RUN...                                   the table
python -m evaluation RUN... --against RUN...                  and each method held against those of other runs
python -m evaluation RUN... --figure FOLDER                   and, of each run: learning curves, calibration, subjects;
                                                              of all of them: bars beside the published rows
python -m evaluation RUN --figure FOLDER --dataset DATASET    and: topographies, attention, features or codebook

Runs on folds (--folds, --fold) are put together: each window once, intervals over subjects, and repeats of other seeds
and fold seeds in one row. --against: a paired bootstrap over subjects, which says how sure a difference is.
With --figure a run may also be the folder of a tokenizer or of a pre-training, which has no results.
"""

import argparse
from pathlib import Path

import pandas as pd

import errors
from errors import UserError
from evaluation.pooling import compare_methods, group_repeats, interval_table, pool_runs, score_subjects
from evaluation.results import PUBLISHED, compare_runs, read_run
from training.logger import replace_text
from training.numbers import Help

CHECKPOINTS = ("ckpt-best.pt", "ckpt.pt", "checkpoint-best.pth", "checkpoint.pth")  # the first that a run has


def get_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__, formatter_class=Help)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that hold a results.json, or such files")
    parser.add_argument("--split", default="test", help="whose results, and whose windows of --dataset")
    parser.add_argument("--published", default=PUBLISHED, help="CSV of published results")
    parser.add_argument("--against", nargs="+", metavar="RUN", help="hold each method against those of these runs")
    parser.add_argument("--details", help="CSV to write: each subject and recording of each method")
    parser.add_argument("--figure", type=Path, metavar="FOLDER", help="draw pictures into this folder")
    parser.add_argument("--dataset", type=Path, help="dataset folder whose windows the model is drawn on")
    return parser.parse_args(argv)


def main(args):
    folders = [path if path.is_dir() else path.parent for path in map(Path, args.runs)]
    if args.dataset and not args.figure:
        raise UserError("--dataset is what --figure FOLDER draws the model on: give both")
    if args.dataset and len(folders) > 1:
        raise UserError("--dataset draws one model: give one RUN")
    unjudged = {folder for folder in folders if args.figure and not (folder / "results.json").is_file()}
    runs = [read_run(path) for path in args.runs if Path(path) not in unjudged]
    published = read_published(args.published)
    if runs:
        show(runs, [read_run(path) for path in args.against or ()], args.split, published, args.details)
    if args.figure:
        draw(runs, folders, published, args)


def read_published(path=PUBLISHED) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--published {path} cannot be read: {error}") from error


def show(runs, others=(), split="test", published=None, details=None) -> None:
    """Print the tables of runs (of `read_run`), held against `others`."""
    folded = pool_runs([run for run in runs if run["about"].get("folds")], split)
    plain = [run for run in runs if not run["about"].get("folds")]
    print(compare_runs(plain + folded, read_published() if published is None else published, split))
    if folded:
        print(f"\n{interval_table(group_repeats(folded))}")
    if details:
        write_details(details, group_repeats(folded + pool_runs(plain, split)))
    if others:
        ours, theirs = folded + pool_runs(plain, split), pool_runs(others, split)
        print(f"\n{compare_methods(group_repeats(ours), group_repeats(theirs))}")


def write_details(path, groups) -> None:
    """A row for each subject and each recording of each method, means over its repeats."""
    tables = []
    for (dataset, method), results in groups.items():
        for level in ("subject", "recording"):
            table = score_subjects(results, level).rename(columns={level: "name"})
            tables.append(table.assign(dataset=dataset, method=method, level=level))
    replace_text(Path(path), pd.concat(tables).to_csv(index=False))


def draw(runs, folders, published, args) -> None:
    from evaluation.pictures import draw_runs  # matplotlib takes a second to import

    drawn = draw_runs(runs, folders, published, args.split, args.figure)
    if args.dataset:
        from evaluation.maps import draw_model

        path = next((folders[0] / name for name in CHECKPOINTS if (folders[0] / name).is_file()), None)
        if path is None:
            raise UserError(f"{folders[0]} holds no checkpoint ({', '.join(CHECKPOINTS)}) to draw on --dataset")
        drawn += draw_model(path, args.dataset, args.split, args.figure)
    if not drawn:
        raise UserError(f"nothing to draw in {', '.join(map(str, folders))}: no results.json, no metrics.jsonl")
    print("\n".join(map(str, ["", "figures:", *drawn])))


if __name__ == "__main__":
    errors.run(main, get_args)
