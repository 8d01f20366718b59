"""Small models of NeuroLM with random weights, and windows for them."""

from dataclasses import replace

import numpy as np
import torch

from dataset.tasks import TASKS
from model.gpt import GPTConfig
from model.neural_transformer import NTConfig
from model.neurolm import NeuroLM
from model.vq import VQ_Align

ENCODER = NTConfig(n_layer=2, n_head=2, n_embd=32)


def make_vq(layers=2):
    torch.manual_seed(0)
    encoder = replace(ENCODER, n_layer=layers)
    return VQ_Align(encoder, replace(ENCODER, n_layer=1, in_chans=8), n_codes=64, text_rows=100).eval()


def make_lm(layers=2, **options):
    torch.manual_seed(1)
    lm, encoder = GPTConfig(n_layer=layers, n_head=2, n_embd=48), replace(ENCODER, n_layer=layers)
    return NeuroLM(lm, encoder, n_codes=64, **options).eval()


def samples():
    """Four windows of different montages, lengths, tasks and labels."""
    rng = np.random.default_rng(0)
    rows = []
    for i, (channels, seconds, task) in enumerate(((3, 4, "TUEV"), (1, 2, "TUAB"), (5, 7, "TUSL"), (2, 4, "TUAB"))):
        eeg = rng.standard_normal((channels, 200 * seconds)).astype(np.float32)
        place = rng.choice(90, channels, replace=False)
        about = {"label": i % 2, "index": i, "file": f"r{i}", "task": TASKS[task]}
        rows.append({"eeg": eeg, "rows": place, **about})
    return rows
