"""LaBraM's transformer, and the classifier made of it (LaBraM, ICLR 2024, sections 2.1 and 2.4).

B batch · C channels · S seconds · N = C·S tokens, by channel, then second · D width · K width of a code
An EEG token is one channel for one second: 200 samples in units of 100 uV. `chans` are rows of the channel table plus
one, since row 0 of the position embedding belongs to the class token.
"""

import math
from dataclasses import asdict, replace

import numpy as np
import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F

from errors import UserError
from model.hub import HubModel
from model.inputs import BANDS, FeatureScale, log_band_power
from model.labram_sizes import BACKBONES, LaBraMConfig, backbone_config
from model.neural_transformer import TemporalConv, init_linear
from model.weights import build, load_strictly, rows, stored_state

MAX_SECONDS = 16  # rows of time_embed: the longest window
MAX_CHANS = 128  # rows of pos_embed beside the class token's: the rows of the channel table that can be embedded


CLASSIFIERS = {f"labram_{size}_patch200_200": config for size, config in BACKBONES.items()}


class Attention(nn.Module):
    def __init__(self, config: LaBraMConfig):
        super().__init__()
        self.n_head = config.n_head
        width, head = config.n_embd, config.n_embd // config.n_head
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if config.qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if config.qkv_bias else None
        self.q_norm = nn.LayerNorm(head, eps=1e-6) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head, eps=1e-6) if config.qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        qkv = self.qkv(x)  # called, not read: what an adapter such as LoRA puts in its place must take part
        if self.q_bias is not None:
            qkv = qkv + torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.n_head)
        y = F.scaled_dot_product_attention(self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v)
        return self.proj(rearrange(y, "b h n d -> b n (h d)"))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block with layer scale (Touvron 2021) and stochastic depth (Huang 2016)."""

    def __init__(self, config: LaBraMConfig, drop_path: float):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(config.n_embd, eps=1e-6)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.n_embd, eps=1e-6)
        self.mlp = MLP(config.n_embd)
        self.gamma_1 = self.gamma_2 = None
        if config.layer_scale > 0:
            self.gamma_1 = nn.Parameter(torch.full((config.n_embd,), config.layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((config.n_embd,), config.layer_scale))

    def forward(self, x):
        x = x + self._branch(self.attn(self.norm1(x)), self.gamma_1)
        return x + self._branch(self.mlp(self.norm2(x)), self.gamma_2)

    def _branch(self, y, gamma):
        y = y if gamma is None else gamma * y
        if not (self.training and self.drop_path):
            return y
        keep = 1 - self.drop_path
        return y * torch.bernoulli(y.new_full((len(y), 1, 1), keep)) / keep  # whole samples skip the branch


class CodeEmbed(nn.Module):
    """What stands for the temporal convolution where codes are the input."""

    def __init__(self, code_dim: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(code_dim, width, kernel_size=1)

    def forward(self, codes):
        """codes (B, N, K) -> (B, N, D)."""
        return rearrange(self.proj(rearrange(codes, "b n k -> b k n 1")), "b d n 1 -> b n d")


class Backbone(nn.Module):
    """Patches, class token, embeddings of channel and second, and the blocks (LaBraM, section 2.1)."""

    def __init__(self, config: LaBraMConfig):
        super().__init__()
        self.config = config
        width = config.n_embd
        reads_eeg = config.in_chans == 1
        self.patch_embed = TemporalConv(config.out_chans) if reads_eeg else CodeEmbed(config.in_chans, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + MAX_CHANS, width))
        self.time_embed = nn.Parameter(torch.empty(1, MAX_SECONDS, width))
        rates = np.linspace(0, config.drop_path, config.n_layer).tolist()
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        for embedding in (self.cls_token, self.pos_embed, self.time_embed):
            nn.init.trunc_normal_(embedding, std=0.02)
        self.apply(init_linear)
        self.scale_residuals()

    def scale_residuals(self) -> None:
        """At the start, deeper blocks add less to the residual stream."""
        for i, block in enumerate(self.blocks):
            for projection in (block.attn.proj, block.mlp.fc2):
                projection.weight.data.div_(math.sqrt(2.0 * (i + 1)))

    def transform(self, tokens, chans, cls_chan):
        """tokens (B, C·S, D); chans (B, C) rows of pos_embed, cls_chan (B,) the class token's -> (B, 1 + N, D)."""
        seconds = tokens.size(1) // chans.size(1)
        if seconds > MAX_SECONDS:
            raise UserError(f"a window of {seconds} s; LaBraM reads {MAX_SECONDS} s at most: cut it into shorter ones")
        place = repeat(self.pos_embed[0, chans], "b c d -> b (c s) d", s=seconds)
        time = repeat(self.time_embed[0, :seconds], "s d -> (c s) d", c=chans.size(1))
        cls_token = self.cls_token[:, 0] + self.pos_embed[0, cls_chan]  # (B, D)
        x = torch.cat([cls_token[:, None], tokens + place + time], dim=1)
        for block in self.blocks:
            x = block(x)
        return x


