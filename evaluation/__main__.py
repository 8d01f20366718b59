"""The results of runs, mean and standard deviation over those of a method, beside the published ones.

python -m evaluation RUN...
"""

import argparse

import pandas as pd

import errors
from errors import UserError
from evaluation.results import PUBLISHED, compare_runs, read_run
from training.numbers import Help


def get_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__, formatter_class=Help)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that hold a results.json, or such files")
    parser.add_argument("--split", default="test", help="of the results")
    parser.add_argument("--published", default=PUBLISHED, help="CSV of published results")
    return parser.parse_args(argv)


def main(args):
    runs = [read_run(path) for path in args.runs]
    try:
        published = pd.read_csv(args.published)
    except (OSError, ValueError) as error:
        raise UserError(f"--published {args.published} cannot be read: {error}") from error
    print(compare_runs(runs, published, args.split))


if __name__ == "__main__":
    errors.run(main, get_args)
