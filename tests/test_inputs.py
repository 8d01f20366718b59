"""What NeuroLM can be given beyond the paper: standardized features, and the power of rhythms."""

import json
import math

import numpy as np
import pytest
import torch
from small_models import make_lm, samples
from stages import read_metrics, reference, train, write_corpus
from test_invariance import padded
from torch.testing import assert_close

from dataset.batches import collate_eeg
from model.inputs import BANDS, SMALLEST, FeatureScale, log_band_power
from model.neurolm import NeuroLM
from model.weights import read_checkpoint


@pytest.mark.parametrize("seconds", [1, 4, 7])
@pytest.mark.parametrize("band, frequency", [("delta", 2), ("alpha", 8), ("alpha", 12), ("gamma", 44)])
def test_a_sine_has_its_power_in_its_band(seconds, band, frequency):
    time = torch.arange(200 * seconds) / 200
    powers = log_band_power(0.3 * torch.sin(2 * math.pi * frequency * time).expand(2, 3, -1))
    assert powers.shape == (2, 3, 6) and powers.dtype == torch.float32
    place = list(BANDS).index(band)
    assert_close(powers[..., place].exp(), torch.full((2, 3), 0.3**2 / 2), rtol=1e-4, atol=1e-6)
    assert (powers.exp().sum(-1) - powers[..., place].exp() < 1e-6).all()


def test_a_flat_token_has_a_finite_power():
    assert_close(log_band_power(torch.full((200,), 3.0)), torch.full((6,), math.log(SMALLEST)))


def test_features_are_standardized_over_real_tokens():
    torch.manual_seed(0)
    features = 3 * torch.randn(4, 50, 5) + torch.arange(5)
    valid = torch.rand(4, 50) < 0.7
    scale = FeatureScale(5)
    scale.measure([(features[:3].masked_fill(~valid[:3, :, None], 1e6), valid[:3]), (features[3:], None)])
    real = scale(torch.cat([features[:3][valid[:3]], features[3]]))
    assert_close(real.mean(0), torch.zeros(5), rtol=0, atol=1e-5)
    assert_close(real.std(0, correction=0), torch.ones(5), rtol=1e-5, atol=0)


def test_only_band_power_hears_the_amplitude():
    batch = collate_eeg(samples()[:1])
    louder = batch | {"x": 2 * batch["x"]}
    for options, heard in (({}, False), ({"standardize": True}, False), ({"band_power": True}, True)):
        model = make_lm(**options)
        before, after = model.embed_eeg(batch), model.embed_eeg(louder)
        change = (after - before).norm() / before.norm()
        assert change > 0.2 if heard else change < 0.01, options  # a little is left: biases of the convolution
    assert_close(
        model.encode(louder)[..., -6:] - model.encode(batch)[..., -6:],
        torch.full((*batch["chans"].shape, 6), math.log(4)), rtol=1e-3, atol=1e-4,
    )  # fmt: skip


def test_a_sample_alone_padded_or_beside_others_is_read_the_same():
    model = make_lm(band_power=True)
    rows = samples()
    model.measure_features([collate_eeg(rows)])
    question = torch.arange(7)
    together = collate_eeg(rows)
    expected = model.score_answers(together | {"tokens": question.expand(4, -1)}, [[1, 2], [3]])
    for i, row in enumerate(rows):
        for batch in (collate_eeg([row]), padded(collate_eeg([row]), 9)):
            answer = model.score_answers(batch | {"tokens": question[None]}, [[1, 2], [3]])
            assert_close(answer[0], expected[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"standardize": True}, {"band_power": True}])
def test_a_checkpoint_knows_its_options(options):
    model = make_lm(**options)
    batch = collate_eeg(samples())
    if options:
        model.measure_features([batch])
    checkpoint = {"model": model.state_dict(), **model.config_args()}
    again = NeuroLM.from_checkpoint(checkpoint, "here").eval()
    assert_close(again.embed_eeg(batch), model.embed_eeg(batch), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------------ as a user


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("inputs"))
    train("vq", folder, folder / "reference", "--max_steps", 2)
    train("pretrain", folder, folder / "reference", "--max_steps", 2, "--band_power")
    return folder


def test_stage_3_takes_over_what_stage_2_measured(corpus, tmp_path):
    folder = train("instruction", corpus, tmp_path, "--max_steps", 2)
    ours, theirs = (read_checkpoint(path / "ckpt.pt")["model"] for path in (folder, reference(corpus, "pretrain")))
    assert_close(ours["feature_scale.mean"], theirs["feature_scale.mean"], rtol=0, atol=0)
    assert ours["feature_scale.std"].shape == (128 + 6,)
    assert not torch.equal(ours["power_embed.weight"], theirs["power_embed.weight"])


def test_without_pre_training_stage_3_measures_itself_also_from_the_cache(corpus, tmp_path):
    fresh = ["--init_from", "scratch", "--tokenizer_path", reference(corpus, "vq") / "ckpt.pt", "--band_power"]
    fresh += ["--max_steps", 3, "--log_interval", 1, "--dropout", 0]
    plain = train("instruction", corpus, tmp_path / "plain", *fresh)
    cached = train("instruction", corpus, tmp_path / "cached", *fresh, "--cache_features", tmp_path / "cache")
    losses = [[row["train/loss"] for row in read_metrics(path) if "train/loss" in row] for path in (plain, cached)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    scales = [read_checkpoint(path / "ckpt.pt")["model"]["feature_scale.mean"] for path in (plain, cached)]
    assert_close(scales[1], scales[0], rtol=1e-5, atol=1e-6)
    assert scales[0].abs().max() > 0
    about = json.loads((plain / "results.json").read_text())["about"]
    assert about["method"] == "NeuroLM-tiny, without pre-training, band power"


@pytest.mark.parametrize("option", ["standardize", "band_power"])
def test_a_pre_trained_model_is_not_given_other_inputs(refused, option):
    refused("instruction", [f"--{option}"], f"--{option}", "train_pretrain.py")
