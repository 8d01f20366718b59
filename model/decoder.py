"""What NeuroLM needs of a language model. Two have it: `model.gpt.GPT`, and `model.hf_decoder.HFDecoder`, any causal
decoder of transformers.

B batch · N query tokens · M key tokens (cached ones included) · T real tokens · D width · V rows of the head
"""

from typing import Protocol

from torch import nn


class Decoder(Protocol):
    """A language model that is told each token's time, its position, and what each token may attend to."""

    name: str | None  # of --lm, None: GPT-2
    vocabulary: bytes | None  # of its tokenizer (`dataset.text`), None: GPT-2's
    packs: bool  # `forward` takes rows of different lengths without their padding
    takes_blocks: bool  # and a mask of FlexAttention, now
    width: int  # D
    context: int  # positions that it knows: times are below
    text_rows: int  # of the head; EEG code i is class text_rows + i
    answer_ids: int  # text is made of the ids below; the first one after them opens a question
    blocks: nn.ModuleList
    norm: nn.Module  # after the last block
    top: tuple[nn.Parameter, ...]  # what a linear probe trains: the last norm and the head

    def config_args(self) -> dict:
        """What makes the same one again, without its weights, as plain values."""

    def add_codes(self, n_codes: int) -> None:
        """Give the head, and only the head, a row for each EEG code."""

    def embed(self, tokens):
        """Token ids (...) -> (..., D)."""

    def forward(self, x, time, mask=None, causal=False, past=None, wanted=None):
        """As `GPT.forward`: embeddings x (B, N, D) at time (B, N), which attend by mask (B, 1, N, M) bool, or causally;
        after `past` -> hidden states, of the tokens `wanted` alone, and keys and values. Or a list of
        `model.packing.Group` as the mask, of tokens x (T, D), time (T,) -> hidden states (T, D), None."""

    def head(self):
        """The rows of all classes (V, D), text first."""

    def text_head(self):
        """The rows of the ids of text (answer_ids, D)."""

    def recompute(self) -> None:
        """From now on compute activations again in the backward pass instead of keeping those of every block."""
