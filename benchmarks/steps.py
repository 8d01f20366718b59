"""Training steps of stage 2 on a GPU, for each size: here, with --compile, and the plain way. `make gpu` runs it.

python benchmarks/steps.py --device cuda --seconds 360 --out gpu
python benchmarks/steps.py --device cpu --sizes tiny --out gpu        a rehearsal

Each cell, a way at a size, has a process of its own and a share of the time: it takes steps of the size's usual number
of windows of 1024 tokens, beside one text of as many, then searches for the largest number that fits. Batches are
collated before the clock starts, as data workers do. gpu.json and gpu.md in --out are written after every cell.
"""

import argparse
import functools
import json
import multiprocessing
import sys
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from benchmarks import bench
from benchmarks.memory import GIB, estimate
from model import packing
from model.lm_sizes import LM_SIZES
from training.flags import positive
from training.throughput import peak_flops
from utils import DTYPES, start_run

DENSE = "compiled, dense masks"
WAYS = ("here", "plain", "compiled", DENSE)  # in this order: what it says first is what counts most
WINDOWS = {"tiny": 2, "B": 16, "L": 8, "XL": 4}  # of a step in which the ways are compared
MOST_WINDOWS = {"cuda": 512, "cpu": 4}
STEPS = 5


def measure(worker, windows: int, tokens: int) -> dict:
    """What steps of so many windows take; without seconds where the memory does not suffice."""
    shape, found = {"tokens": tokens, "windows": windows}, {"windows": windows, "tokens": (windows + 1) * tokens}
    try:
        worker.step(shape)  # compiles, and makes the optimizer's state
        if worker.run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found["seconds"] = [worker.measure(shape)["wall"] for _ in range(STEPS)]
    except RuntimeError as error:  # what the traceback holds is freed below
        if not any(words in str(error) for words in ("out of memory", "ALLOC_FAILED")):
            raise
    if "seconds" not in found:
        worker.optimizer.zero_grad(set_to_none=True)
    else:
        found["formula_gib"] = estimate(worker.model, windows, tokens, 1, tokens) / GIB
        found |= {"peak_gib": torch.cuda.max_memory_allocated() / GIB} if worker.run.device.type == "cuda" else {}
    torch.cuda.empty_cache()
    return found


