"""A folder has one run: the second stops and names the first, and a dead one is in nobody's way."""

import json
import multiprocessing
import os
import signal
import socket
import threading
import time

import pytest
import stages
from processes import run_processes

from errors import UserError
from training import lock
from training.lock import FolderLock, hold_folder
from utils import start_run

FORK = multiprocessing.get_context("fork")
NO_PROC = pytest.mark.skipif(not lock._namespace(), reason="this system does not say which process lives")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(lock, "SETTLE", 0.1)
    monkeypatch.setattr(lock, "SILENT", 3.0)
    monkeypatch.setattr(lock, "BEAT", 0.1)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder until it is killed."""
    process = FORK.Process(target=hold, args=(tmp_path,))
    process.start()
    wait_for(lambda: (tmp_path / "run.lock").exists() and (tmp_path / "run.lock").read_text())
    yield process
    process.kill()
    process.join()


def hold(folder):
    kept = FolderLock(folder)
    signal.pause()
    del kept


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def rewrite(folder, **changes):
    path = folder / "run.lock"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_the_second_run_names_the_first_and_touches_nothing(holder, tmp_path):
    before = (tmp_path / "run.lock").read_text()
    with pytest.raises(UserError) as refused:
        FolderLock(tmp_path)
    since = json.loads(before)["since"]
    for word in (str(tmp_path), f"process {holder.pid} on {socket.gethostname()} since {since}", "remove"):
        assert word in str(refused.value)
    assert (tmp_path / "run.lock").read_text() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("buried", [False, True])
@NO_PROC
def test_a_killed_holder_is_in_nobodys_way(holder, tmp_path, buried):
    os.kill(holder.pid, signal.SIGKILL)
    if buried:
        holder.join()
    else:
        wait_for(lambda: lock._started(holder.pid) is None)
    FolderLock(tmp_path)


@NO_PROC
def test_another_process_of_the_same_number_is_not_the_holder(holder, tmp_path):
    os.kill(holder.pid, signal.SIGSTOP)
    rewrite(tmp_path, started=1)
    FolderLock(tmp_path)


def test_a_holder_out_of_sight_is_judged_by_its_signs_of_life(holder, tmp_path):
    os.kill(holder.pid, signal.SIGSTOP)  # keeps it from looking at its lock
    path = rewrite(tmp_path, namespace="another machine", host="node7")
    over = threading.Event()

    def touch():
        while not over.wait(0.1):
            os.utime(path)

    beating = threading.Thread(target=touch)
    beating.start()
    try:
        with pytest.raises(UserError, match=f"process {holder.pid} on node7"):
            FolderLock(tmp_path)
    finally:
        over.set()
        beating.join()
    begun = time.monotonic()
    kept = FolderLock(tmp_path)  # silent from here on
    assert time.monotonic() - begun > 1
    del kept
    path.write_text(json.dumps({"pid": 1, "namespace": "another machine"}))
    os.utime(path, (0, 0))  # silent for years
    FolderLock(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", '{"pid": "../1"}', "\0\xff" * 9000])
def test_what_is_no_lock_is_waited_for_and_replaced(content, tmp_path):
    (tmp_path / "run.lock").write_text(content)
    kept = FolderLock(tmp_path)
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    del kept


def test_a_folder_in_its_place_is_said(tmp_path):
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(UserError, match="run.lock cannot be read"):
        FolderLock(tmp_path)


def test_one_process_may_run_again_and_the_end_releases(tmp_path):
    first = FolderLock(tmp_path)
    second = FolderLock(tmp_path)
    del first
    assert (tmp_path / "run.lock").exists()
    time.sleep(0.3)  # the first one's thread has looked
    del second
    assert not list(tmp_path.iterdir())


@NO_PROC
def test_of_many_that_take_over_a_dead_lock_one_has_it(holder, tmp_path):
    holder.kill()
    holder.join()
    contenders = [FORK.Process(target=contend, args=(tmp_path,)) for _ in range(5)]
    for process in contenders:
        process.start()
    wait_for(lambda: sum(process.exitcode == 3 for process in contenders) == 4)
    (winner,) = (process for process in contenders if process.is_alive())
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == winner.pid
    winner.kill()
    winner.join()


def contend(folder):
    lock.SETTLE = 1.0
    try:
        hold(folder)
    except UserError:
        os._exit(3)


def test_a_run_that_lost_its_lock_ends(holder, tmp_path):
    rewrite(tmp_path, pid=1, id="another")
    holder.join(60)
    assert holder.exitcode == 1


def test_ranks_of_one_run_do_not_lock_each_other_and_stop_together(holder, tmp_path):
    run_processes(2, refused_together, tmp_path)
    run_processes(2, held_together, tmp_path / "free")


def refused_together(folder):
    run = start_run("cpu")
    with pytest.raises((UserError, SystemExit)) as stop:
        hold_folder(folder, run)
    assert isinstance(stop.value, UserError) == run.main and (run.main or stop.value.code == 2)


def held_together(folder):
    run = start_run("cpu")
    assert (hold_folder(folder, run) is not None) == run.main
    run.barrier()


def test_training_is_refused_before_it_writes(untrained, tmp_path):
    folder = tmp_path / "checkpoints" / "VQ"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("the first run's\n")
    process = FORK.Process(target=hold, args=(folder,))
    process.start()
    wait_for(lambda: (folder / "run.lock").exists())
    try:
        with pytest.raises(UserError, match="in use by another run"):
            stages.train("vq", untrained, tmp_path)
    finally:
        process.kill()
        process.join()
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.jsonl", "run.lock"]
    assert (folder / "metrics.jsonl").read_text() == "the first run's\n"
