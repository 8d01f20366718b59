"""Band power for LaBraM: off by default, it gives the network the amplitude that GroupNorm removes, and stays."""

import json

import pytest
import torch
from test_folds import finetune
from toy_eeg import write_toy

from model.inputs import log_band_power
from model.labram import BACKBONES, Classifier, load_pretrained
from model.labram_masked import MaskedModel
from model.weights import read_checkpoint

TINY = BACKBONES["tiny"]


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return {"x": torch.randn(4, 3, 2, 200), "chans": torch.arange(1, 4).expand(4, 3)}


def test_amplitude_reaches_the_head_only_with_it(batch):
    for band_power, least, most in ((False, 0, 1e-3), (True, 1e-2, 10)):
        torch.manual_seed(1)
        model = Classifier(TINY, 1, band_power).eval()
        if band_power:
            model.measure_power([batch])
        with torch.no_grad():
            moved = model.pool(2 * batch["x"], batch["chans"]) - model.pool(batch["x"], batch["chans"])
        assert least <= moved.abs().mean() <= most
    given = model.power_scale(log_band_power(batch["x"])).flatten(0, 2)
    torch.testing.assert_close(given.mean(0), torch.zeros(6), atol=1e-4, rtol=0)


def test_it_is_new_in_a_pretrained_network_and_kept_in_a_trained_one(batch):
    state = MaskedModel(TINY, 64).state_dict()
    model = Classifier(TINY, 1, band_power=True)
    fresh = load_pretrained(model, state, "masked.pth")[1]
    assert {"power_embed.weight", "power_scale.mean"} <= set(fresh)
    again = Classifier.from_checkpoint({"model": model.state_dict(), **model.config_args()}, "own.pth").eval()
    torch.testing.assert_close(again(**batch), model.eval()(**batch))
    model.freeze_backbone()
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"fc_norm", "head", "power_embed"}


def test_a_run_keeps_its_statistics(tmp_path):
    toy = write_toy(tmp_path / "Toy", seconds=8, window=2, splits=(("train", 3), ("val", 1), ("test", 1)))
    about = finetune(toy, tmp_path / "out", "--band_power")["about"]
    assert about["method"].endswith("from scratch, band power")
    kept = read_checkpoint(tmp_path / "out" / "checkpoint-best.pth")["model"]
    assert kept["power_scale.std"].max() > 0 and not torch.equal(kept["power_scale.mean"], torch.zeros(6))
    before = json.loads((tmp_path / "out" / "results.json").read_text())["results"][0]["metrics"]
    again = finetune(toy, tmp_path / "eval", "--eval", "--finetune", tmp_path / "out" / "checkpoint-best.pth")
    assert again["results"][0]["metrics"] == before
