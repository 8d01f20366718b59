"""Stage 2 of NeuroLM: multi-channel autoregressive pre-training (NeuroLM, section 2.3).

CPU smoke:  python train_pretrain.py --size tiny --dataset_dir data --out_dir runs/smoke --max_steps 9 --num_workers 0
one GPU:    python train_pretrain.py --dataset_dir data --out_dir runs/neurolm --gradient_accumulation_steps 8
one node:   torchrun --nproc_per_node=8 train_pretrain.py --dataset_dir data --out_dir runs/neurolm --wandb_log

GPT-2 learns to predict the code of each channel one second ahead, and goes on reading English. Takes the tokenizer of
stage 1 from --tokenizer_path; writes <out_dir>/checkpoints/NeuroLM-<size>/.
"""

import argparse
from pathlib import Path

import errors

if __name__ == "__main__":
    errors.requeue_when_told()  # first: what follows takes seconds to import

import torch

from dataset.batches import collate_prediction
from dataset.checks import check_eeg
from dataset.text import open_text
from dataset.windows import pretraining_folders, pretraining_windows
from model.gpt import GPT, GPTConfig
from model.neurolm import LM_SIZES, TEXT_ROWS, NeuroLM
from model.vq import VQ, VQ_Align
from training.agreement import CHANGEABLE
from training.checkpoints import find_checkpoint
from training.flags import at_least, minutes, natural, nonnegative, positive, share
from training.loading import Loader, evaluation_loader, to_device
from training.padding import choose_padding
from training.provenance import describe_inputs
from training.screening import screen
from training.starting import NEWEST, resumes, stage_folder, start_training
from utils import start_run

