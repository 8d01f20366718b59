"""What trains of a model: all of it, its head (a linear probe), or adapters of low rank in its blocks (LoRA, Hu 2022).

python -m training.tuning runs/TUAB/checkpoint-best.pth merged.pth     # adapters and what they adapt, as one model

Checkpoints of LoRA hold what trains alone, and where the rest is: `model.weights.read_checkpoint` puts both together.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

import errors
from errors import UserError
from model.labram import FRESH
from model.weights import ADAPTS, base_state, hash_state, read_checkpoint
from training.checkpoints import write_checkpoint

TUNINGS = ("full", "lora", "probe")
# the linear layers of NeuroLM's language model and of LaBraM's backbone
ADAPTED = r"(GPT2\.transformer\.h|blocks)\.\d+\.(attn|mlp)\.(c_attn|c_proj|c_fc|qkv|proj|fc1|fc2)"


def tune(model, how: str, rank: int, run, base=None) -> dict:
    """Choose what of a NeuroLM or a LaBraM Classifier trains, and say it: "full", "probe" the last norm and the head,
    "lora" adapters of `rank` and a classifier's last norm and head; base: the checkpoint with the model's weights.

    -> what checkpoints keep beside the state: with adapters, which weights they adapt. Raises UserError for adapters
    without a base, or with one that holds adapters itself.
    """
    adapts = {}
    if how == "lora":
        if base is None:
            raise UserError("--tune lora adapts trained weights: give --finetune, or --init_from NeuroLM")
        names = [name for name in model.state_dict() if not name.startswith(FRESH)]
        sha256 = run.on_main(lambda: hash_state(base_state(base, names)))
        adapts = {ADAPTS: {"path": str(Path(base).resolve()), "sha256": sha256, "names": names}}
    choose_trained(model, how, rank)
    parameters = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    sizes = (f"{sum(value.numel() for value in part.values()):,}" for part in (trained, parameters))
    said = "trains {} of {} tensors, {} of {} parameters".format(len(trained), len(parameters), *sizes)
    kinds = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in trained)
    listed = ", ".join(f"{count} {name}" for name, count in kinds.items())
    run.say(said if how == "full" else f"{said}: {listed}")
    return adapts


def choose_trained(model, how: str, rank: int) -> None:
    """As `tune`, without a word: "lora" puts W + B A in place of the linear layers W of the blocks, with B = 0."""
    if how not in TUNINGS:
        raise UserError(f"{how}: choose one of {', '.join(TUNINGS)}")
    if how == "probe":
        model.freeze_backbone()
    if how != "lora":
        return
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED), model)
    for name, parameter in model.named_parameters():
        if name.startswith(FRESH):
            parameter.requires_grad_(True)


def get_args(argv=None):
    parser = argparse.ArgumentParser(prog="python -m training.tuning", description=__doc__)
    parser.add_argument("checkpoint", help="written with --tune lora")
    parser.add_argument("merged", help="the file to write: a plain checkpoint of the whole model")
    return parser.parse_args(argv)


def main(args):
    write_checkpoint(read_checkpoint(args.checkpoint), args.merged)


if __name__ == "__main__":
    errors.run(main, get_args)
