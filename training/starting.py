"""From a script's flags to a trainer that stands where the run left off, with its checkpoints and logs."""

import copy
from pathlib import Path

import torch

from dataset.vocabulary import read_vocabulary
from errors import UserError
from model.gpt import GPT
from model.hf_decoder import HFDecoder
from model.lm_sizes import LM_SIZES
from model.neurolm import NeuroLM
from model.vq import VQ
from model.weights import hash_state, read_checkpoint
from training.agreement import agree, history
from training.checkpoints import Checkpoints
from training.loading import Loader
from training.lock import hold_folder
from training.logger import Logger
from training.provenance import provenance, public_config
from training.sharding import shard
from training.trainer import Trainer
from training.watch import Watch
from utils import Run, decay_groups, learning_rates, make_optimizer, start_run

NEWEST = "ckpt.pt"  # the checkpoint that a run continues from
BEST = "ckpt-best.pt"  # the model of the epoch with the best validation


def start_script(args, newest: Path) -> Run:
    """The run of a training script; where it has several processes they watch one another. newest: the checkpoint that
    it continues from, if it is there, in whose precision a CPU goes on."""

    def began() -> str | None:
        config = read_checkpoint(newest, whole=False).get("config") if args.resume and newest.is_file() else None
        return str(config.get("dtype")) if isinstance(config, dict) else None

    return start_run(args.device, args.dtype, args.seed, args.timeout_minutes, Watch, began)


def start_training(raw_model, run: Run, args, out_dir: Path, loader: Loader, *, steps: int, warmup_steps: int,
                   extra: dict, fsdp: bool = False) -> Trainer:  # fmt: skip
    """Optimizer, schedule, trainer, the newest checkpoint of `out_dir` and the logs, from the flags that the scripts of
    NeuroLM share. extra: what the checkpoints hold beside the state of the training."""
    encoder = getattr(raw_model, "tokenizer", None)
    given = copy.deepcopy(encoder.state_dict()) if encoder and "tokenizer" in args.allow_changed else None
    template = shard(raw_model, run) if fsdp and run.world_size > 1 else None
    groups = decay_groups(raw_model, args.weight_decay)
    optimizer = make_optimizer(groups, args.learning_rate, (args.beta1, args.beta2), run.device)
    final_lr = args.min_lr if args.decay_lr else args.learning_rate
    rates = learning_rates(args.learning_rate, final_lr, steps, warmup_steps)
    trainer = begin_training(
        raw_model, run, args, optimizer, rates, out_dir / NEWEST, loader, extra=extra, grad_clip=args.grad_clip,
        template=template,
    )  # fmt: skip
    if given:
        encoder.load_state_dict(given)  # and not the one in the checkpoint, to which another codebook belongs
    return trainer


def begin_training(raw_model, run: Run, args, optimizer, rates, checkpoint: Path, loader: Loader, *, extra: dict,
                   grad_clip: float, ema_decay: float = 0.0, template=None) -> Trainer:  # fmt: skip
    """Trainer, the newest checkpoint and the logs, from the flags that all scripts share.

    extra has the `inputs` of `describe_inputs`: with the flags they are held against the checkpoint.
    """
    lock = hold_folder(checkpoint.parent, run)  # before anything there is read or written
    try:
        precision = {"dtype": str(run.dtype).removeprefix("torch.")}  # not "auto"
        about = {"config": public_config(args) | precision, **provenance(), **extra}
        before = read_checkpoint(checkpoint, whole=False) if args.resume and checkpoint.is_file() else {}
        if before:
            about["config"], said = agree(about, before, checkpoint, args.allow_changed)
            for line in said:
                run.say(line)
        trainer = Trainer(
            raw_model, run, optimizer, rates, loader, Checkpoints(checkpoint, args.keep), about, template=template,
            grad_clip=grad_clip, ema_decay=ema_decay, compile=args.compile, log_interval=args.log_interval,
            save_every_minutes=args.save_every_minutes, save_every_steps=args.save_every_steps,
            save_ckpt_freq=args.save_ckpt_freq, profile=args.profile,
        )  # fmt: skip
        trainer.lock = lock
        log_lines = trainer.resume() if before else 0
        about["history"] = history(about, before, trainer.step)  # about: what the checkpoints will hold
        wandb = {"project": args.wandb_project, "name": args.wandb_runname, "api_key": args.wandb_api_key}
        trainer.logger = Logger(
            checkpoint.parent, run, about, len(rates), trainer.step, log_lines, wandb if args.wandb_log else None,
            args.log_dir,
        )  # fmt: skip
        return trainer
    except BaseException:
        if lock:
            lock.release()  # the trainer, and what else is in the traceback, may live on
        raise


