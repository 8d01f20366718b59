"""GPT-2 with the attention mask left open: the language model of NeuroLM, and the blocks of its EEG transformers.

B batch · N query tokens · M key tokens (cached ones included) · D width · H heads · V vocabulary rows
"""

import math
from dataclasses import asdict, dataclass

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.checkpoint import checkpoint

from errors import UserError
from model.packing import split

TEXT_ROWS = 50304  # of wte and lm_head; EEG code i is class 50304 + i
ANSWER_IDS = 50257  # answers use the ids below: GPT-2's own vocabulary
TILE = 256  # queries that attend together on a CPU; 128 and 512 gain less


@dataclass
class GPTConfig:
    block_size: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True


class LayerNorm(nn.Module):
    """Layer norm over the last axis, eps 1e-5, whose bias is optional."""

    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class SelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x, mask=None, causal=False, past=None, wanted=None):
        """x (B, N, D); mask (B, 1, N, M) bool, its `tiles` or `clock_blocks`, or None; past: earlier keys and values;
        wanted: index of the tokens to go on with, None: all -> (B, N, D), keys and values. Or x (T, D), rows of
        different lengths, and mask: their groups (`model.packing`) -> (T, D), None."""
        qkv, kept = self.c_attn(x), None
        if isinstance(mask, list):
            rows = zip(split(qkv, mask), mask, strict=True)
            parts = [self._attend(part, group.mask, group.causal)[0].flatten(0, 1) for part, group in rows]
        else:
            y, kept = self._attend(qkv, mask, causal, past)
            parts = [y]
        if wanted is not None:
            parts = [torch.cat(parts)[wanted]]
        y = torch.cat([self.c_proj(part) for part in parts])  # a copy of what goes in would be kept for the gradients
        return F.dropout(y, self.dropout, self.training), kept

    def _attend(self, qkv, mask, causal, past=None):
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.n_head)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        dropout = self.dropout if self.training else 0.0
        if isinstance(mask, tuple):
            rows = zip(q.split(TILE, 2), mask, strict=True)
            parts = [(queries, k[:, :, keys], v[:, :, keys], part) for queries, (part, keys) in rows]
            y = torch.cat([F.scaled_dot_product_attention(*part, dropout_p=dropout) for part in parts], 2)
        elif isinstance(mask, BlockMask):
            y = flex_attention(q, k, v, block_mask=mask)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout)
        return rearrange(y, "b h n d -> b n (h d)"), (k, v)


def tiles(mask):
    """What a mask (B, 1, N, M) forbids to all of TILE queries need not be computed -> for each TILE of queries its part
    of the mask and the slice of the keys from the first to the last that any of them attends to. The mask itself where
    this gains nothing: few queries, few keys to skip, or a GPU, which would wait for the host."""
    if not isinstance(mask, torch.Tensor) or torch.compiler.is_compiling():
        return mask
    if mask.device.type != "cpu" or mask.size(2) < 2 * TILE:
        return mask
    found = []
    for part in mask.split(TILE, 2):
        keys = part.any((0, 1, 2)).nonzero()
        keys = slice(int(keys[0]), int(keys[-1]) + 1) if len(keys) else slice(None)
        found.append((part[..., keys], keys))
    return tuple(found) if sum(part.numel() for part, _ in found) < 0.8 * mask.numel() else mask


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x):
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm transformer block; returns its keys and values beside its output."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = SelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = MLP(config)

    def forward(self, x, mask=None, causal=False, past=None, wanted=None):
        attended, keys_values = self.attn(self.ln_1(x), mask, causal, past, wanted)
        x = (x if wanted is None else x[wanted]) + attended
        return x + self.mlp(self.ln_2(x)), keys_values


