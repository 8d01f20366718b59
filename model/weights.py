"""The weights of checkpoints: read without running code, made whole where they are adapters, loaded strictly."""

import argparse
import dataclasses
import hashlib
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from errors import UserError, check_file

MAX_LAYERS = 512  # of a model in a checkpoint; the largest has 48
PREFIXES = ("_orig_mod.", "module.")  # left by torch.compile and DistributedDataParallel
ADAPTS = "adapts"  # the key of checkpoints that hold adapters alone: of which weights
LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"  # as peft names them


def read_checkpoint(path, whole: bool = True) -> dict:
    """The dictionary in a checkpoint, on the CPU; whole: where it holds adapters alone, with the model that they make
    of the weights that it names, else as it was written.

    Only tensors, plain Python values and `argparse.Namespace` (released LaBraM checkpoints hold one) are unpickled.
    Raises UserError when the file is missing, damaged, or holds anything else.
    """
    check_file(path)
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        _check_archive(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            # mapped, not read: the processes of a machine share one copy of a large checkpoint
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch.load raises what the damage happens to cause
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):  # whose first line advises to load it all the same
            refused = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it holds a {refused[1]}" if refused else "it holds other objects"
        raise UserError(
            f"checkpoint {path} cannot be read safely ({type(error).__name__}: {reason[:200]}): it is damaged, or "
            "not a PyTorch checkpoint of tensors and plain values"
        ) from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"checkpoint {path} holds a {type(checkpoint).__name__}, expected a dictionary")
    return _merged(checkpoint, str(path)) if whole and ADAPTS in checkpoint else checkpoint


def _merged(checkpoint: dict, source: str) -> dict:
    """A checkpoint of adapters as one of the whole model, W + B A in place of every W that was adapted (LoRA), without
    what only its training goes on with. Raises UserError where the weights W are not there, or are other ones."""
    trained, about = parts(checkpoint, ("model", ADAPTS), source, "its adapters belong to no weights")
    _check_stored(trained, source)
    try:
        layers = [name for name in trained if name.endswith(LORA_A)]
        state = _lm_state(checkpoint, source) if "path" not in about else _adapted_state(about, source)
        state |= {name: value for name, value in trained.items() if not name.endswith((LORA_A, LORA_B))}
        for name in layers:
            weight, a, b = name.replace(LORA_A, ".weight"), trained[name], trained[name.replace(LORA_A, LORA_B)]
            if (len(b), a.shape[1]) != state[weight].shape:
                raise ValueError(f"{name} is of another size")
            state[weight] = state[weight].float() + b @ a
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, OSError) as error:
        raise UserError(f"{source}: its adapters are damaged, or of another model ({error!r})") from None
    training = (ADAPTS, "optimizer", "scaler", "model_ema")
    return {name: value for name, value in checkpoint.items() if name not in training} | {"model": state}


def _adapted_state(about: dict, source: str) -> dict:
    """The tensors that adapters belong to, from the checkpoint that they name."""
    path, names = Path(about["path"]), list(about["names"])
    places = [path, Path(source).with_name(path.name)]
    found = [place for place in places if place.is_file()]
    if not found:
        tried = " and ".join(map(str, places))
        raise UserError(f"{source} holds adapters alone; the weights that they adapt are not there, tried {tried}")
    state = base_state(found[0], names)
    if hash_state(state) != about["sha256"]:
        raise UserError(f"{source} adapts other weights than {found[0]} holds now: put back those of the training")
    return state


def _lm_state(checkpoint: dict, source: str) -> dict:
    """The tensors that adapters belong to, from the language model of --lm."""
    from model.hf_decoder import HFDecoder

    args, stored = checkpoint["model_args"], checkpoint["model"]["lm.stored"].numpy().tobytes()
    state = HFDecoder.from_pretrained(args["name"], args["revision"], args["tokenizer"], stored).state_dict()
    if hash_state(state) != checkpoint[ADAPTS]["sha256"]:
        raise UserError(f"{source} adapts another language model than {args['name']} is now: put back the one it was")
    return {name: state[name.removeprefix("lm.")].float() for name in checkpoint[ADAPTS]["names"]}


def base_state(path, names) -> dict:
    """The tensors `names` of a model in the checkpoint that it started from, LaBraM's also from its masked model."""
    checkpoint = read_checkpoint(path, whole=False)
    if ADAPTS in checkpoint:
        raise UserError(f"{path} holds adapters alone: merge them first, python export.py {path} merged.pth")
    state = stored_state(checkpoint)
    return {name: state[name if name in state else f"student.{name}"] for name in names}


def stored_state(checkpoint: dict) -> dict:
    """The state dict in a checkpoint, or the checkpoint itself where it is one, without the prefixes of wrappers."""
    state = checkpoint.get("model", checkpoint.get("module", checkpoint))
    return plain_names(state if isinstance(state, dict) else {})


