"""The EEG transformer of NeuroLM: the encoder of its tokenizer, and the two decoders (NeuroLM, section 2.2).

B batch · N = C·S EEG tokens (padded) · T = 25 steps of the convolved patch · D width
An EEG token is one channel for one second: 200 samples in units of 100 uV.
"""

import math
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from errors import UserError
from model.gpt import Block
from model.packing import clock_blocks, in_blocks, packed_order

PATCH_SIZE = 200  # samples in a token: one second at 200 Hz
MAX_SECONDS = 64  # rows of time_embed: the longest window


@dataclass
class NTConfig:
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    in_chans: int = 1  # 1: patches of EEG; else the width of the codes that a decoder reads
    out_chans: int = 16  # of the temporal convolution
    dropout: float = 0.0
    bias: bool = False
    embed_std: float = 1.0  # of the position embeddings at the start; the paper's 1 drowns the signal for long
    norm_over_padding: bool = False  # True: the official GroupNorm, which also averages over zero padding
    padded_length: int = 0  # tokens to which that padding fills every window; 0: what padding the batch happens to have


def group_norm(x, norm: nn.GroupNorm, weight=None):
    """GroupNorm of x (B, C, N, T) with the statistics of a sample's tokens; weight (B, N): how often each counts, such
    as a mask of the valid ones; None: once."""
    if weight is None:
        return norm(x)
    grouped = rearrange(x.float(), "b (g c) n t -> b g c n t", g=norm.num_groups)
    weight = weight[:, None, None, :, None]
    count = weight.sum(dim=(2, 3, 4), keepdim=True) * grouped.size(2) * grouped.size(4)
    mean = (grouped * weight).sum(dim=(2, 3, 4), keepdim=True) / count
    variance = ((grouped - mean).square() * weight).sum(dim=(2, 3, 4), keepdim=True) / count
    normalised = rearrange((grouped - mean) * torch.rsqrt(variance + norm.eps), "b g c n t -> b (g c) n t")
    return normalised * norm.weight[:, None, None] + norm.bias[:, None, None]


class TemporalConv(nn.Module):
    """Three convolutions along the time of each patch (LaBraM, section 2.1; NeuroLM adds the linear layer `l`)."""

    def __init__(self, out_chans: int, width: int | None = None, norm_over_padding: bool = False,
                 padded_length: int = 0):  # fmt: skip
        super().__init__()
        self.norm_over_padding, self.padded_length = norm_over_padding, padded_length
        self.conv1 = nn.Conv2d(1, out_chans, kernel_size=(1, 15), stride=(1, 8), padding=(0, 7))
        self.norm1 = nn.GroupNorm(4, out_chans)
        self.conv2 = nn.Conv2d(out_chans, out_chans, kernel_size=(1, 3), padding=(0, 1))
        self.norm2 = nn.GroupNorm(4, out_chans)
        self.conv3 = nn.Conv2d(out_chans, out_chans, kernel_size=(1, 3), padding=(0, 1))
        self.norm3 = nn.GroupNorm(4, out_chans)
        self.l = None if width is None else nn.Sequential(nn.Linear(25 * out_chans, width), nn.GELU())

    def forward(self, x, valid=None):
        """x (B, N, 200) in 100 uV; valid (B, N) bool or None -> (B, N, 25 * out_chans), or (B, N, width)."""
        n, weight = x.size(1), valid
        if self.norm_over_padding:  # official: DIFFERENCES 1
            x, weight = self._pad(x, valid) if self.padded_length else (x, None)
        x = x.unsqueeze(1)  # (B, 1, N, 200)
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3)):
            x = F.gelu(group_norm(conv(x), norm, weight))  # (B, out_chans, N, 25)
        x = rearrange(x[:, :, :n], "b c n t -> b n (t c)")
        return x if self.l is None else self.l(x)

    def _pad(self, x, valid):
        """x (B, N, 200), valid (B, N) or None -> x and a token of zeros (B, N + 1, 200); how often each token counts
        (B, N + 1): no convolution crosses tokens, so this one stands for all that the window lacks."""
        self.check_tokens(x.size(1), "a window")
        weight = x.new_ones(x.shape[:2], dtype=torch.float32) if valid is None else valid.float()
        missing = self.padded_length - weight.sum(1, keepdim=True)
        return F.pad(x, (0, 0, 0, 1)), torch.cat([weight, missing], 1)

    def check_tokens(self, tokens: int, what: str) -> None:
        """Raise UserError where `what` has more tokens than the official padding fills."""
        if self.norm_over_padding and 0 < self.padded_length < tokens:
            raise UserError(
                f"{what} has {tokens} EEG tokens (channels x seconds), more than the {self.padded_length} to which the "
                "official padding fills: take fewer channels or shorter windows, or a model without --official_padding"
            )


class NeuralTransformer(nn.Module):
    """Bidirectional transformer over the tokens of a window, with embeddings of channel and second."""

    def __init__(self, config: NTConfig):
        super().__init__()
        self.config = config
        if config.in_chans == 1:
            self.patch_embed = TemporalConv(
                config.out_chans, config.n_embd, config.norm_over_padding, config.padded_length
            )
        else:
            self.patch_embed = nn.Linear(config.in_chans, config.n_embd)
        self.pos_embed = nn.Embedding(256, config.n_embd)
        self.time_embed = nn.Embedding(MAX_SECONDS, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.fc_norm = nn.LayerNorm(config.n_embd, eps=1e-6)
        self.apply(init_linear)
        for embedding in (self.pos_embed, self.time_embed):
            nn.init.normal_(embedding.weight, std=config.embed_std)
        for i, block in enumerate(self.blocks):
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.weight.data.div_(math.sqrt(2.0 * (i + 1)))

    def pad_windows(self, length: int) -> None:
        """Normalise as officially, over the zero padding of every window to `length` tokens; 0: over its own tokens."""
        self.config = replace(self.config, norm_over_padding=length > 0, padded_length=length)
        self.patch_embed.norm_over_padding, self.patch_embed.padded_length = length > 0, length

    def forward(self, x, chans, time, valid=None, counts=None):
        """x (B, N, 200) in 100 uV, or codes (B, N, K) in a decoder; chans, time (B, N) int; valid (B, N) bool, None:
        all tokens are real; counts: how many are in each row, where the host knows: then no block computes the others
        -> features (B, N, D). Padded positions hold numbers that nothing reads."""
        x = self.patch_embed(x, valid) if self.config.in_chans == 1 else self.patch_embed(x)
        x = F.dropout(x + self.pos_embed(chans) + self.time_embed(time), self.config.dropout, self.training)
        mask = None if valid is None else valid[:, None, None, :]  # (B, 1, 1, N): every query sees every valid key
        if valid is not None and in_blocks(x, self.config.dropout if self.training else 0.0):
            mask = clock_blocks(torch.zeros_like(time), torch.zeros_like(time), valid)
        packed = valid is not None and counts is not None and not torch.compiler.is_compiling()
        if packed:
            shape = x.shape[:2]
            places, mask = packed_order([(counts, shape[1])], x.device)
            x = x.flatten(0, 1).index_select(0, places)
        for block in self.blocks:
            x, _ = block(x, mask)
        x = self.fc_norm(x)
        return x.new_zeros(shape.numel(), x.size(1)).index_copy(0, places, x).unflatten(0, shape) if packed else x


def init_linear(module: nn.Module) -> None:
    """Linear layers as in ViT: truncated normal 0.02, zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
