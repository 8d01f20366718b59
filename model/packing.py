"""Rows of different lengths without their padding: one sequence of real tokens, in groups of rows of one length.

B rows · M tokens of a row (padded) · T real tokens of all rows
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


class Group(NamedTuple):
    """Rows of one length, side by side in a packed sequence; mask (rows, 1, length, length) bool, in blocks, or None,
    and causal: what their tokens may attend to."""

    rows: int
    length: int
    mask: torch.Tensor | BlockMask | None = None
    causal: bool = False


def packed_order(spans, device):
    """spans: for each part of the rows, such as EEG and text, the number of real tokens in each row and the length to
    which they are padded -> places (T,) of the real tokens in the flattened rows (B, M), and their `Group`s, the rows
    from short to long, else in their order."""
    valid = np.concatenate([np.arange(length) < np.array(counts)[:, None] for counts, length in spans], 1)  # (B, M)
    lengths = valid.sum(1)
    order = np.argsort(lengths, kind="stable")
    places = np.arange(valid.size).reshape(valid.shape)[order][valid[order]]
    found = zip(*np.unique(lengths, return_counts=True), strict=True)
    return torch.from_numpy(places).to(device), [Group(int(rows), int(length)) for length, rows in found]


def split(packed, groups: list[Group]) -> list:
    """packed (T, ...) -> the rows of each group (rows, length, ...)."""
    parts = packed.split([group.rows * group.length for group in groups])
    return [part.unflatten(0, group[:2]) for part, group in zip(parts, groups, strict=True)]


def pack(x, time, valid, spans, source, causal: bool, dense: bool = False):
    """Embeddings x (B, M, D), time and valid (B, M) of rows without their padding; spans: as in `packed_order`, None:
    leave them as they are; source: places in the flattened rows, None: all; causal: the clock's rule is the causal
    mask; dense: masks are never in blocks -> x (T, D), time (T,), groups, and which of the T stand at these places."""
    groups = [Group(*time.shape)]
    x, time, valid = (value.flatten(0, 1) for value in (x, time, valid))
    which = torch.arange(len(time), device=x.device)
    if spans:
        places, groups = packed_order(spans, x.device)
        which = torch.zeros_like(time).index_copy(0, places, which[: len(places)])
        x, time, valid = (value.index_select(0, places) for value in (x, time, valid))
    which = which if source is None else which[source]
    if causal:
        return x, time, [group._replace(causal=True) for group in groups], which
    clocks = (split(value, groups) for value in (time, valid))
    make = clock_blocks if in_blocks(x, dense) else clock_mask
    masks = [make(seconds, seconds, real) for seconds, real in zip(*clocks, strict=True)]
    return x, time, [group._replace(mask=mask) for group, mask in zip(groups, masks, strict=True)], which


def clock_mask(query_time, key_time, key_valid):
    """The one clock: query (B, N) may attend to key (B, M) exactly when time[k] <= time[q] and k is valid.

    -> (B, 1, N, M) bool: block-causal over EEG (a second sees itself and the past), causal over text."""
    return ((key_time[:, None, :] <= query_time[:, :, None]) & key_valid[:, None, :]).unsqueeze(1)


def in_blocks(x, dropout: float) -> bool:
    """Whether FlexAttention attends, which passes over blocks of 128 x 128 that are forbidden: in compiled code on a
    GPU, whose flash kernel takes no dense mask. It knows no dropout."""
    return x.device.type == "cuda" and torch.compiler.is_compiling() and not dropout


def clock_blocks(query_time, key_time, key_valid) -> BlockMask:
    """`clock_mask` for FlexAttention."""

    def attends(row, head, query, key):
        return (key_time[row, key] <= query_time[row, query]) & key_valid[row, key]

    rows, queries = query_time.shape
    return create_block_mask(attends, rows, None, queries, key_time.size(1), device=key_time.device)


def is_plain_text(sample: dict) -> bool:
    """Whether the clock's rule is the causal mask."""
    return "chans" not in sample and sample.get("tokens_valid") is None


def known_lengths(sample: dict):
    """The `spans` of `packed_order` for a sample as in `NeuroLM.forward`; None: nothing is padded, or nobody knows."""
    if torch.compiler.is_compiling():
        return None  # it would make code for each set of lengths
    spans, padded = [], False
    for values, mask, known in (("chans", "valid", "counts"), ("tokens", "tokens_valid", "tokens_counts")):
        if values in sample:
            rows, length = sample[values].shape
            full = sample.get(mask) is None
            spans.append(([length] * rows if full else sample.get(known), length))
            padded |= not full
    return spans if padded and all(counts is not None for counts, _ in spans) else None
