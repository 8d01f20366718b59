"""Stage 2 of NeuroLM: multi-channel autoregressive pre-training (NeuroLM, section 2.3).

CPU smoke:  python train_pretrain.py --size tiny --dataset_dir data --out_dir runs/smoke --max_steps 9 --num_workers 0
one GPU:    python train_pretrain.py --dataset_dir data --out_dir runs/neurolm --gradient_accumulation_steps 8
one node:   torchrun --nproc_per_node=8 train_pretrain.py --dataset_dir data --out_dir runs/neurolm --wandb_log

GPT-2 learns to predict the code of each channel one second ahead, and goes on reading English. Takes the tokenizer of
stage 1 from --tokenizer_path; writes <out_dir>/checkpoints/NeuroLM-<size>/.
"""

from pathlib import Path

import errors

if __name__ == "__main__":
    errors.requeue_when_told()  # first: what follows takes seconds to import

import torch
from torch.utils.data import ConcatDataset

from dataset.batches import collate_prediction
from dataset.checks import check_eeg
from dataset.protocol import held_out
from dataset.text import open_text, tokenizer_of
from dataset.windows import pretraining_folders, pretraining_windows
from model.gpt import GPTConfig
from model.lm_sizes import LM_SIZES
from model.neurolm import NeuroLM
from model.vq import VQ, VQ_Align
from training.checkpoints import find_checkpoint
from training.feature_cache import cache_features, read_codes
from training.flags import (
    add_cache_flags,
    add_language_model_flags,
    add_log_flags,
    add_neurolm_training_flags,
    add_pretraining_data_flags,
    add_run_flags,
    add_tuning_flags,
    follow_size,
    make_parser,
    switch,
)
from training.loading import Loader, evaluation_loader, to_device
from training.padding import choose_padding
from training.provenance import describe_inputs
from training.screening import screen
from training.starting import (
    NEWEST,
    model_name,
    new_neurolm,
    resumes,
    stage_folder,
    start_script,
    start_training,
)
from training.tuning import tune

VALIDATION_TEXTS = 64  # windows of text in a validation


def get_args(argv=None):
    parser = make_parser(__doc__)
    flag = add_pretraining_data_flags(parser)
    flag("--text_dir", help="folder of train.bin and val.bin; default: <out_dir>/text")
    flag("--out_dir", "--output_dir", default="./", help="where checkpoints/ and text/ are")
    add_cache_flags(flag)
    flag = parser.add_argument_group("model").add_argument
    flag("--tokenizer_path", "--tokenizer_weight", help="of stage 1, as given or in out_dir; default: the one there")
    add_language_model_flags(flag, ("gpt2", "scratch"), "Stage 3 takes it over")
    add_tuning_flags(flag)
    flag("--official_padding", action=switch, help="GroupNorm over windows filled with zeros to --block_size tokens, "
         "as officially; default: as in stage 1")  # fmt: skip
    add_neurolm_training_flags(
        parser, epochs=20, warmup_epochs=2, batch_flag="--eeg_batch_size", batch_size=60, text_batch_size=4,
        learning_rate=6e-4, min_lr=6e-5, weight_decay=0.1, beta2=0.95, grad_clip=1.0,
        most_tokens=GPTConfig.block_size + 1,
    )  # fmt: skip
    flag = add_run_flags(parser, seed=1337, save_ckpt_freq=5)
    flag("--fsdp", action=switch, default=False, help="shard model and optimizer over the processes: for large sizes")
    add_log_flags(parser, project="NeuroLM", runname="NeuroLM")
    args = parser.parse_args(argv)
    return follow_size(args, "learning_rate", 6e-4, LM_SIZES[args.size].n_embd, LM_SIZES["B"].n_embd)


def main(args):
    # ---------------------------------------------------------------------------------------------------------- run
    out_dir = stage_folder(args, f"NeuroLM-{model_name(args)}")
    run = start_script(args, out_dir / NEWEST)

    # --------------------------------------------------------------------------------------------------------- data
    folders = pretraining_folders(args.dataset_dir, args.datasets)
    held = held_out(args.exclude_fold)
    train_set = pretraining_windows(folders, "train", args.block_size, held, args.hours)
    val_set = pretraining_windows(folders, "val", args.block_size, held)
    recordings = train_set.index[:, 0]

    # -------------------------------------------------------------------------------------------------------- model
    path = find_checkpoint(args.tokenizer_path, args.out_dir, "--tokenizer_path", Path("checkpoints", "VQ", NEWEST))
    trained_on, found = screen(args, run, {"train": [train_set], "val": [val_set]}, folders, path)
    tokenizer = VQ_Align.load(path).VQ
    tokenizer.to(run.device).eval().requires_grad_(False)
    newest = out_dir / NEWEST if resumes(args, out_dir) else None
    args.official_padding = choose_padding(tokenizer.encoder, args.official_padding, args.block_size, run, newest)
    raw_model = new_neurolm(args, tokenizer, run, out_dir, path)  # shares the encoder: one pass for input and codes
    raw_model.to(run.device)
    if args.checkpoint_activations:
        raw_model.decoder.recompute()
    text_dir, reads = args.text_dir or Path(args.out_dir) / "text", tokenizer_of(raw_model)
    text, val_text = (open_text(text_dir, split, args.block_size, reads) for split in ("train", "val"))
    if args.cache_features:
        parts = {"train": train_set, "val": val_set}
        sets = {split: {folder: windows.within(folder) for folder in folders} for split, windows in parts.items()}
        reading = (args.eeg_batch_size, run, args.num_workers, args.cache_half, tokenizer)
        cached = cache_features(args.cache_features, sets, {path: path for path in folders}, raw_model, *reading)
        train_set, val_set = (ConcatDataset(windows_of.values()) for windows_of in cached.values())

    # ------------------------------------------------------------------------------------------------ training data
    loader = Loader(
        train_set, args.eeg_batch_size, run, collate_prediction, args.gradient_accumulation_steps, args.num_workers,
        overfit_batches=args.overfit_batches, check=None if args.cache_features else check_eeg,
        resident=args.resident_recordings, recordings=recordings,
    )  # fmt: skip
    steps = min(args.epochs * loader.steps_per_epoch, args.max_steps or float("inf"))
    run.say(
        f"{', '.join(folder.name for folder in folders)}: {len(train_set)} training and {len(val_set)} validation "
        f"windows; {len(text)} text tokens; {steps} steps of {loader.steps_per_epoch} an epoch"
    )
    if (args.standardize or args.band_power) and not resumes(args, out_dir):
        raw_model.measure_features(loader.to_measure())

    # -------------------------------------------------------------------------------------------- optimizer, resume
    adapts = tune(raw_model, args.tune, args.lora_rank, run)
    trainer = start_training(
        raw_model, run, args, out_dir, loader, fsdp=args.fsdp,
        steps=steps, warmup_steps=args.warmup_epochs * loader.steps_per_epoch,
        extra=raw_model.config_args() | {"trained_on": trained_on, **found, **adapts}
        | describe_inputs(run, folders, text, modules={"tokenizer": tokenizer.state_dict()}, lm=raw_model.decoder),
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
    """The batch with what the model reads and what it has to predict."""
    batch = read_codes(batch, tokenizer, model)
    return batch | {"target": batch["codes"].flatten()[batch["target_position"]] + model.decoder.text_rows}


if __name__ == "__main__":
    errors.run(main, get_args)
