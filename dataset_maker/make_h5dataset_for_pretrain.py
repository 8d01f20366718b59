r"""Any folder of recordings (.cnt .edf .bdf .gdf .vhdr .set .fif) as an unlabelled corpus for pre-training.

python dataset_maker/make_h5dataset_for_pretrain.py --raw_dir raw/eegmmidb --out_dir datasets/eegmmidb \
    --notch 60 --subject 'S\d\d\d'
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.channels import load_aliases
from dataset_maker.machinery.arrays import SUFFIXES, add_unit_argument
from dataset_maker.machinery.corpus import Recipe, arguments, make
from dataset_maker.machinery.edf import part_annotations
from dataset_maker.machinery.sources import find_files, list_sources
from dataset_maker.machinery.splits import add_subject_arguments, find_subject, split_files


def add_flags(parser):
    parser.add_argument("--name", help="of the dataset (default: that of --out_dir)")
    parser.add_argument("--val_fraction", type=float, default=0.01, help="share of the subjects (0: no val)")
    add_subject_arguments(parser)
    add_unit_argument(parser)
    parser.add_argument("--aliases", type=Path, help="YAML file of channel names and their places, 'E22: FP1'")


get_args = arguments(__doc__, 50.0, add_flags)


def main(args):
    found = find_files(args.raw_dir, SUFFIXES, "recordings, a folder a subject")
    paths, annotations = part_annotations(found)
    subjects = {path: find_subject(path, args.raw_dir, args.subject) for path in paths}
    splits = split_files(args, subjects, {"val": args.val_fraction, "train": 1 - args.val_fraction})
    recipe = Recipe(
        args.name or args.out_dir.resolve().name,
        f"by {args.split_by}, {args.val_fraction:g} of them val",
        reader={"aliases": args.aliases and load_aliases(args.aliases), "unit": args.unit},
        parameters={"subject": args.subject and args.subject.pattern, "unit": args.unit},
        split_by=args.split_by,
    )
    excluded = [(path, reason) for path, (_, reason) in annotations.items()]
    make(args, recipe, list_sources(paths, args.raw_dir, subjects.values(), splits.values()), excluded)


if __name__ == "__main__":
    errors.run(main, get_args)
