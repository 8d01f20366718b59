"""SIGTERM and SIGUSR1 at any moment: exit status 75, and the same command goes on to the run that nobody stopped."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import stages
import torch
from conftest import ROOT

import errors
import train_instruction
from model.neurolm import NeuroLM
from model.quantizer import Quantizer
from model.weights import read_checkpoint
from training.feature_cache import CachedWindows
from training.loading import Loader
from training.trainer import Trainer

SCRIPTS = ("train_vq", "train_pretrain", "train_instruction", "run_vqnsp_training", "run_labram_pretraining",
           "run_class_finetuning")  # fmt: skip
BOTH = pytest.mark.parametrize("number", errors.STOP_SIGNALS)
FORK = multiprocessing.get_context("fork")
IMPORTING = """
import os, runpy, sys
class Tell:
    def find_spec(name, path, target=None):
        if name == "torch":
            os.kill(os.getpid(), int(sys.argv[2]))
sys.meta_path.insert(0, Tell)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("script", SCRIPTS)
@BOTH
def test_while_the_script_imports(script, number):
    command = [sys.executable, "-c", IMPORTING, f"{script}.py", str(int(number))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (errors.REQUEUE, f"{errors.TOLD}\n")


def before(owner, name, when=lambda *arguments: True):
    """Patch a function so that this process is told to stop when it is first called, if `when(*its arguments)`."""
    function, told = getattr(owner, name), []

    def tell_and_call(*arguments, **named):
        if not told and when(*arguments):
            told.append(os.kill(os.getpid(), signal.SIGTERM))
        return function(*arguments, **named)

    setattr(owner, name, tell_and_call)


def run_told(stage, corpus, out_dir, more, patch, *arguments) -> int:
    """The exit status of a stage, in a process of its own, that `patch(*arguments)` tells to stop."""

    def work():
        errors.requeue_when_told()
        patch(*arguments)
        script = stages.SCRIPTS[stage]
        status = 0
        try:
            errors.run(script.main, lambda: script.get_args(stages.flags(stage, corpus, out_dir, *more)))
        except SystemExit as stop:
            status = stop.code
        gc.collect()  # a fork leaves without what Python does at its end
        sys.exit(status)

    process = FORK.Process(target=work)
    process.start()
    process.join(timeout=200)
    assert not process.is_alive() and not list(out_dir.rglob("run.lock"))
    return process.exitcode


def is_split(name):
    return lambda model, windows, split, *rest: split == name


def writes_epoch(state, *where):
    return state.get("validated") == 5


EVERY = ("start", "cache", "step", "epoch's end", "saving", "validation", "test", "report")


# slow: all; the others are those that no other test of this file has
@pytest.mark.parametrize("names", [EVERY[1::2], pytest.param(EVERY, marks=pytest.mark.slow)], ids=["some", "all"])
def test_at_every_stop_of_an_instruction_run(names, corpus, tmp_path):
    cache = tmp_path / "cache"
    moments = {
        "start": (NeuroLM, "load"),
        "cache": (CachedWindows, "write"),
        "step": (Trainer, "update"),
        "epoch's end": (Trainer, "keep_best"),
        "saving": (torch, "save", writes_epoch),
        "validation": (train_instruction, "answer_tasks", is_split("val")),
        "test": (train_instruction, "answer_tasks", is_split("test")),
        "report": (train_instruction, "report"),
    }
    more = ("--cache_features", cache, "--num_workers", 1)
    for name, moment in ((name, moments[name]) for name in names):
        assert run_told("instruction", corpus, tmp_path, more, before, *moment) == errors.REQUEUE, name
        assert not list(cache.rglob("*.tmp")) and not list((tmp_path / "checkpoints").rglob(".*")), name
    folder = stages.train("instruction", corpus, tmp_path, *more)
    stages.assert_same_run(folder, stages.reference(corpus, "instruction"))
    assert (folder / "results.json").is_file()


def test_while_the_codebook_is_made_and_the_epoch_is_saved(corpus, tmp_path):
    """Within a step it is finished and saved; within a save the new file is whole."""
    newest = tmp_path / "checkpoints" / "VQ" / "ckpt.pt"
    assert run_told("vq", corpus, tmp_path, (), before, Quantizer, "_follow") == errors.REQUEUE
    assert read_checkpoint(newest)["iter_num"] == 1
    assert run_told("vq", corpus, tmp_path, (), before, torch, "save", writes_epoch) == errors.REQUEUE
    assert read_checkpoint(newest)["validated"] == 5
    folder = stages.train("vq", corpus, tmp_path)
    stages.assert_same_run(folder, stages.reference(corpus, "vq"))


def test_a_validation_costs_no_step(corpus, tmp_path):
    assert run_told("vq", corpus, tmp_path, (), before, Trainer, "evaluation") == errors.REQUEUE
    state = read_checkpoint(tmp_path / "checkpoints" / "VQ" / "ckpt.pt")
    assert (state["iter_num"], state["validated"]) == (5, 0)


def test_a_second_signal_does_not_cut_a_save(corpus, tmp_path):
    def tell_twice():
        before(Trainer, "update")
        before(torch, "save")

    assert run_told("vq", corpus, tmp_path, (), tell_twice) == errors.REQUEUE
    assert read_checkpoint(tmp_path / "checkpoints" / "VQ" / "ckpt.pt")["iter_num"] == 1


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        time.sleep(0.2)
        return torch.tensor(i)


def test_data_workers_leave_a_signal_to_the_process_that_trains():
    """A cluster sends it to all processes of a job; the worker must bring the step's data, and end when it is told."""
    from utils import start_run

    loader = Loader(Slow(), 2, start_run("cpu"), torch.stack, num_workers=1)
    batches = iter(loader.loader)
    loader.sampler.take(0, 0, 4)
    batches = iter(loader.loader)
    next(batches)
    (worker,) = batches._workers
    for number in errors.STOP_SIGNALS:
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
    assert len(list(batches)) == 3
    worker.terminate()  # as Python does at its end
    worker.join(timeout=60)
    assert worker.exitcode == 0


def test_outside_of_a_script_the_signals_are_as_they_were():
    before = [signal.getsignal(number) for number in errors.STOP_SIGNALS]
    errors.run(lambda args: None, lambda: None)
    with errors.told_later(), errors.hearing(lambda number, frame: None):
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in errors.STOP_SIGNALS] == before
