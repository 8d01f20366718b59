"""Stage 3 of NeuroLM: multi-task instruction tuning, and the table of answers (NeuroLM, section 2.4).

CPU smoke:  python train_instruction.py --size tiny --dataset_dir data --out_dir runs/smoke --max_steps 9
one GPU:    python train_instruction.py --dataset_dir data --out_dir runs/neurolm --gradient_accumulation_steps 8
one node:   torchrun --nproc_per_node=8 train_instruction.py --dataset_dir data --out_dir runs/neurolm --wandb_log

Trains on every known task with a dataset under --dataset_dir, or on --tasks; keeps the epoch that answers the
validation sets best, and answers the test sets with it. Writes <out_dir>/checkpoints/instruction-<size>/ with
results.json.
"""

from pathlib import Path

import errors

if __name__ == "__main__":
    errors.requeue_when_told()  # first: what follows takes seconds to import

import numpy as np

from dataset.batches import QuestionCollate, QuestionWindows
from dataset.channels import follow_places
from dataset.checks import check_eeg
from dataset.labels import explain_labels, follow_tasks
from dataset.protocol import read_protocol
from dataset.tasks import find_tasks
from dataset.text import open_text, tokenizer_of
from dataset.windows import describe_tasks, open_tasks
from errors import UserError
from evaluation.answers import answer_tasks
from evaluation.metrics import ANSWERING
from evaluation.results import report, results_table
from evaluation.validation import log_answers
from model.gpt import GPTConfig
from model.neurolm import NeuroLM
from model.vq import VQ_Align
from model.weights import read_checkpoint
from training.checkpoints import find_checkpoint
from training.feature_cache import cache_features
from training.flags import (
    add_cache_flags,
    add_language_model_flags,
    add_log_flags,
    add_neurolm_training_flags,
    add_protocol_flags,
    add_run_flags,
    add_trust_flags,
    add_tuning_flags,
    follow_size,
    make_parser,
    positive,
    share,
    switch,
)
from training.loading import Loader, to_device
from training.padding import QUESTION_TOKENS, choose_padding
from training.provenance import describe_inputs
from training.sampling import MIXINGS, Mixture, mixing_shares
from training.screening import screen
from training.starting import (
    BEST,
    NEWEST,
    check_lm,
    model_name,
    new_neurolm,
    resumes,
    stage_folder,
    start_script,
    start_training,
)
from training.tuning import tune

# of --learning_rate auto: the paper's three, and docs/results.md
RATES = {"tiny": 1e-3, "mini": 1e-3, "small": 7e-4, "B": 5e-4, "L": 5e-5, "XL": 2e-5}


