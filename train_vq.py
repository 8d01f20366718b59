"""Stage 1 of NeuroLM: the text-aligned neural tokenizer (NeuroLM, section 2.2).

CPU smoke:  python train_vq.py --size tiny --dataset_dir data --out_dir runs/smoke --max_steps 20 --batch_size 8
one GPU:    python train_vq.py --dataset_dir data --out_dir runs/neurolm --gradient_accumulation_steps 8
one node:   torchrun --nproc_per_node=8 train_vq.py --dataset_dir data --out_dir runs/neurolm --wandb_log

Reads the unlabelled datasets under --dataset_dir and text from <out_dir>/text; writes <out_dir>/checkpoints/VQ/.
"""

from pathlib import Path

import errors

if __name__ == "__main__":
    errors.requeue_when_told()  # first: what follows takes seconds to import

import torch

from dataset.batches import collate_eeg
from dataset.checks import check_eeg
from dataset.protocol import held_out
from dataset.text import open_text, tokenizer_of
from dataset.windows import pretraining_folders, pretraining_windows
from evaluation.validation import draw_neurolm_window, log_codebook
from model.vq import VQ_SIZES, VQ_Align, reversal_weight
from training.flags import (
    add_lm_flags,
    add_log_flags,
    add_neurolm_training_flags,
    add_pretraining_data_flags,
    add_run_flags,
    follow_size,
    make_parser,
    natural,
    switch,
)
from training.loading import Loader, evaluation_loader
from training.padding import choose_padding
from training.provenance import describe_inputs
from training.screening import screen
from training.starting import NEWEST, load_gpt2, load_lm, resumes, stage_folder, start_script, start_training


def get_args(argv=None):
    parser = make_parser(__doc__)
    flag = add_pretraining_data_flags(parser)
    flag("--text_dir", help="folder of train.bin and val.bin; default: <out_dir>/text")
    flag("--out_dir", "--output_dir", default="./", help="where checkpoints/ and text/ are")
    flag = parser.add_argument_group("model").add_argument
    flag("--size", choices=VQ_SIZES, default="B", help="B, L and XL share one tokenizer")
    add_lm_flags(flag)
    flag("--init_from", choices=["gpt2", "scratch"], default="gpt2", help="where the text embedding comes from")
    flag("--gpt2_path", help="folder of GPT-2's weights, or a name on the hub; default: gpt2")
    flag("--official_padding", action=switch, help="GroupNorm over windows filled with zeros to --block_size tokens, "
         "as officially; default: no")  # fmt: skip
    flag = add_neurolm_training_flags(
        parser, epochs=50, warmup_epochs=5, batch_size=64, text_batch_size=16, learning_rate=5e-5, min_lr=1e-5,
        weight_decay=1e-4, beta2=0.999, grad_clip=0.0,
    )  # fmt: skip
    flag("--revive_dead_codes", type=natural, default=0, help="re-seed codes idle for so many steps; 0: never")
    add_run_flags(parser, seed=1337, save_ckpt_freq=10)
    add_log_flags(parser, project="NeuroLM", runname="VQ")
    args = parser.parse_args(argv)
    return follow_size(args, "learning_rate", 5e-5, VQ_SIZES[args.size].encoder.n_embd, VQ_SIZES["B"].encoder.n_embd)


