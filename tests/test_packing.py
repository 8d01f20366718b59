"""Nothing is computed for padding, nor twice, nor more logits than a block's; losses, gradients and answers stay."""

import copy

import numpy as np
import pytest
import torch
from small_models import make_lm, make_vq, samples
from torch.nn import functional as F
from torch.testing import assert_close

from dataset.batches import QuestionCollate, collate_eeg
from dataset.tasks import TASKS, Task
from dataset.text import load_tokenizer
from evaluation.inference import ask, ask_all
from model import linear_loss
from model.linear_loss import linear_cross_entropy
from model.packing import packed_order
from utils import start_run

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
LONG = Task("long", "Which?", ("sleep stage one", "sleep stage twenty two", "sleep"))  # answers with one beginning


def losses_and_gradients(model, **parts):
    """Loss and right predictions of each part, and the gradients of all of them."""
    model.zero_grad(set_to_none=True)
    sums = model(**parts)
    sum(part["loss"] for part in sums.values()).backward()
    counts = {name: torch.stack([part["loss"].detach(), part["correct"].float()]) for name, part in sums.items()}
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return counts, {name: torch.zeros_like(v) if v.grad is None else v.grad.clone() for name, v in trained.items()}


@pytest.mark.parametrize("padded_length", [0, 40])
@pytest.mark.parametrize("options", [{}, {"band_power": True}])
def test_a_packed_batch_is_its_rows_one_by_one(options, padded_length):
    model, collate, rows = make_lm(**options), QuestionCollate(load_tokenizer()), samples()
    model.tokenizer.pad_windows(padded_length)
    tokens = torch.randint(50000, (2, 30), generator=torch.Generator().manual_seed(0))
    text = {"tokens": tokens, "target": tokens.roll(-1, 1)}
    counts, gradients = losses_and_gradients(model, eeg=collate([*rows, rows[0]]), text=text)
    alone = [losses_and_gradients(model, eeg=collate([row])) for row in (*rows, rows[0])]
    read = losses_and_gradients(model, text=text)
    assert_close(counts["eeg"], sum(one["eeg"] for one, _ in alone), **CLOSE)
    assert_close(counts["text"], read[0]["text"], **CLOSE)
    for name, gradient in gradients.items():
        expected = sum(one[name] for _, one in (*alone, read))
        assert_close(gradient, expected, rtol=1e-3, atol=1e-4 * float(1 + expected.abs().max()), msg=name)


def test_no_block_computes_padding():
    model, batch, seen = make_lm(), QuestionCollate(load_tokenizer())(samples()), {}
    for name in ("tokenizer.blocks.0", "GPT2.transformer.h.0"):
        model.get_submodule(name).register_forward_hook(
            lambda _, given, __, name=name: seen.update({name: given[0].shape})
        )
    text = torch.zeros(2, 9, dtype=torch.int64)
    model(eeg=batch, text={"tokens": text, "target": text})
    assert batch["padding"] > 0 and not batch["valid"].all() and not batch["tokens_valid"].all()
    real = sum(batch["counts"]) + sum(batch["tokens_counts"]) + text.numel()
    assert seen == {"tokenizer.blocks.0": (sum(batch["counts"]), 32), "GPT2.transformer.h.0": (real, 48)}


def test_no_block_of_stage_1_computes_padding():
    model, batch, words, seen = make_vq(), collate_eeg(samples()), torch.zeros(1, 9, dtype=torch.int64), set()
    for part in (model.VQ.encoder, model.VQ.decoder_freq, model.VQ.decoder_raw):
        part.blocks[0].register_forward_hook(lambda _, given, __: seen.add(given[0].shape))
    packed = model(batch, words, 0.5)
    assert seen == {(sum(batch["counts"]), 32)}
    padded = model(batch | {"counts": None}, words, 0.5)
    for name in packed.keys() - {"indices"}:
        assert_close(packed[name], padded[name], **CLOSE)
    assert torch.equal(packed["indices"][batch["valid"]], padded["indices"][batch["valid"]])
    assert torch.equal(model.VQ.tokenize(batch)[0][batch["valid"]], packed["indices"][batch["valid"]])


