"""--compile: a step is one graph, an epoch of mixed lengths needs few of them, and the losses stay the same.

The graphs are run as they are (backend "eager"): what is tested is that they can be made, which every backend needs.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from small_models import make_lm, make_vq, samples
from torch._dynamo.testing import CompileCounter

from dataset.batches import QuestionCollate, collate_eeg, collate_prediction
from dataset.text import load_tokenizer
from model.labram import BACKBONES, Classifier
from model.labram_masked import MaskedModel, mask_positions, random_mask
from model.vqnsp import VQNSP
from utils import start_run, wrap

MOST_GRAPHS = 5  # the first lengths, then any: with EEG, text, both or neither of them padded
LABRAM = replace(BACKBONES["tiny"], n_layer=1)
MIXED = [[0, 1], [2, 3], [1, 2, 3], [0, 0], [2, 2], [3, 1]]  # of `samples`: other montages and lengths, some unpadded


def questions(model):
    collate, rows = QuestionCollate(load_tokenizer()), samples()
    return [{"eeg": collate([rows[i] for i in chosen]), "text": text(8)} for chosen in MIXED]


def predictions(model):
    for batch in (collate_prediction([samples()[i] for i in chosen]) for chosen in MIXED):
        batch["features"] = model.encode(batch)
        yield {"eeg": batch | {"target": torch.arange(len(batch["source"]))}, "text": text(8)}


def text(width):
    return {"tokens": torch.arange(2 * width).view(2, width), "target": torch.arange(2 * width).view(2, width)}


def reconstructions(model):
    batches = [collate_eeg([samples()[i] for i in chosen]) for chosen in MIXED]
    model.VQ.place_codes(batches)  # as the trainer does before the first step
    return [{"eeg": batch, "text": text(6)["tokens"], "reversal": 0.5} for batch in batches]


def montages(model):
    shapes = ((3, 4), (5, 7), (4, 2), (6, 3))
    found = [{"x": torch.randn(2, c, s, 200), "chans": torch.arange(1, c + 1).expand(2, -1)} for c, s in shapes]
    if isinstance(model, VQNSP):
        model.place_codes(found)
    if isinstance(model, MaskedModel):
        for batch in found:
            masked = random_mask([[0], [1]], batch["x"].shape[1] * batch["x"].shape[2])
            batch |= {"masked": masked, "positions": mask_positions(masked)}
    return found


def total(found):
    """The sum of what a model returns, whatever its structure, without indices and counts."""
    if isinstance(found, dict):
        return sum(total(value) for name, value in found.items() if name not in ("indices", "correct"))
    return sum(map(total, found)) if isinstance(found, tuple) else found.float().sum()


MODELS = {  # of one layer, of which more make a longer graph
    "train_vq": (partial(make_vq, 1), reconstructions),
    "train_pretrain": (partial(make_lm, 1), predictions),
    "train_instruction": (partial(make_lm, 1), questions),
    "run_vqnsp_training": (lambda: VQNSP(replace(LABRAM, qkv_bias=True), 1, n_codes=16, code_dim=8), montages),
    "run_labram_pretraining": (lambda: MaskedModel(LABRAM, 16), montages),
    "run_class_finetuning": (lambda: Classifier(LABRAM, 3), montages),
}


@pytest.mark.parametrize("script", MODELS)
def test_a_step_is_one_graph_and_an_epoch_needs_few(script, monkeypatch):
    make, read = MODELS[script]
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        torch._dynamo.reset()
        counter = CompileCounter()
        with monkeypatch.context() as patch:
            patch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
            raw = make().train()
            model = wrap(raw, start_run("cpu"), compile=compiled)
        losses[compiled] = []
        for batch in read(raw):
            loss = total(model(**batch))
            loss.backward()
            losses[compiled].append(loss.detach())
    assert 1 <= counter.frame_count <= MOST_GRAPHS
    torch.testing.assert_close(losses[True], losses[False], rtol=1e-5, atol=1e-5)
