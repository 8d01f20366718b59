"""Checkpoints: released layouts load strictly, others are refused in one line, writing loses nothing, nothing runs."""

import argparse
import json
import os
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from errors import UserError
from model.gpt import GPTConfig
from model.neural_transformer import NTConfig
from model.neurolm import NeuroLM
from model.vq import VQ_Align
from model.weights import read_checkpoint
from training import checkpoints
from training.checkpoints import find_checkpoint, write_checkpoint

ENCODER = NTConfig(n_layer=1, n_head=2, n_embd=32)


def make_vq():
    torch.manual_seed(0)
    return VQ_Align(ENCODER, replace(ENCODER, in_chans=8), n_codes=16, text_rows=50)


def make_lm():
    torch.manual_seed(1)
    return NeuroLM(GPTConfig(n_layer=1, n_head=2, n_embd=16), ENCODER, n_codes=16)


MODELS = {"stage 1": (VQ_Align, make_vq), "stage 2": (NeuroLM, make_lm)}


@pytest.fixture(scope="module", params=MODELS)
def stage(request):
    """A class, a model of it, and its checkpoint in memory."""
    kind, make = MODELS[request.param]
    model = make()
    return kind, model, {"model": model.state_dict(), **model.config_args(), "iter_num": 7, "epoch": 1}


def official(golden, kind):
    """A checkpoint with the keys, names and shapes of the official code, its values counted up."""
    names = json.loads((golden / "neurolm.json").read_text())
    cases = names["cases"]
    shapes = next(shapes for title, shapes in names.items() if title.startswith(kind))
    state = {name: torch.full(shape, i / 100) for i, (name, shape) in enumerate(shapes.items())}
    common = {"block_size": 1024, "bias": False, "dropout": 0.0}
    about = {"optimizer": {"state": {}, "param_groups": []}, "iter_num": 4, "epoch": 2}
    if kind == "NeuroLM":
        args = cases["lm"]["B"]
        model_args = {name: args[name] for name in ("n_layer", "n_head", "n_embd")}
        about["model_args"] = model_args | common | {"bias": True, "vocab_size": 50257}
    else:
        extra = common | {"patch_size": 200, "num_classes": 0, "out_chans": 16}
        about["encoder_args"] = cases["encoder"] | extra | {"in_chans": 1}
        code_dim = shapes["VQ.quantize.embedding.weight"][1]
        about["decoder_args"] = cases["decoder"] | extra | {"in_chans": code_dim}
    return {"model": state, **about}


@pytest.mark.parametrize("kind, prefix", [(VQ_Align, ""), (NeuroLM, "_orig_mod.")])
def test_released_layouts(golden, kind, prefix):
    checkpoint = official(golden, kind.__name__)
    state = checkpoint["model"]
    checkpoint["model"] = {prefix + name: value for name, value in state.items()}
    model = kind.from_checkpoint(checkpoint, "released.pt")
    assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert set(model.config_args()) <= set(checkpoint) | {"encoder_args"}


def test_own_checkpoint_there_and_back(stage, tmp_path):
    kind, model, checkpoint = stage
    write_checkpoint(checkpoint | {"config": {"tasks": None, "lr": 1e-4}}, tmp_path / "ckpt.pt")
    again = kind.load(tmp_path / "ckpt.pt")
    assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert again.config_args() == model.config_args()
    assert read_checkpoint(tmp_path / "ckpt.pt")["config"] == {"tasks": None, "lr": 1e-4}


def refusal(kind, checkpoint, *words):
    """The one line that refuses the checkpoint, which names its file and says `words`."""
    with pytest.raises(UserError) as caught:
        kind.from_checkpoint(checkpoint, "the/file.pt")
    message = str(caught.value)
    assert "\n" not in message
    for word in ("the/file.pt", *words):
        assert word in message


