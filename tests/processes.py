"""Several gloo processes without torchrun: forks of the test, which start at once."""

import multiprocessing
import os
import socket


def run_processes(world_size: int, work, *arguments) -> None:
    """Call `work(*arguments)` in so many processes, as torchrun would; the first that fails ends all."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    places = [(rank, world_size, port) for rank in range(world_size)]
    ranks = [context.Process(target=_work, args=(*place, work, arguments)) for place in places]
    for process in ranks:
        process.start()
    try:
        for process in ranks:
            process.join(timeout=300)
            assert process.exitcode == 0, f"a process ended with {process.exitcode}"
    finally:
        for process in ranks:
            process.kill()


def _work(rank, world_size, port, work, arguments) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    work(*arguments)
