"""Stop anywhere, resume: the run that nobody stopped, bit for bit, in its checkpoints and in its log."""

import errno
import os
import resource
import signal

import kill_training
import pytest
import stages
import torch

from errors import UserError
from model.weights import read_checkpoint
from training.checkpoints import Checkpoints, write_checkpoint
from training.logger import Logger
from training.trainer import REQUEUE, Trainer


class Killed(BaseException):
    """Ends a run on the spot, as a kill would: nothing catches it."""


@pytest.mark.parametrize("stage", stages.SCRIPTS)
def test_killed_at_every_kind_of_moment(stage, corpus, tmp_path, monkeypatch):
    """Within a log interval, before and after an epoch's validation, and with a logged step that was not saved."""
    save, log = Trainer.save, Trainer._log
    moments = {(2, False), (5, False), (5, True), (8, False), "unsaved", (10, False)}

    def save_and_die(trainer, *arguments):
        save(trainer, *arguments)
        die_at((trainer.step, trainer.validated == trainer.step))

    def log_and_die(trainer):
        log(trainer)
        if trainer.step == 9:
            die_at("unsaved")

    def die_at(moment):
        if moment in moments:
            moments.remove(moment)
            raise Killed

    monkeypatch.setattr(Trainer, "save", save_and_die)
    monkeypatch.setattr(Trainer, "_log", log_and_die)
    while moments:
        with pytest.raises(Killed):
            stages.train(stage, corpus, tmp_path, "--save_every_steps", 1)
    folder = stages.train(stage, corpus, tmp_path, "--save_every_steps", 1)
    stages.assert_same_run(folder, stages.reference(corpus, stage))
    again = stages.train(stage, corpus, tmp_path)  # a finished run has nothing left to do
    stages.assert_same_run(again, stages.reference(corpus, stage))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops_with_the_status_to_requeue(number, corpus, tmp_path, monkeypatch):
    update = Trainer.update

    def update_and_hear(trainer, **counts):
        update(trainer, **counts)
        if trainer.step == 4:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stop:
        patched.setattr(Trainer, "update", update_and_hear)
        stages.train("vq", corpus, tmp_path)
    assert stop.value.code == REQUEUE
    assert read_checkpoint(tmp_path / "checkpoints" / "VQ" / "ckpt.pt")["iter_num"] == 4
    assert signal.getsignal(number) == before
    folder = stages.train("vq", corpus, tmp_path, "--num_workers", 2)
    stages.assert_same_run(folder, stages.reference(corpus, "vq"))


def test_time_saves_too(corpus, tmp_path, monkeypatch):
    saved = []
    save = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda trainer, *kept: (saved.append(trainer.step), save(trainer, *kept)))
    stages.train("vq", corpus, tmp_path, "--save_every_minutes", 1e-9, "--max_steps", 3)
    assert saved == [1, 2, 3, 3]


def test_more_steps_go_on_where_fewer_ended(corpus, tmp_path):
    """--max_steps that ends within an epoch, then a longer run: the weights of one go."""
    constant = ("--no-decay_lr", "--warmup_epochs", 0)
    for steps in (3, 7):
        two = stages.train("pretrain", corpus, tmp_path / "two", *constant, "--max_steps", steps)
    one = stages.train("pretrain", corpus, tmp_path / "one", *constant, "--max_steps", 7)
    two, one = (read_checkpoint(folder / "ckpt.pt") for folder in (two, one))
    assert two["iter_num"] == 7
    assert stages.same(two["model"], one["model"])
    assert stages.same(two["optimizer"], one["optimizer"])


def test_a_full_disk_loses_nothing(corpus, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    advance = Logger.advance
    with monkeypatch.context() as patched, pytest.raises(UserError, match="No space left.*resumes"):
        patched.setattr(Logger, "advance", lambda logger: (advance(logger), patched.setattr(os, "replace", full)))
        stages.train("vq", corpus, tmp_path, "--save_every_steps", 2)
    folder = stages.train("vq", corpus, tmp_path)
    stages.assert_same_run(folder, stages.reference(corpus, "vq"))


def test_a_file_that_may_not_grow_keeps_the_checkpoint_before(tmp_path):
    path = tmp_path / "ckpt.pt"
    write_checkpoint({"step": 1}, path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(UserError, match="could not be written"):
            write_checkpoint({"step": 2, "weights": torch.zeros(10**6)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert read_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["ckpt.pt"]


@pytest.mark.parametrize("linking", [True, False])
def test_only_the_last_epochs_are_kept(linking, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not linking:  # a file system without links
        monkeypatch.setattr(os, "link", refuse)
    checkpoints = Checkpoints(tmp_path / "ckpt.pt", keep=2)
    write_checkpoint({"step": 0}, checkpoints.best)
    for epoch in (8, 9, 10, 11):
        checkpoints.write({"step": epoch}, epoch)
    checkpoints.write({"step": 12})
    steps = {path.name: read_checkpoint(path)["step"] for path in tmp_path.iterdir()}
    assert steps == {"ckpt.pt": 12, "ckpt-10.pt": 10, "ckpt-11.pt": 11, "ckpt-best.pt": 0}


def test_a_grown_dataset_goes_on_at_its_place(corpus, tmp_path):
    """More recordings, so more steps an epoch: every epoch that is left has them all."""
    few = ("--datasets", "pair", "--gradient_accumulation_steps", 1, "--epochs", 3)
    stages.train("vq", corpus, tmp_path, *few, "--max_steps", 4)
    before = read_checkpoint(tmp_path / "checkpoints" / "VQ" / "ckpt.pt")
    folder = stages.train("vq", corpus, tmp_path, *few, "--datasets", "pair", "four", "--allow_changed", "datasets")
    after = read_checkpoint(folder / "ckpt.pt")
    assert after["steps_per_epoch"] > before["steps_per_epoch"] and after["epoch"] == 3
    assert after["iter_num"] == after["total_steps"] == 3 * after["steps_per_epoch"]


def test_official_keys_are_enough_and_less_is_refused(corpus, tmp_path):
    state = read_checkpoint(stages.reference(corpus, "vq") / "ckpt.pt")
    official = ("model", "optimizer", "encoder_args", "decoder_args", "iter_num", "epoch")
    newest = tmp_path / "checkpoints" / "VQ" / "ckpt.pt"
    write_checkpoint({name: state[name] for name in official} | {"iter_num": 5, "epoch": 1}, newest)
    assert read_checkpoint(stages.train("vq", corpus, tmp_path) / "ckpt.pt")["iter_num"] == 10
    other = {"state": {}, "param_groups": [{"params": [0]}]}
    for bad, said in (({}, "lacks the dictionary 'optimizer'"), ({"optimizer": other}, "groups of")):
        write_checkpoint({"model": state["model"], **bad}, newest)
        with pytest.raises(UserError, match=f"ckpt.pt.*{said}.*--no-resume"):
            stages.train("vq", corpus, tmp_path)


@pytest.mark.e2e
def test_real_kills(corpus, tmp_path):
    moments = kill_training.kill_and_resume("vq", corpus, tmp_path, kills=3, seed=1)
    assert moments
    stages.assert_same_run(tmp_path / "checkpoints" / "VQ", stages.reference(corpus, "vq"))
