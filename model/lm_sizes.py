"""The sizes of NeuroLM's language model, where it is GPT-2 (NeuroLM, section 3.1)."""

from dataclasses import dataclass

from errors import UserError
from model.gpt import GPTConfig


@dataclass(frozen=True)
class LMSize:
    """A row of the table of sizes: which GPT-2 provides the weights (None: trained from scratch), and its shape."""

    gpt2: str | None
    n_layer: int
    n_head: int
    n_embd: int

    def config(self, dropout: float = 0.0) -> GPTConfig:
        return GPTConfig(n_layer=self.n_layer, n_head=self.n_head, n_embd=self.n_embd, dropout=dropout)


LM_SIZES = {
    "tiny": LMSize(None, 2, 4, 128),
    "mini": LMSize(None, 4, 4, 256),
    "small": LMSize(None, 6, 8, 512),
    "B": LMSize("gpt2", 12, 12, 768),
    "L": LMSize("gpt2-medium", 24, 16, 1024),
    "XL": LMSize("gpt2-xl", 48, 25, 1600),
}


def check_size(size: str, given: GPTConfig, what: str) -> None:
    """Raise UserError where `what`, a language model of the shape `given`, is not of `size`."""
    needed, found = (
        f"{config.n_layer} layers, {config.n_head} heads, width {config.n_embd}, {config.block_size} positions"
        for config in (LM_SIZES[size].config(), given)
    )
    if found != needed:
        name = LM_SIZES[size].gpt2 or "from scratch"
        raise UserError(f"{what} has {found}; --size {size} needs {needed} ({name}): change one of them")
