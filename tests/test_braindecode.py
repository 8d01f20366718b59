"""braindecode's Labram and ours give the same logits with the same weights (tests/braindecode_labram.py made them)."""

import numpy as np
import pytest
import torch
from braindecode_labram import CASES, CLASSES, FILE, eeg, parameter
from torch.testing import assert_close

from dataset.channels import channel_rows
from evaluation.adapters import LaBraMAdapter
from model.labram import BACKBONES, Classifier


@pytest.fixture(scope="module")
def classifier():
    model = Classifier(BACKBONES["base"], CLASSES).eval()
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(parameter(name, tuple(tensor.shape))))
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_are_braindecodes(classifier, case):
    channels, seconds = CASES[case]
    x = torch.from_numpy(eeg(case)).unflatten(2, (seconds, 200))
    with torch.no_grad():
        logits = classifier(x, torch.from_numpy(channel_rows(channels) + 1).expand(len(x), -1))
    expected = torch.from_numpy(np.load(FILE)[case])
    assert expected.std() > 0.1
    assert_close(logits, expected, rtol=1e-5, atol=2e-6)


def test_the_adapter_of_these_weights_gives_them_too(classifier, tmp_path):
    torch.save({"model": classifier.state_dict()}, tmp_path / "labram.pth")
    model = LaBraMAdapter(n_outputs=CLASSES, sfreq=200, weights=tmp_path / "labram.pth").eval()
    model.final_layer.load_state_dict(classifier.head.state_dict())
    channels, _ = CASES["mixed"]
    with torch.no_grad():
        logits = model(torch.from_numpy(eeg("mixed")) * 100, ch_names=channels)
    assert_close(logits, torch.from_numpy(np.load(FILE)["mixed"]), rtol=1e-5, atol=2e-6)
