"""How fast a run goes: what it reads a second, its waiting for data, memory, use of the GPU; and a profile of steps."""

import contextlib
import sys
import time
import warnings
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from training.logger import writing

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None

# dense matrix products of GPUs, FLOP/s by precision, without sparsity (the makers' data sheets)
PEAKS = {
    "H200": {torch.bfloat16: 989e12, torch.float16: 989e12, torch.float32: 494e12},
    "H100": {torch.bfloat16: 989e12, torch.float16: 989e12, torch.float32: 494e12},
    "A100": {torch.bfloat16: 312e12, torch.float16: 312e12, torch.float32: 156e12},
    "L40S": {torch.bfloat16: 362e12, torch.float16: 362e12, torch.float32: 183e12},
    "L4": {torch.bfloat16: 121e12, torch.float16: 121e12, torch.float32: 60e12},
    "A10": {torch.bfloat16: 125e12, torch.float16: 125e12, torch.float32: 62e12},
    "V100": {torch.float16: 125e12, torch.float32: 15.7e12},
    "T4": {torch.float16: 65e12, torch.float32: 8.1e12},
    "4090": {torch.bfloat16: 165e12, torch.float16: 165e12, torch.float32: 82.6e12},
    "3090": {torch.bfloat16: 71e12, torch.float16: 71e12, torch.float32: 35.6e12},
}  # fp32 as this code runs it: in TF32 where the GPU has it
MOST_WAIT = 0.1  # of the time, for data


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that the device can do at most in this precision; None where it is not in the table."""
    if device.type != "cuda":
        return None
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    return next((peaks.get(dtype) for name, peaks in PEAKS.items() if name in words), None)


class Throughput:
    """Counts what the steps between two log steps read and wait for.

    The arithmetic of the first step, forward and backward, is counted while it runs, where the device's peak is known;
    later steps are taken to cost as much for each of the things counted first (tokens, or samples).
    """

    def __init__(self, run, peak: float | None = None):
        self.run, self.peak = run, peak or peak_flops(run.device, run.dtype)
        self.flops_each = None
        self.waits = 0  # how often in a row `values` saw more than MOST_WAIT; workers that start make the first one
        self.restart()

    def restart(self) -> None:
        self.started, self.waited, self.steps, self.counts = time.monotonic(), 0.0, 0, {}

    @contextlib.contextmanager
    def waiting(self):
        """Around the asking for data."""
        asked = time.monotonic()
        yield
        self.waited += time.monotonic() - asked

    @contextlib.contextmanager
    def counting(self):
        """Around the work of a step."""
        if self.peak is None or self.flops_each is not None:
            yield
            return
        with (
            warnings.catch_warnings(),
            torch.compiler.set_stance("force_eager"),  # compiled code shows its arithmetic to nobody
            FlopCounterMode(display=False) as counter,
        ):
            warnings.filterwarnings("ignore", "Using `torch.compile.* global hooks")  # the counter's own
            yield
        everywhere = counter.get_total_flops() * self.run.world_size
        self.flops_each = everywhere / next(iter(self.counts.values()))
        self.restart()  # this step was slow

    def add(self, counts: dict[str, float]) -> None:
        """One more step, in which all processes together read `counts`."""
        self.steps += 1
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0.0) + count

    def values(self) -> dict[str, float]:
        """The numbers to log, by name; {} when nothing was counted since the last restart."""
        if not self.steps:
            return {}
        seconds = time.monotonic() - self.started
        values = {f"{name}_per_s": count / seconds for name, count in self.counts.items()}
        values |= {"step_s": seconds / self.steps, "data_wait": self.waited / seconds, "memory_gib": self._memory()}
        self.waits = self.waits + 1 if values["data_wait"] > MOST_WAIT else 0
        if self.flops_each is not None:
            speed = self.flops_each * next(iter(self.counts.values())) / seconds
            values["mfu"] = speed / (self.peak * self.run.world_size)
        return values

    def _memory(self) -> float:
        """Largest memory so far in GiB: of the GPU, else of the process."""
        if self.run.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.run.device) / 2**30
        if resource is None:
            return float("nan")
        unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Profile:
    """Of so many steps of the main process, into `profile/` of the run's folder: `trace.json`, for chrome://tracing or
    ui.perfetto.dev, and `operators.txt`, those that took longest. The first step, which counts arithmetic, the second,
    which may compile, and a third one for the profiler to warm up are left out."""

    def __init__(self, run, folder: Path, steps: int):
        self.folder, self.rest, self.profiler = folder / "profile", 3 + steps, None
        self.sort_by = "self_device_time_total" if run.device.type == "cuda" else "self_cpu_time_total"
        if steps and run.main:
            plan = torch.profiler.schedule(wait=2, warmup=1, active=steps, repeat=1)
            self.profiler = torch.profiler.profile(schedule=plan, on_trace_ready=self._write)
            self.profiler.start()

    def end_step(self, last: bool) -> None:
        """last: of the run."""
        if self.profiler is None:
            return
        self.profiler.step()
        self.rest -= 1
        if last or not self.rest:
            self.profiler.stop()
            self.profiler = None

    def _write(self, profiler) -> None:
        table = profiler.key_averages().table(sort_by=self.sort_by, row_limit=30, max_name_column_width=80)
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(self.folder / "trace.json"))
            (self.folder / "operators.txt").write_text(table)
