"""The encoders under the benchmarks' contract: any rate, length and montage in, (B, n_outputs) out."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from small_models import make_lm, make_vq
from torch.testing import assert_close

from dataset.channels import STANDARD_1020, channel_rows
from errors import UserError
from evaluation.adapters import LaBraMAdapter, NeuroLMAdapter, electrodes, resample, to_patches
from model.labram import BACKBONES, Classifier
from model.labram_masked import MaskedModel

NAMES = ["C3", "CZ", "C4"]
BOTH = pytest.mark.parametrize("kind", [LaBraMAdapter, NeuroLMAdapter])


def build(kind, **options):
    torch.manual_seed(0)
    return kind(**{"n_outputs": 4, "sfreq": 200, "size": "tiny"} | options).eval()


def eeg(channels, samples, batch=2):
    return 30 * torch.randn(batch, channels, samples, generator=torch.Generator().manual_seed(1))


@BOTH
@pytest.mark.parametrize(
    ("sfreq", "samples"), [(120, 120), (120, 3600), (128, 90), (200, 401), (173.61, 4097), (1000, 2500)]
)
def test_one_instance_reads_every_length_and_montage(kind, sfreq, samples):
    model = build(kind, sfreq=sfreq)
    for names in (NAMES, STANDARD_1020[:64], list(electrodes())[::3]):
        x = eeg(len(names), samples)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            answers = model(x, ch_names=list(names), channel_positions=torch.rand(2, len(names), 3), subject_ids=[0, 1])
        assert answers.shape == (2, 4) and answers.isfinite().all()


@pytest.mark.parametrize("sfreq", [100, 128, 173.61, 250, 500, 1024])
def test_resampling_keeps_what_both_rates_hold_and_removes_what_200_hz_cannot(sfreq):
    def sine(frequency, rate):
        return torch.sin(2 * math.pi * frequency * torch.arange(round(3 * rate)) / rate).expand(2, 3, -1)

    y = resample(sine(10, sfreq), sfreq)
    assert abs(y.shape[-1] - 600) <= 1
    inner = slice(100, 500)  # the sine does not go on beyond the edges
    assert_close(y[..., inner], sine(10, 200)[..., inner], rtol=0, atol=2e-3)
    if sfreq > 300:
        assert resample(sine(130, sfreq), sfreq)[..., inner].abs().max() < 0.01
    assert_close(resample(torch.full((1, 1, 500), 7.0), sfreq), torch.tensor(7.0).expand(1, 1, round(100_000 / sfreq)))


def test_a_rest_of_half_a_second_is_read_and_a_shorter_one_is_cut():
    x = torch.arange(500.0).reshape(1, 1, -1)
    assert to_patches(x)[0, 0, :, [0, -1]].tolist() == [[0, 199], [200, 399], [300, 499]]
    assert to_patches(x[..., :499])[0, 0, :, [0, -1]].tolist() == [[0, 199], [200, 399]]
    assert to_patches(x[..., :399])[0, 0, :, 0].tolist() == [0, 199]
    assert to_patches(x[..., :50])[0, 0, 0, [0, 49, 199]].tolist() == [0, 49, 49]


def test_labram_pools_what_its_classifier_pools():
    model, x = build(LaBraMAdapter, n_outputs=0), eeg(3, 1000)
    chans = torch.from_numpy(channel_rows(NAMES) + 1).expand(2, -1)
    assert_close(model(x, ch_names=NAMES), model.encoder.pool((x / 100).unflatten(2, (5, 200)), chans))


def test_neurolm_reads_by_second_then_channel():
    model, x = build(NeuroLMAdapter, n_outputs=0), eeg(3, 800)
    tokens = (x / 100).unflatten(2, (4, 200)).transpose(1, 2).flatten(1, 2)
    chans = torch.tensor(channel_rows(NAMES)).repeat(4).expand(2, -1)
    time = torch.arange(4).repeat_interleave(3).expand(2, -1)
    assert_close(model(x, ch_names=NAMES), model.encoder(tokens, chans, time).mean(1))


@pytest.mark.parametrize(
    ("kind", "names", "cuts"),
    [
        (LaBraMAdapter, NAMES, (0, 15, 30)),
        (LaBraMAdapter, STANDARD_1020[:64], (0, 3, 6)),
        (NeuroLMAdapter, NAMES, (0, 50, 100)),
        (NeuroLMAdapter, STANDARD_1020[:64], (0, 10, 20)),
    ],
)
def test_a_long_window_is_the_mean_of_its_pieces(kind, names, cuts):
    model, x = build(kind), eeg(len(names), 200 * cuts[-1], batch=1)
    patches, rows = x.unflatten(2, (-1, 200)) / 100, torch.tensor(channel_rows(names))[None]
    pieces = [model.tokens(patches[:, :, a:b], rows).mean(1) for a, b in zip(cuts, cuts[1:], strict=False)]
    norm = model.encoder.fc_norm if kind is LaBraMAdapter else torch.nn.Identity()
    whole = model(x, ch_names=names)
    assert_close(whole, model.final_layer(norm(torch.stack(pieces).mean(0))), rtol=1e-4, atol=1e-5)


@BOTH
def test_units(kind):
    x = eeg(3, 400)
    expected = build(kind)(x, ch_names=NAMES)
    assert_close(build(kind, scale=1e4)(x * 1e-6, ch_names=NAMES), expected)
    assert_close(build(kind, scale=1)(x / 100, ch_names=NAMES), expected)
    with pytest.warns(UserWarning, match="with scale 0.01 this EEG has a median of .* uV"):
        build(kind)(x * 1e-6, ch_names=NAMES)


@BOTH
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sfreq": None}, "sfreq"),
        ({"size": "XXL"}, "size XXL: choose one of tiny"),
        ({"n_chans": 3, "chs_info": [{"ch_name": "C3"}]}, "chs_info describes 1 channels, n_chans is 3"),
        ({"weights": "nowhere.pt"}, "nowhere.pt does not exist"),
    ],
)
def test_settings_that_cannot_be_are_refused(kind, options, words):
    with pytest.raises(UserError, match=words):
        build(kind, **options)


@BOTH
def test_gradients_reach_the_first_layer_and_a_copy_answers_the_same(kind):
    model, x = build(kind, sfreq=120).train(), eeg(3, 300).requires_grad_()
    answers = model(x, ch_names=NAMES)
    answers.square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in model.parameters())
    other = build(kind, sfreq=120)
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x, ch_names=NAMES), answers)
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "final_layer"}


@BOTH
def test_every_linear_layer_is_called_so_that_lora_can_take_its_place(kind):
    model, called = build(kind), []
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: called.append(layer))
    model(eeg(3, 400), ch_names=NAMES)
    assert len(called) == len(layers) and set(called) == set(layers)


def test_weights_of_every_kind_load_strictly(tmp_path):
    masked, classifier = MaskedModel(BACKBONES["tiny"], 64), Classifier(BACKBONES["tiny"], 3)
    vq, lm = make_vq(), make_lm()
    files = [
        (LaBraMAdapter, {"model": masked.state_dict()}, masked.student),
        (LaBraMAdapter, {"model": classifier.state_dict()}, classifier),
        (NeuroLMAdapter, {"model": vq.state_dict()} | vq.config_args(), vq.VQ.encoder),
        (NeuroLMAdapter, {"model": lm.state_dict()} | lm.config_args(), lm.tokenizer),
    ]
    for i, (kind, checkpoint, source) in enumerate(files):
        torch.save(checkpoint, tmp_path / f"{i}.pt")
        encoder = build(kind, weights=tmp_path / f"{i}.pt").encoder
        assert all(parameter.requires_grad for parameter in encoder.parameters())
        for name, value in source.state_dict().items():
            if name.startswith(("blocks.", "patch_embed.", "pos_embed", "time_embed")):
                assert torch.equal(encoder.state_dict()[name], value), name
        other = NeuroLMAdapter if kind is LaBraMAdapter else LaBraMAdapter
        with pytest.raises(UserError, match=f"{i}.pt"):
            build(other, weights=tmp_path / f"{i}.pt")
