"""One `Logger.write(step, {...})`: a progress bar, `metrics.jsonl`, W&B and TensorBoard are its readers."""

import json
import math
import os
import sys
import uuid
from pathlib import Path

from tqdm import tqdm

from utils import Run

SECRETS = ("wandb_api_key",)


def public_config(args) -> dict:
    """The flags of a run as plain values, without secrets."""
    return {name: value for name, value in vars(args).items() if name not in SECRETS}


class Logger:
    """Writes on the main process only; on the others every method does nothing.

    Names are grouped: train/, val/, test_TUAB/, system/. `metrics.jsonl` holds one JSON object a line, with the step.
    A resumed run drops what an interrupted one wrote after its last checkpoint, and goes on with the same W&B run.
    """

    def __init__(self, out_dir, run: Run, config: dict, total_steps: int, first_step: int = 0,
                 wandb: dict | None = None, tensorboard_dir=None):  # fmt: skip
        """wandb: project, name and api_key of the W&B run, or None for no W&B."""
        self.run = run
        if not run.main:
            return
        out_dir = Path(out_dir)
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "config.json").write_text(json.dumps(config, indent=2, default=str))
        self.epoch_log = out_dir / "log.txt"
        self.latest = {}
        metrics = out_dir / "metrics.jsonl"
        _drop_after(metrics, "step", first_step)
        self.file = open(metrics, "a", buffering=1)  # noqa: SIM115 - closed by `close`
        interval = 1.0 if sys.stderr.isatty() else 30.0  # a log file needs no living bar
        self.bar = tqdm(
            total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=interval, miniters=1
        )
        self.wandb = _start_wandb(out_dir, config, first_step > 0, **wandb) if wandb else None
        self.board = None
        if tensorboard_dir:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(tensorboard_dir), purge_step=first_step + 1)

    def advance(self) -> None:
        """One more step on the progress bar."""
        if self.run.main:
            self.bar.update()

    def write(self, step: int, values: dict) -> None:
        """Numbers by name at a step; a value that is not finite is written as null."""
        if not self.run.main:
            return
        plain = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        self.latest |= {"step": step, **finite}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        if "train/loss" in plain:
            self.bar.set_postfix(loss=f"{plain['train/loss']:.4f}", refresh=False)
        if self.wandb:
            self.wandb.log(plain, step=step)
        if self.board:
            for name, value in plain.items():
                self.board.add_scalar(name, value, step)

    def end_epoch(self, epoch: int) -> None:
        """A line in `log.txt`: the latest value of every number."""
        if self.run.main:
            _drop_after(self.epoch_log, "epoch", epoch - 1)
            with open(self.epoch_log, "a") as file:
                file.write(json.dumps({"epoch": epoch, **self.latest}) + "\n")

    def say(self, message: str) -> None:
        """A line above the progress bar."""
        if self.run.main:
            self.bar.write(message)

    def close(self) -> None:
        if not self.run.main:
            return
        self.bar.close()
        self.file.close()
        if self.wandb:
            self.wandb.finish()
        if self.board:
            self.board.close()


def _drop_after(path: Path, name: str, last: int) -> None:
    """Leave out the lines whose `name` is past `last`, and half-written ones."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines if line.endswith("}") and json.loads(line)[name] <= last]
    path.write_text("".join(line + "\n" for line in kept))


def _start_wandb(out_dir: Path, config: dict, resumed: bool, project: str, name: str, api_key: str | None):
    import wandb

    if api_key:
        os.environ["WANDB_API_KEY"] = api_key  # not wandb.login: that writes the key to a file
    id_file = out_dir / "wandb_id.txt"
    if not (resumed and id_file.exists()):
        id_file.write_text(uuid.uuid4().hex[:8])
    return wandb.init(
        project=project, name=name, id=id_file.read_text(), resume="allow", dir=out_dir, config=config, mode=None
    )
