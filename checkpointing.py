"""Checkpoints: read without running code, loaded strictly, written so that a kill or a full disk loses nothing."""

import argparse
import os
import re
from pathlib import Path

import torch

from errors import UserError

PREFIXES = ("_orig_mod.", "module.")  # left by torch.compile and DistributedDataParallel


def read_checkpoint(path) -> dict:
    """The dictionary in a checkpoint, on the CPU.

    Only tensors, plain Python values and `argparse.Namespace` (released LaBraM checkpoints hold one) are unpickled.
    Raises UserError when the file is missing, damaged, or holds anything else.
    """
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what the damage happens to cause
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds a {refused[1]}" if refused else (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"checkpoint {path} cannot be read safely ({type(error).__name__}: {reason[:200]}): it is damaged, or "
            "not a PyTorch checkpoint of tensors and plain values"
        ) from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"checkpoint {path} holds a {type(checkpoint).__name__}, expected a dictionary")
    return checkpoint


def plain_names(state: dict) -> dict:
    """A state dict without the prefixes that wrappers add."""
    plain = {}
    for name, value in state.items():
        for prefix in PREFIXES:
            name = name.replace(prefix, "")
        plain[name] = value
    return plain


def load_strictly(model: torch.nn.Module, state: dict, source: str) -> None:
    """Load a state dict whose names and shapes are exactly the model's; else a UserError that says what differs."""
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    resized = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    differences = (("missing", missing), ("unknown", unknown), ("of another size", resized))
    found = [f"{len(names)} {what} ({_few(names)})" for what, names in differences if names]
    if found:
        raise UserError(
            f"{source} does not fit this model: {'; '.join(found)}. Was it trained with another --size, or is it a "
            "checkpoint of another stage?"
        )
    model.load_state_dict(state)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def write_checkpoint(checkpoint: dict, path) -> None:
    """Write to a temporary name, flush to the disk, rename: `path` always holds a whole checkpoint, old or new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"checkpoint {path} could not be written ({error}); the one before it is untouched. Free some space on the "
            "disk, then run the same command again: it resumes"
        ) from None


def find_checkpoint(path, out_dir, flag: str) -> Path:
    """`path` as given, else relative to `out_dir`; a UserError names both places."""
    places = [Path(path), Path(out_dir) / path]
    for place in places:
        if place.is_file():
            return place
    tried = " and ".join(str(place) for place in dict.fromkeys(places))
    raise UserError(f"{flag}: no checkpoint found, tried {tried}; train the stage before, or give its path")
