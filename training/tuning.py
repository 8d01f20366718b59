"""What trains of a model: all of it, its head (a linear probe), or adapters of low rank in its blocks (LoRA, Hu 2022).

Checkpoints of LoRA hold what trains alone, and where the rest is: `model.weights.read_checkpoint` puts both together,
`python export.py CHECKPOINT merged.pth` writes that as a plain checkpoint.
"""

import re
from collections import Counter
from pathlib import Path

from errors import UserError
from model.labram import FRESH
from model.weights import ADAPTS, base_state, hash_state

TUNINGS = ("full", "lora", "probe")
# the linear layers of NeuroLM's language model and of LaBraM's backbone
ADAPTED = r"(GPT2\.transformer\.h|blocks)\.\d+\.(attn|mlp)\.(c_attn|c_proj|c_fc|qkv|proj|fc1|fc2)"


def tune(model, how: str, rank: int, run, base=None) -> dict:
    """Choose what of a NeuroLM or a LaBraM Classifier trains, and say it: "full", "probe" the last norm and the head,
    "lora" W + B A of `rank` in place of every linear layer W of the blocks, with B = 0 at first, and a classifier's
    last norm and head; base: the checkpoint with the weights W.

    -> what checkpoints keep beside the state: with adapters, which weights they adapt. Raises UserError for adapters
    without a base, or with one that holds adapters itself.
    """
    adapts = {}
    if how not in TUNINGS or (how == "lora" and base is None):
        raise UserError(
            f"--tune {how}: take one of {', '.join(TUNINGS)}; lora adapts trained weights, which --finetune or "
            "--init_from NeuroLM gives"
        )
    if how == "probe":
        model.freeze_backbone()
    if how == "lora":
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds

        names = [name for name in model.state_dict() if not name.startswith(FRESH)]
        sha256 = run.on_main(lambda: hash_state(base_state(base, names)))
        adapts = {ADAPTS: {"path": str(Path(base).resolve()), "sha256": sha256, "names": names}}
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED), model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or name.startswith(FRESH))
    everything = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = {name: everything[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
    kinds = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in trained)
    run.say(
        f"trains {len(trained)} of {len(everything)} tensors, {sum(trained.values()):,} of {sum(everything.values()):,}"
        f" parameters: {'all' if how == 'full' else ', '.join(f'{count} {name}' for name, count in kinds.items())}"
    )
    return adapts