def get_args(argv=None):
    parser = make_parser(__doc__)
    flag = parser.add_argument_group("data").add_argument
    flag("--dataset_dir", nargs="+", default=["./"], help="folders of the known tasks' dataset folders, or s3://bucket/folder")
    flag("--tasks", nargs="+", help="names, or YAML files of own ones; default: every known one under dataset_dir")
    flag("--text_dir", help="folder of train.bin; default: <out_dir>/text")
    flag("--out_dir", "--output_dir", default="./", help="where checkpoints/ and text/ are")
    add_cache_flags(flag)
    add_protocol_flags(flag)
    add_trust_flags(flag)
    flag = parser.add_argument_group("model").add_argument
    flag("--NeuroLM_path", help="checkpoint of stage 2, as given or in out_dir; default: the one in out_dir")
    flag("--tokenizer_path", "--tokenizer_weight", help="of stage 1, for --init_from gpt2, scratch; default: out_dir's")
    add_language_model_flags(flag, ("NeuroLM", "gpt2", "scratch"), "With --init_from gpt2, scratch; else as in stage 2")
    add_tuning_flags(flag)
    flag("--official_padding", action=switch, help="GroupNorm over windows filled with zeros to 276 tokens, "
         "as officially; default: as in the stage before")  # fmt: skip
    flag = add_neurolm_training_flags(
        parser, epochs=5, warmup_epochs=1, batch_flag="--eeg_batch_size", batch_size=64, text_batch_size=16,
        learning_rate=5e-4, min_lr=5e-5, weight_decay=0.1, beta2=0.95, grad_clip=1.0,
        most_tokens=GPTConfig.block_size + 1,
        lr_help="the paper takes 5e-5 for L, 2e-5 and 3 epochs for XL, and a tenth of it as --min_lr",
    )  # fmt: skip
    flag("--warmup_ratio", type=share, default=0.1, help="warm-up as a share of all steps, rounded down; where that is "
         "0, --warmup_epochs holds")  # fmt: skip
    flag("--mixing", choices=MIXINGS, default="proportional", help="share of each task in the batches")
    flag("--mixing_temperature", type=float, default=2.0, help="T of temperature: shares as windows ** (1 / T)")
    flag("--length_pool", type=positive, default=1, help="sort the windows of so many steps by length: less padding, "
         "but many steps are of one task; 1, as officially: each has the whole mixture")  # fmt: skip
    flag("--eval_only", "--eval", action=switch, default=False, help="only test --NeuroLM_path, or the best epoch")
    flag("--answer_by", choices=ANSWERING, default="score", help="most likely answer (per token where a task is not of "
         "the training and its answers differ in length), one way for all, or freely written")  # fmt: skip
    flag = add_run_flags(parser, seed=1337, save_ckpt_freq=5)
    flag("--fsdp", action=switch, default=False, help="shard model and optimizer over the processes: for large sizes")
    add_log_flags(parser, project="NeuroLM", runname="instruction")
    args = parser.parse_args(argv)
    return follow_size(args, "learning_rate", RATES[args.size])


