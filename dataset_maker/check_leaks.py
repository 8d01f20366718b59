"""Do datasets for training hold a subject that another dataset validates or tests on?

python dataset_maker/check_leaks.py --train datasets/TUEG --against datasets/TUAB datasets/TUSL

Subjects are compared by name, as dataset/leaks.py says. TUEV's evaluation recordings carry numbers for names, so that
nobody can say of them that there are no leaks.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.leaks import find_leaks, read_roster
from dataset_maker.machinery.splits import HELD
from training.numbers import Help

SPLITS = ("train", *HELD)


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="datasets (or manifests) to train on")
    parser.add_argument("--against", type=Path, nargs="+", required=True, help="datasets (or manifests) to evaluate on")
    return parser.parse_args(argv)


def main(args):
    train, against = ([*map(read_roster, datasets)] for datasets in (args.train, args.against))
    found = find_leaks([roster.trained(SPLITS) for roster in train], against, HELD)
    leaks = found.leaks + found.published
    print("\n".join(leaks + found.not_compared))
    if leaks:
        raise errors.UserError(f"{len(leaks)} subjects leak; make the training dataset again with --exclude")
    if found.not_compared:
        raise errors.UserError("nobody was found on both sides, but not everybody could be compared: see above")
    print("no subject leaks")


if __name__ == "__main__":
    errors.run(main, get_args)
