"""Answers to many windows take no more memory than answers to few, of a recording and of a dataset."""

from pathlib import Path

import pytest
from conftest import run_script

SCRIPT = """
import sys
from pathlib import Path

import numpy as np
import torch

from dataset.batches import collate_eeg
from dataset.tasks import TASKS
from dataset_maker.machinery.preprocessing import CleanEEG
from evaluation.answers import make_predict
from evaluation.inference import ask_all
from evaluation.reading import cut
from evaluation.scoring import collect
from model.neurolm import NeuroLM
from model.vq import VQ_SIZES
from utils import start_run

seen = []

def look(starts):
    for start in starts:
        seen.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
        yield start

run, tokenizer, task = start_run("cpu"), VQ_SIZES["tiny"], TASKS["TUAB"]
model = NeuroLM.from_size("tiny", tokenizer.encoder, tokenizer.n_codes).eval()
eeg = np.random.default_rng(0).normal(0, 20, (2, 400 * 64 * 80)).astype(np.float32)
windows = cut(CleanEEG(("C3", "C4"), eeg, 0.1, 75.0, 50.0, (), ()), 2)
if sys.argv[1] == "recording":
    ask_all(model, [(task, "score")], windows, 64, run, look)
else:
    batches = (collate_eeg([windows[i] for i in range(s, s + 64)]) for s in look(range(0, len(windows), 64)))
    with torch.no_grad():
        collect(make_predict(model, task, run), batches, len(windows))
print((max(seen[20:]) - max(seen[:20])) // 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is read from /proc")
@pytest.mark.parametrize("what", ["recording", "dataset"])
def test_memory_does_not_grow_with_the_windows(what):
    grown = int(run_script("-c", SCRIPT, what).stdout.split()[-1])
    assert grown < 50, f"{grown} MiB more after 80 batches than after 20"