def test_rows_of_one_length_stand_together():
    places, groups = packed_order([([2, 1, 2, 0], 3), ([1, 2, 1, 3], 4)], "cpu")  # rows of 7 places
    rows = [[0, 1, 3], [7, 10, 11], [14, 15, 17], [24, 25, 26]]
    assert places.tolist() == sum(rows, []) and [(group.rows, group.length) for group in groups] == [(4, 3)]
    places, groups = packed_order([([2, 1, 2], 2)], "cpu")
    assert places.tolist() == [2, 0, 1, 4, 5] and [(group.rows, group.length) for group in groups] == [(1, 1), (2, 2)]


def test_features_and_gradients_of_the_tokenizer_without_padding():
    batch = collate_eeg(samples())
    encoder = make_vq().VQ.encoder
    results = []
    for counts in (None, batch["counts"]):
        model = copy.deepcopy(encoder)
        features = model(batch["x"], batch["chans"], batch["time"], batch["valid"], counts)[batch["valid"]]
        features.square().sum().backward()
        results.append([features.detach(), *(parameter.grad for parameter in model.parameters())])
    for packed, padded in zip(*results, strict=True):
        assert_close(packed, padded, rtol=1e-3, atol=1e-4 * float(1 + padded.abs().max()))


@pytest.mark.parametrize(("dtype", "close"), [(None, CLOSE), (torch.bfloat16, {"rtol": 0.03, "atol": 0.03})])
def test_the_blockwise_loss_is_cross_entropy(monkeypatch, dtype, close):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(21, 16, generator=generator), torch.randn(40, 16, generator=generator)
    target = torch.randint(40, (21,), generator=generator)
    target[:9] = (hidden @ weight.T).argmax(1)[:9]  # these are right
    results = []
    for rows in (64, 8):
        monkeypatch.setattr(linear_loss, "LOGIT_ROWS", rows)
        given, matrix = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss, correct = linear_cross_entropy(given, matrix, target)
        (0.1 * loss).backward()
        results.append((loss.detach(), correct, given.grad, matrix.grad))
    expected = F.cross_entropy(hidden @ weight.T, target, reduction="sum")
    for loss, correct, *_ in results:
        assert_close(loss, expected, **close)
        assert correct.dtype == torch.bool and correct[:9].all()
    for blockwise, plain in zip(*results, strict=True):
        assert_close(blockwise, plain, **close)


def test_the_blockwise_loss_makes_one_block_of_logits(monkeypatch):
    """Not even while its gradients are made: no tensor of the graph has a row for each prediction and all classes."""
    monkeypatch.setattr(linear_loss, "LOGIT_ROWS", 8)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() == 2 and out.size(1) == 40:
                largest = max(largest, len(out))
            return out

    weight, hidden = torch.randn(40, 16, requires_grad=True), torch.randn(21, 16, requires_grad=True)
    with Watch():
        linear_cross_entropy(hidden, weight, torch.arange(21))[0].backward()
    assert 0 < largest <= 16  # 16: the weight's other side
    with torch.no_grad():
        loss, _ = linear_cross_entropy(hidden, weight, torch.arange(21))
    assert_close(loss, F.cross_entropy(hidden @ weight.T, torch.arange(21), reduction="sum"), **CLOSE)


@pytest.mark.parametrize("way", ["score", "score_per_token", "generate"])
def test_tasks_asked_together_are_answered_as_alone_and_read_once(way):
    model, run, windows = make_lm(), start_run("cpu"), [samples()[0] | {"index": i, "label": -1} for i in range(3)]
    tasks = [TASKS["TUAB"], TASKS["TUEV"], LONG]
    passes = []
    model.tokenizer.register_forward_hook(lambda *_: passes.append(1))
    together, features = ask_all(model, [(task, way) for task in tasks], windows, 2, run)
    assert len(passes) == 2  # batches
    for task, probabilities in zip(tasks, together, strict=True):
        alone, same = ask(model, task, windows, 2, run, way)
        np.testing.assert_allclose(probabilities, alone, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(features, same)
    assert way == "generate" or len({tuple(row) for part in together for row in part.round(6)}) >= 3
