"""The run: processes, device, precision, learning-rate schedule, optimizer.

Nothing here knows of EEG, text or tasks. The state of a run is (seed, step): data order, random crops and dropout all
follow from it, so that resuming needs no state of random generators or data workers.
"""

import atexit
import contextlib
import datetime
import math
import os
import random
import time
import warnings
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# ------------------------------------------------------------------------------------------------- processes, device


@dataclass(frozen=True)
class Run:
    """Who this process is and what it computes on."""

    rank: int
    world_size: int
    device: torch.device
    dtype: torch.dtype
    seed: int
    patience: datetime.timedelta = datetime.timedelta(minutes=10)  # of what waits for all processes
    watch: object = None  # hears of every arrival, where there are several processes

    @property
    def main(self) -> bool:
        return self.rank == 0

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @cached_property
    def host_group(self):
        """A process group for values that live on the host: agreeing on them does not wait for the device."""
        return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=self.patience)

    def arrive(self, step: int | None = None) -> None:
        """Tell the other processes that this one got further: at a step, or to where all of them meet."""
        if self.watch:
            self.watch.arrive(step)

    def any(self, flag: bool) -> bool:
        """True when it is True on any process."""
        return bool(self.sum_on_host(float(flag)))

    def sum_on_host(self, number: float) -> float:
        """Sum of a Python number over the processes."""
        if self.world_size == 1:
            return number
        self.arrive()
        total = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(total, group=self.host_group)
        return total.item()

    def share(self, function, items) -> list:
        """function(item) of each item, the same list on every process; each of them does a part of the work."""
        items = list(items)
        if not (dist.is_available() and dist.is_initialized()):
            return [function(item) for item in items]
        parts = [None] * self.world_size
        mine = [function(item) for item in items[self.rank :: self.world_size]]
        dist.all_gather_object(parts, mine, group=self.host_group)
        return [parts[i % self.world_size][i // self.world_size] for i in range(len(items))]

    def sum(self, tensor):
        """Sum of a tensor over the processes."""
        if self.world_size > 1:
            self.arrive()
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def on_main(self, make):
        """What `make()` gives on the main process, on every process; a UserError of it is raised on all of them."""
        given = [None, None]
        if self.main:
            try:
                given[0] = make()
            except UserError as error:
                given[1] = str(error)
        if self.world_size > 1:
            dist.broadcast_object_list(given, src=0, group=self.host_group)
        if given[1] is not None:
            raise UserError(given[1])
        return given[0]

    def rows(self, micro_batch: int, batch_size: int) -> range:
        """The rows of the global batch of a step that this process takes in its i-th micro-batch."""
        first = (micro_batch * self.world_size + self.rank) * batch_size
        return range(first, first + batch_size)

    def say(self, message: str) -> None:
        """Print on the main process."""
        if self.main:
            print(message, flush=True)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            self.arrive()
            dist.barrier(group=self.host_group)

    @contextlib.contextmanager
    def main_first(self):
        """The main process does the block before the others, so that a download happens once."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()


def start_run(device: str = "auto", dtype: str = "auto", seed: int = 1337, timeout_minutes: float = 10.0,
              make_watch=None, began=lambda: None) -> Run:  # fmt: skip
    """Join torchrun's processes when there are any, choose device and precision, seed everything.

    device: auto, cpu, cuda, cuda:1, mps; dtype: auto, float32, bfloat16, float16; timeout_minutes: after which the
    others end when a process hangs; make_watch(rank, world_size, minutes, patience, attempt) says which one does;
    began(): the precision, by name, of a run that goes on, which "auto" on a CPU keeps.
    Raises UserError for a device or a precision that this machine lacks.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    # the watch knows the rank and speaks first; the collectives, which do not, end those that it leaves
    patience, watch = datetime.timedelta(minutes=timeout_minutes + 1), None
    if world_size > 1 and not dist.is_initialized():
        # processes that torchrun starts anew find the addresses of the dead ones in its store: look elsewhere. A store
        # of our own is new each time, and a node that joins later has counted fewer attempts than the others
        kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if kept else "0"
        store, rank, world_size = next(rendezvous("env://", timeout=patience))
        if make_watch:
            watch = make_watch(rank, world_size, timeout_minutes, patience, attempt)
            atexit.register(watch.leave)
        _join("nccl" if chosen.type == "cuda" else "gloo", dist.PrefixStore(attempt, store), rank, world_size, patience)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    seed_everything(seed)
    run = Run(rank, world_size, chosen, choose_dtype(dtype, chosen), seed, patience, watch)
    if dtype == "auto" and chosen.type == "cpu":
        run = replace(run, dtype=run.on_main(lambda: _cpu_dtype(began)))
    run.say(f"{world_size} process(es) on {chosen.type}, {str(run.dtype).removeprefix('torch.')}, seed {seed}")
    return run


def _join(backend: str, store, rank: int, world_size: int, patience: datetime.timedelta) -> None:
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=patience)
    atexit.register(dist.destroy_process_group)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of that name, see `start_run`. Raises UserError where this machine lacks it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = name.split(":")[0]
    if not available.get(kind):
        usable = ", ".join(kind for kind, there in available.items() if there)
        raise UserError(f"--device {name}: not available here; usable: auto, {usable}")
    return torch.device("cuda", local_rank) if name == "cuda" else torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of that name, see `start_run`. Raises UserError where the device lacks it."""
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if name == "float16" and device.type == "cpu":
        raise UserError("--dtype float16 needs a GPU; on a CPU take float32 or bfloat16")
    return DTYPES[name]


def _cpu_dtype(began) -> torch.dtype:
    """What "auto" is on a CPU: that of a run that goes on, else bfloat16 where it is shown to be faster."""
    if not _multiplies_bfloat16():
        return torch.float32
    known = DTYPES.get(began())  # a float16 is of a GPU
    if known in (torch.float32, torch.bfloat16):
        return known
    return torch.bfloat16 if bfloat16_pays() else torch.float32


def _multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for it; without them it is many times slower."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def bfloat16_pays() -> bool:
    """Whether the products of a GPT-2 block are faster in bfloat16 than in float32, casts included: tried for a second
    at most."""
    x, weight, fastest = torch.ones(1024, 768), torch.ones(3072, 768), {}
    for dtype in (torch.float32, torch.bfloat16):
        kept, times, end = weight.to(dtype), [], time.perf_counter() + 0.5
        while not times or time.perf_counter() < end:
            begun = time.perf_counter()
            nn.functional.linear(x.to(dtype), kept)
            times.append(time.perf_counter() - begun)
        fastest[dtype] = min(times)
    return fastest[torch.bfloat16] < fastest[torch.float32]


def seed_everything(*key: int) -> None:
    """Seed all generators from a tuple of integers."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries may draw from it
    random.seed(seed)


# ------------------------------------------------------------------------------------------------ schedule, optimizer


def learning_rates(base: float, final: float, steps: int, warmup_steps: int) -> np.ndarray:
    """Learning rate of each step: a line from 0 to `base` in the warm-up (both included), then a cosine to `final`."""
    warmup_steps = min(warmup_steps, steps)
    progress = np.arange(steps - warmup_steps) / max(steps - warmup_steps, 1)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(math.pi * progress))
    return np.concatenate([np.linspace(0, base, warmup_steps), cosine])


OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def make_optimizer(groups, lr: float, betas: tuple[float, float], device: torch.device, eps: float = 1e-8,
                   kind: str = "adamw"):  # fmt: skip
    """The optimizer of parameter groups {params, weight_decay, lr_scale (default 1, multiplies the learning rate)}."""
    return OPTIMIZERS[kind](groups, lr=lr, betas=tuple(betas), eps=eps, fused=device.type in ("cuda", "cpu"))


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Groups for `make_optimizer`: tensors of two and more dimensions decay, the others (norms, biases) do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def wrap(model: nn.Module, run: Run, compile: bool = False, sharded: bool = False) -> nn.Module:
    """What is trained: the model compiled if asked, and its gradients averaged over the processes."""
    if compile:
        # else DDP would cut the graph where it exchanges gradients, which fails once lengths vary
        torch._dynamo.config.optimize_ddp = False
        model = torch.compile(model)
    if run.world_size == 1 or sharded:  # shards exchange gradients by themselves
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer torch renames broadcast_buffers, older knows this name
        # buffers are equal on all ranks by construction
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
