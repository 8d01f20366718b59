"""A process that hangs is named by the others, who end; slow is not hanging."""

import os
import signal
import socket
import time

import pytest
from processes import fork_processes

from training.watch import Watch
from utils import start_run

MINUTES = 0.05
STEPS = 4


def work(hang, log):
    """Steps of which the last is never reached when `hang(rank)` never returns."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    run = start_run("cpu", timeout_minutes=MINUTES, make_watch=Watch)
    for step in range(STEPS):
        run.arrive(step)
        run.any(False)
    time.sleep(10 * run.watch.interval)  # all have told the last step
    hang(run.rank)
    run.arrive(STEPS)
    run.any(False)


def stop(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


def stop_first(rank):
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)


def read_for_ever(rank):
    if rank == 1:
        time.sleep(300)


def be_slow(rank):
    """One is slow, and then all compute for longer than the timeout."""
    if rank == 1:
        time.sleep(MINUTES * 30)
    time.sleep(MINUTES * 90)


@pytest.mark.parametrize(
    "hang, world_size, said",
    [
        (stop, 3, "nothing was heard for 0.05 minutes of rank 1"),
        (read_for_ever, 3, "wait since 0.05 minutes for rank 1"),
        (stop_first, 2, "rank 0, which keeps it when torchrun does not, is stopped"),
    ],
)
def test_the_others_name_it_and_end(hang, world_size, said, tmp_path):
    with fork_processes(world_size, work, hang, tmp_path / "log") as ranks:
        hanging = int(hang is not stop_first)
        for rank, process in enumerate(ranks):
            if rank != hanging:
                process.join(timeout=100)
                assert process.exitcode == 1
        assert ranks[hanging].is_alive()
    lines = (tmp_path / "log").read_text()
    assert said in lines and "Traceback" not in lines and "--timeout_minutes" in lines
    if hang is not stop_first:
        assert f"on {socket.gethostname()}, at step {STEPS - 1}" in lines


def test_slow_is_not_hanging(tmp_path):
    with fork_processes(2, work, be_slow, tmp_path / "log") as ranks:
        for process in ranks:
            process.join(timeout=100)
            assert process.exitcode == 0, (tmp_path / "log").read_text()
