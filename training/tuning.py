"""What trains of a model: all of it, its head (a linear probe), or adapters of low rank in its blocks (LoRA, Hu 2022).

Checkpoints of LoRA hold what trains alone, and where the rest is: `model.weights.read_checkpoint` puts both together,
`python export.py CHECKPOINT merged.pth` writes that as a plain checkpoint.
"""

import re
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from errors import UserError
from model.labram import FRESH
from model.weights import ADAPTS, base_state, hash_state

TUNINGS = ("full", "lora", "probe")
# what NeuroLM adds to a language model of transformers, which has never seen any of it
ADDED = ("lm.codes", "lm.separator", "pos_embed.", "encode_transform_layer.", "power_embed.")


def tune(model, how: str, rank: int, run, base=None) -> dict:
    """Choose what of a NeuroLM or a LaBraM Classifier trains, and say it: "full", "probe" the last norm and the head,
    "lora" W + B A of `rank` in place of every linear layer W of the blocks, with B = 0 at first, a classifier's last
    norm and head, and what --lm had to be given; base: the checkpoint with the weights W; None: those of --lm.

    -> what checkpoints keep beside the state: with adapters, which weights they adapt. Raises UserError for adapters
    without a base, or with one that holds adapters itself.
    """
    adapts, lm = {}, getattr(model, "decoder", None)
    if how not in TUNINGS or (how == "lora" and base is None and not (lm and lm.name)):
        raise UserError(
            f"--tune {how}: take one of {', '.join(TUNINGS)}; lora adapts trained weights, which --finetune, --lm or "
            "--init_from NeuroLM gives"
        )
    if how == "probe":
        model.freeze_backbone()
    if how == "lora":
        adapts = {ADAPTS: _adapt(model, rank, run, base)}
    everything = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = {name: everything[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
    kinds = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in trained)
    run.say(
        f"trains {len(trained)} of {len(everything)} tensors, {sum(trained.values()):,} of {sum(everything.values()):,}"
        f" parameters: {'all' if how == 'full' else ', '.join(f'{count} {name}' for name, count in kinds.items())}"
    )
    return adapts


def _adapt(model, rank: int, run, base) -> dict:
    """Put adapters into a model's blocks -> of which weights."""
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds

    lm = getattr(model, "decoder", None)
    fresh, blocks = (FRESH, model.blocks) if lm is None else (ADDED if lm.name else (), lm.blocks)
    inside = {module for module in blocks.modules() if isinstance(module, nn.Linear)}
    layers = [name for name, module in model.named_modules() if module in inside]
    if not layers:
        raise UserError(f"--tune lora: the blocks of {lm.name} have no linear layers to adapt, take --tune full")
    names = list(model.state_dict())
    if base is None:
        names = [name for name in names if name.startswith("lm.model.") or name == "lm.words"]
        adapts = {"sha256": lm.about["sha256"], "names": names}
    else:
        names = [name for name in names if not name.startswith(fresh)]
        sha256 = run.on_main(lambda: hash_state(base_state(base, names)))
        adapts = {"path": str(Path(base).resolve()), "sha256": sha256, "names": names}
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or name.startswith(fresh))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif name.startswith("lm.") and run.dtype == torch.bfloat16:
            parameter.data = parameter.data.bfloat16()  # as they are multiplied anyway
    return adapts
