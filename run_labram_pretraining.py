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

from dataclasses import replace
from pathlib import Path

import errors

if __name__ == "__main__":
    errors.requeue_when_told()  # first: what follows takes seconds to import

import torch

from dataset.batches import collate_montage
from dataset.checks import check_eeg
from dataset.protocol import held_out
from dataset.windows import labram_pretraining_windows, pretraining_folders
from model.labram import parameter_groups
from model.labram_masked import MASKED_MODELS, MaskedModel, masked_prediction
from model.vqnsp import TOKENIZERS, VQNSP
from training.checkpoints import find_checkpoint
from training.flags import (
    add_labram_training_flags,
    add_log_flags,
    add_pretraining_data_flags,
    add_run_flags,
    follow_size,
    make_parser,
    nonnegative,
    positive,
    share,
)
from training.loading import Loader, evaluation_loader
from training.provenance import describe_inputs, public_config
from training.screening import screen
from training.starting import begin_training, start_script
from utils import learning_rates, make_optimizer

STRIDE = 4  # seconds between windows


def get_args(argv=None):
    parser = make_parser(__doc__)
    flag = add_pretraining_data_flags(parser)
    flag("--output_dir", "--out_dir", default="./", help="where checkpoints and logs go")
    flag = parser.add_argument_group("model").add_argument
    flag("--model", choices=MASKED_MODELS, default="labram_base_patch200_1600_8k_vocab", help="size of the network")
    flag("--layer_scale_init_value", type=nonnegative, help="default: 0.1 (base), 1e-5 (large), 1e-6 (huge); 0: none")
    flag("--drop_path", type=share, default=0.0, help="stochastic depth of the last block")
    flag("--tokenizer_model", choices=TOKENIZERS, default="vqnsp_encoder_base_decoder_3x200x12", help="of stage 1")
    flag("--tokenizer_weight", "--tokenizer_path", default="checkpoints/vqnsp.pth", help="of stage 1, or released")
    flag("--codebook_size", "--codebook_n_emd", type=positive, default=8192, help="number of the tokenizer's codes")
    flag("--codebook_dim", "--codebook_emd_dim", type=positive, default=32, help="width of its codes; 64 in the paper")
    add_labram_training_flags(
        parser, epochs=50, warmup_epochs=5, batch_size=64, betas=(0.9, 0.98), lr=5e-4, min_lr=1e-5, weight_decay=0.05,
        clip_grad=3.0,
    )  # fmt: skip
    add_run_flags(parser, seed=0, save_ckpt_freq=5)
    add_log_flags(parser, project="LaBraM", runname="pretraining")
    args = parser.parse_args(argv)
    return follow_size(args, "lr", 5e-4, MASKED_MODELS[args.model].n_embd, 200)


def main(args):
    # ---------------------------------------------------------------------------------------------------------- run
    output_dir = Path(args.output_dir, "overfit" if args.overfit_batches else "")
    run = start_script(args, output_dir / "checkpoint.pth")

    # --------------------------------------------------------------------------------------------------------- data
    folders = pretraining_folders(args.dataset_dir, args.datasets)
    held = held_out(args.exclude_fold)
    train_set = labram_pretraining_windows(folders, "train", STRIDE, held, args.hours)
    val_set = labram_pretraining_windows(folders, "val", STRIDE, held)
    loader = Loader(
        train_set, args.batch_size, run, collate_montage, args.gradient_accumulation_steps, args.num_workers,
        train_set.same_shape(), overfit_batches=args.overfit_batches, check=check_eeg,
        resident=args.resident_recordings, recordings=train_set.index[:, 0],
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
        output_dir / "checkpoint.pth", loader, grad_clip=args.clip_grad,
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
