"""Weights from one form to another: checkpoints to folders for the Hugging Face hub and back, encoders to ONNX.

python export.py runs/neurolm/checkpoints/instruction-B/ckpt-best.pt neurolm-b --license cc-by-4.0
python export.py neurolm-b ckpt.pt
python export.py OWNER/NAME labram.pth --revision v1

OUT ending in .pt or .pth is a checkpoint; anything else a new folder with model.safetensors, config.json, README.md
(with the metrics of results.json, where the checkpoint is its run's best), and the encoder alone: encoder.pt2
(torch.export) and encoder.onnx (with requirements-export.txt). Every file is read again and compared: weights bit for
bit, encoders by their numbers. Optimizer and loss scale are left out: nothing goes on with them but the run itself.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

import errors
from errors import UserError
from evaluation.results import read_run
from model.hub import HubModel, read_weights
from model.labram import Classifier, model_state
from model.neurolm import NeuroLM
from model.opening import open_model
from model.vq import VQ_Align
from model.weights import plain_names
from training.checkpoints import write_checkpoint
from training.numbers import Help
from training.provenance import hash_state

CLOSE = 1e-4  # of the largest number of an encoder's output


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    flag = parser.add_argument
    flag("weights", help="checkpoint, official or own; folder of save_pretrained; OWNER/NAME on the hub")
    flag("out", type=Path, help="NAME.pt or NAME.pth, or a new folder")
    flag("--revision", help="branch, tag or commit of OWNER/NAME")
    flag("--license", help="of the weights, for the card: an identifier of the hub, such as cc-by-4.0")
    flag("--encoder", action=argparse.BooleanOptionalAction, default=True, help="write the encoder into the folder")
    return parser.parse_args(argv)


def main(args):
    out, as_file = args.out, args.out.suffix in (".pt", ".pth")
    if out.exists() and (as_file or not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists: nothing is written over, choose another name")
    if as_file and args.license:
        raise UserError(f"--license goes on the card of a folder, {out} has none")
    found = read_weights(args.weights, args.revision)
    checkpoint, state = found["checkpoint"], model_state(found["checkpoint"])
    model = open_model(found, args.weights)
    whole = model.to_checkpoint()
    values = {name: value for name, value in whole.items() if name != "model"}
    kept = hash_state({name: state[name] for name in whole["model"]})
    if kept != hash_state(whole["model"]):
        raise UserError(f"{args.weights} holds numbers of another type than the model's float32, they would change")
    names = [name for name in checkpoint if name != "module"] + list(plain_names(checkpoint.get("model", {})))
    left_out = [name for name in names if name not in whole and name not in whole["model"]]
    print(f"left out: {', '.join(left_out) or 'nothing'}")

    if as_file:
        write_checkpoint(whole, out)
    else:
        said = {"license": args.license, "results": results_of(Path(args.weights))}
        model.save_pretrained(out, model_card_kwargs={name: value for name, value in said.items() if value})
    again = open_model(read_weights(out), str(out)).to_checkpoint()
    if kept != hash_state(again.pop("model")) or repr(again) != repr(values):
        raise UserError(f"{out} cannot be read as it was written: is the disk sound?")
    print(f"{out}: the same weights, bit for bit, and all other values: {', '.join(again) or 'none'}")
    if not as_file and args.encoder:
        write_encoder(model, out)


def results_of(path: Path) -> list:
    """The rows of results.json beside a checkpoint that is its run's best, which is what was tested."""
    if not path.stem.endswith("-best") or not (path.parent / "results.json").is_file():
        return []
    return [list(row) for row in read_run(path.parent)["scores"]]


# --------------------------------------------------------------------------------------------------- encoders alone


def windows(n: int, channels: int, seconds: int) -> dict:
    """Inputs of a classifier: x (n, C, S, 200), chans (n, C)."""
    chans = torch.arange(1, channels + 1).expand(n, -1).contiguous()
    return {"x": torch.randn(n, channels, seconds, 200), "chans": chans}


def tokens(n: int, channels: int, seconds: int) -> dict:
    """Inputs of NeuroLM's encoder: x (n, N, 200), chans, time, valid (n, N); the first sample's last token is none."""
    x, chans = windows(n, channels, seconds).values()
    time = torch.arange(seconds).repeat(n, channels)
    valid = torch.ones_like(time, dtype=torch.bool)
    valid[0, -1] = False
    return {"x": x.flatten(1, 2), "chans": chans.repeat_interleave(seconds, 1), "time": time, "valid": valid}


@torch.no_grad()
def write_encoder(model: HubModel, folder: Path) -> None:
    """Write encoder.pt2 and, where the packages are there, encoder.onnx; both are held against the model."""
    if isinstance(model, Classifier):
        encoder, make = model, windows
    elif isinstance(model, NeuroLM | VQ_Align):
        encoder, make = model.tokenizer if isinstance(model, NeuroLM) else model.VQ.encoder, tokens
    else:
        print(f"a {type(model).__name__} has no encoder that is written alone")
        return
    inputs = make(2, 3, 4)
    free = {name: range(value.dim() - (name == "x")) for name, value in inputs.items()}  # a token has 200 samples
    free = tuple(dict.fromkeys(places, Dim.DYNAMIC) for places in free.values())
    program = torch.export.export(encoder.eval(), tuple(inputs.values()), dynamic_shapes=free)
    path = folder / "encoder.pt2"
    torch.export.save(program, path)
    read = torch.export.load(path).module()
    compare(encoder, lambda inputs: read(*inputs.values()), make, path)
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        print(f"encoder.onnx is not written ({error}): pip install -r requirements-export.txt")
        return
    path = folder / "encoder.onnx"
    torch.onnx.export(program, f=path, dynamo=True, input_names=[*inputs], output_names=["y"], verbose=False)
    session = onnxruntime.InferenceSession(path)

    def run(inputs):
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])

    compare(encoder, run, make, path)


@torch.no_grad()
def compare(encoder: nn.Module, written, make, path: Path) -> None:
    """Hold what was written against the model, on other sizes than it was traced with."""
    worst = 0.0
    for inputs in (make(1, 1, 2), make(3, 5, 1), make(1, 7, 9)):
        expected = encoder(*inputs.values())
        worst = max(worst, float((written(inputs) - expected).abs().max() / expected.abs().max()))
    if not worst <= CLOSE:
        raise UserError(f"{path} gives other numbers than the model: {worst:.1e} of the largest, {CLOSE} at most")
    print(f"{path}: the model's numbers, to {worst:.1e} of the largest")


if __name__ == "__main__":
    errors.run(main, get_args)
