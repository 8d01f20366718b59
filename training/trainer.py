"""The steps of a training run: gradients, schedule, guards against numbers that are not finite, saving, resuming.

`Trainer` holds what must survive a restart. A script iterates over `trainer.epochs()` and `trainer.steps()` and says
what the loss is; the state of the run is the number of steps taken.
"""

import contextlib
import copy
import sys
import time

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from errors import REQUEUE, hearing
from model.weights import ADAPTS, load_strictly, parts, plain_names, read_checkpoint
from training.checkpoints import CURE, Checkpoints, check_progress, load_scaler, write_checkpoint
from training.loading import Loader
from training.logger import Logger
from training.recorder import Recorder
from training.sharding import filled_copy, is_sharded, load_optimizer, sharded_like, whole, whole_state
from training.throughput import Profile, Throughput
from utils import Run, seed_everything, wrap


class Trainer:
    def __init__(self, raw_model, run: Run, optimizer, rates: np.ndarray, loader: Loader, checkpoints: Checkpoints,
                 extra: dict, *, template=None, grad_clip: float = 0.0, ema_decay: float = 0.0, compile: bool = False,
                 log_interval: int = 10, save_every_minutes: float = 0, save_every_steps: int = 0,
                 save_ckpt_freq: int = 0, profile: int = 0):  # fmt: skip
        """rates: the learning rate of each step to take; extra: what checkpoints hold beside the state; template: what
        `shard` gave, when raw_model is sharded; ema_decay: of the moving average of the weights that is evaluated, 0:
        none; save_ckpt_freq: every so many epochs a checkpoint is kept under its epoch's number; profile: as in
        `Profile`, 0: none."""
        self.raw_model, self.template, self.run = raw_model, template, run
        self.model = wrap(raw_model, run, compile, is_sharded(raw_model))
        self.optimizer, self.rates, self.total_steps, self.loader = optimizer, rates, len(rates), loader
        self.checkpoints, self.extra = checkpoints, extra
        self.saved = list(raw_model.state_dict())  # names of the tensors that checkpoints hold
        if ADAPTS in extra:
            adapted = set(extra[ADAPTS]["names"])  # peft renames the layers that it adapts
            self.saved = [name for name in self.saved if name.replace(".base_layer", "") not in adapted]
        self.grad_clip, self.log_interval, self.ema_decay = grad_clip, log_interval, ema_decay
        self.evaluated = copy.deepcopy(raw_model).requires_grad_(False) if ema_decay else raw_model
        self.save_every_minutes, self.save_every_steps = save_every_minutes, save_every_steps
        self.save_ckpt_freq = save_ckpt_freq
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
        self.step, self.epoch, self.validated = 0, 0, 0  # steps taken; epochs finished, and the steps taken by then
        self.best = float("-inf")  # validation score of the best epoch, where a script keeps one
        self.logger: Logger | None = None
        self.lock = None  # on the folder, held as long as this object lives
        self.throughput, self.profile = Throughput(run), Profile(run, checkpoints.newest.parent, profile)
        self.recorder = Recorder(run, log_interval)
        self._last_save, self._saved = time.monotonic(), 0  # when, and after how many steps
        self._told_to_stop = False

    # ---------------------------------------------------------------------------------------------------- the loop

    def prepare(self, start) -> None:
        """Call `start` with all micro-batches of the first step, before it is taken; a resumed run has started."""
        if self.step == 0:
            (micro_batches,) = self.loader.epoch(0, 0, 1)
            seed_everything(self.run.seed, 0, self.run.rank)  # as the step itself will
            with self.run.autocast():
                start(micro_batches)

    def epochs(self):
        """The epochs still to do; each is finished, and saved, when the body of the loop ends."""
        while self.validated < self.total_steps:
            yield self.epoch
            self.epoch, rest = divmod(self.step, self.loader.steps_per_epoch)
            self.validated = self.step
            kept = self.save_ckpt_freq and not rest and self.epoch % self.save_ckpt_freq == 0
            self.save(self.epoch if kept else None)

    def steps(self):
        """The micro-batches of each step still to do in this epoch; afterwards all of them are saved.

        SIGTERM and SIGUSR1 ask the run to save and stop at the next step. Outside of the steps nothing would be lost,
        and they end it on the spot.
        """
        with hearing(self._on_signal):
            yield from self._steps()
        if self._told_to_stop:  # each process by itself: the others may be outside already
            self._stop()

    def _steps(self):
        first, begun = self.epoch * self.loader.steps_per_epoch, self.step
        stop = min(self.loader.steps_per_epoch, self.total_steps - first)
        batches = self.loader.epoch(self.epoch, self.step - first, stop)
        self.throughput.restart()
        while True:
            with self.throughput.waiting():
                micro_batches = next(batches, None)
            if micro_batches is None:
                break
            self.run.arrive(self.step)
            seed_everything(self.run.seed, self.step, self.run.rank)
            for group in self.optimizer.param_groups:
                group["lr"] = float(self.rates[self.step]) * group.get("lr_scale", 1.0)
            self.model.train()
            self.recorder.begin_step(self.step, [file for batch in micro_batches for file in batch["files"]])
            with self.throughput.counting():
                yield micro_batches
            self._after_step()
        if self.step not in (begun, self._saved):
            self.save()  # a validation can be long: what ends it must not cost the steps

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
            self.recorder.add(name, value)

    def update(self, **counts: float) -> None:
        """Clip the gradients and take the step; counts: what was read in it (tokens, samples) over all processes."""
        self.scaler.unscale_(self.optimizer)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = whole(torch.nn.utils.clip_grad_norm_(trained, self.grad_clip or float("inf"))).detach().float()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema_decay:
            self._average()
        sound = torch.isfinite(norm)
        finite = torch.isfinite(self.recorder.sums["loss"])
        if self.scaler.is_enabled():  # the scaler left the step out, and tries a smaller scale
            self.recorder.add("skipped_steps", (~sound).float() / self.run.world_size)
            norm = torch.where(sound, norm, 0.0)
        else:
            finite = finite & sound
        self.recorder.add("grad_norm", norm / self.run.world_size)
        self.recorder.end_step(finite)
        self.throughput.add(counts)
        self.step += 1

    @torch.no_grad()
    def _average(self) -> None:
        """The evaluated weights follow the trained ones."""
        trained = self.raw_model.state_dict()
        for name, value in self.evaluated.state_dict().items():
            value.lerp_(trained[name], 1 - self.ema_decay)

    def _after_step(self) -> None:
        self.profile.end_step(last=self.step == self.total_steps)
        self.logger.advance()
        if self.step % self.log_interval == 0 or self.step == self.total_steps:
            self._log()
        due = self.save_every_steps and self.step % self.save_every_steps == 0
        minutes = (time.monotonic() - self._last_save) / 60
        late = bool(self.save_every_minutes) and minutes >= self.save_every_minutes and self.run.main
        # the main process keeps the time, and any may have got the signal: all must agree
        if self.run.any(late or self._told_to_stop) or due:
            self.save()
            if self.run.any(self._told_to_stop):
                self._stop()

    def _on_signal(self, number, frame) -> None:
        self._told_to_stop = True

    def _stop(self) -> None:
        self.logger.say(f"told to stop: {self.checkpoints.newest} holds step {self.step}; the same command goes on")
        self.logger.close()
        sys.exit(REQUEUE)

    def _log(self) -> None:
        self.recorder.check(self.checkpoints.newest)
        values = {f"train/{name}": value for name, value in self.recorder.means(counted=("skipped_steps",)).items()}
        values |= {"train/lr": float(self.rates[self.step - 1]), "train/epoch": self.epoch}
        values |= {f"system/{name}": value for name, value in self.throughput.values().items()}
        if self.scaler.is_enabled():
            values["system/loss_scale"] = self.scaler.get_scale()
        self.logger.write(self.step, values)
        if self.throughput.waits == 2:
            self.logger.say(
                f"{values['system/data_wait']:.0%} of the time goes by waiting for data: take more --num_workers than "
                f"{self.loader.loader.num_workers}, or move the recordings to a faster disk"
            )
        self.throughput.restart()

    # -------------------------------------------------------------------------------------------------- evaluation

    @contextlib.contextmanager
    def evaluation(self):
        """The model to evaluate, whole, in evaluation mode and without gradients."""
        model = self.evaluated
        if self.template is not None:
            model = filled_copy(self.template, self.evaluated, self.run.device)
        with torch.no_grad():
            yield model.eval()
        if self.template is not None:
            model.to("meta")  # frees its memory, whoever still holds it

    def keep_best(self, score: float) -> None:
        """Keep the model as it is now, if `score` beats every epoch before; NaN beats none."""
        if score > self.best:
            self.best = float(score)  # a NumPy number could not be read back safely
            model = self._state(self.evaluated)
            if self.run.main:
                state = {"model": model, "iter_num": self.step, "epoch": self.epoch + 1, "best": self.best}
                write_checkpoint(state | self.extra, self.checkpoints.best)

    def load_best(self) -> None:
        """Evaluate the weights that `keep_best` kept; without any, the last ones stay."""
        path = self.checkpoints.best
        self.run.barrier()
        if path.is_file() and self.best > float("-inf"):
            (model,) = parts(read_checkpoint(path, whole=False), ["model"], str(path), "it was not written by this run")
            self._load(self.evaluated, model, path)

    # --------------------------------------------------------------------------------------------------- the state

    def save(self, keep_as: int | None = None) -> None:
        """Write the newest checkpoint, and keep it as that of an epoch when its number is given; refuse to where what
        was trained since the last one is not finite."""
        self.recorder.check(self.checkpoints.newest)
        state = {
            "model": self._state(self.raw_model),
            "optimizer": whole_state(self.optimizer.state_dict(), self.run.main),
            "scaler": self.scaler.state_dict(),
            "iter_num": self.step,
            "epoch": self.epoch,
            "validated": self.validated,
            "best": self.best,
            "total_steps": self.total_steps,
            "steps_per_epoch": self.loader.steps_per_epoch,
            "samples_per_step": self.loader.samples_per_step,
            "recorded": self.recorder.state(),
            "log_lines": self.logger.flush(),
            **({"model_ema": self._state(self.evaluated)} if self.ema_decay else {}),
            **self.extra,
        }
        if self.run.main:
            self.checkpoints.write(state, keep_as)
        self._last_save, self._saved = time.monotonic(), self.step

    def resume(self) -> int:
        """Continue from the newest checkpoint; returns how many lines of the log belong to it."""
        path = self.checkpoints.newest
        state = read_checkpoint(path, whole=False)
        model, optimizer = parts(state, ("model", "optimizer"), str(path), CURE)
        self._load(self.raw_model, model, path)
        if self.ema_decay:
            average = parts(state, ["model_ema"], str(path), CURE)[0] if "model_ema" in state else model
            self._load(self.evaluated, average, path)
        load_optimizer(self.optimizer, optimizer, str(path))
        check_progress(state, str(path))
        if self.scaler.is_enabled() and state.get("scaler"):
            load_scaler(self.scaler, state["scaler"], str(path))
        self.step, self.epoch, self.best = state["iter_num"], state["epoch"], state.get("best", float("-inf"))
        self.validated = state.get("validated", 0)
        if "recorded" in state:
            self.recorder.restore(state["recorded"])
        self._follow_plan(state)
        self.run.say(f"resumed {path} at step {self.step} of {self.total_steps}")
        return state.get("log_lines", 0)

    def _follow_plan(self, state: dict) -> None:
        """Where this run takes other steps than the one that it continues: go on with the same windows."""
        if state.get("total_steps", self.total_steps) != self.total_steps:
            self.run.say(
                f"the run in {self.checkpoints.newest} was planned for {state['total_steps']} steps, this one for "
                f"{self.total_steps}: the learning rate follows the new plan"
            )
        loader = self.loader
        samples = state.get("samples_per_step", loader.samples_per_step)
        steps = state.get("steps_per_epoch", loader.steps_per_epoch)
        if (samples, steps) != (loader.samples_per_step, loader.steps_per_epoch):
            read = (self.step - self.epoch * steps) * samples  # of the unfinished epoch
            rest = min(read // loader.samples_per_step, loader.steps_per_epoch)
            self.step = self.epoch * loader.steps_per_epoch + rest
            self.validated = self.step if self.validated == state["iter_num"] else 0
            self.run.say(
                f"an epoch has {loader.steps_per_epoch} steps of {loader.samples_per_step} samples, it had {steps} of "
                f"{samples}: step {state['iter_num']} is now {self.step}"
            )

    def _state(self, model) -> dict:
        """What checkpoints hold of a model; every process must call this."""
        state = model.state_dict()
        return whole_state({name: state[name] for name in self.saved}, self.run.main)

    def _load(self, model, state: dict, path) -> None:
        own = model.state_dict()
        kept = {name: value for name, value in own.items() if name not in self.saved}
        load_strictly(model, kept | sharded_like(plain_names(state), own), str(path))
