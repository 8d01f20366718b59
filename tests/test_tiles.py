"""Attention that skips what the mask forbids: the same numbers and gradients, half of the work."""

import pytest
import torch
from small_models import make_lm
from torch.testing import assert_close

from model.gpt import tiles
from model.neurolm import clock_mask


def sample(channels=20, seconds=32, batch=2):
    """EEG of 640 tokens, the second sample a second shorter."""
    torch.manual_seed(1)
    tokens = channels * seconds
    time = torch.arange(seconds).repeat_interleave(channels).expand(batch, -1)
    valid = torch.ones(batch, tokens, dtype=torch.bool)
    valid[1, -channels:] = False
    chans = torch.arange(channels).repeat(seconds).expand(batch, -1)
    return {"x": torch.randn(batch, tokens, 200), "chans": chans, "time": time.where(valid, 0), "valid": valid}


def test_the_same_numbers_and_gradients(monkeypatch):
    eeg, found = sample(), []
    for tile in (256, 10**6):
        monkeypatch.setattr("model.gpt.TILE", tile)
        model = make_lm()
        hidden = model.read(eeg)[0][eeg["valid"]]
        hidden.square().mean().backward()
        found.append([hidden, *(block.attn.c_attn.weight.grad for block in model.GPT2.transformer.h)])
    assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


def test_what_the_clock_forbids_is_skipped():
    eeg = sample()
    mask = clock_mask(eeg["time"], eeg["time"], eeg["valid"])
    found = tiles(mask)
    assert [keys.stop for _, keys in found] == [260, 520, 640]  # up to the end of the second of the last query
    for first, (part, keys) in zip((0, 256, 512), found, strict=True):
        rows = mask[:, :, first : first + part.size(2)]
        assert torch.equal(part, rows[..., keys]) and part.sum() == rows.sum()


def test_samples_in_a_row_do_not_read_one_another():
    """The mask of several samples that share a sequence: a tile skips the samples before its own, too."""
    number = torch.arange(4).repeat_interleave(256)
    found = tiles((number[:, None] == number)[None, None])
    assert [(keys.start, keys.stop) for _, keys in found] == [(0, 256), (256, 512), (512, 768), (768, 1024)]


@pytest.mark.parametrize("shape", [(2, 1, 511, 511), (1, 1, 1, 2000), (1, 1, 512, 512)])
def test_where_nothing_is_gained_the_mask_stays(shape):
    mask = torch.ones(shape, dtype=torch.bool)
    assert tiles(mask) is mask and tiles(None) is None
