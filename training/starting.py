"""From a script's flags to a trainer that stands where the run left off, with its checkpoints and logs."""

import copy
from pathlib import Path

from model.gpt import GPT
from model.neurolm import LM_SIZES, NeuroLM
from model.vq import VQ
from model.weights import read_checkpoint
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
        config = read_checkpoint(newest).get("config") if args.resume and newest.is_file() else None
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
    if args.init_from != "gpt2" or not LM_SIZES[args.size].gpt2 or resumes(args, out_dir):
        return None
    with run.main_first():
        return GPT.from_pretrained(args.gpt2_path or name, dropout)


def new_neurolm(args, tokenizer: VQ, run: Run, out_dir: Path) -> NeuroLM:
    """A NeuroLM of --size on the encoder of `tokenizer`, itself, that starts as --init_from says."""
    gpt2 = load_gpt2(args, run, out_dir, LM_SIZES[args.size].gpt2, args.dropout)
    model = NeuroLM.from_size(
        args.size, tokenizer.encoder.config, tokenizer.quantize.n_codes, gpt2, args.dropout, args.standardize,
        args.band_power,
    )  # fmt: skip
    model.tokenizer = tokenizer.encoder.requires_grad_(False).eval()
    return model
