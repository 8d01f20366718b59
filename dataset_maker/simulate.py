"""Simulated raw corpora in the layouts and file formats of the real ones, with classes that can be learnt.

python dataset_maker/simulate.py --layout Workload --out_dir raw/Workload
python dataset_maker/simulate.py --layout pretrain --out_dir raw/pretrain --subjects 12 --seconds 130

`truth.json` in the output folder says what was written: each recording's subject, channels, rate, seconds and events.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset_maker.simulation import custom, layouts, tuh
from dataset_maker.simulation.files import Corpus
from training.numbers import Help


@dataclass(frozen=True)
class Layout:
    """A corpus to imitate, its awkward recordings, usual size and the least seconds that can carry its labels."""

    write: Callable[[Corpus, int, int], None]
    write_awkward: Callable[[Corpus, int], None]
    subjects: int
    seconds: int
    min_seconds: int


LAYOUTS = {  # ..., subjects, seconds, least seconds
    "Workload": Layout(layouts.write_workload, layouts.write_workload_awkward, 36, 62, 60),
    "pretrain": Layout(layouts.write_pretrain, layouts.write_pretrain_awkward, 12, 130, 10),
    "TUEG": Layout(tuh.write_tueg, tuh.write_tueg_awkward, 8, 90, 12),
    "TUAB": Layout(tuh.write_tuab, tuh.write_tuab_awkward, 12, 60, 10),
    "TUEV": Layout(tuh.write_tuev, tuh.write_tuev_awkward, 9, 90, 42),
    "TUSL": Layout(tuh.write_tusl, tuh.write_tusl_awkward, 10, 100, 45),
    "HMC": Layout(layouts.write_hmc, layouts.write_hmc_awkward, 6, 360, 180),
    "SEED": Layout(layouts.write_seed, layouts.write_seed_awkward, 2, layouts.SEED_SECONDS, 100),
    "MotorImagery": Layout(layouts.write_imagery, layouts.write_imagery_awkward, 8, 60, 20),
    "ADHD": Layout(layouts.write_adhd, layouts.write_adhd_awkward, 10, 60, 10),
    "custom": Layout(custom.write_custom, custom.write_custom_awkward, 8, 60, 20),
    "BIDS": Layout(custom.write_bids, custom.write_bids_awkward, 8, 60, 20),
}


def simulate(layout: str, out_dir, seed: int = 0, subjects=None, seconds=None, awkward: bool = False) -> list[dict]:
    """Write a raw corpus into `out_dir`; the same arguments give the same bytes on every machine.

    Returns, and writes as truth.json, one dict a recording: file, subject, channels (as in the file), rate (Hz),
    seconds, events (rows of start s, stop s, label), problem (None, or why a maker must refuse it: channels, duplicate,
    flat, labels, nan, short, truncated, unit), and where they apply note, split, excluded, bad_channels,
    missing_channels. `awkward` adds the odd and the defective recordings. Raises UserError on an unknown layout, a size
    that is too small, and a folder that holds anything else.
    """
    if layout not in LAYOUTS:
        raise errors.UserError(f"layout {layout!r} is unknown: choose one of {', '.join(LAYOUTS)}")
    row, out_dir = LAYOUTS[layout], Path(out_dir)
    subjects = row.subjects if subjects is None else subjects
    seconds = row.seconds if seconds is None else seconds
    if subjects < 1 or seconds < row.min_seconds or seed < 0:
        raise errors.UserError(
            f"{subjects} subjects of {seconds} s from seed {seed}: {layout} needs at least 1 subject, "
            f"{row.min_seconds} s and seed 0"
        )
    settings = {"layout": layout, "seed": seed, "subjects": subjects, "seconds": seconds, "awkward": awkward}
    truth = out_dir / "truth.json"
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())) and written_with(truth) != settings:
        raise errors.UserError(f"{out_dir} holds {written_with(truth) or 'other files'}: choose a new folder")
    out_dir.mkdir(parents=True, exist_ok=True)
    truth.write_text(json.dumps({"settings": settings}))  # a run that was stopped can be repeated in the same folder
    corpus = Corpus(out_dir, seed)
    row.write(corpus, subjects, seconds)
    if awkward:
        row.write_awkward(corpus, seconds)
    truth.write_text(json.dumps({"settings": settings, "recordings": corpus.recordings}, indent=1) + "\n")
    return corpus.recordings


def written_with(truth: Path) -> dict | None:
    """The settings of the corpus beside a truth.json, None where it is not one of ours."""
    try:
        return json.loads(truth.read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--layout", required=True, choices=list(LAYOUTS), help="corpus to imitate")
    parser.add_argument("--out_dir", required=True, help="folder of the raw files and of truth.json")
    parser.add_argument("--seed", type=int, default=0, help="of all signals")
    parser.add_argument("--subjects", type=int, help="how many (default: the layout's own)")
    parser.add_argument("--seconds", type=int, help="of a recording (default: the layout's own)")
    parser.add_argument(
        "--awkward",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="add the odd and the defective recordings that real corpora hold",
    )
    return parser.parse_args(argv)


def main(args):
    recordings = simulate(args.layout, args.out_dir, args.seed, args.subjects, args.seconds, args.awkward)
    subjects = {recording["subject"] for recording in recordings}
    hours = sum(recording["seconds"] for recording in recordings) / 3600
    print(f"{args.layout}: {len(recordings)} recordings of {len(subjects)} subjects, {hours:.2f} h, in {args.out_dir}")


if __name__ == "__main__":
    errors.run(main, get_args)
