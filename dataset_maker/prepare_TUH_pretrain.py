"""TUEG, the Temple University EEG corpus, as an unlabelled corpus for pre-training.

python dataset_maker/prepare_TUH_pretrain.py --raw_dir raw/tueg --out_dir datasets/TUEG \\
    --exclude datasets/TUAB datasets/TUSL
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset_maker.machinery.corpus import Recipe, arguments, make
from dataset_maker.machinery.sources import find_files, list_sources
from dataset_maker.machinery.splits import held_out, split_subjects
from dataset_maker.machinery.tuh import MAINS, patient_of, reference_of

TRIM_END = 10.0  # seconds cut off the end of each recording, as published
SHORTEST = 10.0  # seconds that must be left
LAYOUT = "edf/**/*.edf"


def add_flags(parser):
    parser.add_argument("--val_fraction", type=float, default=0.01, help="share of the subjects (0: no val)")
    parser.add_argument(
        "--reference", nargs="+", choices=("ar", "le"), default=["ar"], help="averaged, linked ears or both"
    )
    parser.add_argument(
        "--exclude", type=Path, nargs="+", default=[], help="datasets whose val and test subjects to leave out"
    )


get_args = arguments(__doc__, MAINS, add_flags)


def main(args):
    unwanted = held_out(args.exclude)
    kept, excluded = [], []
    for path in find_files(args.raw_dir, [".edf"], LAYOUT):
        reference = reference_of(path, args.raw_dir)
        if patient_of(path) in unwanted:
            excluded.append((path, f"its subject is in {unwanted[patient_of(path)]}"))
        elif reference and reference not in args.reference:
            excluded.append((path, f"reference {reference}, --reference {' '.join(args.reference)}"))
        else:
            kept.append(path)
    if not kept:
        raise errors.UserError(f"all {len(excluded)} files of {args.raw_dir} are excluded: {excluded[0][1]}, ...")
    subjects = [patient_of(path) for path in kept]
    splits = split_subjects(subjects, {"val": args.val_fraction, "train": 1 - args.val_fraction}, args.seed)
    sources = list_sources(kept, args.raw_dir, subjects, map(splits.get, subjects))
    recipe = Recipe(
        "TUEG",
        f"by subject, {args.val_fraction:g} of them val, seeded",
        reader={"trim_end": TRIM_END, "min_seconds": SHORTEST},
        parameters={"reference": sorted(args.reference), "trim_end": TRIM_END, "excluded_subjects": sorted(unwanted)},
    )
    make(args, recipe, sources, excluded)


if __name__ == "__main__":
    errors.run(main, get_args)
