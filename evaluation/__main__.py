"""The results of runs, mean and standard deviation over those of a method, beside the published ones.

python -m evaluation RUN...
python -m evaluation RUN... --against RUN...

Runs on folds (--folds, --fold) are put together: each window once, intervals over subjects, and repeats of other seeds
and fold seeds in one row. --against: a paired bootstrap over subjects, which says how sure a difference is.
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


def get_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__, formatter_class=Help)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that hold a results.json, or such files")
    parser.add_argument("--split", default="test", help="of the results")
    parser.add_argument("--published", default=PUBLISHED, help="CSV of published results")
    parser.add_argument("--against", nargs="+", metavar="RUN", help="hold each method against those of these runs")
    parser.add_argument("--details", help="CSV to write: each subject and recording of each method")
    return parser.parse_args(argv)


def main(args):
    runs, others = ([read_run(path) for path in paths or ()] for paths in (args.runs, args.against))
    show(runs, others, args.split, args.published, args.details)


def show(runs, others=(), split="test", published=PUBLISHED, details=None) -> None:
    """Print the tables of runs (of `read_run`), held against `others`."""
    try:
        known = pd.read_csv(published)
    except (OSError, ValueError) as error:
        raise UserError(f"--published {published} cannot be read: {error}") from error
    folded = pool_runs([run for run in runs if run["about"].get("folds")], split)
    plain = [run for run in runs if not run["about"].get("folds")]
    print(compare_runs(plain + folded, known, split))
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


if __name__ == "__main__":
    errors.run(main, get_args)
