"""The flags that scripts share, declared once and in groups, and what their numbers may be, checked when parsed.

A script makes its parser here, adds the groups that it shares with others (data, model, training, run, log) and
declares what is its own. Each function gives the `add_argument` of its group, so that a script can go on there.
"""

import argparse
import math
import os

from model.lm_sizes import LM_SIZES
from training.agreement import CHANGEABLE
from training.numbers import Help, at_least, minutes, natural, nonnegative, positive, share
from utils import DTYPES, OPTIMIZERS

switch = argparse.BooleanOptionalAction
MOST_WORKERS = 8
CLIP_HELP = "largest norm of the gradient; 0: no clipping"
LR_HELP = "its largest value, after the warm-up"
AUTO = "; auto: falls with the width, and --min_lr is a tenth of it"
FASTEST = 1e-3  # of auto: twice that was worse on validation, docs/results.md


def rate(text: str):
    """An argparse type: a learning rate, or "auto"."""
    return text if text == "auto" else nonnegative(text)


def follow_size(args, flag: str, usual: float, width: int = 1, usual_width: int = 1):
    """The flags, with a learning rate in place of "auto": `usual` at `usual_width`, inversely to the width, at most
    FASTEST; and a tenth of it at the end of the schedule."""
    if getattr(args, flag) == "auto":
        setattr(args, flag, min(usual * usual_width / width, FASTEST))
        args.min_lr = getattr(args, flag) / 10
    return args


def make_parser(doc: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=doc, formatter_class=Help)


def either(ours: str, *spellings: str) -> list[str]:
    """Both systems' names of a flag, `ours` first: that one is the attribute's."""
    return sorted(spellings, key=lambda name: name != ours)