class GPT(nn.Module):
    """GPT-2 whose position embedding and attention mask come from the caller; a `model.decoder.Decoder`.

    `lm_head` is not tied to `wte`, since NeuroLM gives it 8192 more rows, one for each EEG code.
    """

    name = vocabulary = None  # GPT-2's own
    packs, text_rows, answer_ids = True, TEXT_ROWS, ANSWER_IDS

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config, self.width, self.context, self.recomputes = config, config.n_embd, config.block_size, False
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                "ln_f": LayerNorm(config.n_embd, config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def blocks(self):
        return self.transformer.h

    @property
    def norm(self):
        return self.transformer.ln_f

    @property
    def top(self):
        return *self.norm.parameters(), self.lm_head.weight

    @property
    def takes_blocks(self):
        return not (self.training and self.config.dropout)

    def embed(self, tokens):
        return self.transformer.wte(tokens)

    def head(self):
        return self.lm_head.weight

    def text_head(self):
        return self.lm_head.weight[:ANSWER_IDS]

    def config_args(self) -> dict:
        return asdict(self.config)

    def recompute(self) -> None:
        self.recomputes = True

    def forward(self, x, time, mask=None, causal=False, past=None, wanted=None):
        """x (B, N, D) token embeddings, or packed ones (T, D); time (B, N) or (T,) positions; mask as in SelfAttention;
        past: a list with the keys and values of every block; wanted: index of the tokens whose hidden states are asked
        for, which are all that the last block makes -> hidden states as x, after the last norm, and the new list."""
        x = F.dropout(x + self.transformer.wpe(time), self.config.dropout, self.training)
        packed = isinstance(mask, list)
        mask = [group._replace(mask=tiles(group.mask)) for group in mask] if packed else tiles(mask)
        cache = []
        for i, block in enumerate(self.transformer.h):
            last = i == len(self.transformer.h) - 1
            given = (x, mask, causal, None if past is None else past[i], wanted if last else None)
            again = self.recomputes and self.training
            x, keys_values = checkpoint(block, *given, use_reentrant=False) if again else block(*given)
            cache.append(keys_values)
        return self.transformer.ln_f(x), cache

    def add_codes(self, n_codes: int) -> None:
        self.enlarge(TEXT_ROWS, TEXT_ROWS + n_codes)

    @torch.no_grad()
    def enlarge(self, wte_rows: int, lm_head_rows: int) -> None:
        """Add rows to `wte` and `lm_head`; no checkpoint provides them, so they start as N(0, 0.02)."""
        width = self.config.n_embd
        wte, lm_head = nn.Embedding(wte_rows, width), nn.Linear(width, lm_head_rows, bias=False)
        for new, old in ((wte, self.transformer.wte), (lm_head, self.lm_head)):
            nn.init.normal_(new.weight, std=0.02)
            new.weight[: old.weight.size(0)] = old.weight
        self.transformer.wte, self.lm_head = wte, lm_head

    @classmethod
    def from_pretrained(cls, name_or_path: str, dropout: float = 0.0) -> "GPT":
        """GPT-2's weights from a folder written by `save_pretrained`, or from the Hugging Face hub.

        NeuroLM's blocks use the exact GELU where GPT-2 was trained with its tanh form (they differ by less than 5e-4).
        Raises UserError when the weights cannot be had or are not those of a GPT-2.
        """
        from transformers import GPT2LMHeadModel

        try:
            source, found = GPT2LMHeadModel.from_pretrained(name_or_path, output_loading_info=True)
            if found["missing_keys"]:  # transformers would go on with random ones
                raise ValueError(f"it lacks {len(found['missing_keys'])} weights of a GPT-2")
        except Exception as error:  # the hub and damaged files fail in many ways
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"GPT-2 weights '{name_or_path}' cannot be loaded ({reason}). Go online once, or point --gpt2_path "
                "at a folder written by transformers' save_pretrained, or train without them: --init_from scratch"
            ) from None
        c = source.config
        model = cls(GPTConfig(c.n_positions, c.vocab_size, c.n_layer, c.n_head, c.n_embd, dropout))
        state = {k: v for k, v in source.state_dict().items() if not k.endswith((".attn.bias", ".attn.masked_bias"))}
        for name, value in state.items():  # GPT-2's Conv1D keeps its weights transposed
            if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
                state[name] = value.t()
        model.load_state_dict(state)
        return model
