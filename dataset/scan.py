"""What official HDF5 files hold, found out in a process of its own.

Their format has no checksums, so a damaged file can make libhdf5 hang or crash, which no exception handler catches: the
child does, and the parent names the file. It gets the paths on stdin, one a line, and prints a JSON line a recording.
"""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from dataset.hdf5 import group_names, open_eeg, open_file, read_segments
from errors import UserError

CHILD = "from dataset.scan import main; main()"
SILENCE = 60  # seconds without a line after which the child is taken to hang


def scan_files(paths) -> Iterator[tuple[Path, str, tuple[str, ...], int, int]]:
    """Yield (path, group, channels, samples, windows) of each recording. Raises UserError naming the damaged file."""
    if not paths:
        return
    root = Path(__file__).resolve().parent.parent
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CHILD], cwd=root, **pipes) as child:
        threading.Thread(target=_send, args=(child.stdin, paths), daemon=True).start()
        watchdog, last = _watch(child), paths[0]
        for line in child.stdout:
            watchdog.cancel()
            watchdog = _watch(child)
            found = json.loads(line)
            if "error" in found:
                raise UserError(found["error"])
            last = found[0]
            if len(found) > 1:
                path, group, channels, samples, windows = found
                yield Path(path), group, tuple(channels), samples, windows
        watchdog.cancel()
    if child.returncode:
        raise UserError(f"{last} is so damaged that the HDF5 library hangs or crashes on it; fetch or make it again")


def _send(pipe, paths) -> None:
    with contextlib.suppress(BrokenPipeError), pipe:  # a child that crashed reads no more; its exit status tells
        pipe.writelines(f"{Path(path).absolute()}\n" for path in paths)


def _watch(child) -> threading.Timer:
    timer = threading.Timer(SILENCE, child.kill)
    timer.daemon = True
    timer.start()
    return timer


def main() -> None:
    """The child: print [path, group, channels, samples, windows] a recording, [path] before each file; a UserError is
    the last line, {"error": message}."""
    try:
        for path in (line.rstrip("\n") for line in sys.stdin):
            print(json.dumps([path]), flush=True)
            with open_file(path) as file:
                for group in group_names(file):
                    eeg, channels = open_eeg(file, group)
                    found = [path, group, channels, eeg.shape[1], len(read_segments(file, group))]
                    print(json.dumps(found), flush=True)
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)
