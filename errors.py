"""How a script ends: one line for bad input, and a status that says "run me again" when it is told to stop."""

import contextlib
import os
import signal
import stat
import sys
import threading
import traceback
from pathlib import Path

from tqdm import tqdm

# in what torch.distributed says when a process is gone
LOST_PROCESS = ("gloo/transport", "NCCL", "TCPStore", "waiting for clients")
REQUEUE = 75  # exit status of a run that was told to stop: run the same command again, it goes on
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
NO_FILES = {  # opening a named pipe waits for ever, a device never ends
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
}
TOLD = "told to stop: what was saved is whole, run the same command again"


class UserError(Exception):
    """Bad input. `run` prints it as one line, without a traceback, and exits with status 2."""


class Stopped(SystemExit):
    """SIGTERM or SIGUSR1 came while nothing had to be brought to an end."""


def described(error: BaseException) -> str:
    """Type and message of an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400].removesuffix(": ")


def check_file(path) -> None:
    """Raise UserError when `path` is there but no regular file, nor a link to one; a missing one is the opener's."""
    try:
        kind = stat.S_IFMT(Path(path).stat().st_mode)
    except (OSError, ValueError):  # the opener says the same, in its own words
        return
    if kind in NO_FILES:
        raise UserError(f"{path} is {NO_FILES[kind]}, expected a regular file")


def run(main, get_args) -> None:
    """Run a script: `main(get_args())`; a UserError becomes one line on stderr and exit status 2, Ctrl-C status 130;
    a process that is left alone by the others says so and ends with 1. See also `requeue_when_told`."""
    try:
        if signal.getsignal(signal.SIGTERM) is _leave:
            _answer_with(_stop)
        main(get_args())
    except UserError as error:
        tqdm.write(f"error: {error}", file=sys.stderr)  # on a line of its own, also beside a progress bar
        sys.exit(2)
    except Stopped:
        tqdm.write(TOLD, file=sys.stderr)
        raise
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST_PROCESS):
            raise
        traceback.print_exc()
        tqdm.write(
            "error: another process of this run has ended or hangs; its own message is above, or in its log. The last "
            "checkpoint is untouched: run the same command again, it resumes",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        tqdm.write("interrupted", file=sys.stderr)
        sys.exit(130)


# -------------------------------------------------------------------------------------------------- told to stop


def requeue_when_told() -> None:
    """From now on SIGTERM and SIGUSR1 end this process with REQUEUE: at once until `run`, in `run` as an exception.

    A script calls it before the imports that take seconds.
    """
    _answer_with(_leave)


def ignore_signals(worker: int = 0) -> None:
    """For a data worker: what a cluster sends to all processes of a job is for the one that trains, which needs its
    workers to the end of the step, and ends them itself."""
    if not hasattr(signal, "sigwaitinfo"):  # nothing else tells who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo(STOP_SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)


@contextlib.contextmanager
def hearing(answer):
    """Within it SIGTERM and SIGUSR1 call `answer(number, frame)`, and nothing else."""
    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread: a notebook
        before = _answer_with(answer)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def told_later():
    """Around what must not be cut, such as the writing of a file: the signals wait until its end."""
    heard = []
    with hearing(lambda number, frame: heard.append(number)):
        yield
    if heard:
        signal.raise_signal(heard[0])


def _answer_with(handler) -> dict:
    return {number: signal.signal(number, handler) for number in STOP_SIGNALS}


def _leave(number, frame) -> None:
    os.write(2, f"{TOLD}\n".encode())  # an interrupted import may hold any lock, and swallow any exception
    os._exit(REQUEUE)


def _stop(number, frame) -> None:
    requeue_when_told()  # another one while this one cleans up
    raise Stopped(REQUEUE)