def main(args):
    # ---------------------------------------------------------------------------------------------------------- run
    out_dir = stage_folder(args, f"instruction-{model_name(args)}")
    run = start_script(args, out_dir / NEWEST)

    if (args.standardize or args.band_power) and (args.eval_only or args.init_from == "NeuroLM"):
        raise UserError("--standardize and --band_power belong to a new model: give them to train_pretrain.py")

    # --------------------------------------------------------------------------------------------------------- data
    tasks, said, protocol = find_tasks(args.dataset_dir, args.tasks), [], read_protocol(args)
    if args.eval_only:
        path = find_checkpoint(args.NeuroLM_path, args.out_dir, "--NeuroLM_path", f"checkpoints/{out_dir.name}/{BEST}")
        checkpoint = read_checkpoint(path)
        tasks, said = follow_tasks(tasks, checkpoint.get("tasks", []), path)
    run.say(f"tasks: {', '.join(f'{task.name} ({folder})' for task, folder in tasks.items())}")
    for line in said + explain_labels(tasks):
        run.say(line)
    splits = ["test"] if args.eval_only else ["train", "val", "test"]
    sets = {split: open_tasks(tasks, split, protocol) for split in splits}
    for line in follow_places(sets["test"].values(), checkpoint.get("tasks", [])) if args.eval_only else ():
        run.say(line)

    # -------------------------------------------------------------------------------------------------------- model
    if args.eval_only:
        raw_model = NeuroLM.from_checkpoint(checkpoint, str(path), size=args.size)
    elif args.init_from == "NeuroLM":
        default = Path("checkpoints", f"NeuroLM-{model_name(args)}", NEWEST)
        path = find_checkpoint(args.NeuroLM_path, args.out_dir, "--NeuroLM_path", default)
        raw_model = NeuroLM.load(path, args.dropout, args.size)
    else:
        default = Path("checkpoints", "VQ", NEWEST)
        path = find_checkpoint(args.tokenizer_path, args.out_dir, "--tokenizer_path", default)
        tokenizer = VQ_Align.load(path).VQ
        raw_model = new_neurolm(args, tokenizer, run, out_dir, path)
    check_lm(raw_model, args, path)
    raw_model.to(run.device)
    if args.checkpoint_activations:
        raw_model.decoder.recompute()
    reads = tokenizer_of(raw_model)
    newest = out_dir / NEWEST if resumes(args, out_dir) and not args.eval_only else None
    encoder = raw_model.tokenizer
    args.official_padding = choose_padding(encoder, args.official_padding, QUESTION_TOKENS, run, newest)
    for task, windows in (row for windows_of in sets.values() for row in windows_of.items()):
        encoder.patch_embed.check_tokens(int(windows.shapes().prod(1).max()), f"a window of task {task.name}")
    read = {split: [*windows_of.values()] for split, windows_of in sets.items()}
    trained_on, found = screen(args, run, read, tasks.values(), path, protocol)

    answering = (args.eeg_batch_size, run, args.num_workers, args.answer_by)
    named = [f"NeuroLM-{model_name(args)}"]  # what runs of other seeds share
    if not args.eval_only and args.init_from != "NeuroLM":
        named.append("without pre-training")
    if raw_model.power_embed is not None:
        named.append("band power")
    if not args.eval_only and args.tune != "full":
        named.append("linear probe" if args.tune == "probe" else f"LoRA of rank {args.lora_rank}")
    if args.answer_by != "score":
        named.append("answers written freely" if args.answer_by == "generate" else args.answer_by)
    about = {"method": ", ".join(named), "seed": args.seed, **found}
    if args.cache_features:
        reading = (args.eeg_batch_size, run, args.num_workers, args.cache_half)
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
        train_set, args.eeg_batch_size, run, QuestionCollate(reads), args.gradient_accumulation_steps,
        args.num_workers, mixture=Mixture(by_task, shares, train_set.length_ranks(reads), args.length_pool),
        overfit_batches=args.overfit_batches, check=None if args.cache_features else check_eeg,
    )  # fmt: skip
    text = None
    if args.text_batch_size:
        text = open_text(args.text_dir or Path(args.out_dir) / "text", "train", args.block_size, reads)
    steps = min(args.epochs * loader.steps_per_epoch, args.max_steps or float("inf"))
    run.say(f"{len(train_set)} training windows; {steps} steps of {loader.steps_per_epoch} an epoch")

    if (args.standardize or args.band_power) and not resumes(args, out_dir):
        raw_model.measure_features(loader.to_measure())

    # -------------------------------------------------------------------------------------------- optimizer, resume
    weights = raw_model.state_dict() if args.init_from == "NeuroLM" else None
    adapts = tune(raw_model, args.tune, args.lora_rank, run, path if weights else None)
    warmup_steps = int(args.warmup_ratio * steps) or args.warmup_epochs * loader.steps_per_epoch
    trainer = start_training(
        raw_model, run, args, out_dir, loader, fsdp=args.fsdp, steps=steps, warmup_steps=warmup_steps,
        extra=raw_model.config_args() | {"trained_on": trained_on, **found, **adapts}
        | describe_inputs(run, tasks.values(), text, tasks, {
            "tokenizer": raw_model.tokenizer.state_dict(),
            "weights": weights,
        }, raw_model.decoder) | {"tasks": describe_tasks(sets["train"])},
    )  # fmt: skip

    # --------------------------------------------------------------------------------------------------------- loop
    for _ in trainer.epochs():
        for micro_batches in trainer.steps():
            answer_targets = run.sum_on_host(sum(len(batch["source"]) for batch in micro_batches))
            questions = run.sum_on_host(sum(len(batch["answer"]) for batch in micro_batches))
            positions = run.sum_on_host(sum(batch["positions"] for batch in micro_batches))
            read = run.sum_on_host(sum(sum(batch["counts"]) + sum(batch["tokens_counts"]) for batch in micro_batches))
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
            trainer.update(samples=questions, tokens=read + text_targets)

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
