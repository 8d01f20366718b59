r"""Any folder of recordings (.cnt .edf .bdf .gdf .vhdr .set .fif) as an unlabelled corpus for pre-training.

python dataset_maker/make_h5dataset_for_pretrain.py --raw_dir raw/eegmmidb --out_dir datasets/eegmmidb \
    --notch 60 --subject 'S\d\d\d'
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.channels import load_aliases
from dataset_maker.machinery.arrays import SUFFIXES
from dataset_maker.machinery.corpus import Recipe, Source, add_arguments, find_files, make, recording_names
from dataset_maker.machinery.splits import add_subject_argument, find_subject, split_subjects


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, notch=50.0)
    parser.add_argument("--name", help="of the dataset (default: that of --out_dir)")
    parser.add_argument("--val_fraction", type=float, default=0.01, help="share of the subjects (0: no val)")
    add_subject_argument(parser)
    parser.add_argument("--aliases", type=Path, help="YAML file of channel names and their places, 'E22: FP1'")
    return parser.parse_args(argv)


def main(args):
    paths = find_files(args.raw_dir, SUFFIXES, "recordings, a folder a subject")
    subjects = [find_subject(path, args.raw_dir, args.subject) for path in paths]
    splits = split_subjects(subjects, {"val": args.val_fraction, "train": 1 - args.val_fraction}, args.seed)
    names = recording_names(paths, args.raw_dir)
    sources = [
        Source(path, name, subject, splits[subject])
        for path, name, subject in zip(paths, names, subjects, strict=True)
    ]
    recipe = Recipe(
        args.name or args.out_dir.resolve().name,
        f"by subject, {args.val_fraction:g} of them val",
        reader={"aliases": load_aliases(args.aliases)} if args.aliases else {},
        parameters={"subject": args.subject.pattern},
    )
    make(args, recipe, sources)


if __name__ == "__main__":
    errors.run(main, get_args)
