"""A lock on the folder that a run writes to: of two equal runs the second one stops, and names the first.

`run.lock` says which process holds the folder, and is touched every BEAT seconds. Where this process can see the holder
(same kernel, same process namespace) it lives or it does not: a run that was killed and starts again waits for nobody.
Elsewhere, as on another node after a requeue, a lock that nobody touched for SILENT seconds by the file system's own
clock is taken over, and one that is touched meanwhile is respected. Nothing here needs the file system's own locks,
which many clusters switch off.
"""

import contextlib
import functools
import json
import os
import socket
import threading
import time
import uuid
import weakref
from datetime import datetime
from pathlib import Path

from errors import UserError
from training.logger import make_folder, replace_text, writing

BEAT = 15.0  # seconds between two signs of life
SILENT = 120.0  # seconds without one after which the holder is dead
SETTLE = 1.0  # seconds in which two that take over the same lock see one another


def hold_folder(folder: Path, run) -> "FolderLock | None":
    """Lock the folder, on the main process; where that is refused all processes of the run stop."""
    lock, refused = None, None
    if run.main:
        try:
            lock = FolderLock(folder)
        except UserError as error:
            refused = error
    if run.any(refused is not None):
        raise refused or SystemExit(2)  # one of the processes says it
    return lock


class FolderLock:
    """Held until `release()`, as long as this object lives, at most as long as its process."""

    def __init__(self, folder: Path):
        """Makes the folder. Raises UserError naming the holder where another run has it, and where it cannot write."""
        make_folder(folder)
        path, text, left = folder / "run.lock", json.dumps(_this_process()), threading.Event()
        _acquire(path, text)
        self.release = weakref.finalize(self, _release, path, text, left, os.getpid())
        threading.Thread(target=_beat, args=(path, text, left), daemon=True).start()


def _this_process() -> dict:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "namespace": _namespace(),
        "started": _started(os.getpid()) if _namespace() else None,
        "id": uuid.uuid4().hex,
    }


def _acquire(path: Path, mine: str) -> None:
    waited_for = None  # a lock whose holder cannot be seen, and when it was touched
    while not _create(path, mine):
        found = _look(path)
        if found is None:  # released meanwhile
            continue
        held, touched, age = found
        holder = _parse(held)
        me = _is_me(holder, mine)
        alive = False if me else _lives(holder)
        if alive is None and waited_for not in (None, (held, touched)):
            alive = True
        if alive:
            raise UserError(
                f"{path.parent} is in use by another run: {_name(holder)}. Wait for it, stop it, or choose another "
                f"output folder; if it cannot be alive, remove {path}"
            )
        if alive is None and age <= SILENT:
            if waited_for is None:
                print(f"{path} is of {_name(holder)}: waiting {SILENT:.0f} s at most for a sign of life", flush=True)
            waited_for = (held, touched)
            time.sleep(1)
        elif _take_over(path, mine, 0 if me else SETTLE):
            return


def _create(path: Path, text: str) -> bool:
    """Write the lock if there is none."""
    with writing(path):
        try:
            with open(path, "x") as file:
                file.write(text)
        except FileExistsError:
            return False
    return True


def _take_over(path: Path, text: str, settle: float) -> bool:
    """Put this lock in the place of a dead one; of several processes that do so the last one has it."""
    replace_text(path, text)
    time.sleep(settle)
    return _read(path) == text


def _look(path: Path) -> tuple[str, float, float] | None:
    """The lock that is there: its text, when it was touched, and for how many seconds that is past."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with writing(probe):
        probe.touch()
        now = probe.stat().st_mtime  # by the clock of the file system: those of two nodes differ
        probe.unlink()
    try:
        held = _read(path)
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): remove it if no run uses the folder") from None
    return held, touched, now - touched


def _read(path: Path) -> str:
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:  # a FIFO would wait
        return file.read(4096).decode(errors="replace")


def _parse(text: str) -> dict:
    """The holder; {} while the lock is being written, and for what is no lock."""
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) and isinstance(holder.get("pid"), int) else {}


def _is_me(holder: dict, mine: str) -> bool:
    """Whether an earlier run in this process, such as a notebook's, left the lock."""
    names = ("host", "pid", "namespace", "started")
    return bool(holder) and all(holder.get(name) == json.loads(mine)[name] for name in names)


def _name(holder: dict) -> str:
    if not holder:
        return "an unknown process"
    return f"process {holder['pid']} on {holder.get('host')} since {holder.get('since')}"


def _lives(holder: dict) -> bool | None:
    """Whether the holder lives; None where this process cannot see."""
    if not _namespace() or holder.get("namespace") != _namespace():
        return None
    try:
        return _started(holder["pid"]) == holder.get("started")
    except OSError:  # no such process, or one of another user on a machine that hides them
        return None if _exists(holder["pid"]) else False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> int | None:
    """When a process started, in ticks of the kernel, which tell it from a later one of the same number; None for one
    that is dead and not yet buried. Raises OSError where there is none."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


@functools.cache
def _namespace() -> str:
    """Where process numbers mean the same: boot of a kernel, and namespace in it. Empty where the system has no such
    names; there only the touching of a lock tells who lives."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _beat(path: Path, mine: str, left: threading.Event) -> None:
    """Touch the lock until it is released. A process that slept too long and lost it must not go on."""
    while not left.wait(BEAT):
        try:
            held = _read(path)
            if held == mine:
                os.utime(path)
        except OSError:  # the file system stalls, or somebody removed the lock: no reason to end the run
            continue
        if held != mine:
            if _is_me(_parse(held), mine):  # the next run in this process
                return
            os.write(2, f"\nerror: {path.parent} was taken over by {_name(_parse(held))}: this run ends\n".encode())
            os._exit(1)  # before it writes there


def _release(path: Path, mine: str, left: threading.Event, pid: int) -> None:
    left.set()
    with contextlib.suppress(OSError):
        if os.getpid() == pid and _read(path) == mine:  # not a fork, and not the lock of another
            path.unlink()