def stage_folder(args, name: str) -> Path:
    """Where a stage writes; a check that it can overfit a few batches leaves the real checkpoints alone."""
    return Path(args.out_dir) / ("overfit" if args.overfit_batches else "checkpoints") / name


def resumes(args, out_dir: Path) -> bool:
    """Whether this run continues an earlier one."""
    return args.resume and (out_dir / NEWEST).is_file()


def load_gpt2(args, run: Run, out_dir: Path, name: str, dropout: float = 0.0) -> GPT | None:
    """GPT-2's weights, of --gpt2_path or else called `name` on the hub; None where --init_from or --size asks for
    none, and where a checkpoint is about to replace them."""
    if args.init_from != "gpt2" or args.lm or not LM_SIZES[args.size].gpt2 or resumes(args, out_dir):
        return None
    with run.main_first():
        return GPT.from_pretrained(args.gpt2_path or name, dropout)


def load_lm(args, run: Run, dropout: float = 0.0, as_stored: bool = False) -> HFDecoder | None:
    """The language model of --lm, with the sha256 of its weights; None: GPT-2. as_stored: in the precision of its
    files, else in float32. A run that goes on reads it too, to see whether it is the same."""
    if not args.lm:
        if args.lm_revision:
            raise UserError(f"--lm_revision {args.lm_revision} is of --lm, which is not given")
        return None
    if args.init_from == "scratch":
        raise UserError("--init_from scratch is for GPT-2: --lm brings its weights")
    with run.main_first():
        words = read_vocabulary(args.lm, args.lm_revision)
        lm = HFDecoder.from_pretrained(args.lm, args.lm_revision, words.about(), words.stored, dropout)
    lm.about["sha256"] = run.on_main(lambda: hash_state(lm.state_dict()))
    return lm if as_stored else lm.float()


def model_name(args) -> str:
    """What folders and results call the language model."""
    return Path(args.lm).name if args.lm else args.size


def check_lm(model: NeuroLM, args, source) -> None:
    """Raise UserError where the language model of a checkpoint is not the one that --lm names."""
    name = model.decoder.name
    if (name and Path(name).name) != (args.lm and Path(args.lm).name):
        raise UserError(f"{source} has the language model {name or 'GPT-2'}, --lm is {args.lm or 'not given'}")


def new_neurolm(args, tokenizer: VQ, run: Run, out_dir: Path, path) -> NeuroLM:
    """A NeuroLM of --size or --lm on the encoder of `tokenizer`, itself, that starts as --init_from says; path: where
    the tokenizer is from."""
    aligned = read_checkpoint(path, whole=False).get("aligned_with") or "GPT-2"
    if aligned != (args.lm or "GPT-2"):
        run.say(f"{path} was aligned with the text of {aligned}, the language model is {args.lm or 'GPT-2'}")
    shape, options = (tokenizer.encoder.config, tokenizer.quantize.n_codes), (args.standardize, args.band_power)
    lm = load_lm(args, run, args.dropout, as_stored=args.tune == "lora" and run.dtype == torch.bfloat16)
    if lm:
        model = NeuroLM(lm, *shape, *options)
    else:
        gpt2 = load_gpt2(args, run, out_dir, LM_SIZES[args.size].gpt2, args.dropout)
        model = NeuroLM.from_size(args.size, *shape, gpt2, args.dropout, *options)
    model.tokenizer = tokenizer.encoder.requires_grad_(False).eval()
    return model
