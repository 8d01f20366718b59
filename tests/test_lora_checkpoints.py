"""Checkpoints of adapters that are damaged, or whose weights are gone or other ones, are refused in one line."""

import pytest
import torch

from errors import UserError
from model.labram import BACKBONES, Classifier
from model.weights import ADAPTS, read_checkpoint
from training.checkpoints import write_checkpoint
from training.tuning import tune
from utils import Run

RUN = Run(0, 1, torch.device("cpu"), torch.float32, seed=0)


def test_adapters_without_their_base_are_refused(tmp_path):
    model, base, adapted = Classifier(BACKBONES["tiny"], 3), tmp_path / "base.pt", tmp_path / "adapted.pt"
    state = {name: value.clone() for name, value in model.state_dict().items()}
    write_checkpoint({"model": state}, base)
    adapts = tune(model, "lora", 4, RUN, base)
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    trained |= {"blocks.0.attn.qkv.lora_A.default.weight": torch.zeros(4, 7)}
    for damage in (trained, {**trained, "blocks.9.attn.qkv.lora_A.default.weight": torch.zeros(4, 100)}):
        write_checkpoint({"model": damage, **adapts}, adapted)
        with pytest.raises(UserError, match=r"adapted\.pt: its adapters are damaged"):
            read_checkpoint(adapted)
    for about in ({}, {"path": 3}, {"path": "x" * 5000, "names": []}, adapts[ADAPTS] | {"names": 3}):
        write_checkpoint({"model": trained, ADAPTS: about}, adapted)
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(adapted)
    write_checkpoint({"model": trained, **adapts}, adapted)
    for other, said in (
        (state | {"cls_token": state["cls_token"] + 1}, r"adapts other weights than .*base\.pt holds now"),
        ({"cls_token": state["cls_token"]}, "of another model .*pos_embed"),
        (None, r"the weights that they adapt are not there, tried .*base\.pt"),
    ):
        base.unlink() if other is None else write_checkpoint({"model": other}, base)
        with pytest.raises(UserError, match=said):
            read_checkpoint(adapted)
    with pytest.raises(UserError, match="lora adapts trained weights"):
        tune(Classifier(BACKBONES["tiny"], 3), "lora", 4, RUN)


def test_a_small_file_makes_no_large_matrix(tmp_path):
    """Thin adapters multiply to any size: their product is held against the weight first."""
    base, adapted = tmp_path / "base.pt", tmp_path / "adapted.pt"
    write_checkpoint({"model": Classifier(BACKBONES["tiny"], 3).state_dict()}, base)
    adapts = tune(Classifier(BACKBONES["tiny"], 3), "lora", 1, RUN, base)
    layer = "blocks.0.attn.qkv.lora_{}.default.weight".format
    wide = {layer("A"): torch.zeros(1, 10**6), layer("B"): torch.zeros(10**6, 1)}
    write_checkpoint({"model": wide, **adapts}, adapted)
    with pytest.raises(UserError, match="lora_A.default.weight is of another size"):
        read_checkpoint(adapted)