VALIDATION_TEXTS = 64  # windows of text in a validation


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag, switch = parser.add_argument, argparse.BooleanOptionalAction
    # data
    flag("--dataset_dir", required=True, help="a dataset folder, or a folder of them")
    flag("--datasets", nargs="+", help="names of the datasets to train on; default: all without labels")
    flag("--text_dir", help="folder of train.bin and val.bin; default: <out_dir>/text")
    flag("--out_dir", default="./")
    flag("--num_workers", type=natural, default=4, help="data workers of each process")
    flag("--verify", action=switch, default=False, help="hold the sha256 of every file against its manifest first")
    flag("--allow_leak", action=switch, default=False, help="go on with subjects who are on both sides; results say so")
    # model
    flag("--tokenizer_path", help="checkpoint of stage 1, as given or in out_dir; default: the one in out_dir")
    flag("--size", choices=LM_SIZES, default="B")
    flag("--init_from", choices=["gpt2", "scratch"], default="gpt2", help="where the language model starts")
    flag("--gpt2_path", help="folder of GPT-2's weights, or a name on the hub; default: that of --size")
    flag("--standardize", action=switch, default=False, help="standardize the encoder's features; the paper does not")
    flag("--band_power", action=switch, default=False, help="also give the language model each token's log band power, "
         "standardized; the paper does not")  # fmt: skip
    flag("--official_padding", action=switch, help="GroupNorm over windows filled with zeros to --block_size tokens, "
         "as officially; default: as in stage 1")  # fmt: skip
    flag("--dropout", type=share, default=0.0)
    # training
    flag("--epochs", type=positive, default=20)
    flag("--warmup_epochs", type=natural, default=2)
    flag("--max_steps", type=positive, help="stop after so many steps; the schedule is fitted to them")
    flag("--overfit_batches", type=natural, default=0, help="check: read so many batches over and over, into overfit/")
    flag("--eeg_batch_size", type=positive, default=60, help="EEG windows of a process and micro-batch")
    flag("--text_batch_size", type=natural, default=4, help="text windows beside them; 0: no text")
    flag("--gradient_accumulation_steps", type=positive, default=1)
    flag("--block_size", type=at_least(2, GPTConfig.block_size + 1), default=1024, help="tokens of a window, at most")
    flag("--learning_rate", type=nonnegative, default=6e-4)
    flag("--min_lr", type=nonnegative, default=6e-5)
    flag("--decay_lr", action=switch, default=True, help="cosine decay; else constant after the warm-up")
    flag("--weight_decay", type=nonnegative, default=0.1)
    flag("--beta1", type=share, default=0.9)
    flag("--beta2", type=share, default=0.95)
    flag("--grad_clip", type=nonnegative, default=1.0, help="0: no clipping")
    # run
    flag("--device", default="auto", help="auto, cpu, cuda, mps")
    flag("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    flag("--compile", action=switch, default=False)
    flag("--fsdp", action=switch, default=False, help="shard model and optimizer over the processes: for large sizes")
    flag("--seed", type=natural, default=1337)
    flag("--resume", action=switch, default=True, help="continue from the newest checkpoint in out_dir")
    flag("--allow_changed", nargs="+", choices=CHANGEABLE, default=[], metavar="NAME", help="what may differ from the "
         "run that is resumed: the names that it was refused for")  # fmt: skip
    flag("--save_ckpt_freq", type=natural, default=5, help="keep a checkpoint every so many epochs")
    flag("--keep", type=natural, default=0, help="how many of those stay, 0: all")
    flag("--save_every_minutes", type=nonnegative, default=30)
    flag("--save_every_steps", type=natural, default=0)
    flag("--timeout_minutes", type=minutes, default=10.0, help="how long processes wait for one that hangs")
    # log
    flag("--log_interval", type=positive, default=10)
    flag("--wandb_log", action=switch, default=False)
    flag("--wandb_project", default="NeuroLM")
    flag("--wandb_runname", default="NeuroLM")
    flag("--wandb_api_key", help="better: `wandb login`, or WANDB_API_KEY in the environment")
    return parser.parse_args(argv)


def main(args):
    # ---------------------------------------------------------------------------------------------------------- run
    run = start_run(args.device, args.dtype, args.seed, args.timeout_minutes)
    out_dir = stage_folder(args, f"NeuroLM-{args.size}")

    # --------------------------------------------------------------------------------------------------------- data
    folders = pretraining_folders(args.dataset_dir, args.datasets)
    train_set = pretraining_windows(folders, "train", args.block_size)
    val_set = pretraining_windows(folders, "val", args.block_size)
    text, val_text = (
        open_text(args.text_dir or Path(args.out_dir) / "text", split, args.block_size) for split in ("train", "val")
    )
    loader = Loader(
        train_set, args.eeg_batch_size, run, collate_prediction, args.gradient_accumulation_steps, args.num_workers,
        overfit_batches=args.overfit_batches, check=check_eeg,
    )  # fmt: skip
    steps = min(args.epochs * loader.steps_per_epoch, args.max_steps or float("inf"))
    run.say(
        f"{', '.join(folder.name for folder in folders)}: {len(train_set)} training and {len(val_set)} validation "
        f"windows; {len(text)} text tokens; {steps} steps of {loader.steps_per_epoch} an epoch"
    )

    # -------------------------------------------------------------------------------------------------------- model
    path = find_checkpoint(args.tokenizer_path, args.out_dir, "--tokenizer_path", Path("checkpoints", "VQ", NEWEST))
    trained_on, found = screen(args, run, {"train": [train_set], "val": [val_set]}, folders, path)
    tokenizer = VQ_Align.load(path).VQ
    tokenizer.to(run.device).eval().requires_grad_(False)
    newest = out_dir / NEWEST if resumes(args, out_dir) else None
    args.official_padding = choose_padding(tokenizer.encoder, args.official_padding, args.block_size, run, newest)
    gpt2 = None
    if args.init_from == "gpt2" and LM_SIZES[args.size].gpt2 and not resumes(args, out_dir):
        with run.main_first():
            gpt2 = GPT.from_pretrained(args.gpt2_path or LM_SIZES[args.size].gpt2, args.dropout)
    raw_model = NeuroLM.from_size(
        args.size, tokenizer.encoder.config, tokenizer.quantize.n_codes, gpt2, args.dropout, args.standardize,
        args.band_power,
    )  # fmt: skip
    raw_model.tokenizer = tokenizer.encoder  # one encoder pass gives both the codes and the model's input
    raw_model.to(run.device)
    if (args.standardize or args.band_power) and not resumes(args, out_dir):
        raw_model.measure_features(loader.to_measure())

    # -------------------------------------------------------------------------------------------- optimizer, resume
    trainer = start_training(
        raw_model, run, args, out_dir, loader, fsdp=args.fsdp,
        steps=steps, warmup_steps=args.warmup_epochs * loader.steps_per_epoch,
        extra=raw_model.config_args() | {"trained_on": trained_on, **found}
        | describe_inputs(run, folders, text, modules={"tokenizer": tokenizer.state_dict()}),
    )  # fmt: skip

    # --------------------------------------------------------------------------------------------------------- loop
    for epoch in trainer.epochs():
        for micro_batches in trainer.steps():
            eeg_targets = run.sum_on_host(sum(len(batch["source"]) for batch in micro_batches))
            text_targets = args.text_batch_size * args.block_size * run.world_size * len(micro_batches)
            for i, batch in enumerate(micro_batches):
                english = text.batch(args.seed, loader.batch_number(trainer.step), run.rows(i, args.text_batch_size))
                with trainer.forward(last=batch is micro_batches[-1]):
                    eeg = read_batch(batch, tokenizer, raw_model)
                    sums = trainer.model(eeg=eeg, text=to_device(english, run.device))
                trainer.backward(
                    {"eeg": sums["eeg"]["loss"] / eeg_targets, "text": sums["text"]["loss"] / max(text_targets, 1)},
                    eeg_accuracy=sums["eeg"]["correct"] / eeg_targets,
                    text_accuracy=sums["text"]["correct"] / max(text_targets, 1),
                )
            trainer.update(tokens=eeg_targets + text_targets, samples=loader.samples_per_step)

        # --------------------------------------------------------------------------------------------- validation
        totals, counts = torch.zeros(4, device=run.device), torch.zeros(2, device=run.device)
        with trainer.evaluation() as model:
            for batch in evaluation_loader(val_set, args.eeg_batch_size, run, collate_prediction, args.num_workers):
                with run.autocast():
                    sums = model(eeg=read_batch(batch, tokenizer, raw_model))["eeg"]
                totals[:2] += torch.stack([sums["loss"], sums["correct"]])
                counts[0] += len(batch["source"])
            for row in range(run.rank, min(val_text.n_windows, VALIDATION_TEXTS), run.world_size):
                tokens, next_tokens = (torch.from_numpy(part).to(run.device) for part in val_text.sequential([row]))
                with run.autocast():
                    english = model(text={"tokens": tokens, "target": next_tokens})["text"]
                totals[2:] += torch.stack([english["loss"], english["correct"]])
                counts[1] += tokens.numel()
        totals = run.sum(totals) / run.sum(counts).repeat_interleave(2)
        eeg_loss, eeg_accuracy, text_loss, text_accuracy = totals.tolist()
        values = {"loss": eeg_loss + text_loss, "eeg": eeg_loss, "eeg_accuracy": eeg_accuracy, "text": text_loss}
        values["text_accuracy"] = text_accuracy
        trainer.logger.write(trainer.step, {f"val/{name}": value for name, value in values.items()})
        trainer.logger.say(
            f"epoch {epoch + 1}: validation loss of EEG {eeg_loss:.4f} (accuracy {eeg_accuracy:.1%}), of text "
            f"{text_loss:.4f}"
        )
    trainer.logger.close()


def read_batch(batch: dict, tokenizer: VQ, model: NeuroLM) -> dict:
    """The batch with what the model reads and what it has to predict, from one pass of the encoder."""
    codes, features = tokenizer.tokenize(batch)
    target = codes.flatten()[batch["target_position"]] + TEXT_ROWS
    return batch | {"features": model.encode(batch, features), "target": target}


if __name__ == "__main__":
    errors.run(main, get_args)