class Encoder(Backbone):
    """Features of every token; with codes as input, a decoder."""

    def __init__(self, config: LaBraMConfig):
        super().__init__(config)
        self.fc_norm = nn.LayerNorm(config.n_embd, eps=1e-6)

    def features(self, x, chans):
        """x (B, N, 200) in 100 uV, or codes (B, N, K); chans (B, C) -> (B, N, D), not normalised yet."""
        return self.transform(self.patch_embed(x), chans, torch.zeros_like(chans[:, 0]))[:, 1:]

    def forward(self, x, chans):
        """As `features`, normalised."""
        return self.fc_norm(self.features(x, chans))


class Classifier(Encoder, HubModel):
    """The mean of the patch tokens, normalised, to logits (LaBraM, section 2.4)."""

    def __init__(self, config: LaBraMConfig, num_classes: int, band_power: bool = False):
        """band_power: also give the blocks the log band power of each token, standardized; the paper does not."""
        super().__init__(config)
        self.power_scale = FeatureScale(len(BANDS)) if band_power else nn.Identity()
        self.power_embed = nn.Linear(len(BANDS), config.n_embd) if band_power else None
        if band_power:
            init_linear(self.power_embed)
        self.head = nn.Linear(config.n_embd, num_classes)
        init_linear(self.head)
        self.head.weight.data.mul_(0.001)

    @classmethod
    def from_checkpoint(cls, checkpoint: dict, source: str) -> "Classifier":
        """From a checkpoint of run_class_finetuning.py, whose flags and classes it holds; of one without classes, as
        official ones, the tensors say the sizes. Raises UserError where it is none, or does not fit."""
        state = model_state(checkpoint)
        if "classes" not in checkpoint and rows(state, "head.weight"):
            config, outputs = backbone_config(checkpoint, state, source), rows(state, "head.weight")
            return build(lambda: cls(config, outputs, POWER in state), state, source)
        try:
            flags, classes = checkpoint["args"], checkpoint["classes"]
            config = replace(CLASSIFIERS[flags["model"]], qkv_bias=bool(flags["qkv_bias"]))
            if flags["layer_scale_init_value"] is not None:
                config = replace(config, layer_scale=float(flags["layer_scale_init_value"]))
            if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
                raise TypeError("classes: a list of names")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{source} is no checkpoint of run_class_finetuning.py ({error!r} is missing)") from None
        outputs = len(classes) if len(classes) > 2 else 1
        return build(lambda: cls(config, outputs, POWER in state), state, source)

    def config_args(self) -> dict[str, dict]:
        """What `from_checkpoint` needs beside the weights where flags and classes are missing."""
        return {"backbone": asdict(self.config)}

    def measure_power(self, batches) -> None:
        """Standardize band power by the statistics of these batches (`x`, see `pool`), of all processes."""
        self.power_scale.measure((log_band_power(batch["x"]).flatten(1, 2), None) for batch in batches)

    def features(self, x, chans):
        tokens = self.patch_embed(x)
        if self.power_embed is not None:
            tokens = tokens + self.power_embed(self.power_scale(log_band_power(x)))
        return self.transform(tokens, chans, torch.zeros_like(chans[:, 0]))[:, 1:]

    def pool(self, x, chans):
        """x (B, C, S, 200) in 100 uV; chans (B, C) -> what the head reads (B, D)."""
        return self.fc_norm(self.features(x.flatten(1, 2), chans).mean(1))

    def forward(self, x, chans):
        """x, chans as in `pool` -> logits (B, number of classes)."""
        torch._check(x.size(1) == chans.size(1))  # what torch.export cannot see
        return self.head(self.pool(x, chans))

    def freeze_backbone(self) -> None:
        """Leave only `fc_norm`, `head` and the embedding of band power to train: a linear probe."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(FRESH))
        for block in self.blocks:
            block.drop_path = 0.0


def class_probabilities(logits):
    """logits (B, classes), or (B, 1) where there are two -> probabilities (B, classes) float64."""
    if logits.size(1) > 1:
        return logits.double().softmax(-1)
    positive = logits.double().sigmoid()
    return torch.cat([1 - positive, positive], dim=1)


def class_loss(logits, labels, smoothing: float):
    """Mean over the batch: binary cross-entropy of two classes, label-smoothed cross-entropy of more."""
    if logits.size(1) > 1:
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    return F.binary_cross_entropy_with_logits(logits[:, 0].float(), labels.float())


NO_DECAY = ("cls_token", "pos_embed", "time_embed")


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float | None = None) -> list[dict]:
    """Optimizer groups {params, weight_decay, lr_scale} of the parameters to train.

    Vectors and the embeddings of `NO_DECAY` do not decay. `lr_scale` multiplies the learning rate: 1 for the head, and
    `layer_decay` times less for every block below (BEiT's layer-wise decay; None: 1 everywhere). Which parameters
    share a group does not depend on the values, so that a resumed run may have others.
    """
    depth = len(getattr(model, "blocks", ()))
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        free = parameter.dim() == 1 or name.split(".")[-1] in NO_DECAY
        below = 0 if layer_decay is None else depth + 1 - _layer(name, depth)
        scale = 1.0 if layer_decay is None else layer_decay**below
        new = {"params": [], "lr_scale": scale, "weight_decay": 0.0 if free else weight_decay}
        groups.setdefault((below, free), new)["params"].append(parameter)
    return list(groups.values())


def _layer(name: str, depth: int) -> int:
    first, *rest = name.split(".")
    if first in ("cls_token", "mask_token", "pos_embed", "patch_embed"):
        return 0
    return int(rest[0]) + 1 if first == "blocks" else depth + 1  # official: time_embed is with the head


DROPPED = ("loss", "teacher", "scaling")  # official: leftovers of training in released tokenizers, used by nobody
UNUSED = ("mask_token", "norm.", "lm_head.", "projection_head.")  # of a masked model, not part of a classifier
FRESH = ("fc_norm.", "head.", "power_")  # of a classifier, not part of a masked model
POWER = "power_embed.weight"  # in the checkpoints of classifiers that are given band power
OPTIONAL = {"attn.q_bias": "--qkv_bias or --disable_qkv_bias", "gamma_1": "--layer_scale_init_value"}


def model_state(checkpoint: dict) -> dict:
    """The state dict in a checkpoint, released or own, or the checkpoint itself where it is one; wrappers' prefixes and
    what no model reads are left out."""
    return {name: value for name, value in stored_state(checkpoint).items() if not name.startswith(DROPPED)}


def load_pretrained(model: Classifier, state: dict, source: str, keep_head=True) -> tuple[list[str], list[str]]:
    """Load a masked model (`student.*`) or a classifier (plain names), with its head or without, into a classifier.

    The whole backbone must fit: names and shapes. Returns the names of the checkpoint that were left out, and those of
    the model that keep their initial values. Raises UserError when the backbone does not fit.
    """
    state = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    given = {name.removeprefix("student."): name for name in state}
    own = model.state_dict()
    for part, flags in OPTIONAL.items():
        if any(part in name for name in own) != any(part in name for name in given):
            raise UserError(f"{source} and this model differ in {part}: give the {flags} that it was trained with")
    heads = [name for name in given if name in own and name.startswith("head.")]
    unfit = {name for name in heads if not keep_head or state[given[name]].shape != own[name].shape}
    left_out = {name for name in given if name.startswith(UNUSED)} | unfit
    fresh = [name for name in own if name.startswith(FRESH) and name not in given.keys() - unfit]
    loaded = {name: state[original] for name, original in given.items() if name not in left_out}
    load_strictly(model, {name: own[name] for name in fresh} | loaded, source)
    return [name for name in state if name.removeprefix("student.") in left_out], fresh