def main(args):
    # ---------------------------------------------------------------------------------------------------------- run
    out_dir = stage_folder(args, "VQ")
    run = start_script(args, out_dir / NEWEST)

    # --------------------------------------------------------------------------------------------------------- data
    folders = pretraining_folders(args.dataset_dir, args.datasets)
    held = held_out(args.exclude_fold)
    train_set = pretraining_windows(folders, "train", args.block_size, held, args.hours)
    val_set = pretraining_windows(folders, "val", args.block_size, held)
    trained_on, found = screen(args, run, {"train": [train_set], "val": [val_set]}, folders)
    lm = load_lm(args, run)
    text = open_text(args.text_dir or Path(args.out_dir) / "text", "train", args.block_size, tokenizer_of(lm))
    loader = Loader(
        train_set, args.batch_size, run, collate_eeg, args.gradient_accumulation_steps, args.num_workers,
        overfit_batches=args.overfit_batches, check=check_eeg,
        resident=args.resident_recordings, recordings=train_set.index[:, 0],
    )  # fmt: skip
    steps = min(args.epochs * loader.steps_per_epoch, args.max_steps or float("inf"))
    run.say(
        f"{', '.join(folder.name for folder in folders)}: {len(train_set)} training and {len(val_set)} validation "
        f"windows; {len(text)} text tokens; {steps} steps of {loader.steps_per_epoch} an epoch"
    )

    # -------------------------------------------------------------------------------------------------------- model
    raw_model = VQ_Align.from_size(args.size, lm and lm.embed(torch.arange(lm.text_rows)).detach())
    quantizer = raw_model.VQ.quantize
    quantizer.revive_after, quantizer.hold = args.revive_dead_codes, True  # all micro-batches are one step
    newest = out_dir / NEWEST if resumes(args, out_dir) else None
    args.official_padding = choose_padding(raw_model.VQ.encoder, args.official_padding, args.block_size, run, newest)
    gpt2 = load_gpt2(args, run, out_dir, "gpt2")  # the tokenizer of every size has GPT-2 B's width
    if gpt2:
        raw_model.set_text_embedding(gpt2.transformer.wte.weight)
    raw_model.to(run.device)

    # -------------------------------------------------------------------------------------------- optimizer, resume
    trainer = start_training(
        raw_model, run, args, out_dir, loader,
        steps=steps, warmup_steps=args.warmup_epochs * loader.steps_per_epoch,
        extra=raw_model.config_args() | {"trained_on": trained_on, "aligned_with": args.lm, **found}
        | describe_inputs(run, folders, text, lm=lm),
    )  # fmt: skip
    trainer.prepare(raw_model.VQ.place_codes)

    # --------------------------------------------------------------------------------------------------------- loop
    for epoch in trainer.epochs():
        for micro_batches in trainer.steps():
            eeg_tokens = run.sum_on_host(sum(batch["tokens_eeg"] for batch in micro_batches))
            text_tokens = args.text_batch_size * args.block_size * run.world_size * len(micro_batches)
            for i, batch in enumerate(micro_batches):
                english = text.batch(args.seed, loader.batch_number(trainer.step), run.rows(i, args.text_batch_size))
                with trainer.forward(last=batch is micro_batches[-1]):
                    sums = trainer.model(batch, english["tokens"].to(run.device), reversal_weight(trainer.step / steps))
                losses = {name: sums[name] / eeg_tokens for name in ("commitment", "frequency", "raw", "domain_eeg")}
                losses["domain_text"] = sums["domain_text"] / max(text_tokens, 1)
                trainer.backward(losses)
            trainer.update(tokens=eeg_tokens + text_tokens, samples=loader.samples_per_step)
            quantizer.end_step()

        # --------------------------------------------------------------------------------------------- validation
        totals, n_tokens = torch.zeros(3, device=run.device), 0
        code_counts = torch.zeros(quantizer.n_codes, device=run.device)
        no_text = torch.zeros(1, 0, dtype=torch.int64, device=run.device)
        with trainer.evaluation() as model:
            for batch in evaluation_loader(val_set, args.batch_size, run, collate_eeg, args.num_workers):
                with run.autocast():
                    sums = model(batch, no_text, 0.0)
                totals += torch.stack([sums[name] for name in ("commitment", "frequency", "raw")])
                indices = sums["indices"] if batch["valid"] is None else sums["indices"][batch["valid"]]
                code_counts += indices.flatten().bincount(minlength=len(code_counts))
                n_tokens += batch["tokens_eeg"]
            draw_neurolm_window(trainer, model.VQ, val_set)
        commitment, frequency, raw = (run.sum(totals) / run.sum_on_host(n_tokens)).tolist()
        use = log_codebook(trainer, code_counts)
        values = {"loss": commitment + frequency + raw, "commitment": commitment, "frequency": frequency, "raw": raw}
        values |= {f"codebook_{name}": value for name, value in use.items()}
        trainer.logger.write(trainer.step, {f"val/{name}": value for name, value in values.items()})
        trainer.logger.say(
            f"epoch {epoch + 1}: validation loss {values['loss']:.4f} (commitment {commitment:.4f}, frequency "
            f"{frequency:.4f}, raw {raw:.4f}), {use['used']:.1%} of the codes used, perplexity {use['perplexity']:.0f}"
        )
    trainer.logger.close()


if __name__ == "__main__":
    errors.run(main, get_args)
