"""The sizes of LaBraM: a table, and what the tensors of a checkpoint say."""

from dataclasses import dataclass

from errors import UserError
from model.weights import count_layers, parts, rows, settings


@dataclass(frozen=True)
class LaBraMConfig:
    n_layer: int = 12
    n_head: int = 10
    n_embd: int = 200
    out_chans: int = 8  # of the temporal convolution
    in_chans: int = 1  # 1: patches of EEG; else the width of the codes that a decoder reads
    qkv_bias: bool = False
    qk_norm: bool = True
    layer_scale: float = 0.1  # initial value; 0: no layer scale
    drop_path: float = 0.0  # of the last block; it grows linearly from 0


BACKBONES = {
    "tiny": LaBraMConfig(n_layer=2, n_head=4, n_embd=100, out_chans=4, layer_scale=0.1),  # for tests and trials
    "base": LaBraMConfig(),
    "large": LaBraMConfig(n_layer=24, n_head=16, n_embd=400, out_chans=16, layer_scale=1e-5),
    "huge": LaBraMConfig(n_layer=48, n_head=16, n_embd=800, out_chans=32, layer_scale=1e-6),
}


def backbone_config(checkpoint: dict, state: dict, source: str, part: str = "") -> LaBraMConfig:
    """The sizes of a backbone: its `backbone` in a checkpoint, else, as that of official ones, those of its tensors,
    whose names begin with `part`; how many heads they have follows from their width. Raises UserError."""
    if "backbone" in checkpoint:
        (args,) = parts(checkpoint, ["backbone"], source, "give a checkpoint of a LaBraM")
        return settings(LaBraMConfig, args, f"{source}, backbone")
    width, heads = rows(state, f"{part}blocks.0.norm1.weight"), {row.n_embd: row.n_head for row in BACKBONES.values()}
    if width not in heads:
        raise UserError(f"{source} is no LaBraM of a known size: its tokens have width {width}, known are {[*heads]}")
    first = f"{part}blocks.0."
    return LaBraMConfig(
        n_layer=count_layers(state, f"{part}blocks."), n_head=heads[width], n_embd=width,
        out_chans=rows(state, f"{part}patch_embed.conv1.weight"), qkv_bias=f"{first}attn.q_bias" in state,
        qk_norm=f"{first}attn.q_norm.weight" in state, layer_scale=0.1 * (f"{first}gamma_1" in state),
    )  # fmt: skip
