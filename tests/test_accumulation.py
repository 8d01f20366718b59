"""Micro-batches that share out a step, on one process or on two, make the step of one batch; no text is fine too."""

import pytest
import stages
import torch
from processes import run_processes

from model.weights import read_checkpoint


def flags(eeg, text, accumulated):
    batches = ["--eeg_batch_size", eeg, "--text_batch_size", text, "--gradient_accumulation_steps", accumulated]
    return [*batches, "--dropout", 0, "--max_steps", 2, "--warmup_epochs", 0, "--log_interval", 1]


def assert_same_steps(folder, reference):
    logs = (stages.read_metrics(path) for path in (folder, reference))
    losses, expected = ([line["train/loss"] for line in log if "train/loss" in line] for log in logs)
    assert losses == pytest.approx(expected, rel=1e-4) and len(losses) == 2
    model, expected = (read_checkpoint(path / "ckpt.pt")["model"] for path in (folder, reference))
    for name, value in expected.items():
        torch.testing.assert_close(model[name], value, rtol=1e-3, atol=2e-4, msg=lambda text, at=name: f"{at}: {text}")


@pytest.mark.parametrize("stage", ["pretrain", "instruction"])
def test_accumulation_is_one_batch(stage, untrained, tmp_path):
    text = 4 if stage == "pretrain" else 0
    whole = stages.train(stage, untrained, tmp_path / "whole", *flags(4, text, 1))
    parts = stages.train(stage, untrained, tmp_path / "parts", *flags(2, text // 2, 2))
    assert_same_steps(parts, whole)
    run_processes(2, stages.train, stage, untrained, tmp_path / "two", *flags(1, text // 4, 2))
    assert_same_steps(tmp_path / "two" / "checkpoints" / stages.FOLDERS[stage], whole)


def test_a_tokenizer_accumulates_and_needs_no_text(untrained, tmp_path):
    more = ["--max_steps", 1, "--log_interval", 1, "--text_batch_size", 0]
    losses = []
    for name, batch, accumulated in (("whole", 4, 1), ("parts", 2, 2)):
        sizes = ["--batch_size", batch, "--gradient_accumulation_steps", accumulated]
        folder = stages.train("vq", untrained, tmp_path / name, *more, *sizes)
        line = stages.read_metrics(folder)[0]
        losses.append([line[f"train/{part}"] for part in ("raw", "frequency", "domain_eeg", "domain_text")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][-1] == 0
