"""One `Logger.write(step, {...})`: a progress bar, `metrics.jsonl`, W&B and TensorBoard are its readers."""

import contextlib
import json
import math
import os
import sys
import uuid
from pathlib import Path

from tqdm import tqdm

from errors import UserError
from utils import Run


class Logger:
    """Writes on the main process only; on the others every method does nothing.

    Names are grouped: train/, val/, test_TUAB/, system/. `metrics.jsonl` holds one JSON object a line, with the step.
    A resumed run drops what an interrupted one wrote after its last checkpoint, and goes on with the same W&B run.
    """

    def __init__(self, out_dir, run: Run, about: dict, total_steps: int, first_step: int = 0, first_line: int = 0,
                 wandb: dict | None = None, tensorboard_dir=None):  # fmt: skip
        """about: what made the run, with its flags under `config`; first_line: how many lines of `metrics.jsonl` the
        checkpoint at `first_step` knows; wandb: project, name and api_key of the W&B run, or None for no W&B."""
        self.run = run
        if not run.main:
            return
        self.out_dir = Path(out_dir)
        make_folder(self.out_dir)
        replace_text(self.out_dir / "config.json", json.dumps(about, indent=2, default=str) + "\n")
        self.epoch_log = self.out_dir / "log.txt"
        self.metrics = self.out_dir / "metrics.jsonl"
        lines = self.metrics.read_text().splitlines()[:first_line] if self.metrics.exists() else []
        replace_text(self.metrics, "".join(line + "\n" for line in lines))
        self.lines, self.latest = len(lines), {}
        for line in lines:
            self.latest |= json.loads(line)
        self.file = open(self.metrics, "a", buffering=1)  # noqa: SIM115 - closed by `close`
        interval = 1.0 if sys.stderr.isatty() else 30.0  # a log file needs no living bar
        self.bar = tqdm(
            total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=interval, miniters=1
        )
        self.wandb = _start_wandb(self.out_dir, about, first_step > 0, **wandb) if wandb else None
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
        with writing(self.metrics):
            self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.lines += 1
        if "train/loss" in plain:
            shown = {"mfu": f"{plain['system/mfu']:.0%}"} if "system/mfu" in plain else {}
            self.bar.set_postfix(loss=f"{plain['train/loss']:.4f}", **shown, refresh=False)
        if self.wandb:
            self.wandb.log(plain, step=step)
        if self.board:
            for name, value in plain.items():
                self.board.add_scalar(name, value, step)

    def figure(self, step: int, name: str, draw, *arguments) -> None:
        """A figure by name at a step: `draw(*arguments, path)` writes it to `figures/`, where the newest one stays."""
        if not self.run.main:
            return
        path = self.out_dir / "figures" / f"{name.replace('/', '_')}.png"
        with writing(path):
            draw(*arguments, path)
        if self.wandb:
            import wandb

            self.wandb.log({name: wandb.Image(str(path))}, step=step)
        if self.board:
            from matplotlib.image import imread

            self.board.add_image(name, imread(path)[..., :3], step, dataformats="HWC")

    def flush(self) -> int:
        """Bring to the disk what was written -> how many lines `metrics.jsonl` has, for a checkpoint."""
        if not self.run.main:
            return 0
        with writing(self.metrics):
            self.file.flush()
            os.fsync(self.file.fileno())
            if self.board:
                self.board.flush()
        return self.lines

    def end_epoch(self, epoch: int) -> None:
        """A line in `log.txt`: the latest value of every number."""
        if self.run.main:
            lines = self.epoch_log.read_text().splitlines() if self.epoch_log.exists() else []
            before = [line for line in lines if json.loads(line)["epoch"] < epoch]  # of a run that was interrupted
            replace_text(self.epoch_log, "\n".join([*before, json.dumps({"epoch": epoch, **self.latest})]) + "\n")

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


def make_folder(path: Path) -> None:
    """An output folder, which may be there. Raises UserError where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror}): choose another output folder") from None


def replace_text(path: Path, text: str) -> None:
    """Write a file in whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


@contextlib.contextmanager
def writing(path: Path):
    """Around the writing of a file: raises UserError where the disk refuses."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror or error}): free some space on the disk, then run the same "
            "command again: it resumes from the last checkpoint"
        ) from None


def _start_wandb(out_dir: Path, about: dict, resumed: bool, project: str, name: str, api_key: str | None):
    import wandb

    if api_key:
        os.environ["WANDB_API_KEY"] = api_key  # not wandb.login: that writes the key to a file
        sys.argv = [argument.replace(api_key, "***") for argument in sys.argv]  # wandb writes these to one
    id_file = out_dir / "wandb_id.txt"
    if not (resumed and id_file.exists()):
        id_file.write_text(uuid.uuid4().hex[:8])
    config = about["config"] | {key: value for key, value in about.items() if key != "config"}
    try:
        return wandb.init(
            project=project, name=name, id=id_file.read_text(), resume="allow", dir=out_dir, config=config
        )
    except wandb.errors.Error as error:
        raise UserError(f"W&B: {error}; run `wandb login`, or set WANDB_MODE=offline and sync later") from None
