"""Windows and macOS: no module needs a signal, a module or a path at import time that only Linux has."""

import subprocess
import sys

from conftest import ROOT

ELSEWHERE = """
import importlib, os, signal, sys
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGKILL", "sigwaitinfo", "pthread_sigmask"):
    delattr(signal, name)
for name in ("fork", "getuid", "posix_fallocate", "sched_getaffinity"):
    delattr(os, name)
for name in sys.argv[1:]:
    importlib.import_module(name)
import errors
errors.requeue_when_told()
errors.ignore_signals()
with errors.hearing(print):
    pass
"""


def test_every_module_imports_where_linux_is_not():
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*.py")]
    files = [file for file in files if not file.parts[0].startswith((".", "tests", "benchmarks"))]
    modules = [".".join(file.with_suffix("").parts) for file in files]
    modules = [name.removesuffix(".__main__") for name in modules]
    assert len(modules) > 90 and "training.throughput" in modules
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, *sorted(modules)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
