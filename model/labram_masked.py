"""LaBraM's pre-training: predicting the codes of masked EEG tokens (LaBraM, section 2.3).

B batch · C channels · S seconds · N = C·S tokens, by channel, then second · D width · M masked tokens of a batch
"""

from dataclasses import asdict

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from model.hub import HubModel
from model.labram import Backbone, model_state
from model.labram_sizes import BACKBONES, LaBraMConfig, backbone_config
from model.weights import build, rows

MASKED_MODELS = {f"labram_{size}_patch200_1600_8k_vocab": config for size, config in BACKBONES.items()}


def one_sigma_(weight) -> None:
    """Normal 0.02 truncated at one deviation; in the tokenizer and the classifier, officially, at a hundred."""
    nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02)


def init_one_sigma(module: nn.Module) -> None:
    """Linear layers and convolutions of the masked model: truncated normal, zero bias."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        one_sigma_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Student(Backbone):
    """The backbone whose masked tokens are replaced by `mask_token`."""

    def __init__(self, config: LaBraMConfig, n_codes: int):
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.n_embd))
        self.norm = nn.LayerNorm(config.n_embd, eps=1e-6)
        self.lm_head = nn.Linear(config.n_embd, n_codes).requires_grad_(False)  # official: unused
        for embedding in (self.cls_token, self.mask_token, self.pos_embed, self.time_embed):
            one_sigma_(embedding)
        self.apply(init_one_sigma)
        self.scale_residuals()

    def forward(self, tokens, chans, masked):
        """tokens (B, N, D), the embedded patches; chans (B, C); masked (B, N) bool -> features (B, N, D)."""
        tokens = torch.where(masked[..., None], self.mask_token.to(tokens.dtype), tokens)
        x = self.transform(tokens, chans, chans[:, 0])  # official: the class token takes the first channel's position
        return self.norm(x)[:, 1:]


class MaskedModel(nn.Module, HubModel):
    """Predicts the codes of masked tokens from the others, in two passes with complementary masks (section 2.3)."""

    def __init__(self, config: LaBraMConfig, n_codes: int = 8192):
        super().__init__()
        self.student = Student(config, n_codes)
        self.lm_head = nn.Linear(config.n_embd, n_codes)
        one_sigma_(self.lm_head.weight)  # official: its bias starts as PyTorch's, uniform
        projection = nn.Linear(config.n_embd, config.n_embd)
        self.projection_head = nn.Sequential(projection, nn.GELU()).requires_grad_(False)  # official: unused

    @classmethod
    def from_checkpoint(cls, checkpoint: dict, source: str) -> "MaskedModel":
        """From an official or own checkpoint of pre-training; names and shapes must agree exactly."""
        state = model_state(checkpoint)
        config = backbone_config(checkpoint, state, source, "student.")
        return build(lambda: cls(config, rows(state, "lm_head.weight")), state, source)

    def config_args(self) -> dict[str, dict]:
        """What `from_checkpoint` needs beside the weights, or takes from them."""
        return {"backbone": asdict(self.student.config)}

    def forward(self, x, chans, masked, positions):
        """x (B, C, S, 200) in 100 uV; chans (B, C); masked (B, N) bool; positions: its `mask_positions` -> logits of
        the masked tokens (M, n_codes), and of the others (B·N - M, n_codes) when those are masked instead."""
        tokens = self.student.patch_embed(x.flatten(1, 2))  # both passes see the same patches
        passes = zip((masked, ~masked), positions, strict=True)
        return tuple(self.lm_head(self.student(tokens, chans, mask).flatten(0, 1)[chosen]) for mask, chosen in passes)


def masked_prediction(model: nn.Module, tokenizer: nn.Module, x, chans, keys):
    """The objective of pre-training: x (B, C, S, 200) in 100 uV; chans (B, C); keys: of `random_mask`, one a sample ->
    {"masked", "complement": mean cross-entropy of each pass}, share of the codes predicted."""
    masked = random_mask(keys, x.size(1) * x.size(2))
    positions = [chosen.to(x.device) for chosen in mask_positions(masked)]
    with torch.no_grad():
        codes = tokenizer.encode(x, chans)[1].flatten()
    predictions = model(x, chans, masked.to(x.device), positions)
    losses, correct = {}, 0
    for name, logits, chosen in zip(("masked", "complement"), predictions, positions, strict=True):
        losses[name] = F.cross_entropy(logits.float(), codes[chosen])
        correct = correct + (logits.argmax(-1) == codes[chosen]).sum()
    return losses, correct / len(codes)


def random_mask(keys, tokens: int):
    """Half of the tokens of each sample, drawn from its key (integers): the same in any batch -> (B, tokens) bool."""
    order = np.stack([np.random.default_rng(key).permutation(tokens) for key in keys])
    return torch.from_numpy(order >= tokens // 2)


def mask_positions(masked):
    """masked (B, N) bool, on the CPU -> where, flat over (B, N), it is True (M,), and where it is False (B·N - M,)."""
    return tuple(mask.flatten().nonzero()[:, 0] for mask in (masked, ~masked))
