"""Stage 3 of NeuroLM: multi-task instruction tuning, and the table of answers (NeuroLM, section 2.4).

CPU smoke:  python train_instruction.py --size tiny --dataset_dir data --out_dir runs/smoke --max_steps 9
one GPU:    python train_instruction.py --dataset_dir data --out_dir runs/neurolm --gradient_accumulation_steps 8
one node:   torchrun --nproc_per_node=8 train_instruction.py --dataset_dir data --out_dir runs/neurolm --wandb_log

Trains on every known task with a dataset under --dataset_dir, or on --tasks; keeps the epoch that answers the
validation sets best, and answers the test sets with it. Writes <out_dir>/checkpoints/instruction-<size>/ with
results.json.
"""

import argparse
from pathlib import Path

import errors

if __name__ == "__main__":
    errors.requeue_when_told()  # first: what follows takes seconds to import

import numpy as np

from dataset.batches import QuestionCollate, QuestionWindows
from dataset.checks import check_eeg
from dataset.labels import explain_labels, follow_tasks
from dataset.tasks import find_tasks
from dataset.text import load_tokenizer, open_text
from dataset.windows import describe_tasks, open_tasks
from errors import UserError
from evaluation import ANSWERING, answer_tasks, report, results_table
from features import cache_features
from model.gpt import GPT, GPTConfig
from model.neurolm import LM_SIZES, NeuroLM
from model.vq import VQ_Align
from training.agreement import CHANGEABLE
from training.checkpoints import find_checkpoint, read_checkpoint
from training.flags import at_least, minutes, natural, nonnegative, positive, share
from training.loading import Loader, to_device
from training.padding import QUESTION_TOKENS, choose_padding
from training.provenance import describe_inputs
from training.sampling import MIXINGS, Mixture, mixing_shares
from training.screening import screen
from training.starting import BEST, NEWEST, resumes, stage_folder, start_training
from utils import start_run
from validation import log_answers


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag, switch = parser.add_argument, argparse.BooleanOptionalAction
    # data
    flag("--dataset_dir", default="./", help="folder of the known tasks' dataset folders")
    flag("--tasks", nargs="+", help="names, or YAML files of own ones; default: every known one under dataset_dir")
    flag("--text_dir", help="folder of train.bin; default: <out_dir>/text")
    flag("--out_dir", default="./")
    flag("--num_workers", type=natural, default=4, help="data workers of each process")
    flag("--verify", action=switch, default=False, help="hold the sha256 of every file against its manifest first")
    flag("--allow_leak", action=switch, default=False, help="go on with subjects who are on both sides; results say so")
    flag("--cache_features", metavar="DIR", help="keep what the frozen tokenizer makes of the windows, for later runs")
    # model
    flag("--NeuroLM_path", help="checkpoint of stage 2, as given or in out_dir; default: the one in out_dir")
    flag("--tokenizer_path", help="checkpoint of stage 1, read by --init_from gpt2 and scratch; default: in out_dir")
    flag("--size", choices=LM_SIZES, default="B")
    flag("--init_from", choices=["NeuroLM", "gpt2", "scratch"], default="NeuroLM", help="others skip the pre-training")
    flag("--gpt2_path", help="folder of GPT-2's weights, or a name on the hub; default: that of --size")
    flag("--standardize", action=switch, default=False, help="standardize the encoder's features; the paper does not. "
         "With --init_from gpt2 and scratch; else as in stage 2")  # fmt: skip
    flag("--band_power", action=switch, default=False, help="also give the language model each token's log band power, "
         "standardized; likewise")  # fmt: skip
    flag("--official_padding", action=switch, help="GroupNorm over windows filled with zeros to 276 tokens, "
         "as officially; default: as in the stage before")  # fmt: skip
    flag("--dropout", type=share, default=0.0)
    # training
    flag("--epochs", type=positive, default=5)
    flag("--warmup_epochs", type=natural, default=1, help="read when --warmup_ratio gives no step")
    flag("--warmup_ratio", type=share, default=0.1, help="warm-up as a share of all steps, rounded down")
    flag("--max_steps", type=positive, help="stop after so many steps; the schedule is fitted to them")
    flag("--overfit_batches", type=natural, default=0, help="check: read so many batches over and over, into overfit/")
    flag("--mixing", choices=MIXINGS, default="proportional", help="share of each task in the batches")
    flag("--mixing_temperature", type=float, default=2.0, help="T of temperature: shares as windows ** (1 / T)")
    flag("--length_pool", type=positive, default=1, help="sort the windows of so many steps by length: less padding, "
         "but many steps are of one task; 1, as officially: each has the whole mixture")  # fmt: skip
    flag("--eeg_batch_size", type=positive, default=64, help="EEG windows of a process and micro-batch")
    flag("--text_batch_size", type=natural, default=16, help="text windows beside them; 0: no text")
    flag("--gradient_accumulation_steps", type=positive, default=1)
    flag("--block_size", type=at_least(2, GPTConfig.block_size + 1), default=1024, help="tokens of a text window")
    flag("--learning_rate", type=nonnegative, default=5e-4, help="the paper takes 5e-5 for L, 2e-5 for XL")
    flag("--min_lr", type=nonnegative, default=5e-5)
    flag("--decay_lr", action=switch, default=True, help="cosine decay; else constant after the warm-up")
    flag("--weight_decay", type=nonnegative, default=0.1)
    flag("--beta1", type=share, default=0.9)
    flag("--beta2", type=share, default=0.95)
    flag("--grad_clip", type=nonnegative, default=1.0, help="0: no clipping")
    flag("--eval_only", action=switch, default=False, help="answer the test sets with --NeuroLM_path or the best epoch")
    flag("--answer_by", choices=ANSWERING, default="score", help="most likely answer (per token where a task is not of "
         "the training and its answers differ in length), one way for all, or freely written")  # fmt: skip
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
    flag("--wandb_runname", default="instruction")
    flag("--wandb_api_key", help="better: `wandb login`, or WANDB_API_KEY in the environment")
    return parser.parse_args(argv)


