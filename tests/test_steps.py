"""The benchmark of `make gpu`: a step that does not fit is a row, and what was not reached is said."""

import json

import pytest
import torch
from conftest import run_script
from small_models import make_lm

from benchmarks import steps
from utils import Run

CPU = Run(0, 1, torch.device("cpu"), torch.float32, seed=0)


class Worker:
    """Of a device with memory for so many windows; a second a step."""

    run, model = CPU, make_lm()

    def __init__(self, room: int, error: Exception):
        self.room, self.error = room, error
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])

    def step(self, shape):
        if shape["windows"] > self.room:
            raise self.error

    def measure(self, shape):
        self.step(shape)
        return {"wall": 1.0}


@pytest.mark.parametrize(("room", "found"), [(100, 96), (16, 16), (23, 20), (5, 5), (1, 1), (0, None), (9999, 512)])
def test_the_largest_batch_is_known_to_a_quarter(room, found):
    worker, measured = Worker(room, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")), []

    def fits(windows):
        measured.append(steps.measure(worker, windows, 1024))
        return "seconds" in measured[-1]

    steps.search(fits, 16, 512)
    largest = max((one["windows"] for one in measured if "seconds" in one), default=None)
    assert largest == found and measured[0]["windows"] == 16 and len(measured) <= 9
    assert all(one["tokens"] == 1024 * (one["windows"] + 1) for one in measured)


def test_another_error_is_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="illegal"):
        steps.measure(Worker(0, RuntimeError("an illegal memory access")), 1, 64)


def test_the_table_says_what_did_not_fit_and_what_was_not_reached():
    fits = {"windows": 16, "tokens": 17 * 1024, "seconds": [0.1, 0.2, 9.0], "peak_gib": 30.25, "formula_gib": 32.0}
    small, refused = {"windows": 8, "tokens": 9 * 1024, "seconds": [0.2]}, {"windows": 16, "tokens": 17 * 1024}
    cells = [
        {"size": "B", "way": "here", "ended": "done", "measured": [fits | {"flops": 17e12}, {"windows": 32}]},
        {"size": "B", "way": "plain", "ended": "done", "measured": [refused, small]},
        {"size": "B", "way": "compiled", "ended": "out of time", "measured": [fits]},
        {"size": "B", "way": steps.DENSE, "ended": "failed", "measured": []},
    ]
    planned = [("B", way) for way in steps.WAYS] + [("L", "here")]
    rows = steps.make_table({"machine": {"machine": "GPU"}, "peak": 1e15, "planned": planned, "cells": cells})
    assert rows.splitlines()[4:] == [
        "| B, 16 | here | 87,040 | - | 8% | 30.2 / 32.0 GiB | 16 | 87,040 |",
        "| B, 16 | plain | out of memory | - | - | - | 8 | 46,080 |",
        "| B, 16 | compiled (out of time) | 87,040 | - | 8% | 30.2 / 32.0 GiB | at least 16 | 87,040 |",
        "| B, 16 | compiled, dense masks (failed) | - | - | - | - | - | - |",
        "| L, 8 | here (not reached) | - | - | - | - | - | - |",
    ]


@pytest.mark.slow
def test_a_rehearsal_on_a_cpu(tmp_path):
    run_script("benchmarks/steps.py", "--device", "cpu", "--sizes", "tiny", "--seconds", 120, "--out", tmp_path)
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [cell["way"] for cell in report["cells"]] == list(steps.WAYS)
    assert report["cells"][0]["measured"][0]["flops"] > 0 and report["cells"][0]["ended"] == "done"
    assert "| tiny, 2 | plain" in (tmp_path / "gpu.md").read_text()
