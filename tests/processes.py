"""Several gloo processes without torchrun: forks of the test, which start at once."""

import contextlib
import multiprocessing
import os
import socket


@contextlib.contextmanager
def fork_processes(world_size: int, work, *arguments):
    """So many processes that call `work(*arguments)`, as torchrun would start them; killed at the end."""
    import torch._dynamo  # noqa: F401 - the first step of an optimizer loads it: once here, not in each fork

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    places = [(rank, world_size, port) for rank in range(world_size)]
    ranks = [context.Process(target=_work, args=(*place, work, arguments)) for place in places]
    for process in ranks:
        process.start()
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.join()


def run_processes(world_size: int, work, *arguments) -> None:
    """Call `work(*arguments)` in so many processes; the first that fails ends all."""
    with fork_processes(world_size, work, *arguments) as ranks:
        for process in ranks:
            process.join(timeout=300)
            assert process.exitcode == 0, f"a process ended with {process.exitcode}"


def _work(rank, world_size, port, work, arguments) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    work(*arguments)
