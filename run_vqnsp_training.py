"""Stage 1 of LaBraM: the neural tokenizer, by vector-quantized neural spectrum prediction (LaBraM, section 2.2).

CPU smoke:  python run_vqnsp_training.py --dataset_dir data --output_dir runs/vqnsp --batch_size 8 --max_steps 20 \\
                --model vqnsp_encoder_tiny_decoder_1x100x2 --codebook_n_emd 512
one GPU:    python run_vqnsp_training.py --dataset_dir data --output_dir runs/vqnsp --codebook_emd_dim 64 \\
                --quantize_kmeans_init --gradient_accumulation_steps 8
one node:   torchrun --nproc_per_node=8 run_vqnsp_training.py --dataset_dir data --output_dir runs/vqnsp \\
                --codebook_emd_dim 64 --quantize_kmeans_init

Reads the unlabelled datasets under --dataset_dir, of any mixture of montages: windows of 256 // channels seconds, one a
second. Writes checkpoint.pth, checkpoint-<epoch>.pth and log.txt to --output_dir.
"""

from pathlib import Path

import errors

if __name__ == "__main__":
    errors.requeue_when_told()  # first: what follows takes seconds to import

import torch

from dataset.batches import collate_montage
from dataset.checks import check_eeg
from dataset.protocol import held_out
from dataset.windows import labram_pretraining_windows, pretraining_folders
from evaluation.validation import draw_labram_window, log_codebook
from model.labram import parameter_groups
from model.vqnsp import TOKENIZERS, VQNSP
from training.flags import (
    add_labram_training_flags,
    add_log_flags,
    add_pretraining_data_flags,
    add_run_flags,
    follow_size,
    make_parser,
    natural,
    positive,
    share,
    switch,
)
from training.loading import Loader, evaluation_loader
from training.provenance import describe_inputs, public_config
from training.screening import screen
from training.starting import begin_training, start_script
from utils import learning_rates, make_optimizer

STRIDE = 1  # seconds between windows
LOSSES = ("commitment", "amplitude", "phase")


def get_args(argv=None):
    parser = make_parser(__doc__)
    flag = add_pretraining_data_flags(parser)
    flag("--output_dir", "--out_dir", default="./", help="where checkpoints and logs go")
    flag = parser.add_argument_group("model").add_argument
    flag("--model", choices=TOKENIZERS, default="vqnsp_encoder_base_decoder_3x200x12", help="encoder and decoder")
    flag("--codebook_n_emd", "--codebook_size", type=positive, default=8192, help="number of codes")
    flag("--codebook_emd_dim", "--codebook_dim", type=positive, default=32, help="width of a code; 64 in the paper")
    flag("--ema_decay", type=share, default=0.99, help="of the codebook's moving averages")
    flag("--quantize_kmeans_init", action=switch, default=False, help="place the codes by k-means on the first batch")
    flag("--revive_dead_codes", type=natural, default=0, help="re-seed codes idle for so many steps; 0: never")
    add_labram_training_flags(
        parser, epochs=100, warmup_epochs=10, batch_size=128, betas=(0.9, 0.99), lr=5e-5, min_lr=1e-5,
        weight_decay=1e-4, lr_help="for a global batch of 128 windows; it grows with the batch",
    )  # fmt: skip
    add_run_flags(parser, seed=0, save_ckpt_freq=20)
    add_log_flags(parser, project="LaBraM", runname="VQNSP")
    args = parser.parse_args(argv)
    return follow_size(args, "lr", 5e-5, TOKENIZERS[args.model][0].n_embd, 200)


def main(args):
    # ---------------------------------------------------------------------------------------------------------- run
    output_dir = Path(args.output_dir, "overfit" if args.overfit_batches else "")
    run = start_script(args, output_dir / "checkpoint.pth")

    # --------------------------------------------------------------------------------------------------------- data
    folders = pretraining_folders(args.dataset_dir, args.datasets)
    held = held_out(args.exclude_fold)
    train_set = labram_pretraining_windows(folders, "train", STRIDE, held, args.hours)
    val_set = labram_pretraining_windows(folders, "val", STRIDE, held)
    trained_on, found = screen(args, run, {"train": [train_set], "val": [val_set]}, folders)
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
    raw_model = VQNSP(
        *TOKENIZERS[args.model], n_codes=args.codebook_n_emd, code_dim=args.codebook_emd_dim, decay=args.ema_decay,
        kmeans_init=args.quantize_kmeans_init,
    ).to(run.device)  # fmt: skip
    quantizer = raw_model.quantize
    quantizer.revive_after, quantizer.hold = args.revive_dead_codes, True  # all micro-batches are one step

    # -------------------------------------------------------------------------------------------- optimizer, resume
    per_step = args.batch_size * run.world_size * args.gradient_accumulation_steps
    lr = args.lr * per_step / 128
    groups = parameter_groups(raw_model, args.weight_decay)
    optimizer = make_optimizer(groups, lr, args.opt_betas, run.device, args.opt_eps, args.opt)
    trainer = begin_training(
        raw_model, run, args, optimizer,
        learning_rates(lr, args.min_lr, steps, args.warmup_epochs * loader.steps_per_epoch),
        output_dir / "checkpoint.pth", loader, grad_clip=args.clip_grad,
        extra={"args": public_config(args), "trained_on": trained_on, **found} | describe_inputs(run, folders),
    )  # fmt: skip
    trainer.prepare(raw_model.place_codes)

    # --------------------------------------------------------------------------------------------------------- loop
    for epoch in trainer.epochs():
        for micro_batches in trainer.steps():
            shares = run.world_size * len(micro_batches)  # all of one shape and size
            for batch in micro_batches:
                with trainer.forward(last=batch is micro_batches[-1]):
                    means = trainer.model(batch["x"], batch["chans"])
                trainer.backward({name: means[name] / shares for name in LOSSES})
            trainer.update(samples=per_step)
            quantizer.end_step()

        # --------------------------------------------------------------------------------------------- validation
        totals, n_tokens = torch.zeros(len(LOSSES), device=run.device), 0
        code_counts = torch.zeros(args.codebook_n_emd, device=run.device)
        batches = evaluation_loader(
            val_set, args.batch_size, run, collate_montage, args.num_workers, val_set.same_shape()
        )
        with trainer.evaluation() as model:
            for batch in batches:
                with run.autocast():
                    means = model(batch["x"], batch["chans"])
                indices = means["indices"].flatten()
                totals += torch.stack([means[name] for name in LOSSES]) * len(indices)
                code_counts += indices.bincount(minlength=len(code_counts))
                n_tokens += len(indices)
            draw_labram_window(trainer, model, val_set)
        means = dict(zip(LOSSES, (run.sum(totals) / run.sum_on_host(n_tokens)).tolist(), strict=True))
        use = log_codebook(trainer, code_counts)
        values = {"loss": sum(means.values())} | means | {f"codebook_{name}": value for name, value in use.items()}
        trainer.logger.write(trainer.step, {f"val/{name}": value for name, value in values.items()})
        trainer.logger.end_epoch(epoch + 1)
        trainer.logger.say(
            f"epoch {epoch + 1}: validation loss {values['loss']:.4f} (commitment {means['commitment']:.4f}, amplitude "
            f"{means['amplitude']:.4f}, phase {means['phase']:.4f}), {use['used']:.1%} of the codes used, perplexity "
            f"{use['perplexity']:.0f}"
        )
    trainer.logger.close()


if __name__ == "__main__":
    errors.run(main, get_args)
