"""Every hot path against the plain way to do it (`plain.py`), in one run: time, memory, share of the machine's rate.

python benchmarks/bench.py --json bench.json --markdown docs/performance.md     make bench: about 20 minutes, 16 GB
python benchmarks/bench.py --size tiny --repeats 1                              seconds
python benchmarks/bench.py --device cuda --repeats 20 --rows "stage 1" "stage 2" "stage 3"

Each way has a process of its own, and they take turns at the same inputs; in float32 on a CPU a run fails where their
results differ. The first round at a row's last shape counts FLOPs and is not timed; then its other shapes follow, once.
"""

import argparse
import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from benchmarks import paths
from model.lm_sizes import LM_SIZES
from training.numbers import Help, positive
from training.provenance import provenance
from utils import DTYPES, decay_groups, make_optimizer, start_run

BOTH = ("plain", "here")
ROWS = {  # what makes it, its ways, its shapes, and those at size tiny
    "stage 1": (paths.stage_1, BOTH, [{"tokens": 1024}], [{"tokens": 64}]),
    "stage 2": (paths.stage_2, (*BOTH, "cached"), [{"tokens": n} for n in paths.TOKENS],
                [{"tokens": n} for n in paths.FEW]),
    "stage 3": (paths.stage_3, BOTH, [{"montages": 1, "windows": 2}, {"montages": 2, "windows": 2},
                {"montages": 6, "windows": 6, "text": 256}], [{"montages": 2, "windows": 2, "text": 32}]),
    "answering": (paths.answering, BOTH, [*({"windows": 1, "questions": 1, "answers": n} for n in (2, 6)),
                  {"windows": 1, "questions": 2, "answers": 2}], [{"windows": 1, "questions": 1, "answers": 2}]),
    "generation": (paths.generation, BOTH, [{"tokens": 8}], [{"tokens": 2}]),
    "LaBraM masked": (paths.labram_masked, BOTH, [{"windows": 2}, {"windows": 8}], [{"windows": 1}]),
    "LaBraM tuning": (paths.labram_tuning, BOTH, [{"windows": 2}, {"windows": 8}], [{"windows": 1}, {"windows": 2}]),
    "quantizer": (paths.quantizing, BOTH, [{"vectors": 16384}, {"vectors": 65536}], [{"vectors": 2048}]),
    "loading": (paths.loading, BOTH, [{"windows_of_10_s": 48}], [{"windows_of_10_s": 8}]),
    "predict.py --help": (paths.start_up, BOTH, [{}], [{}]),
}  # fmt: skip
TOLERANCE = 1e-3  # by which results may differ
LARGEST = 2  # matrix products of a step, by FLOPs, at whose shapes the machine's rate is measured
MARK = "<!-- made by make bench -->\n"


class Flops(FlopCounterMode):
    """Counts FLOPs, a CPU's attention too, and by the shapes of matrix products: {(m, k, n): FLOPs}."""

    def __init__(self):
        self.products, aten = Counter(), torch.ops.aten
        products = {aten.mm: self._product, aten.addmm: lambda _, a, b, **rest: self._product(a, b)}
        super().__init__(display=False, custom_mapping=products)
        for way in ("", "_backward"):
            known = self.flop_registry[getattr(aten, f"_scaled_dot_product_flash_attention{way}")]
            self.flop_registry[getattr(aten, f"_scaled_dot_product_flash_attention_for_cpu{way}")] = known

    def _product(self, a, b, out_shape=None) -> int:
        self.products[*a, b[1]] += 2 * a[0] * a[1] * b[1]
        return 2 * a[0] * a[1] * b[1]


def used() -> float:
    """Processor time of this process and of those that it started, in seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Worker:
    """One way of one path, in the process that it is made in."""

    def __init__(self, name, way, args):
        torch.set_num_threads(args.threads)
        with contextlib.redirect_stdout(None):
            self.run = start_run(args.device, args.dtype, seed=0)
        self.model, self.read, self.work = ROWS[name][0](way, args.size, self.run)
        model, self.optimizer = self.model, None
        torch.set_grad_enabled(model is not None)
        if model and way == "plain":
            self.optimizer = torch.optim.AdamW(decay_groups(model, 0.1), 1e-5, (0.9, 0.95))
        elif model:
            self.optimizer = make_optimizer(decay_groups(model, 0.1), 1e-5, (0.9, 0.95), self.run.device)

    def step(self, shape) -> list[float]:
        with self.run.autocast():
            results = self.work(self.read(**shape))
        if self.optimizer:
            sum(results).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        parts = [torch.as_tensor(result).detach().flatten() for result in results]
        return torch.cat(parts).tolist()  # which waits for the device

    def measure(self, shape) -> dict:
        cpu, wall = used(), time.perf_counter()
        results = self.step(shape)
        return {"processor": used() - cpu, "wall": time.perf_counter() - wall, "results": results}

    def count(self, shape) -> dict:
        with Flops() as flops:
            results = self.step(shape)
        self.products = flops.products
        return {"flops": flops.get_total_flops(), "results": results}

    def finish(self, clock) -> dict:
        """Peak memory in GiB, and FLOP/s of the largest matrix products alone."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if self.run.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**30
        elif resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss:
            peak = None  # others did the work
        rates = []
        for (m, k, n), flops in self.products.most_common(LARGEST):
            a, b = (torch.randn(shape, dtype=self.run.dtype, device=self.run.device) for shape in ((m, k), (n, k)))
            self.read, self.work, self.optimizer = dict, lambda _, a=a, b=b: (a @ b.T)[:1, 0], None
            rates.append((flops, 2 * m * k * n / min(self.measure({})[clock] for _ in range(2))))
        rate = sum(flops for flops, _ in rates) / sum(flops / rate for flops, rate in rates) if rates else None
        return {"peak_gib": peak, "rate": rate}


