"""Evaluation changes no state, and nothing trains that should be frozen."""

import torch
from small_models import make_lm, make_vq, samples
from torch.testing import assert_close

from dataset.batches import QuestionCollate, collate_eeg, collate_prediction
from dataset.text import load_tokenizer
from model.neurolm import TEXT_ROWS
from utils import decay_groups, make_optimizer

LOSSES = ("commitment", "frequency", "raw", "domain_eeg", "domain_text")


def test_evaluation_changes_no_state():
    vq, lm = make_vq(), make_lm()
    batch = collate_prediction(samples())
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in (vq, lm)]
    vq(batch, torch.zeros(1, 4, dtype=torch.int64), 1.0)
    asked = batch | {"tokens": torch.arange(5).expand(4, -1)}
    lm(eeg=batch | {"target": batch["source"] % 64 + TEXT_ROWS})
    lm.score_answers(asked, [[1, 2], [3]])
    lm.generate(asked, 3)
    for model, state in zip((vq, lm), before, strict=True):
        assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert not vq.VQ.quantize.ready and not vq.VQ.quantize.embedding.initted.item()


def test_frozen_parts_have_no_gradient_and_do_not_move():
    model = make_lm().train()
    assert not model.tokenizer.training and model.GPT2.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = make_optimizer(decay_groups(model, 0.1), 1e-2, (0.9, 0.95), torch.device("cpu"))
    batch = QuestionCollate(load_tokenizer())(samples())
    model(eeg=batch)["eeg"]["loss"].backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("tokenizer.")
        assert (parameter.grad is None) == (not parameter.requires_grad) == frozen, name
        assert torch.equal(parameter, before[name]) == frozen, name


def test_what_the_tokenizer_trains():
    model = make_vq().train()
    frozen = {"wte.weight", *(f"VQ.quantize.embedding.{name}" for name in ("weight", "cluster_size", "embed_avg"))}
    sums = model(collate_eeg(samples()), torch.zeros(2, 4, dtype=torch.int64), 1.0)
    sum(sums[name] for name in LOSSES).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == frozen
