"""What the steps of training measured: sums between two log steps, kept on the device, and the guard against NaN."""

from collections import deque

import torch

from errors import UserError


class Recorder:
    """Losses and measures since the last log step; nothing here waits for the device before `means` or `check`."""

    def __init__(self, run, log_interval: int):
        self.run = run
        self.sums, self.steps = {}, 0
        self._finite, self._files = [], deque(maxlen=max(log_interval, 1))

    def begin_step(self, step: int, files: list[str]) -> None:
        self._files.append((step, files))

    def add(self, name: str, value: torch.Tensor) -> None:
        """This process's share of a measure; the shares of all processes and micro-batches of a step add up."""
        self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()

    def end_step(self, finite: torch.Tensor) -> None:
        self._finite.append(finite)
        self.steps += 1

    def totals(self) -> dict[str, float]:
        """The sums over the steps and processes; every process must call this."""
        if not self.sums:
            return {}
        return dict(zip(self.sums, self.run.sum(torch.stack(list(self.sums.values()))).tolist(), strict=True))

    def means(self, counted=()) -> dict[str, float]:
        """The mean of a step by name, or the sum of those `counted`; afterwards all starts again."""
        means = {name: total / (1 if name in counted else self.steps) for name, total in self.totals().items()}
        self.sums, self.steps = {}, 0
        return means

    def state(self) -> dict:
        """For a checkpoint, so that a resumed run logs the same means; every process must call this."""
        return {"sums": self.totals(), "steps": self.steps}

    def restore(self, state: dict) -> None:
        for name, total in state["sums"].items():  # of all processes: one of them goes on with it
            self.sums[name] = torch.tensor(total if self.run.main else 0.0, device=self.run.device)
        self.steps = state["steps"]

    def check(self, checkpoint) -> None:
        """Stop the run, on all ranks, when a step since the last check was not finite; `checkpoint`: the last good one.

        Raises UserError naming step, rank and recordings.
        """
        if not self._finite:
            return
        finite = torch.stack(self._finite).tolist()
        self._finite = []
        if not self.run.any(not all(finite)):
            return
        message = "another process met a loss that is not finite"
        if not all(finite):
            step, files = list(self._files)[-len(finite) :][finite.index(False)]
            message = (
                f"the loss or its gradient is not finite at step {step} on rank {self.run.rank}, in a batch of "
                f"{', '.join(dict.fromkeys(files))}"
            )
        raise UserError(
            f"{message}. The last good checkpoint is untouched ({checkpoint}). Look at these recordings, or lower the "
            "learning rate, or clip the gradients at 1.0, or use --dtype float32"
        )