def main(args):
    # ---------------------------------------------------------------------------------------------------------- run
    run = start_run(args.device, args.dtype, args.seed, args.timeout_minutes)
    out_dir = stage_folder(args, f"instruction-{args.size}")

    if (args.standardize or args.band_power) and (args.eval_only or args.init_from == "NeuroLM"):
        raise UserError("--standardize and --band_power belong to a new model: give them to train_pretrain.py")

    # --------------------------------------------------------------------------------------------------------- data
    tasks, said = find_tasks(args.dataset_dir, args.tasks), []
    if args.eval_only:
        path = find_checkpoint(args.NeuroLM_path, args.out_dir, "--NeuroLM_path", f"checkpoints/{out_dir.name}/{BEST}")
        checkpoint = read_checkpoint(path)
        tasks, said = follow_tasks(tasks, checkpoint.get("tasks", []), path)
    run.say(f"tasks: {', '.join(f'{task.name} ({folder})' for task, folder in tasks.items())}")
    for line in said + explain_labels(tasks):
        run.say(line)
    splits = ["test"] if args.eval_only else ["train", "val", "test"]
    sets = {split: open_tasks(tasks, split) for split in splits}

    # -------------------------------------------------------------------------------------------------------- model
    if args.eval_only:
        raw_model = NeuroLM.from_checkpoint(checkpoint, str(path), size=args.size)
    elif args.init_from == "NeuroLM":
        default = Path("checkpoints", f"NeuroLM-{args.size}", NEWEST)
        path = find_checkpoint(args.NeuroLM_path, args.out_dir, "--NeuroLM_path", default)
        raw_model = NeuroLM.load(path, args.dropout, args.size)
    else:
        default = Path("checkpoints", "VQ", NEWEST)
        path = find_checkpoint(args.tokenizer_path, args.out_dir, "--tokenizer_path", default)
        tokenizer = VQ_Align.load(path).VQ
        gpt2 = None
        if args.init_from == "gpt2" and LM_SIZES[args.size].gpt2 and not resumes(args, out_dir):
            with run.main_first():
                gpt2 = GPT.from_pretrained(args.gpt2_path or LM_SIZES[args.size].gpt2, args.dropout)
        n_codes = tokenizer.quantize.n_codes
        raw_model = NeuroLM.from_size(
            args.size, tokenizer.encoder.config, n_codes, gpt2, args.dropout, args.standardize, args.band_power
        )
        raw_model.tokenizer.load_state_dict(tokenizer.encoder.state_dict())
    raw_model.to(run.device)
    newest = out_dir / NEWEST if resumes(args, out_dir) and not args.eval_only else None
    encoder = raw_model.tokenizer
    args.official_padding = choose_padding(encoder, args.official_padding, QUESTION_TOKENS, run, newest)
    for task, windows in (row for windows_of in sets.values() for row in windows_of.items()):
        encoder.patch_embed.check_tokens(int(windows.shapes().prod(1).max()), f"a window of task {task.name}")
    trained_on, found = screen(args, run, {s: [*of.values()] for s, of in sets.items()}, tasks.values(), path)

    answering = (args.eeg_batch_size, run, args.num_workers, args.answer_by)
    named = [f"NeuroLM-{args.size}"]  # what runs of other seeds share
    if not args.eval_only and args.init_from != "NeuroLM":
        named.append("without pre-training")
    if raw_model.power_embed is not None:
        named.append("band power")
    if args.answer_by != "score":
        named.append("answers written freely" if args.answer_by == "generate" else args.answer_by)
    about = {"method": ", ".join(named), "seed": args.seed, **found}
    if args.cache_features:
        reading = (args.eeg_batch_size, run, args.num_workers)
        sets = cache_features(args.cache_features, sets, tasks, raw_model, *reading)

    if args.eval_only:
        evaluations = answer_tasks(raw_model, sets["test"], "test", *answering, checkpoint.get("tasks", []))
        report(out_dir / f"eval_{args.answer_by}", evaluations, run, **about, checkpoint=path)
        return

    # ------------------------------------------------------------------------------------------------ training data
    train_set = QuestionWindows(sets["train"])
    by_task = train_set.by_task()
    shares = mixing_shares([len(positions) for positions in by_task], args.mixing, args.mixing_temperature)
    run.say("mixed: " + ", ".join(f"{task.name} {share:.1%}" for task, share in zip(tasks, shares, strict=True)))
    loader = Loader(
        train_set, args.eeg_batch_size, run, QuestionCollate(load_tokenizer()), args.gradient_accumulation_steps,
        args.num_workers, mixture=Mixture(by_task, shares, train_set.length_ranks(load_tokenizer()), args.length_pool),
        overfit_batches=args.overfit_batches, check=None if args.cache_features else check_eeg,
    )  # fmt: skip
    text = None
    if args.text_batch_size:
        text = open_text(args.text_dir or Path(args.out_dir) / "text", "train", args.block_size)
    steps = min(args.epochs * loader.steps_per_epoch, args.max_steps or float("inf"))
    run.say(f"{len(train_set)} training windows; {steps} steps of {loader.steps_per_epoch} an epoch")

    if (args.standardize or args.band_power) and not resumes(args, out_dir):
        raw_model.measure_features(loader.to_measure())

    # -------------------------------------------------------------------------------------------- optimizer, resume
    warmup_steps = int(args.warmup_ratio * steps) or args.warmup_epochs * loader.steps_per_epoch
    trainer = start_training(
        raw_model, run, args, out_dir, loader, fsdp=args.fsdp, steps=steps, warmup_steps=warmup_steps,
        extra=raw_model.config_args() | {"trained_on": trained_on, **found}
        | describe_inputs(run, tasks.values(), text, tasks, {
            "tokenizer": raw_model.tokenizer.state_dict(),
            "weights": raw_model.state_dict() if args.init_from == "NeuroLM" else None,
        }) | {"tasks": describe_tasks(sets["train"])},
    )  # fmt: skip

    # --------------------------------------------------------------------------------------------------------- loop
    for _ in trainer.epochs():
        for micro_batches in trainer.steps():
            answer_targets = run.sum_on_host(sum(len(batch["source"]) for batch in micro_batches))
            questions = run.sum_on_host(sum(len(batch["answer"]) for batch in micro_batches))
            positions = run.sum_on_host(sum(batch["positions"] for batch in micro_batches))
            text_targets = args.text_batch_size * args.block_size * run.world_size * len(micro_batches)
            for i, batch in enumerate(micro_batches):
                samples = {"eeg": batch}
                if args.text_batch_size:
                    number, rows = loader.batch_number(trainer.step), run.rows(i, args.text_batch_size)
                    samples["text"] = to_device(text.batch(args.seed, number, rows), run.device)
                with trainer.forward(last=batch is micro_batches[-1]):
                    sums = trainer.model(**samples)
                losses = {"answer": sums["eeg"]["loss"] / answer_targets}
                if args.text_batch_size:
                    losses["text"] = sums["text"]["loss"] / text_targets
                measures = {"answer_accuracy": sums["eeg"]["correct"] / questions}
                trainer.backward(losses, **measures, padded_share=batch["padding"] / positions)
            trainer.update(samples=questions, tokens=positions + text_targets)

        # --------------------------------------------------------------------------------------------- validation
        with trainer.evaluation() as model:
            evaluations = answer_tasks(model, sets["val"], "val", *answering)
        for result in evaluations:
            log_answers(trainer, result, f"val_{result.dataset}")
        trainer.logger.say(results_table(evaluations))
        trainer.keep_best(np.nanmean([result.selection for result in evaluations]))

    # --------------------------------------------------------------------------------------------------------- test
    trainer.load_best()
    with trainer.evaluation() as model:
        evaluations = answer_tasks(model, sets["test"], "test", *answering)
    for result in evaluations:
        log_answers(trainer, result, f"test_{result.dataset}")
    trainer.logger.close()
    report(out_dir, evaluations, run, **about)


if __name__ == "__main__":
    errors.run(main, get_args)