def _check_archive(path) -> None:
    """Raise ValueError for an archive that holds more than its own size: compressed, or the same bytes many times."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > Path(path).stat().st_size:
                raise ValueError("its archive unpacks to more than its own size")


def plain_names(state: dict) -> dict:
    """A state dict without the prefixes that wrappers add."""
    plain = {}
    for name, value in state.items():
        name = str(name)
        for prefix in PREFIXES:
            name = name.replace(prefix, "")
        plain[name] = value
    return plain


def parts(checkpoint: dict, names, source: str, cure: str) -> list[dict]:
    """The dictionaries of a checkpoint that a model needs. Raises UserError with the cure where one is missing."""
    for name in names:
        if not isinstance(checkpoint.get(name), dict):
            held = ", ".join(map(str, checkpoint)) or "nothing"
            raise UserError(f"{source} lacks the dictionary '{name}' and holds {held}: {cure}")
    return [checkpoint[name] for name in names]


def settings(kind, args: dict, where: str):
    """A dataclass of sizes from a checkpoint's `*_args`; the official ones also hold values that no module reads.

    Raises UserError for a value of another type or below 0, more layers than any model, and heads of unequal width.
    """
    known = {}
    for field in dataclasses.fields(kind):
        value, type_ = args.get(field.name, field.default), type(field.default)
        if isinstance(value, int) and type_ is float:
            value = float(value)
        if type(value) is not type_ or value < 0:
            raise UserError(f"{where}: {field.name} = {value!r}, expected {type_.__name__}")
        known[field.name] = value
    made = kind(**known)
    if made.n_layer > MAX_LAYERS:
        raise UserError(f"{where}: n_layer = {made.n_layer}, {MAX_LAYERS} at most")
    if not made.n_head or made.n_embd % made.n_head:
        raise UserError(f"{where}: n_embd = {made.n_embd} cannot be shared by n_head = {made.n_head}")
    return made


def rows(state: dict, name: str) -> int:
    """Length of a tensor in a state dict, 0 where there is none."""
    value = state.get(name)
    return len(value) if isinstance(value, torch.Tensor) and value.dim() else 0


def count_layers(state: dict, prefix: str) -> int:
    """How many layers have tensors in a state dict whose names begin with `prefix`, as in "encoder.blocks."."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def build(make: Callable[[], torch.nn.Module], state: dict, source: str) -> torch.nn.Module:
    """The model `make()` with the weights of a state dict, strictly.

    It is made without memory first and compared: a checkpoint whose sizes are not those of its own tensors is refused
    with a UserError before they cost anything.
    """
    _check_stored(state, source)
    try:
        with torch.device("meta"), _Valueless():
            sketch = make()
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"{source}: no model has such sizes ({str(error).splitlines()[0]})") from None
    check_fit(sketch, state, source)
    model = make()
    load_strictly(model, state, source)
    return model


class _Valueless(TorchFunctionMode):
    """Draws and scales no values: where there is no memory for them, PyTorch imports its compiler to do so, seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return None if function.__name__ in ("normal_", "div_") else function(*args, **(kwargs or {}))


def _check_stored(state: dict, source: str) -> None:
    """Raise UserError for tensors that claim more values than are stored: one number can be a matrix of any size."""
    tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
    if not all(value.layout == torch.strided and value.device.type == "cpu" for value in tensors):
        raise UserError(f"{source} holds tensors without values, or of another kind than a model's")
    stored = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}
    claimed = sum(value.numel() * value.element_size() for value in tensors)
    if claimed > 4 * sum(stored.values()):  # weights may be shared, twice at most
        raise UserError(f"{source} holds tensors of {claimed} bytes, but {sum(stored.values())} are stored")


def check_fit(model: torch.nn.Module, state: dict, source: str) -> None:
    """Raise UserError, saying what differs, where a state dict has not exactly the names and shapes of a model."""
    own = model.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    missing = [name for name in own if name not in tensors]
    unknown = [name for name in state if name not in own]
    resized = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    differences = (("missing", missing), ("unknown", unknown), ("of another size", resized))
    found = [f"{len(names)} {what} ({_few(names)})" for what, names in differences if names]
    if found:
        raise UserError(
            f"{source} does not fit this model: {'; '.join(found)}. Was it trained with another --size or --model, or "
            "is it a checkpoint of another stage?"
        )


def load_strictly(model: torch.nn.Module, state: dict, source: str) -> None:
    """Load a state dict whose names and shapes are exactly the model's; else a UserError that says what differs."""
    check_fit(model, state, source)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # values of a type that cannot be copied
        raise UserError(f"{source} cannot be loaded: {' '.join(str(error).split())[:200]}") from None


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def hash_state(state: dict) -> str:
    """sha256 of a state dict: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
