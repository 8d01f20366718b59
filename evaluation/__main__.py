"""The results of runs, mean and standard deviation over those of a method, beside the published ones; and pictures.

python -m evaluation RUN...                                   the table
python -m evaluation RUN... --figure FOLDER                   and, of each run: learning curves, calibration, subjects;
                                                              of all of them: bars beside the published rows
python -m evaluation RUN --figure FOLDER --dataset DATASET    and: topographies, attention, features or codebook

With --figure a run may also be the folder of a tokenizer or of a pre-training, which has no results.
"""

import argparse
from pathlib import Path

import pandas as pd

import errors
from errors import UserError
from evaluation.results import PUBLISHED, compare_runs, read_run

CHECKPOINTS = ("ckpt-best.pt", "ckpt.pt", "checkpoint-best.pth", "checkpoint.pth")  # the first that a run has


def get_args(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that hold a results.json, or such files")
    parser.add_argument("--split", default="test", help="whose results, and whose windows of --dataset (default: test)")
    parser.add_argument("--published", default=PUBLISHED, help="CSV of published results")
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
    try:
        published = pd.read_csv(args.published)
    except (OSError, ValueError) as error:
        raise UserError(f"--published {args.published} cannot be read: {error}") from error
    if runs:
        print(compare_runs(runs, published, args.split))
    if args.figure:
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
