"""Released LaBraM checkpoints, rebuilt here, load strictly; what is left out is said."""

import argparse

import pytest
import torch
from test_labram import TINY, TINY_VQNSP, make_vqnsp

from errors import UserError
from model.labram import Classifier, load_pretrained, model_state
from model.labram_masked import MaskedModel
from model.vqnsp import VQNSP
from model.weights import read_checkpoint


def released(model, path, **extra):
    """A checkpoint as the official code writes it."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    checkpoint = {"model": model.state_dict() | extra, "optimizer": optimizer.state_dict(), "epoch": 49}
    checkpoint |= {"scaler": {"scale": 1.0}, "args": argparse.Namespace(model="labram", lr=5e-4)}
    torch.save(checkpoint, path)
    return path


def test_released_masked_model_loads_strictly(tmp_path):
    torch.manual_seed(0)
    source, model = MaskedModel(TINY, 64), Classifier(TINY, 1)
    path = released(source, tmp_path / "labram-base.pth")
    left_out, fresh = load_pretrained(model, model_state(read_checkpoint(path)), "labram-base.pth")
    assert fresh == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    parts = {name.removeprefix("student.").split(".")[0] for name in left_out}
    assert parts == {"mask_token", "norm", "lm_head", "projection_head"}
    student = source.student.state_dict()
    for name, value in model.state_dict().items():
        if name not in fresh:
            assert torch.equal(value, student[name]), name


def test_own_classifier_loads_with_another_head(tmp_path):
    source, model = Classifier(TINY, 1), Classifier(TINY, 5)
    state = model_state(read_checkpoint(released(source, tmp_path / "own.pth")))
    assert load_pretrained(model, state, "own.pth") == (["head.weight", "head.bias"], ["head.weight", "head.bias"])
    assert torch.equal(model.fc_norm.weight, source.fc_norm.weight)
    assert load_pretrained(Classifier(TINY, 1), state, "own.pth") == ([], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("student.pos_embed"), r"1 missing \(pos_embed\)"),
        (lambda state: state.update({"student.surprise": torch.ones(1)}), r"1 unknown \(surprise\)"),
        (lambda state: state.update({"student.time_embed": torch.ones(1, 8, 100)}), r"of another size \(time_embed"),
        (lambda state: state.update({"student.blocks.0.attn.q_bias": torch.ones(100)}), "--disable_qkv_bias"),
        (lambda state: [state.pop(name) for name in list(state) if "gamma" in name], "--layer_scale_init_value"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(change, message):
    state = dict(MaskedModel(TINY, 64).state_dict())
    change(state)
    with pytest.raises(UserError, match=message):
        load_pretrained(Classifier(TINY, 1), state, "labram-base.pth")


def test_released_tokenizer_loads_strictly(tmp_path):
    source = make_vqnsp()
    path = released(source, tmp_path / "vqnsp.pth", **{"loss.logit_laplace_eps": torch.ones(1)})
    model = VQNSP.load(TINY_VQNSP, path, n_codes=64, code_dim=16)
    for name, value in source.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    with pytest.raises(UserError, match=r"vqnsp.pth does not fit this model: .* of another size"):
        VQNSP.load(TINY_VQNSP, path, n_codes=64, code_dim=32)
    path = released(source, tmp_path / "odd.pth", **{"encoder.blocks.0.surprise": torch.ones(1)})
    with pytest.raises(UserError, match="1 unknown"):
        VQNSP.load(TINY_VQNSP, path, n_codes=64, code_dim=16)
