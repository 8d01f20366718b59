"""A series of runs over folds, seeds and variants, from one YAML file; what has been done is not done again.

python series.py suite.yaml            # runs what is missing, then prints the table
python series.py suite.yaml --table    # the table of what is complete, at any moment

The file names the folder of all outputs, the folds, the seeds and the commands of each variant, one after another:

    out_dir: runs/suite
    folds: 7
    fold_seeds: [0]
    seeds: [0, 1, 2]
    against: classical                  # optional: hold every other variant against this one
    variants:
      classical: baselines.py --dataset_dir D --tasks Workload {protocol} --out_dir {out}
      tiny:
        - train_vq.py --size tiny --dataset_dir D/eegmmidb --out_dir {shared} --seed {seed}
        - train_instruction.py --size tiny --dataset_dir D --tasks Workload {protocol} --seed {seed} --out_dir {out}

{protocol} is `--folds K --fold k --fold_seed S`; {folds} {fold} {fold_seed} {seed} stand for themselves, {out} is a
folder for each cell and {shared} one for the series. A command that comes out the same in several cells runs once, such
as a pre-training without folds. A run that was killed goes on from its checkpoint when its command is run again.
"""

import argparse
import hashlib
import shlex
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import errors

if __name__ == "__main__":
    errors.requeue_when_told()  # first: what follows takes seconds to import

from dataset.descriptions import read_yaml
from errors import UserError
from evaluation.__main__ import show
from evaluation.results import read_run

ROOT = Path(__file__).resolve().parent
FIELDS = {"out_dir": str, "variants": dict, "folds": int, "fold_seeds": list, "seeds": list, "against": str}


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", help="YAML file of the series")
    parser.add_argument("--table", action="store_true", help="run nothing")
    return parser.parse_args(argv)


def main(args):
    plan = read_plan(args.series)
    failed = [] if args.table else run_series(plan)
    print_table(plan)
    if failed:
        logs = ", ".join(map(str, failed[:5]))
        raise UserError(f"{len(failed)} commands failed, see {logs}; run this again to try them again")


def read_plan(path) -> dict:
    """The series of a YAML file. Raises UserError naming the field that is missing, unknown or of another type."""
    given = read_yaml(path)
    if not isinstance(given, dict):
        raise UserError(f"{path}: expected fields {', '.join(FIELDS)}")
    plan = {"fold_seeds": [0], "seeds": [0], "folds": 7, "against": ""} | given
    wrong = [name for name in FIELDS.keys() | plan.keys() if not isinstance(plan.get(name), FIELDS.get(name, ()))]
    if wrong:
        raise UserError(f"{path}: {', '.join(sorted(wrong))} missing, unknown or of another type; see series.py --help")
    for name, steps in plan["variants"].items():
        plan["variants"][name] = [steps] if isinstance(steps, str) else steps
    if plan["against"] and plan["against"] not in plan["variants"]:
        raise UserError(f"{path}: against: {plan['against']} is no variant")
    return plan


def list_cells(plan: dict) -> list[tuple[tuple, Path, list[str]]]:
    """((variant, fold seed, seed), output folder, commands) of every cell, all folds and variants of a repeat before
    the next repeat."""
    found, root = {}, Path(plan["out_dir"])
    for fold_seed, seed, (variant, steps), fold in product(
        plan["fold_seeds"], plan["seeds"], plan["variants"].items(), range(plan["folds"])
    ):
        text = " ".join(steps)
        names = {"folds": plan["folds"], "fold": fold, "fold_seed": fold_seed, "seed": seed, "shared": root / "shared"}
        names["protocol"] = f"--folds {plan['folds']} --fold {fold} --fold_seed {fold_seed}"
        in_folds = "{protocol}" in text or "{fold}" in text  # else one cell for all of them
        place = f"folds{fold_seed}-{fold}" if in_folds else "whole"
        names["out"] = root / variant / (f"{place}-seed{seed}" if "{seed}" in text else place)
        try:
            found[names["out"]] = ((variant, fold_seed, seed), names["out"], [step.format(**names) for step in steps])
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(f"variant {variant}: {error} is no placeholder; known are {', '.join(names)}") from None
    return list(found.values())


def run_series(plan: dict) -> list[Path]:
    """Run every command that has not ended well yet -> the logs of those that failed."""
    done = Path(plan["out_dir"], "done")
    done.mkdir(parents=True, exist_ok=True)
    everything, failed = list_cells(plan), []
    for number, (_, out, steps) in enumerate(everything, start=1):
        for step in steps:
            mark = done / f"{Path(step.split()[0]).stem}-{hashlib.sha256(step.encode()).hexdigest()[:12]}"
            if mark.is_file() and (step != steps[-1] or find_results(out)):
                continue
            print(f"{time.strftime('%H:%M:%S')} {number} of {len(everything)}: {step}", flush=True)
            began = time.monotonic()
            with open(f"{mark}.log", "w", encoding="utf-8") as log:
                script, *argv = shlex.split(step)
                ended = _run([sys.executable, ROOT / script, *argv], log)
            if ended:
                print(f"         failed with {ended}: {mark}.log", flush=True)
                failed.append(Path(f"{mark}.log"))
                break
            mark.write_text(f"{time.monotonic() - began:.0f} s: {step}\n", encoding="utf-8")
    return failed


def _run(command, log) -> int:
    """The status that a command ends with; where this process is stopped it is told to save and stop as well."""
    child = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        return child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise


def find_results(out: Path) -> list[Path]:
    return sorted(out.rglob("results.json"))


def print_table(plan: dict) -> None:
    """The table of the repeats that are complete, and what is missing of the others."""
    repeats, runs = {}, {}  # (variant, fold seed, seed) -> results of each cell; variant -> runs, called after it
    for repeat, out, _ in list_cells(plan):
        repeats.setdefault(repeat, []).append(find_results(out))
    for (variant, fold_seed, seed), results in repeats.items():
        complete = sum(map(bool, results))
        if complete == len(results):
            found = [read_run(path) for paths in results for path in paths]
            runs.setdefault(variant, []).extend(run | {"method": f"{variant}: {run['method']}"} for run in found)
        else:
            print(f"{variant}, seed {seed}, fold seed {fold_seed}: {complete} of {len(results)} cells are there")
    if runs:
        print()
        show([run for several in runs.values() for run in several], runs.get(plan["against"], []) * (len(runs) > 1))


if __name__ == "__main__":
    errors.run(main, get_args)
