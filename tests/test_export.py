"""export.py: every form of the weights into every other, bit for bit; encoders alone give the model's numbers."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import stages
import torch
from conftest import ROOT
from small_models import make_lm, make_vq
from test_labram import TINY, make_eeg, make_vqnsp

import export
from errors import UserError
from model.labram import Classifier
from model.labram_masked import MaskedModel
from model.weights import read_checkpoint

ABOUT = {"iter_num": 7, "epoch": 1, "best": float("-inf"), "tasks": [{"answers": ("a", "b")}], "git_commit": "abc"}


def run(*argv):
    export.main(export.get_args([*map(str, argv)]))


def write(path, model, **about):
    torch.save({"model": model.state_dict(), **model.config_args(), **about}, path)
    return path


@pytest.mark.parametrize("make", [make_lm, make_vq, lambda: MaskedModel(TINY, 64), lambda: Classifier(TINY, 3)])
def test_there_and_back(tmp_path, make, capsys):
    optimizer = {"optimizer": {"state": {}}, "scaler": {}, "model_ema": {"a": torch.ones(1)}}
    first = write(tmp_path / "first.pt", make(), **ABOUT, **optimizer)
    run(first, tmp_path / "folder", "--no-encoder")
    assert "left out: optimizer, scaler, model_ema\n" in capsys.readouterr().out
    run(tmp_path / "folder", tmp_path / "back.pth")
    before, after = read_checkpoint(first), read_checkpoint(tmp_path / "back.pth")
    assert stages.same(after, {name: value for name, value in before.items() if name not in optimizer})


def test_an_official_checkpoint_keeps_its_own_keys(tmp_path, capsys):
    state = {f"_orig_mod.{name}": value for name, value in make_vqnsp().state_dict().items()}
    args = argparse.Namespace(model="vqnsp", lr=5e-4)
    state["loss.logit_laplace_eps"] = torch.ones(1)
    torch.save({"model": state, "optimizer": {}, "epoch": 49, "args": args}, tmp_path / "vqnsp.pth")
    run(tmp_path / "vqnsp.pth", tmp_path / "folder")
    said = capsys.readouterr().out
    assert "left out: optimizer, loss.logit_laplace_eps\n" in said and "a VQNSP has no encoder that is written" in said
    run(tmp_path / "folder", tmp_path / "back.pth")
    back = read_checkpoint(tmp_path / "back.pth")
    assert back.keys() == {"model", "epoch", "args"} and back["args"] == args
    assert stages.same(back["model"], make_vqnsp().state_dict())


def test_results_are_those_of_the_best_epoch(tmp_path):
    row = {"dataset": "Sleep", "split": "test", "windows": 40, "recordings": 40, "recording_metrics": {}}
    content = {"about": {}, "results": [row | {"metrics": {"auc_pr_hard": 0.25}}]}
    (tmp_path / "results.json").write_text(json.dumps(content))
    for name, held in (("ckpt-best", True), ("ckpt", False)):
        run(write(tmp_path / f"{name}.pt", make_vq()), tmp_path / name, "--license", "mit", "--no-encoder")
        card = (tmp_path / name / "README.md").read_text()
        assert ("| Sleep | test | 40 windows | 0.25 |" in card and "auc_pr_hard" in card) == held
        assert "license: mit" in card


def test_what_is_refused(tmp_path):
    path = write(tmp_path / "vq.pt", make_vq())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    for out in (path, tmp_path / "full"):
        with pytest.raises(UserError, match="nothing is written over"):
            run(path, out)
    with pytest.raises(UserError, match="--license goes on the card of a folder"):
        run(path, tmp_path / "b.pt", "--license", "mit")
    write(tmp_path / "half.pt", make_vq().half())
    with pytest.raises(UserError, match=r"half\.pt holds numbers of another type than the model's float32"):
        run(tmp_path / "half.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_neurolms_encoder_alone(tmp_path):
    model = make_vq()
    model.VQ.encoder.pad_windows(64)
    export.write_encoder(model, tmp_path)
    encoder, inputs = torch.export.load(tmp_path / "encoder.pt2").module(), export.tokens(5, 3, 7).values()
    torch.testing.assert_close(encoder(*inputs), model.VQ.encoder(*inputs))


def test_labrams_classifier_alone(tmp_path):
    model = Classifier(TINY, 3).eval()
    export.write_encoder(model, tmp_path)
    classifier = torch.export.load(tmp_path / "encoder.pt2").module()
    for sizes in ((1, 1, 1), (4, 23, 2), (1, 3, 16)):
        torch.testing.assert_close(classifier(*make_eeg(*sizes)), model(*make_eeg(*sizes)))


def test_other_numbers_are_refused(tmp_path):
    encoder = make_vq().VQ.encoder
    with pytest.raises(UserError, match="x.onnx gives other numbers than the model: 1.0e-02 of the largest"):
        export.compare(encoder, lambda inputs: encoder(*inputs.values()) * 1.01, export.tokens, tmp_path / "x.onnx")


@pytest.mark.parametrize("make", [make_vq, lambda: Classifier(TINY, 3)])
def test_onnx(tmp_path, make, capsys):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export.write_encoder(make(), tmp_path)
    assert "encoder.onnx: the model's numbers" in capsys.readouterr().out


def test_as_a_command_from_anywhere(tmp_path):
    write(tmp_path / "a.pt", MaskedModel(TINY, 64))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "export.py", "a.pt", "b.pt"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert not done.returncode and "b.pt: the same weights, bit for bit" in done.stdout
