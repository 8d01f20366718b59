"""Notices a process of a run that hangs, and says which: collectives only wait.

Each process tells the others, from a thread and through a store, that it lives and how often it has arrived where all
meet. One that is stopped (SIGSTOP, a frozen machine) tells nothing; one that lives but hangs, say in a read of its
data, stays behind the others, who wait for it. Time is counted in rounds of the thread, so that a run which is
suspended as a whole goes on when it wakes up.
"""

import contextlib
import datetime
import json
import os
import socket
import threading

import torch.distributed as dist

DONE = 2**62  # where a process is that has left: never behind


class Watch:
    def __init__(self, rank: int, world_size: int, minutes: float, patience: datetime.timedelta, attempt: str):
        """minutes: without a word, or behind the others, after which a process hangs; patience: of the collectives;
        attempt: a name that the processes of an earlier start of this run did not have."""
        self.rank, self.world_size, self.minutes, self.patience = rank, world_size, minutes, patience
        self.arrived, self.step, self.beats = 0, 0, 0
        self.interval = min(minutes * 60 / 20, 10.0)  # seconds of a round
        self.rounds_allowed = minutes * 60 / self.interval
        self.told = [None] * world_size  # what each process said last
        self.silent, self.behind = [0] * world_size, [0] * world_size  # for so many rounds
        self.unanswered = 0  # rounds since the store last answered
        self._left = threading.Event()
        # a connection of its own: the main thread may wait in another one
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=patience)
        self.store = dist.PrefixStore(f"watch/{attempt}", store)
        self._tell()
        for work in (self._exchange, self._watch_store):
            threading.Thread(target=self._every_round, args=(work,), daemon=True).start()

    def arrive(self, step: int | None = None) -> None:
        """This process got further: to a step, or to where all of them meet."""
        self.arrived += 1
        if step is not None:
            self.step = step

    def leave(self) -> None:
        """At the end: nobody waits for this process any more."""
        self.arrived = DONE
        with contextlib.suppress(RuntimeError):  # the process that keeps the store has left before
            self._tell()
        self._left.set()

    def _every_round(self, work) -> None:
        while not self._left.wait(self.interval):
            work()

    def _tell(self) -> None:
        self.beats += 1
        self.store.set(str(self.rank), json.dumps([self.beats, self.arrived, self.step, socket.gethostname()]))

    def _exchange(self) -> None:
        """A round: tell the others, hear from them, and end this process when one of them hangs."""
        own = self.arrived
        try:
            self._tell()
            for rank in set(range(self.world_size)) - {self.rank}:
                self._hear(rank, own)
        except RuntimeError:  # no store: `_watch_store` counts
            return
        self.unanswered = 0
        silent = [rank for rank, rounds in enumerate(self.silent) if rounds > self.rounds_allowed]
        behind = [rank for rank, rounds in enumerate(self.behind) if rounds > self.rounds_allowed]
        if silent:
            self._end(f"nothing was heard for {self.minutes:g} minutes of {self._name(silent)}: stopped or cut off")
        elif behind:
            self._end(f"the others wait since {self.minutes:g} minutes for {self._name(behind)}")

    def _hear(self, rank: int, own: int) -> None:
        told = json.loads(self.store.get(str(rank))) if self.store.check([str(rank)]) else None
        before, self.told[rank] = self.told[rank], told
        left = told is not None and told[1] == DONE
        self.silent[rank] = self.silent[rank] + 1 if told == before and not left else 0
        # while this process computes nobody is behind: all of them were where it last met them
        waits = told and before and told[1] == before[1] < own
        self.behind[rank] = self.behind[rank] + 1 if waits else 0

    def _watch_store(self) -> None:
        self.unanswered += 1
        if self.unanswered > self.rounds_allowed + 2:
            self._end(
                f"nothing was heard for {self.minutes:g} minutes from the other processes, through the store on "
                f"{os.environ['MASTER_ADDR']}: rank 0, which keeps it when torchrun does not, is stopped or cut off"
            )

    def _name(self, ranks: list[int]) -> str:
        told = [(rank, self.told[rank]) for rank in ranks]
        return ", ".join(
            f"rank {rank} ({f'on {word[3]}, at step {word[2]}' if word else 'which never started'})"
            for rank, word in told
        )

    def _end(self, what: str) -> None:
        message = (
            f"\nerror: {what}. The last checkpoint is untouched: run the same command again, it resumes. Where a "
            "process only needs longer, raise --timeout_minutes\n"
        )
        os.write(2, message.encode())  # not print: the main thread may hold its lock
        os._exit(1)  # the main thread is in a collective that nothing ends
