"""--dtype auto on a CPU: bfloat16 only where it was seen to be faster, and a run goes on as it began."""

import pytest
import torch
from small_models import make_lm, samples
from stages import reference, train, write_corpus

import utils
from dataset.batches import collate_prediction
from model.weights import read_checkpoint
from utils import start_run

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


@pytest.fixture
def cpu(monkeypatch):
    """Sets what the CPU can do and what the probe shows; counts the probes."""
    probes = []

    def be(able: bool, pays: bool):
        monkeypatch.setattr(utils, "_multiplies_bfloat16", lambda: able)
        monkeypatch.setattr(utils, "bfloat16_pays", lambda: probes.append(pays) or pays)
        return probes

    return be


@pytest.mark.parametrize(
    ("able", "pays", "expected"), [(False, True, FLOAT32), (True, False, FLOAT32), (True, True, BFLOAT16)]
)
def test_auto_is_what_the_probe_shows(cpu, capsys, able, pays, expected):
    probes = cpu(able, pays)
    assert start_run("cpu").dtype == expected and len(probes) == able  # no instructions: nothing to try
    assert capsys.readouterr().out.splitlines()[0] == f"1 process(es) on cpu, {str(expected)[6:]}, seed 1337"
    assert start_run("cpu", "float32").dtype == FLOAT32 and start_run("cpu", "bfloat16").dtype == BFLOAT16
    assert len(probes) == able  # who names a precision gets it


@pytest.mark.parametrize(("began", "expected", "tried"), [
    ("float32", FLOAT32, 0), ("bfloat16", BFLOAT16, 0), ("float16", BFLOAT16, 1), (None, BFLOAT16, 1),
])  # fmt: skip
def test_a_run_goes_on_in_its_precision(cpu, began, expected, tried):
    probes = cpu(able=True, pays=True)
    assert start_run("cpu", began=lambda: began).dtype == expected and len(probes) == tried
    cpu(able=False, pays=True)
    assert start_run("cpu", began=lambda: began).dtype == FLOAT32


def test_the_checkpoint_says_it_to_the_next_start(cpu, tmp_path, capsys):
    corpus = write_corpus(tmp_path)
    cpu(able=True, pays=False)
    train("vq", corpus, corpus / "reference", "--max_steps", 1)
    cpu(able=True, pays=True)  # as on another machine, or in a quieter hour
    train("vq", corpus, corpus / "reference", "--max_steps", 2)
    assert read_checkpoint(reference(corpus, "vq") / "ckpt.pt")["config"]["dtype"] == "float32"
    assert "--dtype is" not in capsys.readouterr().out


def test_the_probe_measures():
    assert utils.bfloat16_pays() in (True, False)


def test_losses_in_bfloat16_are_those_of_float32_to_its_precision():
    model, batch, losses = make_lm(), collate_prediction(samples()), []
    batch["target"] = torch.arange(len(batch["source"]))
    for dtype in (FLOAT32, BFLOAT16):
        with torch.autocast("cpu", dtype, enabled=dtype != FLOAT32), torch.no_grad():
            losses.append(model(eeg=batch)["eeg"]["loss"])
    torch.testing.assert_close(losses[1], losses[0], rtol=5e-3, atol=0)