def search(fits, first: int, most: int) -> None:
    """Call `fits` with `first`, then with other numbers until the largest that fits is known to a quarter."""
    good, bad, tried = 0, most + 1, first
    while tried > 0 and bad - good > max(1, good // 4):
        good, bad = (tried, bad) if fits(tried) else (good, tried)
        tried = min(2 * good, most) if bad > most else (good + bad) // 2


def fill(pipe, size: str, way: str, args) -> None:
    """A cell's process: sends what it measures, number of windows by number of windows."""
    if way == DENSE:
        packing.in_blocks = lambda x, dropout: False
    if args.device == "cpu":  # a rehearsal runs the graphs as they are: to compile them takes minutes
        torch.compile = functools.partial(torch.compile, backend="eager")
    args.size, tokens = size, 64 if size == "tiny" else 1024
    worker = bench.Worker("stage 2", way.removesuffix(", dense masks"), args)
    worker.read = functools.lru_cache(1)(worker.read)

    def fits(windows):
        found = measure(worker, windows, tokens)
        if way == "here" and windows == WINDOWS[size] and "seconds" in found:
            found["flops"] = worker.count({"tokens": tokens, "windows": windows})["flops"]
        pipe.send(found)
        return "seconds" in found

    search(fits, WINDOWS[size], MOST_WINDOWS[worker.run.device.type])


def measure_cell(size: str, way: str, args, until: float) -> dict:
    """What the process of a cell has sent by `until`, and how it ended: done, out of time, or failed."""
    context = multiprocessing.get_context("spawn")  # a GPU's context survives no fork
    pipe, other = context.Pipe()
    process = context.Process(target=fill, args=(other, size, way, args), daemon=True)
    process.start()
    other.close()
    cell = {"size": size, "way": way, "measured": [], "ended": "out of time"}
    try:
        while pipe.poll(max(0.0, until - time.monotonic())):
            cell["measured"].append(pipe.recv())
    except EOFError:
        process.join()
        cell["ended"] = "failed" if process.exitcode else "done"
    process.kill()
    process.join()
    return cell


def make_table(report: dict) -> str:
    """The report in Markdown."""
    lines = [", ".join(f"{name} {value}" for name, value in report["machine"].items()), ""]
    columns = ["size, windows", "way", "tokens/s", "times plain", "MFU", "peak memory / formula", "largest batch"]
    columns += ["its tokens/s"]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    cells = {(cell["size"], cell["way"]): cell for cell in report["cells"]}
    for size, way in report["planned"]:
        cell = cells.get((size, way), {"measured": [], "ended": "not reached"})
        usual, plain, here = (_at(cells.get((size, which)), WINDOWS[size]) for which in (way, "plain", "here"))
        rate, most = _rate(usual), max((one["windows"] for one in cell["measured"] if "seconds" in one), default=0)
        searched = cell["ended"] == "done" and any("seconds" not in one for one in cell["measured"])
        text = [f"{size}, {WINDOWS[size]}", way if cell["ended"] == "done" else f"{way} ({cell['ended']})"]
        text += [f"{rate:,.0f}" if rate else "out of memory" if usual else "-"]
        text += [f"{rate / _rate(plain):.2f}" if rate and _rate(plain) else "-"]
        known = rate and report["peak"] and "flops" in here
        text += [f"{rate * here['flops'] / here['tokens'] / report['peak']:.0%}" if known else "-"]
        peak = "{peak_gib:.1f} GiB" if way == "plain" else "{peak_gib:.1f} / {formula_gib:.1f} GiB"
        text += [peak.format(**usual) if "peak_gib" in usual else "-"]
        text += ["at least " * (not searched) + str(most), f"{_rate(_at(cell, most)):,.0f}"] if most else ["-", "-"]
        lines.append(f"| {' | '.join(text)} |")
    return "\n".join(lines) + "\n"


def _at(cell: dict | None, windows: int) -> dict:
    """What a cell measured at so many windows; {} where it did not."""
    return next((one for one in (cell or {}).get("measured", ()) if one["windows"] == windows), {})


def _rate(measured: dict) -> float | None:
    """Tokens a second."""
    return measured["tokens"] / median(measured["seconds"]) if "seconds" in measured else None


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--sizes", nargs="+", choices=LM_SIZES, default=["B", "L", "XL"])
    parser.add_argument("--seconds", type=positive, default=360, help="of all cells together")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of gpu.json and gpu.md")
    return parser.parse_args(argv)


def main(args):
    until = time.monotonic() + args.seconds
    args.threads, args.repeats, args.size = 1, STEPS, " ".join(args.sizes)
    run = start_run(args.device, args.dtype)
    groups = (WAYS[:2], WAYS[2:3], WAYS[3:])
    planned = [(size, way) for ways in groups for size in args.sizes for way in ways]
    report = {"machine": bench.describe_machine(args, run), "peak": peak_flops(run.device, run.dtype)}
    report |= {"planned": planned, "cells": []}
    args.out.mkdir(parents=True, exist_ok=True)
    for i, (size, way) in enumerate(planned):
        now = time.monotonic()
        if now > until:
            break
        share = (until - now) / (len(planned) - i)
        report["cells"].append(measure_cell(size, way, args, min(until, now + 2 * share)))
        run.say(f"{size}, {way}: {report['cells'][-1]['ended']} after {time.monotonic() - now:.0f} s")
        (args.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.out / "gpu.md").write_text(make_table(report))
    run.say(make_table(report))
    failed = [f"{cell['size']}, {cell['way']}" for cell in report["cells"] if cell["ended"] == "failed"]
    if failed:
        raise errors.UserError(f"these cells failed, their tracebacks are above: {'; '.join(failed)}")


if __name__ == "__main__":
    errors.run(main, get_args)