def serve(pipe, name, way, args) -> None:
    """A worker's process: (method, arguments) in, what it returns out, until None."""
    worker = Worker(name, way, args)
    for method, given in iter(pipe.recv, None):
        pipe.send(getattr(worker, method)(given))


class Ways:
    """The workers of a row, which take turns."""

    def __init__(self, name, args):
        self.name, self.args, self.pipes = name, args, {}
        for way in ROWS[name][1]:
            self.pipes[way], other = multiprocessing.Pipe()
            multiprocessing.Process(target=serve, args=(other, name, way, args), daemon=True).start()
            other.close()

    def ask(self, method, given) -> dict:
        """What each way's worker answers. Raises UserError where one has ended, or their results differ."""
        answers = {}
        for way, pipe in self.pipes.items():
            try:
                pipe.send((method, given))
                answers[way] = pipe.recv()
            except (EOFError, OSError):
                raise errors.UserError(f"{self.name}: the process of way '{way}' ended; out of memory?") from None
        for way, answer in answers.items() if method != "finish" else ():
            wanted, found = (torch.tensor(part["results"]) for part in (answers["plain"], answer))
            answer["difference"] = float(((found - wanted).abs() / wanted.abs().clamp(min=1e-6)).max())
            if self.args.exact and not answer["difference"] <= TOLERANCE:
                raise errors.UserError(f"{self.name}, {given}: {way} gives {found.tolist()}, plain {wanted.tolist()}")
        return answers

    def close(self) -> None:
        for pipe in self.pipes.values():
            pipe.send(None)


def compare(name: str, args, clock: str) -> dict:
    """The row called `name`: what was measured at each of its shapes, of each way."""
    shapes, ways = ROWS[name][3 if args.size == "tiny" else 2], Ways(name, args)
    counted = ways.ask("count", shapes[-1])
    rounds = [ways.ask("measure", shapes[-1]) for _ in range(args.repeats)]
    measured = [{"shape": shape, "rounds": [ways.ask("measure", shape)]} for shape in shapes[:-1]]
    about = {way: counted[way] | found for way, found in ways.ask("finish", clock).items()}
    ways.close()
    return {"row": name, "shapes": [*measured, {"shape": shapes[-1], "rounds": rounds}], "about": about}


def make_tables(report: dict) -> str:
    """The report in Markdown: a table of all rows, and one of how they grow."""
    machine, (clock, other) = report["machine"], report["clocks"]
    lines = [", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    columns = ["work", f"plain, {clock} time", "here", "times", f"in {other} time", "peak memory", "share of the rate"]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    growth = ["", f"| work | plain, {clock} time | here | times |", "|---|---|---|---|"]
    for row in report["rows"]:
        for way in [way for way in row["about"] if way != "plain"]:
            pair, name = ("plain", way), row["row"] + ", features cached" * (way == "cached")
            for each in row["shapes"]:
                shape = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in each["shape"].items())
                times = {c: [[one[which][c] for one in each["rounds"]] for which in pair] for c in (clock, other)}
                middle = {c: [median(part) for part in parts] for c, parts in times.items()}
                faster = {c: f"{plain / here:.2f}" for c, (plain, here) in middle.items()}
                cells = [f"{name}: {shape}", *(f"{part:.3g} s" for part in middle[clock]), faster[clock]]
                growth.append(f"| {' | '.join(cells)} |")
            if len(row["shapes"]) == 1:
                growth.pop()
            cells = [f"{name}: {shape}".removesuffix(": ")]
            cells += [f"{median(part):.3g} s ({min(part):.3g} to {max(part):.3g})" for part in times[clock]]
            about = [row["about"][which] for which in pair]
            shares = [
                f"{part['flops'] / time / part['rate']:.0%}" if part["rate"] else "-"
                for part, time in zip(about, middle[clock], strict=True)
            ]
            peaks = [f"{part['peak_gib']:.2f} GiB" if part["peak_gib"] else "-" for part in about]
            cells += [faster[clock], faster[other], " / ".join(peaks), " / ".join(shares)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines + growth) + "\n"


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--size", choices=LM_SIZES, default="B")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, mps")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--repeats", type=positive, default=2)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    parser.add_argument("--markdown", type=Path, help=f"page whose tables, after '{MARK.strip()}', are made anew")
    return parser.parse_args(argv)


def main(args):
    run = start_run(args.device, args.dtype)
    on_cpu = run.device.type == "cpu"
    multiprocessing.set_start_method("fork" if on_cpu else "spawn", force=True)  # a GPU's context survives no fork
    args.exact = on_cpu and run.dtype == torch.float32
    clocks = ("processor", "wall") if on_cpu else ("wall", "processor")
    report = {"machine": describe_machine(args, run), "clocks": clocks, "rows": []}
    for name in args.rows:
        began = time.perf_counter()
        report["rows"].append(compare(name, args, clocks[0]))
        run.say(f"{name}: measured in {time.perf_counter() - began:.0f} s")
    tables = make_tables(report)
    run.say(tables)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(args.markdown.read_text().split(MARK)[0] + MARK + tables)


def describe_machine(args, run) -> dict:
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else ()) if "model name" in line]
    cpu = models[0].split(": ")[1] if models else platform.machine()
    commit = provenance()["git_commit"]
    return {
        "machine": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else cpu,
        "cores": os.cpu_count(), "threads": args.threads, "precision": str(run.dtype).removeprefix("torch."),
        "size": args.size, "rounds": args.repeats, "torch": torch.__version__,
        "commit": commit[:8] + commit[40:], "date": str(datetime.date.today()),
    }  # fmt: skip


if __name__ == "__main__":
    errors.run(main, get_args)
