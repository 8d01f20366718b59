"""1, 2 and 4 processes with the same global batch: the same losses, weights, validation and codebook."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import stages
import torch
import torch.distributed as dist
from conftest import ROOT
from processes import run_processes

from model.quantizer import Quantizer
from model.weights import read_checkpoint
from training import throughput
from training.trainer import REQUEUE, Trainer

SAMPLES, TEXTS = 4, 4  # of a step, over all processes
PEAK = 1e12  # floating-point operations a second, where their share of the peak is compared


def shares(stage: str, world_size: int) -> list:
    """Flags of a run of 10 steps that share out the same global batch; without dropout, which is drawn by rank."""
    batch = "--batch_size" if stage == "vq" else "--eeg_batch_size"
    flags = [batch, SAMPLES // world_size, "--text_batch_size", TEXTS // world_size, "--gradient_accumulation_steps", 1]
    flags += ["--epochs", 2, "--log_interval", 1, "--save_ckpt_freq", 0]
    return flags + ["--dropout", 0] * (stage != "vq")


def train(stage, corpus, out_dir, *flags):
    """A stage, watching that the codebook is the same on every rank whenever it has changed."""
    follow = Quantizer._follow

    def follow_and_compare(quantizer, *arguments):
        count = follow(quantizer, *arguments)
        if dist.is_initialized():
            mine = quantizer.embedding.weight.data
            first = mine.clone()
            dist.broadcast(first, 0)
            assert torch.equal(mine, first), "the codebooks of the ranks differ"
        return count

    Quantizer._follow = follow_and_compare
    try:
        return stages.train(stage, corpus, out_dir, *flags)
    finally:
        Quantizer._follow = follow


def assert_close_runs(folder, reference):
    ours, theirs = stages.read_metrics(folder), stages.read_metrics(reference)
    assert [list(line) for line in ours] == [list(line) for line in theirs]
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=2e-4), line["step"]
    model, expected = (read_checkpoint(path / "ckpt.pt")["model"] for path in (folder, reference))
    for name, value in expected.items():
        if "quantize" in name:  # a vector between two codes may fall on either side
            assert (model[name] - value).abs().sum().item() <= 0.03 * value.abs().sum().item(), name
            continue
        torch.testing.assert_close(model[name], value, rtol=1e-3, atol=2e-4, msg=lambda text, at=name: f"{at}: {text}")


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """The folder of a stage's run in one process, with which all others are compared; each is trained once."""

    out_dir = tmp_path_factory.mktemp("alone")

    @functools.cache
    def folder(stage):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(throughput, "peak_flops", lambda device, dtype: PEAK)
            return train(stage, corpus, out_dir, *shares(stage, 1))

    return folder


# slow: on four processes a codebook shares its step in the quick cases, and stage 2 goes on where two stopped, below
SLOW = [pytest.param(stage, 4, marks=pytest.mark.slow) for stage in ("pretrain", "instruction")]


@pytest.mark.parametrize("stage, world_size", [*((stage, 2) for stage in stages.SCRIPTS), ("vq", 4), *SLOW])
def test_processes_share_a_step(stage, world_size, alone, corpus, tmp_path):
    reference = alone(stage)
    assert read_checkpoint(reference / "ckpt.pt")["iter_num"] == 10
    run_processes(world_size, train, stage, corpus, tmp_path, *shares(stage, world_size))
    assert_close_runs(tmp_path / "checkpoints" / stages.FOLDERS[stage], reference)


@pytest.mark.parametrize("stage", ["pretrain", "instruction"])
def test_shards_make_the_same_run(stage, alone, corpus, tmp_path, monkeypatch):
    """FSDP2 on gloo: as one process without it, as much arithmetic, and checkpoints of the same form."""
    monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: PEAK)
    reference = alone(stage)
    run_processes(2, train, stage, corpus, tmp_path, *shares(stage, 2), "--fsdp")
    folder = tmp_path / "checkpoints" / stages.FOLDERS[stage]
    assert_close_runs(folder, reference)
    assert arithmetic(folder) * 2 == pytest.approx(arithmetic(reference), rel=0.1)  # shares differ in length
    ours, theirs = (read_checkpoint(path / "ckpt.pt")["optimizer"] for path in (folder, reference))
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in theirs["state"].items():
        for name, value in state.items():
            assert ours["state"][index][name].shape == value.shape


def arithmetic(folder) -> float:
    """Of a sample, as a share of what each GPU can do in a second."""
    last = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if "mfu" in line][-1]
    return last["system/mfu"] / last["system/samples_per_s"]


def stop_at_seven(*arguments):
    """Train until a process is told to stop, in the middle of the second epoch."""
    update = Trainer.update

    def update_and_stop(trainer, **counts):
        update(trainer, **counts)
        trainer._told_to_stop = trainer.step == 7 and not trainer.run.main

    Trainer.update = update_and_stop
    with pytest.raises(SystemExit) as stop:
        train(*arguments)
    assert stop.value.code == REQUEUE


@pytest.mark.parametrize("fsdp", ["--no-fsdp", "--fsdp"])
def test_a_checkpoint_of_two_processes_resumes_on_one_and_four(fsdp, alone, corpus, tmp_path):
    reference = alone("pretrain")
    run_processes(2, stop_at_seven, "pretrain", corpus, tmp_path / "1", *shares("pretrain", 2), fsdp)
    shutil.copytree(tmp_path / "1", tmp_path / "4")
    one = train("pretrain", corpus, tmp_path / "1", *shares("pretrain", 1))
    assert_close_runs(one, reference)
    run_processes(4, train, "pretrain", corpus, tmp_path / "4", *shares("pretrain", 4), fsdp)
    assert_close_runs(tmp_path / "4" / "checkpoints" / "NeuroLM-tiny", reference)


def test_another_global_batch_goes_on_with_the_next_windows(corpus, tmp_path):
    """The same command on other processes: an epoch's 22 windows in steps of 4, then, from the seventh step, of 8."""
    run_processes(2, stop_at_seven, "vq", corpus, tmp_path, *shares("vq", 2), "--epochs", 4)
    run_processes(4, train, "vq", corpus, tmp_path, *shares("vq", 2), "--epochs", 4)
    state = read_checkpoint(tmp_path / "checkpoints" / "VQ" / "ckpt.pt")
    assert (state["epoch"], state["iter_num"], state["samples_per_step"]) == (4, 4 * (22 // 8), 8)
    steps = [line["step"] for line in stages.read_metrics(tmp_path / "checkpoints" / "VQ") if "train/loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 8]  # of 4 windows until 7: step 3 of 8, after one of epoch 2


@pytest.mark.e2e
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_dead_process_ends_or_restarts_the_run(restarts, corpus, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [f"--max_restarts={restarts}", "train_vq.py"]
    command += stages.flags("vq", corpus, tmp_path, "--save_every_steps", 1)
    newest = tmp_path / "checkpoints" / "VQ" / "ckpt.pt"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "wb") as log:
        torchrun = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        while torchrun.poll() is None and not newest.exists():
            time.sleep(0.1)
        workers = subprocess.run(["pgrep", "-P", str(torchrun.pid)], capture_output=True, text=True).stdout.split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        status = torchrun.wait(timeout=300)
    said, done = (tmp_path / "log").read_text(), read_checkpoint(newest)["iter_num"]
    if restarts:
        assert status == 0 and "resumed" in said and done == 4, said[-3000:]
    else:
        assert status == 1 and "error: another process of this run has ended" in said and done < 4, said[-3000:]
