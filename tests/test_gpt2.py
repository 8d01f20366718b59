"""GPT-2's weights from a folder of transformers: the same numbers, and a clear refusal of anything else."""

import contextlib
import io

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from errors import UserError
from model.gpt import GPT
from model.lm_sizes import LM_SIZES, LMSize
from model.neural_transformer import NTConfig
from model.neurolm import TEXT_ROWS, NeuroLM
from model.vq import VQ_Align


def save_gpt2(folder, activation="gelu", **changes):
    """A random GPT-2 of two layers, with weights large enough for its activation to matter -> the model."""
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 3, "n_embd": 48, "vocab_size": 211, "n_positions": 64} | changes
    source = GPT2LMHeadModel(GPT2Config(activation_function=activation, **shape)).eval()
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * (name != "transformer.wte.weight"))
    source.save_pretrained(folder)
    return source


def compare(folder, source):
    """The largest differences of our hidden states and logits from those of transformers."""
    model = GPT.from_pretrained(str(folder)).eval()
    tokens = torch.randint(211, (2, 17), generator=torch.Generator().manual_seed(1))
    time = torch.arange(17).expand_as(tokens)
    with torch.no_grad():
        hidden, _ = model(model.transformer.wte(tokens), time, causal=True)
        expected = source(tokens, output_hidden_states=True)
        ours = (hidden, model.lm_head(hidden))
        theirs = (expected.hidden_states[-1], expected.logits)
    return ours, theirs


def test_exact_gelu_gives_the_same_numbers(tmp_path):
    ours, theirs = compare(tmp_path, save_gpt2(tmp_path))
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_tanh_form_differs_a_little(tmp_path):
    ours, theirs = compare(tmp_path, save_gpt2(tmp_path, "gelu_new"))
    x = torch.linspace(-8, 8, 10001)
    forms = (torch.nn.functional.gelu(x), torch.nn.functional.gelu(x, approximate="tanh"))
    assert 1e-4 < (forms[0] - forms[1]).abs().max() < 5e-4  # what GPT.from_pretrained's docstring says
    difference = (ours[0] - theirs[0]).abs().max()
    assert 0 < difference < 5e-3


def test_new_rows_are_small_and_old_ones_kept(tmp_path):
    source = save_gpt2(tmp_path)
    model = GPT.from_pretrained(str(tmp_path))
    model.enlarge(1000, 3000)
    for weight, rows in ((model.transformer.wte.weight, 1000), (model.lm_head.weight, 3000)):
        assert weight.shape == (rows, 48)
        assert torch.equal(weight[:211], source.transformer.wte.weight)
        assert weight[211:].std().item() == pytest.approx(0.02, rel=0.05)
    model.transformer.wte.weight.data.zero_()  # GPT-2 ties its two tables, here they are two
    assert model.lm_head.weight[:211].abs().max() > 0


def test_neurolm_starts_from_it(tmp_path, monkeypatch):
    monkeypatch.setitem(LM_SIZES, "small", LMSize("gpt2-small", 2, 3, 48))
    source = save_gpt2(tmp_path, n_positions=1024)
    encoder = NTConfig(n_layer=1, n_head=2, n_embd=32)
    model = NeuroLM.from_size("small", encoder, 64, GPT.from_pretrained(str(tmp_path)))
    assert model.GPT2.transformer.wte.weight.shape == (TEXT_ROWS, 48)
    assert model.GPT2.lm_head.weight.shape == (TEXT_ROWS + 64, 48)
    assert torch.equal(model.GPT2.lm_head.weight[:211], source.transformer.wte.weight)
    again = NeuroLM.from_checkpoint({"model": model.state_dict(), **model.config_args()}, "memory")
    assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_another_size_is_refused(tmp_path):
    save_gpt2(tmp_path)
    gpt2 = GPT.from_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r"has 2 layers, .* 64 positions; --size B needs 12 layers, .*\(gpt2\)"):
        NeuroLM.from_size("B", NTConfig(n_layer=1, n_head=2, n_embd=32), 64, gpt2)
    tokenizer = VQ_Align(NTConfig(1, 2, 32), NTConfig(1, 2, 32, in_chans=8), 64)
    with pytest.raises(UserError, match=r"\(50257, 32\).*\(211, 48\)"):
        tokenizer.set_text_embedding(gpt2.transformer.wte.weight)


def refusal(name_or_path):
    """The message of the UserError, which must be the only thing raised."""
    with contextlib.redirect_stderr(io.StringIO()), pytest.raises(UserError) as caught:
        GPT.from_pretrained(str(name_or_path))
    assert "\n" not in str(caught.value) and str(name_or_path) in str(caught.value)
    return str(caught.value)


def test_missing_weights_offline_name_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    for way_out in ("--gpt2_path", "--init_from scratch", "online"):
        assert way_out in refusal("gpt2")
    refusal(tmp_path / "nothing")


def test_folders_that_hold_no_gpt2(tmp_path):
    save_gpt2(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    refusal(tmp_path / "cut")

    BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)).save_pretrained(
        tmp_path / "bert"
    )
    refusal(tmp_path / "bert")

    save_gpt2(tmp_path / "larger")
    save_gpt2(tmp_path / "smaller", n_layer=1)
    (tmp_path / "smaller" / "config.json").write_text((tmp_path / "larger" / "config.json").read_text())
    refusal(tmp_path / "smaller")  # the configuration promises a layer more than there is

    save_gpt2(tmp_path / "wide", n_embd=96)
    (tmp_path / "wide" / "config.json").write_text((tmp_path / "larger" / "config.json").read_text())
    refusal(tmp_path / "wide")
