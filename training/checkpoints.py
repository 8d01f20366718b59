"""The checkpoints of a run: written so that a kill or a full disk loses nothing, found again, held against a run."""

import contextlib
import os
import re
from pathlib import Path

import torch

from errors import UserError, told_later
from model.weights import read_checkpoint

CURE = "--no-resume starts anew, in its place"  # for a checkpoint that no run can continue from


# What a run continues from: the type of each value, and whether older checkpoints lack it
PROGRESS = {
    **dict.fromkeys(("iter_num", "epoch"), (int, True)),
    **dict.fromkeys(("validated", "total_steps", "steps_per_epoch", "samples_per_step", "log_lines"), (int, False)),
    "best": (float, False),
    "recorded": (dict, False),
}


def check_progress(state: dict, source: str) -> None:
    """Raise UserError where a checkpoint lacks what a run continues from, or holds another type or negative counts."""
    for name, (kind, needed) in PROGRESS.items():
        value = state.get(name)
        fits = (type(value) is kind and (kind is not int or value >= 0)) or (name not in state and not needed)
        if not fits:
            raise UserError(f"{source}: {name} = {str(value)[:80]}, expected {kind.__name__} of a run: {CURE}")
    recorded = state.get("recorded", {"sums": {}, "steps": 0})
    sums = recorded.get("sums")
    if not (isinstance(sums, dict) and type(recorded.get("steps")) is int and all(map(_is_number, sums.values()))):
        raise UserError(f"{source}: recorded = {str(recorded)[:80]}, expected sums and steps: {CURE}")
    if 0 in (state.get("samples_per_step"), state.get("steps_per_epoch")):
        raise UserError(f"{source}: an epoch of no steps or steps of no samples: {CURE}")


def _is_number(value) -> bool:
    return isinstance(value, int | float)


def load_scaler(scaler, state, source: str) -> None:
    """Load the state of a gradient scaler. Raises UserError for anything else."""
    if (
        not isinstance(state, dict)
        or state.keys() != scaler.state_dict().keys()
        or not all(map(_is_number, state.values()))
    ):
        raise UserError(f"{source}: scaler = {str(state)[:80]}, expected the state of a loss scale: {CURE}")
    scaler.load_state_dict(state)


@told_later()
def write_checkpoint(checkpoint: dict, path) -> None:
    """Write to a temporary name, flush to the disk, rename: `path` always holds a whole checkpoint, old or new."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a kill leaves behind is overwritten
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {path} could not be written ({error}); the one before it is untouched. Free some space on the "
            "disk, then run the same command again: it resumes"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # after the renaming there is none
            temporary.unlink()


class Checkpoints:
    """The checkpoints of a run: the newest, the best, and those of single epochs (`ckpt-10.pt`), `keep` at most."""

    def __init__(self, newest, keep: int = 0):
        """keep: how many epochs' checkpoints stay, 0: all."""
        self.newest, self.keep = Path(newest), keep
        self.best = self.of("best")

    def of(self, name) -> Path:
        """The path of a checkpoint beside the newest one."""
        return self.newest.with_stem(f"{self.newest.stem}-{name}")

    @told_later()
    def write(self, state: dict, epoch: int | None = None) -> None:
        """Write the newest checkpoint, and keep it as that of `epoch` when one is given."""
        if epoch is None:
            write_checkpoint(state, self.newest)
            return
        write_checkpoint(state, self.of(epoch))  # first: a kill in between leaves an epoch that is done again
        self._link(self.of(epoch), self.newest)
        name = re.compile(rf"{re.escape(self.newest.stem)}-(\d+){re.escape(self.newest.suffix)}")
        kept = {int(found[1]): path for path in self.newest.parent.iterdir() if (found := name.fullmatch(path.name))}
        for old in sorted(kept)[: -self.keep] if self.keep else ():
            kept[old].unlink()

    def _link(self, source: Path, path: Path) -> None:
        """Give the same file another name, in one moment; where the file system has no links, copy it."""
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            write_checkpoint(read_checkpoint(source, whole=False), path)
            return
        os.replace(temporary, path)


def find_checkpoint(path, out_dir, flag: str, default=None) -> Path:
    """`path` as given, else relative to `out_dir`; without one, `default` in it. A UserError names every place."""
    places = [Path(path), Path(out_dir) / path] if path else [Path(out_dir) / default]
    for place in places:
        if place.is_file():
            return place
    tried = " and ".join(str(place) for place in dict.fromkeys(places))
    raise UserError(f"{flag}: no checkpoint found, tried {tried}; train the stage before, or give its path")
