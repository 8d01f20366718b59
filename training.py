"""The steps of a training run: gradients, schedule, guards against numbers that are not finite, checkpoints, resuming.

`Trainer` holds what must survive a restart. A script iterates over `trainer.epochs(loader)` and `trainer.steps(loader)`
and says what the loss is; the state of the run is the number of steps taken.
"""

import contextlib
import copy
import hashlib
import platform
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from checkpointing import load_strictly, plain_names, read_checkpoint, write_checkpoint
from errors import UserError
from logger import Logger, public_config
from utils import Loader, Run, decay_groups, learning_rates, make_optimizer, seed_everything, wrap

NEWEST = "ckpt.pt"  # the checkpoint that a run continues from
BEST = "ckpt-best.pt"  # the model of the epoch with the best validation
REQUEUE = 75  # exit status of a run that was told to stop and has saved its state: run the same command again


class Trainer:
    def __init__(self, raw_model, run: Run, optimizer, rates: np.ndarray, checkpoint: Path, extra: dict, *,
                 epochs: int, grad_clip: float = 0.0, ema_decay: float = 0.0, compile: bool = False,
                 log_interval: int = 10, save_every_minutes: float = 0, save_every_steps: int = 0,
                 save_ckpt_freq: int = 0):  # fmt: skip
        """rates: the learning rate of each step to take; checkpoint: path of the newest checkpoint; extra: what it
        holds beside the state; ema_decay: of the moving average of the weights that is evaluated, 0: none;
        save_ckpt_freq: every so many epochs a checkpoint is kept under its epoch's name."""
        self.raw_model, self.model, self.run = raw_model, wrap(raw_model, run, compile), run
        self.optimizer, self.rates, self.total_steps = optimizer, rates, len(rates)
        self.checkpoint, self.extra, self.n_epochs = Path(checkpoint), extra, epochs
        self.grad_clip, self.log_interval = grad_clip, log_interval
        self.ema_decay = ema_decay
        self.evaluated = copy.deepcopy(raw_model).requires_grad_(False) if ema_decay else raw_model
        self.save_every_minutes, self.save_every_steps = save_every_minutes, save_every_steps
        self.save_ckpt_freq = save_ckpt_freq
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
        self.step, self.epoch = 0, 0  # steps taken, epochs finished (their validation included)
        self.best = float("-inf")  # validation score of the best epoch, where a script keeps one
        self.logger: Logger | None = None
        self.stop_signal = None
        self._recorded, self._recorded_steps = {}, 0
        self._finite, self._files = [], deque(maxlen=max(log_interval, 1))
        self._last_save, self._last_log = time.monotonic(), time.monotonic()
        self._data_wait, self._counts = 0.0, {}
        for number in (signal.SIGTERM, signal.SIGUSR1):
            with contextlib.suppress(ValueError):  # not in the main thread: a notebook, a test
                signal.signal(number, self._on_signal)

    # ---------------------------------------------------------------------------------------------------- the loop

    def epochs(self):
        """The epochs still to do; each is finished, and saved, when the body of the loop ends."""
        for epoch in range(self.epoch, self.n_epochs):
            yield epoch
            self.epoch = epoch + 1
            keep = self.save_ckpt_freq and self.epoch % self.save_ckpt_freq == 0
            self.save(also=[self._named(self.epoch)] if keep else [])
            if self.step >= self.total_steps:
                break

    def steps(self, loader: Loader):
        """The micro-batches of each step still to do in this epoch."""
        first = self.epoch * loader.steps_per_epoch
        stop = min(loader.steps_per_epoch, self.total_steps - first)
        batches = loader.epoch(self.epoch, self.step - first, stop)
        self._last_log = time.monotonic()
        while True:
            asked = time.monotonic()
            micro_batches = next(batches, None)
            self._data_wait += time.monotonic() - asked
            if micro_batches is None:
                return
            seed_everything(self.run.seed, self.step, self.run.rank)
            for group in self.optimizer.param_groups:
                group["lr"] = float(self.rates[self.step]) * group.get("lr_scale", 1.0)
            self.model.train()
            self._files.append((self.step, [file for batch in micro_batches for file in batch["files"]]))
            yield micro_batches
            self._after_step()

    @contextlib.contextmanager
    def forward(self, last: bool):
        """Around the forward pass of a micro-batch: autocast, and gradients exchanged at the step's last one only."""
        quiet = isinstance(self.model, DistributedDataParallel) and not last
        with self.model.no_sync() if quiet else contextlib.nullcontext(), self.run.autocast():
            yield

    def backward(self, losses: dict[str, torch.Tensor], **measures: torch.Tensor) -> None:
        """Back-propagate the sum of `losses`, each this process's share of the mean over the global batch, so that the
        shares of all micro-batches and processes add up to the step's loss. `measures` are recorded beside them."""
        total = sum(losses.values())
        self.scaler.scale(total * self.run.world_size).backward()  # gradients are averaged over the processes
        for name, value in {"loss": total, **losses, **measures}.items():
            self._recorded[name] = self._recorded.get(name, 0.0) + value.detach().float()

    def update(self, **counts: float) -> None:
        """Clip the gradients and take the step; counts: what was read in it (tokens, samples) over all processes."""
        self.scaler.unscale_(self.optimizer)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(trained, self.grad_clip or float("inf"))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema_decay:
            self._average()
        finite = torch.isfinite(self._recorded["loss"])
        self._finite.append(finite if self.scaler.is_enabled() else finite & torch.isfinite(norm))
        self._recorded["grad_norm"] = self._recorded.get("grad_norm", 0.0) + norm.detach().float() / self.run.world_size
        self._recorded_steps += 1
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0.0) + count
        self.step += 1

    @torch.no_grad()
    def _average(self) -> None:
        """The evaluated weights follow the trained ones."""
        trained = self.raw_model.state_dict()
        for name, value in self.evaluated.state_dict().items():
            value.lerp_(trained[name], 1 - self.ema_decay)

    def _after_step(self) -> None:
        self.logger.advance()
        if self.step % self.log_interval == 0 or self.step == self.total_steps:
            self._log()
        due = self.save_every_steps and self.step % self.save_every_steps == 0
        minutes = (time.monotonic() - self._last_save) / 60
        late = bool(self.save_every_minutes) and minutes >= self.save_every_minutes and self.run.main
        # any process may get the signal, and the main one keeps the time: all must agree
        stop = self.run.any(self.stop_signal is not None)
        if stop or due or self.run.any(late):
            self.save()
        if stop:
            self.logger.say(f"told to stop: saved step {self.step} to {self.checkpoint}; run the same command to go on")
            self.logger.close()
            sys.exit(REQUEUE)

    def _on_signal(self, number, frame) -> None:
        self.stop_signal = number

    def _log(self) -> None:
        self._check_finite()
        names = list(self._recorded)
        means = self.run.sum(torch.stack([self._recorded[name] for name in names])) / self._recorded_steps
        seconds = time.monotonic() - self._last_log
        values = {f"train/{name}": mean for name, mean in zip(names, means.tolist(), strict=True)}
        values |= {f"system/{name}_per_s": count / seconds for name, count in self._counts.items()}
        values |= {"train/lr": self.rates[self.step - 1], "train/epoch": self.epoch}
        values |= {"system/data_wait": self._data_wait / seconds, "system/step_s": seconds / self._recorded_steps}
        if self.run.device.type == "cuda":
            values["system/memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self.scaler.is_enabled():
            values["system/loss_scale"] = self.scaler.get_scale()
        self.logger.write(self.step, values)
        self._recorded, self._recorded_steps, self._counts, self._data_wait = {}, 0, {}, 0.0
        self._last_log = time.monotonic()

    def _check_finite(self) -> None:
        """Stop the run, on all ranks, when a loss or a gradient of the steps since the last check was not finite."""
        if not self._finite:
            return
        finite = torch.stack(self._finite).tolist()
        self._finite = []
        if not self.run.any(not all(finite)):
            return
        message = "another process met a loss that is not finite"
        if not all(finite):
            step, files = list(self._files)[-len(finite) :][finite.index(False)]
            message = (
                f"the loss or its gradient is not finite at step {step} on rank {self.run.rank}, in a batch of "
                f"{', '.join(dict.fromkeys(files))}"
            )
        raise UserError(
            f"{message}. The last good checkpoint is untouched ({self.checkpoint}). Look at these recordings, or lower "
            "the learning rate, or clip the gradients at 1.0, or use --dtype float32"
        )

    # ----------------------------------------------------------------------------------------------------- the state

    def _named(self, name) -> Path:
        """The path of a checkpoint beside the newest one."""
        return self.checkpoint.with_stem(f"{self.checkpoint.stem}-{name}")

    def state(self) -> dict:
        return {
            "model": self.raw_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iter_num": self.step,
            "epoch": self.epoch,
            "best": self.best,
            "total_steps": self.total_steps,
            **({"model_ema": self.evaluated.state_dict()} if self.ema_decay else {}),
            **self.extra,
        }

    def save(self, also=()) -> None:
        """Write the newest checkpoint, unless what was trained since the last one is not finite."""
        self._check_finite()
        if self.run.main:
            state = self.state()
            for path in (*also, self.checkpoint):
                write_checkpoint(state, path)
        self._last_save = time.monotonic()

    def keep_best(self, score: float) -> None:
        """Keep the model as it is now, if `score` beats every epoch before; NaN beats none."""
        if score > self.best:
            self.best = float(score)  # a NumPy number could not be read back safely
            if self.run.main:
                model = {"model": self.evaluated.state_dict(), "iter_num": self.step, "epoch": self.epoch + 1}
                write_checkpoint(model | {"best": self.best} | self.extra, self._named("best"))

    def load_best(self) -> None:
        """Evaluate the weights that `keep_best` kept; without any, the last ones stay."""
        path = self._named("best")
        self.run.barrier()
        if path.is_file() and self.best > float("-inf"):
            load_strictly(self.evaluated, plain_names(read_checkpoint(path)["model"]), str(path))

    def resume(self) -> None:
        """Continue from the newest checkpoint."""
        state = read_checkpoint(self.checkpoint)
        if state.get("total_steps", self.total_steps) != self.total_steps:
            self.run.say(
                f"the run in {self.checkpoint} was planned for {state['total_steps']} steps, this one for "
                f"{self.total_steps}: the learning rate follows the new plan"
            )
        load_strictly(self.raw_model, plain_names(state["model"]), str(self.checkpoint))
        if self.ema_decay:
            load_strictly(self.evaluated, state.get("model_ema", state["model"]), str(self.checkpoint))
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.epoch, self.best = state["iter_num"], state["epoch"], state.get("best", float("-inf"))
        self.run.say(f"resumed {self.checkpoint} at step {self.step} of {self.total_steps}")


def start_training(raw_model, run: Run, args, out_dir: Path, *, steps: int, warmup_steps: int, extra: dict) -> Trainer:
    """Optimizer, schedule, trainer, the newest checkpoint of `out_dir` and the logs, from the flags that the scripts of
    NeuroLM share. extra: what the checkpoints hold beside the state of the training."""
    groups = decay_groups(raw_model, args.weight_decay)
    optimizer = make_optimizer(groups, args.learning_rate, (args.beta1, args.beta2), run.device)
    final_lr = args.min_lr if args.decay_lr else args.learning_rate
    rates = learning_rates(args.learning_rate, final_lr, steps, warmup_steps)
    return begin_training(
        raw_model, run, args, optimizer, rates, out_dir / NEWEST, extra=extra, grad_clip=args.grad_clip
    )


def begin_training(raw_model, run: Run, args, optimizer, rates, checkpoint: Path, *, extra: dict, grad_clip: float,
                   ema_decay: float = 0.0, log_dir=None) -> Trainer:  # fmt: skip
    """Trainer, the newest checkpoint and the logs, from the flags that all scripts share; log_dir: of TensorBoard."""
    config = public_config(args)
    trainer = Trainer(
        raw_model, run, optimizer, rates, checkpoint, extra=extra | provenance(config),
        epochs=args.epochs, grad_clip=grad_clip, ema_decay=ema_decay, compile=args.compile,
        log_interval=args.log_interval, save_every_minutes=args.save_every_minutes,
        save_every_steps=args.save_every_steps, save_ckpt_freq=args.save_ckpt_freq,
    )  # fmt: skip
    if args.resume and checkpoint.is_file():
        trainer.resume()
    wandb = {"project": args.wandb_project, "name": args.wandb_runname, "api_key": args.wandb_api_key}
    trainer.logger = Logger(
        checkpoint.parent, run, config, len(rates), trainer.step, wandb if args.wandb_log else None, log_dir
    )
    return trainer


def stage_folder(args, name: str) -> Path:
    """Where a stage writes; a check that it can overfit a few batches leaves the real checkpoints alone."""
    return Path(args.out_dir) / ("overfit" if args.overfit_batches else "checkpoints") / name


def resumes(args, out_dir: Path) -> bool:
    """Whether this run continues an earlier one."""
    return args.resume and (out_dir / NEWEST).is_file()


def provenance(config: dict) -> dict:
    """What made a checkpoint: flags, versions, git commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    return {"config": config, "versions": versions, "git_commit": commit or "unknown"}


def manifest_hashes(folders: list[Path]) -> dict[str, dict[str, str]]:
    """sha256 of the files that describe each dataset folder."""
    hashes = {}
    for folder in folders:
        files = [folder / name for name in ("manifest.csv", "dataset.yaml") if (folder / name).is_file()]
        hashes[folder.name] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return hashes
