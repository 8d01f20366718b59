"""LaBraM's models: sizes, any window and montage, masks, losses, linear probe."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from errors import UserError
from model.labram import (
    BACKBONES,
    CLASSIFIERS,
    Classifier,
    class_loss,
    class_probabilities,
    parameter_groups,
)
from model.labram_masked import MaskedModel, mask_positions, masked_prediction, random_mask
from model.vqnsp import TOKENIZERS, VQNSP, spectrum_targets

TINY = BACKBONES["tiny"]
TINY_VQNSP = "vqnsp_encoder_tiny_decoder_1x100x2"


def make_vqnsp(**settings):
    torch.manual_seed(0)
    return VQNSP(*TOKENIZERS[TINY_VQNSP], **{"n_codes": 64, "code_dim": 16} | settings).eval()


def make_eeg(batch, channels, seconds, seed=1):
    generator = torch.Generator().manual_seed(seed)
    chans = torch.stack([torch.randperm(128, generator=generator)[:channels] + 1 for _ in range(batch)])
    return torch.randn(batch, channels, seconds, 200, generator=generator), chans


@pytest.mark.parametrize(("size", "millions"), [("base", 5.8), ("large", 46), ("huge", 369)])
def test_sizes_are_the_published_ones(size, millions):
    with torch.device("meta"):
        model = Classifier(CLASSIFIERS[f"labram_{size}_patch200_200"], 1)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(("channels", "seconds"), [(1, 1), (1, 16), (23, 1), (5, 3), (16, 16)])
def test_any_window_and_montage(channels, seconds):
    x, chans = make_eeg(2, channels, seconds)
    torch.manual_seed(0)
    assert Classifier(TINY, 4)(x, chans).shape == (2, 4)
    model = make_vqnsp().train()
    losses = model(x, chans)
    sum(losses[name] for name in ("commitment", "amplitude", "phase")).backward()
    assert losses["indices"].shape == (2, channels * seconds)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_more_than_sixteen_seconds_are_refused():
    with pytest.raises(UserError, match="a window of 17 s; LaBraM reads 16 s at most"):
        Classifier(TINY, 2)(*make_eeg(1, 2, 17))


def test_a_sample_does_not_depend_on_its_neighbours():
    x, chans = make_eeg(3, 4, 2)  # every sample has a montage of its own
    vqnsp, classifier = make_vqnsp(), Classifier(TINY, 3).eval()
    codes, indices, _ = vqnsp.encode(x, chans)
    for i in range(3):
        alone = slice(i, i + 1)
        assert_close(classifier(x, chans)[alone], classifier(x[alone], chans[alone]))
        found = vqnsp.encode(x[alone], chans[alone])
        assert torch.equal(found[1], indices[alone])
        assert_close(vqnsp.decode(found[0], chans[alone])[1], vqnsp.decode(codes, chans)[1][alone])


def test_tokens_are_by_channel_then_second():
    x, chans = make_eeg(1, 3, 2)
    torch.manual_seed(0)
    model = Classifier(TINY, 2).eval()
    order = torch.tensor([2, 0, 1])
    features = model(x, chans)
    assert_close(model(x[:, order], chans[:, order]), features)  # a channel moves with its name
    tokens, swapped = model.features(x.flatten(1, 2), chans), model.features(x[:, order].flatten(1, 2), chans[:, order])
    assert_close(swapped.unflatten(1, (3, 2)), tokens.unflatten(1, (3, 2))[:, order])
    flipped = model.features(x.flip(2).flatten(1, 2), chans).unflatten(1, (3, 2)).flip(2)
    assert (flipped - tokens.unflatten(1, (3, 2))).abs().max() > 0.01  # a second does not: it has a position of its own


def test_targets_are_zscored_and_finite_for_flat_samples():
    x, _ = make_eeg(2, 2, 3)
    x[1] = 0
    amplitude, phase = spectrum_targets(x)
    assert_close(amplitude[0].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert_close(phase[0].std(), torch.tensor(1.0))
    assert not amplitude[1].any()
    assert not phase[1].any()


def test_masks_follow_their_keys():
    keys = [(0, 1, i) for i in range(500)]
    masked = random_mask(keys, 21)
    assert (masked.sum(1) == 11).all()
    assert torch.equal(random_mask(keys[7:9], 21), masked[7:9])
    assert len({tuple(row) for row in masked.tolist()}) == 500
    assert_close(masked.float().mean(0), torch.full((21,), 11 / 21), atol=0.1, rtol=0)
    true, false = mask_positions(masked)
    assert sorted([*true.tolist(), *false.tolist()]) == list(range(masked.numel()))
    assert masked.flatten()[true].all()
    assert not masked.flatten()[false].any()


def test_masked_tokens_are_not_seen_and_both_passes_count():
    x, chans = make_eeg(2, 3, 4)
    torch.manual_seed(0)
    model = MaskedModel(TINY, 64).eval()
    model.student.patch_embed.forward = lambda x: x[..., :100]  # GroupNorm would tell of the masked patches
    masked = random_mask([(0, 0), (0, 1)], 12)
    positions = mask_positions(masked)
    logits = model(x, chans, masked, positions)
    changed = torch.where(masked.view(2, 3, 4, 1), x + 1, x)
    others = model(changed, chans, masked, positions)
    assert_close(others[0], logits[0])
    assert not torch.allclose(others[1], logits[1])


def test_masked_prediction_is_cross_entropy_of_the_codes():
    x, chans = make_eeg(2, 3, 4)
    tokenizer, model = make_vqnsp(), MaskedModel(TINY, 64).eval()
    keys = [(5, 0), (5, 1)]
    losses, accuracy = masked_prediction(model, tokenizer, x, chans, keys)
    masked = random_mask(keys, 12)
    codes = tokenizer.encode(x, chans)[1]
    first, second = model(x, chans, masked, mask_positions(masked))
    assert_close(losses["masked"], F.cross_entropy(first, codes[masked]))
    assert_close(losses["complement"], F.cross_entropy(second, codes[~masked]))
    hits = (first.argmax(1) == codes[masked]).sum() + (second.argmax(1) == codes[~masked]).sum()
    assert_close(accuracy, hits / 24)


def test_loss_and_probabilities_of_two_and_more_classes():
    logits, labels = torch.tensor([[0.3], [-2.0]]), torch.tensor([1, 0])
    p = torch.sigmoid(torch.tensor([0.3, 2.0]))
    assert_close(class_loss(logits, labels, 0.1), -p.log().mean())
    assert_close(class_probabilities(logits), torch.tensor([[1 - p[0], p[0]], [p[1], 1 - p[1]]]).double())
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    smooth = F.one_hot(labels, 3) * 0.9 + 0.1 / 3
    assert_close(class_loss(logits, labels, 0.1), -(smooth * logits.log_softmax(1)).sum(1).mean())
    assert_close(class_probabilities(logits), logits.double().softmax(1))


def test_linear_probe_trains_the_head_only_and_without_drop_path():
    x, chans = make_eeg(4, 2, 2)
    torch.manual_seed(0)
    model = Classifier(CLASSIFIERS["labram_tiny_patch200_200"], 1).train()
    for block in model.blocks:
        block.drop_path = 0.9
    model.freeze_backbone()
    assert torch.equal(model(x, chans), model(x, chans))
    trained = {id(p) for group in parameter_groups(model, 0.05) for p in group["params"]}
    assert trained == {id(p) for part in (model.fc_norm, model.head) for p in part.parameters()}
