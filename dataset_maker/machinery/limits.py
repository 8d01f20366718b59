"""A bound on the memory that reading one file may take: what a header claims is not what a machine has."""

import contextlib
import sys
from pathlib import Path

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
