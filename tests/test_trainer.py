"""The trainer on a line to fit: loss scale of fp16, moving average, arithmetic counted, nothing asked of the device."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from model.weights import read_checkpoint
from training.checkpoints import Checkpoints
from training.loading import Loader
from training.logger import Logger
from training.throughput import Throughput
from training.trainer import Trainer
from utils import Run, learning_rates, make_optimizer, seed_everything

CPU = torch.device("cpu")


class Points(list):
    def __init__(self):
        x = torch.linspace(-1, 1, 12)
        super().__init__({"x": x[i], "y": 3 * x[i], "file": f"point{i}"} for i in range(12))


def collate(points):
    return {
        "x": torch.stack([point["x"] for point in points])[:, None],
        "y": torch.stack([point["y"] for point in points])[:, None],
        "files": [point["file"] for point in points],
    }


def make_trainer(folder, dtype=torch.float32, **settings):
    run = Run(0, 1, CPU, dtype, seed=0)
    seed_everything(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Dropout(0.1), nn.Linear(16, 1))
    loader = Loader(Points(), 2, run, collate, accumulation=2)
    optimizer = make_optimizer([{"params": list(model.parameters()), "weight_decay": 0.0}], 0.05, (0.9, 0.99), CPU)
    checkpoints = Checkpoints(folder / "ckpt.pt")
    trainer = Trainer(model, run, optimizer, learning_rates(0.05, 0.01, 12, 2), loader, checkpoints, {}, log_interval=2,
                      **settings)  # fmt: skip
    lines = trainer.resume() if checkpoints.newest.exists() else 0
    trainer.logger = Logger(folder, run, {"config": {}}, 12, trainer.step, lines)
    return trainer


def fit(trainer, stop_after=None):
    for _ in trainer.epochs():
        for micro_batches in trainer.steps():
            for batch in micro_batches:
                with trainer.forward(last=batch is micro_batches[-1]):
                    out = trainer.model(batch["x"])
                trainer.backward({"square": (out.float() - batch["y"]).square().mean() / len(micro_batches)})
            trainer.update(samples=4)
            if trainer.step == stop_after:
                trainer.save()
                return trainer
    trainer.logger.close()
    return trainer


def read_log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_resumes_bit_for_bit_in_every_precision(dtype, tmp_path):
    """Dropout, accumulation, the moving average, and in fp16 the loss scale, which grows in between."""
    settings = {"dtype": dtype, "ema_decay": 0.5, "grad_clip": 1.0}
    whole = make_scaled(tmp_path / "whole", **settings)
    fit(whole)
    fit(make_scaled(tmp_path / "parts", **settings), stop_after=5)
    parts = fit(make_scaled(tmp_path / "parts", **settings))
    ours, theirs = (read_checkpoint(tmp_path / name / "ckpt.pt") for name in ("parts", "whole"))
    for part in ("model", "model_ema"):
        for name, value in theirs[part].items():
            assert torch.equal(ours[part][name], value), name
    assert ours["scaler"] == theirs["scaler"]
    assert parts.scaler.get_scale() == (2**10 if dtype == torch.float16 else 1)
    losses = [[line["train/loss"] for line in read_log(tmp_path / name)] for name in ("parts", "whole")]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def make_scaled(folder, **settings):
    """A small loss scale that doubles every six steps."""
    trainer = make_trainer(folder, **settings)
    if trainer.step == 0 and trainer.scaler.is_enabled():
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=6)
    return trainer


def test_steps_that_overflow_in_fp16_are_counted_not_fatal(tmp_path):
    trainer = make_trainer(tmp_path, torch.float16)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    fit(trainer)
    skipped = sum(line["train/skipped_steps"] for line in read_log(tmp_path))
    assert skipped > 0 and trainer.scaler.get_scale() == 2.0 ** (40 - skipped)
    assert read_log(tmp_path)[-1]["system/loss_scale"] == trainer.scaler.get_scale()
    assert all(line["train/grad_norm"] is not None for line in read_log(tmp_path))


@pytest.mark.parametrize("compile", [False, True])
def test_the_arithmetic_of_a_step_is_counted_once(compile, tmp_path, monkeypatch):
    monkeypatch.setattr("training.trainer.Throughput", lambda run: Throughput(run, peak=1e9))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # others take a minute
    trainer = fit(make_trainer(tmp_path, compile=compile))
    # 4 samples, 16 + 16 weights, 2 operations each, forward and for the weights' gradient; the second layer's input too
    assert trainer.throughput.flops_each * 4 == 4 * 2 * (32 + 32 + 16)
    assert all(0 < line["system/mfu"] < 1 for line in read_log(tmp_path)[1:])


def test_the_device_is_asked_only_when_something_is_logged(tmp_path, monkeypatch):
    """`item`, `tolist` and their like wait for a GPU; between log steps and saves nothing may call them."""
    asked = []
    item, tolist = torch.Tensor.item, torch.Tensor.tolist
    trainer = make_trainer(tmp_path)
    for name, original in (("item", item), ("tolist", tolist)):
        watched = lambda tensor, original=original: (asked.append(trainer.step), original(tensor))[1]  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, watched)
    fit(trainer)
    assert asked and not [step for step in asked if step % 2 and step % 3]
