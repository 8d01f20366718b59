"""Stage 2 of LaBraM: masked modelling of EEG, that is, predicting the tokenizer's codes (LaBraM, section 2.3).

CPU smoke:  python run_labram_pretraining.py --dataset_dir data --output_dir runs/labram --batch_size 8 \\
                --model labram_tiny_patch200_1600_8k_vocab --tokenizer_model vqnsp_encoder_tiny_decoder_1x100x2 \\
                --tokenizer_weight runs/vqnsp/checkpoint.pth --codebook_size 512 --max_steps 20
one GPU:    python run_labram_pretraining.py --dataset_dir data --output_dir runs/labram --codebook_dim 64 \\
                --tokenizer_weight checkpoints/vqnsp.pth --gradient_accumulation_steps 8
one node:   torchrun --nproc_per_node=8 run_labram_pretraining.py --dataset_dir data --output_dir runs/labram \\
                --tokenizer_weight checkpoints/vqnsp.pth --codebook_dim 64

Reads the unlabelled datasets under --dataset_dir, of any mixture of montages: windows of 256 // channels seconds, one
every 4 seconds. Writes checkpoint.pth, checkpoint-<epoch>.pth and log.txt to --output_dir.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import errors

if __name__ == "__main__":
    errors.requeue_when_told()  # first: what follows takes seconds to import

import torch

from dataset.batches import collate_montage
from dataset.checks import check_eeg
from dataset.windows import labram_pretraining_windows, pretraining_folders
from model.labram import parameter_groups
from model.labram_masked import MASKED_MODELS, MaskedModel, masked_prediction
from model.vqnsp import TOKENIZERS, VQNSP
from training.agreement import CHANGEABLE
from training.checkpoints import find_checkpoint
from training.flags import minutes, natural, nonnegative, positive, share
from training.loading import Loader, evaluation_loader
from training.provenance import describe_inputs, public_config
from training.screening import screen
from training.starting import begin_training
from utils import OPTIMIZERS, learning_rates, make_optimizer, start_run

STRIDE = 4  # seconds between windows


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag, switch = parser.add_argument, argparse.BooleanOptionalAction
    # data
    flag("--dataset_dir", required=True, help="a dataset folder, or a folder of them")
    flag("--datasets", nargs="+", help="names of the datasets to train on; default: all without labels")
    flag("--output_dir", default="./")
    flag("--num_workers", type=natural, default=4, help="data workers of each process")
    flag("--verify", action=switch, default=False, help="hold the sha256 of every file against its manifest first")
    flag("--allow_leak", action=switch, default=False, help="go on with subjects who are on both sides; results say so")
    # model
    flag("--model", choices=MASKED_MODELS, default="labram_base_patch200_1600_8k_vocab")
    flag("--layer_scale_init_value", type=nonnegative, help="default: 0.1 (base), 1e-5 (large), 1e-6 (huge); 0: none")
    flag("--drop_path", type=share, default=0.0, help="stochastic depth of the last block")
    flag("--tokenizer_model", choices=TOKENIZERS, default="vqnsp_encoder_base_decoder_3x200x12")
    flag("--tokenizer_weight", default="checkpoints/vqnsp.pth", help="of run_vqnsp_training.py, or the released one")
    flag("--codebook_size", type=positive, default=8192, help="number of the tokenizer's codes")
    flag("--codebook_dim", type=positive, default=32, help="width of the tokenizer's codes; 64 in the paper")
    # training
    flag("--epochs", type=positive, default=50)
    flag("--warmup_epochs", type=natural, default=5)
    flag("--max_steps", type=positive, help="stop after so many steps; the schedule is fitted to them")
    flag("--overfit_batches", type=natural, default=0, help="check: read so many batches over and over, into overfit/")
    flag("--batch_size", type=positive, default=64, help="windows of a process and micro-batch")
    flag("--gradient_accumulation_steps", type=positive, default=1)
    flag("--opt", choices=OPTIMIZERS, default="adamw")
    flag("--opt_betas", type=share, nargs=2, default=(0.9, 0.98))
    flag("--opt_eps", type=nonnegative, default=1e-8)
    flag("--lr", type=nonnegative, default=5e-4)
    flag("--min_lr", type=nonnegative, default=1e-5)
    flag("--weight_decay", type=nonnegative, default=0.05)
    flag("--clip_grad", type=nonnegative, default=3.0, help="0: no clipping")
    # run
    flag("--device", default="auto", help="auto, cpu, cuda, mps")
    flag("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    flag("--compile", action=switch, default=False)
    flag("--seed", type=natural, default=0)
    flag("--resume", action=switch, default=True, help="continue from checkpoint.pth in output_dir")
    flag("--allow_changed", nargs="+", choices=CHANGEABLE, default=[], metavar="NAME", help="what may differ from the "
         "run that is resumed: the names that it was refused for")  # fmt: skip
    flag("--save_ckpt_freq", type=natural, default=5, help="keep a checkpoint every so many epochs")
    flag("--keep", type=natural, default=0, help="how many of those stay, 0: all")
    flag("--save_every_minutes", type=nonnegative, default=30)
    flag("--save_every_steps", type=natural, default=0)
    flag("--timeout_minutes", type=minutes, default=10.0, help="how long processes wait for one that hangs")
    # log
    flag("--log_dir", help="folder for TensorBoard; default: none")
    flag("--log_interval", type=positive, default=10)
    flag("--wandb_log", action=switch, default=False)
    flag("--wandb_project", default="LaBraM")
    flag("--wandb_runname", default="pretraining")
    flag("--wandb_api_key", help="better: `wandb login`, or WANDB_API_KEY in the environment")
    return parser.parse_args(argv)


def main(args):
    # ---------------------------------------------------------------------------------------------------------- run
    run = start_run(args.device, args.dtype, args.seed, args.timeout_minutes)
    output_dir = Path(args.output_dir, "overfit" if args.overfit_batches else "")

    # --------------------------------------------------------------------------------------------------------- data
    folders = pretraining_folders(args.dataset_dir, args.datasets)
    train_set = labram_pretraining_windows(folders, "train", STRIDE)
    val_set = labram_pretraining_windows(folders, "val", STRIDE)
    loader = Loader(
        train_set, args.batch_size, run, collate_montage, args.gradient_accumulation_steps, args.num_workers,
        train_set.same_shape(), overfit_batches=args.overfit_batches, check=check_eeg,
    )  # fmt: skip
    steps = min(args.epochs * loader.steps_per_epoch, args.max_steps or float("inf"))
    run.say(
        f"{', '.join(folder.name for folder in folders)}: {len(train_set)} training and {len(val_set)} validation "
        f"windows; {steps} steps of {loader.steps_per_epoch} an epoch"
    )

    # -------------------------------------------------------------------------------------------------------- model
    path = find_checkpoint(args.tokenizer_weight, args.output_dir, "--tokenizer_weight")
    trained_on, found = screen(args, run, {"train": [train_set], "val": [val_set]}, folders, path)
    tokenizer = VQNSP.load(args.tokenizer_model, path, args.codebook_size, args.codebook_dim)
    tokenizer.eval().requires_grad_(False).to(run.device)
    config = replace(MASKED_MODELS[args.model], drop_path=args.drop_path)
    if args.layer_scale_init_value is not None:
        config = replace(config, layer_scale=args.layer_scale_init_value)
    raw_model = MaskedModel(config, args.codebook_size).to(run.device)

    # -------------------------------------------------------------------------------------------- optimizer, resume
    groups = parameter_groups(raw_model, args.weight_decay)
    optimizer = make_optimizer(groups, args.lr, args.opt_betas, run.device, args.opt_eps, args.opt)
    trainer = begin_training(
        raw_model, run, args, optimizer,
        learning_rates(args.lr, args.min_lr, steps, args.warmup_epochs * loader.steps_per_epoch),
        output_dir / "checkpoint.pth", loader, log_dir=args.log_dir, grad_clip=args.clip_grad,
        extra={"args": public_config(args), "trained_on": trained_on, **found}
        | describe_inputs(run, folders, modules={"tokenizer": tokenizer.state_dict()}),
    )  # fmt: skip

    # --------------------------------------------------------------------------------------------------------- loop
    for epoch in trainer.epochs():
        for micro_batches in trainer.steps():
            shares = run.world_size * len(micro_batches)  # all of one shape and size
            for batch in micro_batches:
                keys = [(args.seed, loader.batch_number(trainer.step), key) for key in batch["keys"]]
                with trainer.forward(last=batch is micro_batches[-1]):
                    losses, accuracy = masked_prediction(trainer.model, tokenizer, batch["x"], batch["chans"], keys)
                trainer.backward({name: loss / shares for name, loss in losses.items()}, accuracy=accuracy / shares)
            trainer.update(samples=args.batch_size * shares)

        # --------------------------------------------------------------------------------------------- validation
        raw_model.eval()
        totals, n_tokens = torch.zeros(2, device=run.device), 0
        batches = evaluation_loader(
            val_set, args.batch_size, run, collate_montage, args.num_workers, val_set.same_shape()
        )
        for batch in batches:
            keys = [(args.seed, key) for key in batch["keys"]]
            with torch.no_grad(), run.autocast():
                losses, accuracy = masked_prediction(raw_model, tokenizer, batch["x"], batch["chans"], keys)
            tokens = batch["x"][..., 0].numel()
            totals += torch.stack([sum(losses.values()), accuracy]) * tokens
            n_tokens += tokens
        loss, accuracy = (run.sum(totals) / run.sum_on_host(n_tokens)).tolist()
        trainer.logger.write(trainer.step, {"val/loss": loss, "val/accuracy": accuracy})
        trainer.logger.end_epoch(epoch + 1)
        trainer.logger.say(f"epoch {epoch + 1}: validation loss {loss:.4f}, {accuracy:.2%} of the codes predicted")
    trainer.logger.close()


if __name__ == "__main__":
    errors.run(main, get_args)
