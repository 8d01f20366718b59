"""Every array of labram.npz, computed again: `pytest tests/test_golden_labram.py --golden DIR`.

All settings come from the folder: other models, channels, seconds, code widths or suffixes run unchanged.
"""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from model.labram import CLASSIFIERS, Classifier, parameter_groups
from model.labram_masked import MASKED_MODELS, MaskedModel, mask_positions
from model.vqnsp import TOKENIZERS, VQNSP

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
WEIGHT_DECAY = 0.05


class Reference:
    """The reference results: settings, arrays, and the functions that rebuild parameters and inputs."""

    def __init__(self, folder):
        if not (folder / "labram.npz").is_file():
            pytest.skip(f"no labram.npz in {folder}")
        spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
        self.fill = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.fill)
        self.shapes = json.loads((folder / "labram.json").read_text())
        self.cases = self.shapes.pop("cases")
        self.arrays = dict(np.load(folder / "labram.npz"))
        suffix, rows = self.cases["suffix"], self.cases["input_chans"]
        shape = (self.cases["batch"], len(rows) - 1, self.cases["seconds"], 200)
        self.suffix, self.tokens = suffix, shape[1] * shape[2]
        self.x = torch.from_numpy(self.fill.signal("labram/x" + suffix, shape))
        self.chans = torch.tensor(rows[1:]).repeat(shape[0], 1)

    def build(self, name, model):
        """The model called `name`, in evaluation mode; its parameters must be named and shaped as in the reference."""
        own = {key: list(value.shape) for key, value in model.state_dict().items()}
        assert own in self.listed(name)
        self.fill.load_into(model)
        return model.eval()

    def listed(self, name):
        """Names and shapes of the parameters of the models of this name."""
        return [shapes for key, shapes in self.shapes.items() if key.split("(")[0] == name]

    def integers(self, name, high):
        shape = (len(self.x), self.tokens)
        return torch.from_numpy(self.fill.integers(f"labram/{name}{self.suffix}", shape, high))

    def check(self, name, value):
        assert_close(value.detach().double(), torch.from_numpy(self.arrays[name]).double(), **CLOSE)

    def check_gradients(self, name, model):
        expected = json.loads(str(self.arrays[name]))
        found = {key: p.grad.double().norm().item() for key, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys()
        for key, norm in expected.items():
            assert found[key] == pytest.approx(norm, rel=1e-4, abs=1e-6), key


@pytest.fixture(scope="module")
def reference(golden):
    return Reference(golden)


def test_classifier(reference):
    cases = reference.cases
    for case, settings in cases["finetune"].items():
        config = replace(
            CLASSIFIERS[settings["model"]], qkv_bias=settings["qkv_bias"], layer_scale=cases["layer_scale_init"]
        )
        model = reference.build(settings["model"], Classifier(config, cases["num_classes"]))
        logits = model(reference.x, reference.chans)
        logits.square().sum().backward()
        reference.check(f"labram/{case}/logits", logits)
        reference.check_gradients(f"labram/{case}/grad_norms", model)
        patch_tokens = model.fc_norm(model.features(reference.x.flatten(1, 2), reference.chans))
        reference.check(f"labram/{case}/patch_tokens", patch_tokens[:, ::3])


def test_layer_decay(reference):
    cases = reference.cases
    for case, settings in cases["finetune"].items():
        config = replace(
            CLASSIFIERS[settings["model"]], qkv_bias=settings["qkv_bias"], layer_scale=cases["layer_scale_init"]
        )
        model = Classifier(config, cases["num_classes"])
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, WEIGHT_DECAY, cases["layer_decay"])
        found = {names[p]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
        expected = json.loads(str(reference.arrays[f"labram/{case}/layer_decay"]))
        assert found.keys() == expected.keys()
        for name, pair in expected.items():
            assert found[name] == pytest.approx(pair, rel=1e-12), name


def test_tokenizer(reference):
    name = reference.cases["tokenizer_model"]
    (shapes,) = reference.listed(name)
    n_codes = shapes["quantize.cluster_size"][0]
    model = reference.build(name, VQNSP(*TOKENIZERS[name], n_codes=n_codes, code_dim=reference.cases["code_dim"]))
    with torch.no_grad():
        losses = model(reference.x, reference.chans)
    np.testing.assert_array_equal(losses["indices"].numpy(), reference.arrays["vqnsp/tokens"])
    parts = torch.stack([losses[part] for part in ("commitment", "amplitude", "phase")])
    reference.check("vqnsp/losses", torch.cat([parts, parts.sum()[None]]))

    losses = model.train()(reference.x, reference.chans)
    sum(losses[part] for part in ("commitment", "amplitude", "phase")).backward()
    reference.check_gradients("vqnsp/grad_norms", model)
    reference.check("vqnsp/codebook_after", model.quantize.embedding.weight[::64])


def test_masked_model(reference):
    name = reference.cases["masked_model"]
    (shapes,) = reference.listed(name)
    model = reference.build(name, MaskedModel(MASKED_MODELS[name], n_codes=shapes["lm_head.weight"][0]))
    masked, labels = reference.integers("mask", 2).bool(), reference.integers("labels", 8192)
    positions = mask_positions(masked)
    predictions = model(reference.x, reference.chans, masked, positions)
    pairs = zip(predictions, positions, strict=True)
    loss = sum(F.cross_entropy(logits, labels.flatten()[chosen]) for logits, chosen in pairs)
    loss.backward()
    reference.check("labram_mem/loss", loss)
    for array, logits in zip(("masked_logits", "unmasked_logits"), predictions, strict=True):
        reference.check(f"labram_mem/{array}", logits[:, ::37])
    reference.check_gradients("labram_mem/grad_norms", model)


def test_every_array_is_checked(reference):
    checked = {"vqnsp/tokens", "vqnsp/losses", "vqnsp/grad_norms", "vqnsp/codebook_after"}
    checked |= {f"labram_mem/{array}" for array in ("loss", "masked_logits", "unmasked_logits", "grad_norms")}
    parts = ("logits", "grad_norms", "patch_tokens", "layer_decay")
    checked |= {f"labram/{case}/{part}" for case in reference.cases["finetune"] for part in parts}
    assert set(reference.arrays) == checked
