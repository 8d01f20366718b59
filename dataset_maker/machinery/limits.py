"""A bound on the memory that reading one file may take: what a header claims is not what a machine has. And room for
the EEG of long recordings outside it."""

import contextlib
import mmap
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

AT_LEAST = 1.5 * 2**30  # bytes
PER_BYTE = 64  # of the file: from one 16-bit channel to its filtered float64 spectra in blocks takes half of it


@contextlib.contextmanager
def bounded_memory(paths):
    """Within it, allocations beyond what files of this size need raise MemoryError (on Linux; elsewhere nothing)."""
    if sys.platform != "linux":
        yield
        return
    import resource  # not on every system

    size = sum(path.stat().st_size for path in {Path(path) for path in paths} if path.is_file())
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + int(AT_LEAST) + PER_BYTE * size
    limit = min([limit, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def make_room(shape, scratch, largest: int) -> np.ndarray:
    """float32 of this shape; of more than `largest` bytes, and with a folder `scratch`, in a nameless file there that
    goes with the array."""
    size = 4 * int(np.prod(shape))
    if scratch is None or size <= largest:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile(dir=scratch) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, a crash later
        return np.memmap(file, np.float32, "r+", shape=shape)


def forget(array) -> None:
    """Let what was read and written of an array in a file leave the memory."""
    if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        array._mmap.madvise(mmap.MADV_DONTNEED)