def data_workers() -> int:
    """A process's share of the cores that this job may use, less its own, and not more than keep up with a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1, 0), MOST_WORKERS)


def add_pretraining_data_flags(parser):
    """Group data, of the scripts that read datasets without labels."""
    flag = parser.add_argument_group("data").add_argument
    flag("--dataset_dir", nargs="+", required=True, help="dataset folders, or folders of them, or s3://bucket/folder")
    flag("--datasets", nargs="+", help="names of the datasets to train on; default: all without labels")
    flag("--exclude_fold", nargs="+", action="append", default=[], metavar="WORD", help="DATASET_DIR K k [SEED]: read "
         "nobody who is in fold k of K of this dataset, or in its validation fold; may be given again")  # fmt: skip
    flag("--hours", type=at_least(0.01), help="read only so much of the training recordings, whole ones; default: all")
    flag("--resident_recordings", metavar="K", type=positive, help="draw windows among K recordings at a time, over "
         "all processes: few files are opened, as slow file systems need it; default: among all")  # fmt: skip
    return add_trust_flags(flag)


def add_trust_flags(flag):
    """To the group data of every script."""
    flag("--verify", action=switch, default=False, help="hold the sha256 of every file against its manifest first")
    flag("--allow_leak", action=switch, default=False, help="go on with subjects who are on both sides; results say so")
    flag("--num_workers", type=natural, default=data_workers(), help="data workers of each process (default: its share "
         "of the cores less one, here %(default)s)")  # fmt: skip
    return flag


def add_protocol_flags(flag):
    """To the group data of what trains on labels: on whom it is trained and judged."""
    flag("--folds", type=int, help="into how many folds of whole subjects all splits are divided; default: as made")
    flag("--fold", type=int, help="which of them is the test set, from 0; the next one is validation")
    flag("--fold_seed", type=natural, default=0, help="of who is in which fold")
    flag("--calibrate", choices=("subject",), help="center and scale by what is known of each subject, test subjects "
         "too, without labels: a protocol of its own, never in one row with others")  # fmt: skip


def add_cache_flags(flag):
    """To the group data of the scripts that train on a frozen tokenizer."""
    flag("--cache_features", metavar="DIR", help="keep what the frozen tokenizer makes of the windows, for later runs")
    flag("--cache_half", action=switch, default=False, help="in float16, each value off by 0.05 %% at most")


def add_lm_flags(flag):
    """To the group model of the scripts of NeuroLM: whose language model."""
    flag("--lm", metavar="NAME", help="any causal decoder of transformers in place of GPT-2: a folder, or a name on "
         "the hub, such as Qwen/Qwen3-0.6B")  # fmt: skip
    flag("--lm_revision", help="branch, tag or commit of --lm on the hub")


def add_language_model_flags(flag, starts: tuple[str, ...], options: str):
    """To the group model of the scripts that make a NeuroLM: where it starts, and `options`, what holds for them."""
    flag("--size", choices=LM_SIZES, default="B", help="of the language model; --lm has its own")
    add_lm_flags(flag)
    flag("--init_from", choices=starts, default=starts[0], help="where the language model starts; --lm: as gpt2")
    flag("--gpt2_path", help="folder of GPT-2's weights, or a name on the hub; default: that of --size")
    flag("--standardize", action=switch, default=False, help="standardize the encoder's features; the paper does not. "
         + options)  # fmt: skip
    flag("--band_power", action=switch, default=False, help="also give the language model each token's log band power, "
         "standardized; the paper does not. " + options)  # fmt: skip
    flag("--dropout", type=share, default=0.0, help="of the language model")
    flag("--checkpoint_activations", action=switch, default=False, help="compute the language model's activations "
         "again in the backward pass: less memory, a third more time")  # fmt: skip
    return flag


def add_tuning_flags(flag):
    """To the group model of the scripts that fine-tune."""
    flag("--tune", choices=("full", "lora", "probe"), default="full", help="train all; adapters of low rank in the "
         "blocks (LoRA), which are saved alone; or the last norm and the head")  # fmt: skip
    flag("--lora_rank", type=positive, default=8, help="of --tune lora")


def add_steps_flags(parser, *, epochs: int, warmup_epochs: int, batch_size: int, batch_flag: str = "--batch_size",
                    accumulation_flag: str = "--gradient_accumulation_steps"):  # fmt: skip
    """Group training: how many steps of which size."""
    flag = parser.add_argument_group("training").add_argument
    flag("--epochs", type=positive, default=epochs, help="passes over the training windows")
    flag("--warmup_epochs", type=natural, default=warmup_epochs, help="of a learning rate that rises from 0")
    flag("--max_steps", type=positive, help="stop after so many steps; the schedule is fitted to them")
    flag("--overfit_batches", type=natural, default=0, help="check: read so many batches over and over, into overfit/")
    flag(*either(batch_flag, "--batch_size", "--eeg_batch_size"), type=positive, default=batch_size,
         help="EEG windows of a process and micro-batch")  # fmt: skip
    flag(*either(accumulation_flag, "--gradient_accumulation_steps", "--update_freq"), type=positive, default=1,
         help="micro-batches of a step")  # fmt: skip
    return flag


def add_neurolm_training_flags(parser, *, text_batch_size: int, learning_rate: float, min_lr: float,
                               weight_decay: float, beta2: float, grad_clip: float, most_tokens: float = math.inf,
                               lr_help: str = LR_HELP, **steps):  # fmt: skip
    """Group training, of the scripts of NeuroLM; steps: as in `add_steps_flags`."""
    flag = add_steps_flags(parser, **steps)
    flag("--text_batch_size", type=natural, default=text_batch_size, help="text windows beside them; 0: no text")
    flag("--block_size", type=at_least(2, most_tokens), default=1024, help="tokens of a window, at most")
    flag("--learning_rate", "--lr", type=rate, default=learning_rate, help=lr_help + AUTO)
    flag("--min_lr", type=nonnegative, default=min_lr, help="learning rate at the end of the cosine")
    flag("--decay_lr", action=switch, default=True, help="cosine decay; else constant after the warm-up")
    flag("--weight_decay", type=nonnegative, default=weight_decay, help="of tensors with two and more dimensions")
    flag("--beta1", type=share, default=0.9, help="of AdamW")
    flag("--beta2", type=share, default=beta2, help="of AdamW")
    flag("--grad_clip", "--clip_grad", type=nonnegative, default=grad_clip, help=CLIP_HELP)
    return flag


def add_labram_training_flags(parser, *, betas: tuple[float, float], lr: float, min_lr: float, weight_decay: float,
                              clip_grad: float = 0.0, lr_help: str = LR_HELP, **steps):  # fmt: skip
    """Group training, of the scripts of LaBraM; steps: as in `add_steps_flags`."""
    flag = add_steps_flags(parser, **steps)
    flag("--opt", choices=OPTIMIZERS, default="adamw", help="optimizer")
    flag("--opt_betas", type=share, nargs=2, default=betas, help="of the optimizer")
    flag("--opt_eps", type=nonnegative, default=1e-8, help="of the optimizer")
    flag("--lr", "--learning_rate", type=rate, default=lr, help=lr_help + AUTO)
    flag("--min_lr", type=nonnegative, default=min_lr, help="learning rate at the end of the cosine")
    flag("--weight_decay", type=nonnegative, default=weight_decay, help="of matrices, not of norms and embeddings")
    flag("--clip_grad", "--grad_clip", type=nonnegative, default=clip_grad, help=CLIP_HELP)
    return flag


def add_run_flags(parser, *, seed: int, save_ckpt_freq: int):
    """Group run: on what it runs, how it resumes, what it keeps, what it checks."""
    flag = parser.add_argument_group("run").add_argument
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    flag("--dtype", choices=["auto", *DTYPES], default="auto", help="of the arithmetic; weights stay float32")
    flag("--compile", action=switch, default=False, help="torch.compile")
    flag("--seed", type=natural, default=seed, help="of weights, order of the data, and dropout")
    flag("--resume", action=switch, default=True, help="continue from the newest checkpoint in the output folder")
    flag("--allow_changed", nargs="+", choices=CHANGEABLE, default=[], metavar="NAME", help="what may differ from the "
         "run that is resumed: the names that it was refused for")  # fmt: skip
    flag("--save_ckpt_freq", type=natural, default=save_ckpt_freq, help="keep a checkpoint every so many epochs")
    flag("--keep", type=natural, default=0, help="how many of those stay, 0: all")
    flag("--save_every_minutes", type=nonnegative, default=30, help="save the newest state, 0: at the end of epochs")
    flag("--save_every_steps", type=natural, default=0, help="likewise, counted in steps")
    flag("--timeout_minutes", type=minutes, default=10.0, help="how long processes wait for one that hangs")
    return flag


def add_log_flags(parser, *, project: str, runname: str):
    """Group log: how often, and to whom."""
    flag = parser.add_argument_group("log").add_argument
    flag("--log_interval", type=positive, default=10, help="steps from line to line")
    flag("--profile", type=natural, default=0, metavar="N", help="look into N steps: a trace for Chrome and the "
         "operators that took longest, in profile/")  # fmt: skip
    flag("--log_dir", help="folder for TensorBoard; default: none")
    flag("--wandb_log", action=switch, default=False, help="also log to Weights & Biases")
    flag("--wandb_project", default=project, help="of W&B")
    flag("--wandb_runname", default=runname, help="of W&B")
    flag("--wandb_api_key", help="better: `wandb login`, or WANDB_API_KEY in the environment")
    return flag
