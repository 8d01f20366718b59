"""Models as folders and repositories of the Hugging Face hub: model.safetensors, config.json, and a card, README.md.

config.json holds all that a checkpoint knows beside its tensors, so that a folder becomes the same checkpoint again;
what only the same run could go on from (optimizer, loss scale) is left out.
"""

import hashlib
import json
import math
import re
from argparse import Namespace
from pathlib import Path

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from errors import UserError, check_file, described
from model.card import model_card
from model.weights import read_checkpoint

WEIGHTS, CONFIG, CARD = FILES = ("model.safetensors", "config.json", "README.md")
TENSORS = ("model", "module", "optimizer", "scaler", "model_ema")  # of a checkpoint: not in config.json
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class HubModel(PyTorchModelHubMixin):
    """What `save_pretrained`, `from_pretrained` and `push_to_hub` add to a model that has `from_checkpoint` and
    `config_args`."""

    _hub_mixin_config: dict = {}  # not None: the mixin would keep what every constructor is given
    known: dict = {}  # `checkpoint`, what the one that the weights came from holds beside them; `license`; `results`
    given: dict = {}  # the sizes, where that checkpoint gives them
    prints: tuple = ()  # of the weights that all this is about

    @classmethod
    def from_pretrained(cls, name_or_path, *, revision=None, **download):
        """The model in a folder of `save_pretrained`, in a repository of the hub, or in a checkpoint, in evaluation
        mode; revision: branch, tag or commit of a repository; download: further arguments of `snapshot_download`.

        Raises UserError with one line where something is missing, damaged or does not fit, names and sizes strictly.
        """
        return cls.from_found(read_weights(name_or_path, revision, **download), str(name_or_path))

    @classmethod
    def from_found(cls, found: dict, source: str):
        """As `from_pretrained`, of what `read_weights` found."""
        checkpoint, sizes = found["checkpoint"], found.get("sizes", {})
        model = cls.from_checkpoint(checkpoint | sizes, source).eval()
        plain = {name: value for name, value in checkpoint.items() if name not in TENSORS and _is_plain(name, value)}
        model.known = {name: found[name] for name in ("license", "results") if name in found} | {"checkpoint": plain}
        model.given, model.prints = {} if sizes else model.config_args(), _prints(model)
        print(f"{source}: {cls.__name__}, {len(model.prints)} tensors, all of them loaded")
        return model

    def _told(self) -> tuple[dict, dict]:
        """What is known of the weights: nothing, once trained on; and the sizes, where that does not give them."""
        known = self.known if self.prints == _prints(self) else {}
        return known, {} if known and self.config_args() == self.given else self.config_args()

    def to_checkpoint(self) -> dict:
        """The checkpoint that this model came from, without what `TENSORS` leaves out."""
        known, sizes = self._told()
        return {"model": self.state_dict(), **known.get("checkpoint", {}), **sizes}

    def save_pretrained(self, save_directory, **options):
        """Write the model to a new folder, or one without such files. options: of the mixin, whose `model_card_kwargs`
        may have `license` and `results` (rows of `evaluation.results.read_run`). Raises UserError."""
        found = [name for name in FILES if (Path(save_directory) / name).exists()]
        if found:
            raise UserError(f"{save_directory} already holds {', '.join(found)}: save to another folder")
        known, _ = self._told()
        said = options.pop("model_card_kwargs", None) or {}
        self.known = {"license": "unknown", "results": [], "checkpoint": {}, **known, **said}
        self.prints = _prints(self)
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        known, sizes = self._told()
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(state, save_directory / WEIGHTS, metadata={"format": "pt"})
        about = {"kind": type(self).__name__, "sha256": _sha256(save_directory / WEIGHTS), "sizes": sizes, **known}
        text = json.dumps(_to_json(about), indent=1, allow_nan=False)
        (save_directory / CONFIG).write_text(text + "\n", encoding="utf-8")
        try:
            (save_directory / CARD).write_text(model_card(about), encoding="utf-8")
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # the values of some other code
            raise UserError(f"no card for {save_directory}: the checkpoint is odd ({described(error)})") from None


def read_weights(name_or_path, revision=None, **download) -> dict:
    """What a checkpoint (.pt, .pth), a folder of `save_pretrained`, or a repository of the hub holds: `checkpoint` with
    its tensors under "model", and, of the latter two, `sizes`, `license`, `results`. Raises UserError."""
    path = Path(name_or_path)
    is_file = path.is_file() or path.suffix in (".pt", ".pth")
    if revision and (is_file or path.is_dir()):
        raise UserError(f"{path} is here, a revision ({revision}) is of a repository of the hub: leave it out")
    if is_file:
        return {"checkpoint": read_checkpoint(path)}
    if not path.is_dir():
        path = _download(str(name_or_path), revision, download)
    return _read_folder(path)


def _download(name: str, revision, download: dict) -> Path:
    if not HUB_ID.fullmatch(name):
        raise UserError(f"{name} does not exist: give a checkpoint, a folder of save_pretrained, or OWNER/NAME (hub)")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES), **download))
    except Exception as error:  # the hub fails in many ways
        where = f"revision {revision}" if revision else "its newest revision"
        raise UserError(
            f"{name} is no file or folder here, and {where} cannot be had from the hub ({described(error)[:200]})"
        ) from None


def _read_folder(folder: Path) -> dict:
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder} lacks {' and '.join(missing)}: it is no folder of save_pretrained, or half of one")
    try:
        check_file(folder / CONFIG)
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"), object_hook=_from_json)
        sha256, _ = found["sha256"], found["checkpoint"] | found["sizes"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG} is none of save_pretrained ({described(error)[:200]})") from None
    try:
        if _sha256(folder / WEIGHTS) != sha256:
            raise ValueError(f"it is not the file that {CONFIG} was written with")
        found["checkpoint"]["model"] = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read ({described(error)[:200]})") from None
    return found


def _sha256(path: Path) -> str:
    check_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prints(model: torch.nn.Module) -> tuple:
    """A number for each tensor of a model, which training changes."""
    return tuple(torch.hash_tensor(value).item() for value in model.state_dict().values())


# ------------------------------------------------------------------- what JSON does not have becomes {"!type": value}


def _to_json(value):
    """Raises TypeError for what has no place there."""
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {name: _to_json(inner) for name, inner in value.items()}
    if isinstance(value, Namespace):
        return {"!Namespace": _to_json(vars(value))}
    if isinstance(value, tuple):
        return {"!tuple": [_to_json(inner) for inner in value]}
    if isinstance(value, list):
        return [_to_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"!float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError


def _from_json(found: dict):
    for name, read in (("!Namespace", lambda names: Namespace(**names)), ("!tuple", tuple), ("!float", float)):
        if list(found) == [name]:
            return read(found[name])
    return found


def _is_plain(name, value) -> bool:
    try:
        return bool(_to_json({name: value}))
    except TypeError:
        return False