def test_names_and_shapes_are_strict(stage):
    kind, _, checkpoint = stage
    state = checkpoint["model"]
    for lost in (list(state)[0], list(state)[-1]):
        refusal(kind, checkpoint | {"model": {k: v for k, v in state.items() if k != lost}}, "1 missing", lost)
    refusal(kind, checkpoint | {"model": state | {"student.x": torch.ones(1)}}, "1 unknown", "student.x")
    name = next(name for name in state if name.endswith("pos_embed.weight"))
    resized = state | {name: state[name][:, :-1]}
    refusal(kind, checkpoint | {"model": resized}, "1 of another size", name, "(256, ")
    refusal(kind, checkpoint | {"model": {}}, "missing")
    refusal(kind, checkpoint | {"model": [1]}, "model")
    refusal(kind, checkpoint | {"model": state | {name: 3}}, name)
    for key in kind.from_checkpoint(checkpoint, "x").config_args().keys() - {"encoder_args"} | {"model"}:
        refusal(kind, {k: v for k, v in checkpoint.items() if k != key}, key)
        refusal(kind, checkpoint | {key: 5}, key)


def test_settings_are_checked(stage):
    kind, model, checkpoint = stage
    for key, args in model.config_args().items():
        refusal(kind, checkpoint | {key: {k: v for k, v in args.items() if k != "n_layer"}}, "file.pt")
        refusal(kind, checkpoint | {key: args | {"n_embd": 7}}, "file.pt")
        refusal(kind, checkpoint | {key: args | {"n_layer": "two"}}, key)
    other = make_lm() if kind is VQ_Align else make_vq()
    refusal(kind, {"model": other.state_dict(), **other.config_args()}, "lacks", "written by train_")


@pytest.mark.parametrize("failure", [OSError("No space left on device"), RuntimeError("cut"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, failure):
    path = tmp_path / "ckpt.pt"
    write_checkpoint({"iter_num": 1}, path)
    old = path.read_bytes()

    def fail(_, file):
        file.write(b"half of it")
        raise failure

    monkeypatch.setattr(checkpoints.torch, "save", fail)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else UserError
    with pytest.raises(expected) as caught:
        write_checkpoint({"iter_num": 2}, path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["ckpt.pt"]
    if expected is UserError:
        assert str(path) in str(caught.value) and "untouched" in str(caught.value)


def test_what_a_killed_write_left_does_not_pile_up(tmp_path, monkeypatch):
    path = tmp_path / "ckpt.pt"
    monkeypatch.setattr(checkpoints.os, "replace", lambda source, target: None)  # as if killed before it
    write_checkpoint({"iter_num": 1}, path)
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints.os, "getpid", lambda: -1)  # the next run is another process
    write_checkpoint({"iter_num": 2}, path)
    assert os.listdir(tmp_path) == ["ckpt.pt"] and read_checkpoint(path) == {"iter_num": 2}


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


def test_code_never_runs(tmp_path):
    for protocol, said in ((2, "it holds a .*mkdir"), (4, "it holds other objects")):
        torch.save({"model": {}, "args": Harm(tmp_path / "ran")}, tmp_path / "bad.pt", pickle_protocol=protocol)
        with pytest.raises(UserError, match=rf"bad\.pt cannot be read safely .*{said}"):
            read_checkpoint(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


def test_a_namespace_is_a_plain_value(tmp_path):
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "labram.pth")
    assert read_checkpoint(tmp_path / "labram.pth")["args"].lr == 0.1


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"PK\x03\x04 cut", bytes(range(256)) * 9, None])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "ckpt.pt"
    if content is None:
        write_checkpoint({"model": {"a": torch.ones(9000)}}, path)
        content = path.read_bytes()[:20000]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"ckpt\.pt") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_where_checkpoints_are_looked_for(tmp_path):
    write_checkpoint({}, tmp_path / "out" / "VQ.pt")
    assert find_checkpoint("VQ.pt", tmp_path / "out", "--tokenizer_path") == tmp_path / "out" / "VQ.pt"
    with pytest.raises(UserError, match=rf"--tokenizer_path.* tried no\.pt and {tmp_path}/out/no\.pt"):
        find_checkpoint("no.pt", tmp_path / "out", "--tokenizer_path")
    with pytest.raises(UserError, match=rf"tried {tmp_path}/VQ\.pt;"):  # not one of another run, where we happen to be
        find_checkpoint(None, tmp_path, "--tokenizer_path", "VQ.pt")
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pt")
