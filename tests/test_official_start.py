"""A training from scratch starts as the official code's: the masked model, NeuroLM's larger sizes, the warm-up."""

import pytest
import stages
import torch

import train_instruction
from model.gpt import GPTConfig
from model.labram import BACKBONES, CLASSIFIERS, Classifier
from model.labram_masked import MaskedModel
from model.neural_transformer import NTConfig
from model.neurolm import NeuroLM

ONE_SIGMA = 0.0108  # deviation of a normal of 0.02 truncated at 0.02
SCALED = ("attn.proj", "mlp.fc2")  # divided by sqrt(2 · number of the block)


@pytest.fixture(scope="module")
def masked_model():
    torch.manual_seed(0)
    return MaskedModel(BACKBONES["base"])


def test_the_masked_model_is_truncated_at_one_deviation(masked_model):
    names = dict(masked_model.student.named_parameters())
    drawn = {name for name, value in names.items() if value.dim() > 1}
    assert {"cls_token", "mask_token", "pos_embed", "time_embed", "lm_head.weight", "patch_embed.conv1.weight"} < drawn
    for name in drawn:
        block = int(name.split(".")[1]) + 1 if any(part in name for part in SCALED) else 0.5
        value = names[name].detach() * (2 * block) ** 0.5
        assert value.abs().max() <= 0.02 * (1 + 1e-6), name
        if value.numel() > 5000:
            assert value.std().item() == pytest.approx(ONE_SIGMA, rel=0.05), name
    biases = [value for name, value in names.items() if name.endswith("bias")]
    assert biases and not any(value.any() for value in biases)


def test_the_head_of_the_masked_model_has_pytorchs_bias(masked_model):
    weight, bias = masked_model.lm_head.weight.detach(), masked_model.lm_head.bias.detach()
    assert weight.abs().max() <= 0.02 and weight.std().item() == pytest.approx(ONE_SIGMA, rel=0.01)
    bound = 200**-0.5
    assert bias.abs().max() <= bound and bias.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_classifier_is_not_truncated_and_keeps_pytorchs_convolutions():
    torch.manual_seed(0)
    model = Classifier(CLASSIFIERS["labram_base_patch200_200"], 2)
    assert model.blocks[3].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.patch_embed.conv1.weight.abs().max() > 0.1 and model.patch_embed.conv1.bias.any()


def test_the_layer_between_encoder_and_a_larger_gpt():
    torch.manual_seed(0)
    lm = GPTConfig(n_layer=1, n_head=2, n_embd=160)
    layer, _ = NeuroLM(lm, NTConfig(n_layer=1, n_head=2, n_embd=128), 16).encode_transform_layer
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02) and not layer.bias.any()


@pytest.mark.parametrize(("ratio", "warmup_steps"), [(0.19, 1), (0.1, 1), (0.09, 5), (0.0, 5)])
def test_the_share_of_the_warm_up_is_rounded_down(ratio, warmup_steps, untrained, tmp_path, monkeypatch):
    """Where it gives no step, --warmup_epochs (1, of 5 steps of 10) holds."""

    class Started(Exception):
        pass

    def start(*arguments, steps, warmup_steps, **more):
        raise Started(steps, warmup_steps)

    monkeypatch.setattr(train_instruction, "start_training", start)
    flags = ["--warmup_ratio", ratio, "--gradient_accumulation_steps", 2]
    with pytest.raises(Started) as started:
        stages.train("instruction", untrained, tmp_path, *flags)
    assert started.value.args == (10, warmup_steps)
