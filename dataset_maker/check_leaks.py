"""Do datasets for training hold a subject that another dataset validates or tests on?

python dataset_maker/check_leaks.py --train datasets/TUEG --against datasets/TUAB datasets/TUEV datasets/TUSL

Subjects are compared by name, so compare corpora that share their names, as those of one hospital do.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset_maker.splits import find_leaks


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="datasets (or manifests) to train on")
    parser.add_argument("--against", type=Path, nargs="+", required=True, help="datasets (or manifests) to evaluate on")
    return parser.parse_args(argv)


def main(args):
    leaks = find_leaks(args.train, args.against)
    print("\n".join(leaks))
    if leaks:
        raise errors.UserError(f"{len(leaks)} subjects leak; make the training dataset again with --exclude")
    print("no subject leaks")


if __name__ == "__main__":
    errors.run(main, get_args)
