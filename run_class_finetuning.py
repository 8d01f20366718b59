"""Stage 3 of LaBraM: fine-tuning on a labelled dataset, and its test metrics (LaBraM, section 2.4).

CPU smoke:  python run_class_finetuning.py --dataset_dir data --dataset Workload --output_dir runs/smoke \\
                --model labram_tiny_patch200_200 --disable_qkv_bias --batch_size 16 --max_steps 20
one GPU:    python run_class_finetuning.py --dataset_dir data --dataset TUAB --output_dir runs/TUAB \\
                --finetune checkpoints/labram-base.pth --disable_qkv_bias --update_freq 8
one node:   torchrun --nproc_per_node=8 run_class_finetuning.py --dataset_dir data --dataset TUAB \\
                --output_dir runs/TUAB --finetune checkpoints/labram-base.pth --disable_qkv_bias

Keeps the epoch with the best validation AUROC (two classes) or Cohen's kappa (more) as checkpoint-best.pth and answers
the test set with it: results.json. Without --finetune the network is trained from scratch.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import errors

if __name__ == "__main__":
    errors.requeue_when_told()  # first: what follows takes seconds to import

from dataset.batches import collate_montage
from dataset.checks import check_eeg
from dataset.labels import follow_classes
from dataset.tasks import Task
from dataset.windows import class_names, describe_tasks, labelled_folder, labram_labelled_windows
from evaluation import classify_windows, report
from metrics import most_likely
from model.labram import (
    CLASSIFIERS,
    Classifier,
    class_loss,
    class_probabilities,
    load_pretrained,
    model_state,
    parameter_groups,
)
from results import results_table
from training.agreement import CHANGEABLE
from training.checkpoints import find_checkpoint, load_strictly, read_checkpoint
from training.flags import minutes, natural, nonnegative, positive, share
from training.loading import Loader
from training.provenance import describe_inputs, public_config
from training.screening import screen
from training.starting import begin_training
from utils import OPTIMIZERS, learning_rates, make_optimizer, start_run
from validation import log_answers


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag, switch = parser.add_argument, argparse.BooleanOptionalAction
    # data
    flag("--dataset", default="TUAB", help="name of a dataset folder under dataset_dir, or its path")
    flag("--dataset_dir", default="./", help="folder of dataset folders")
    flag("--output_dir", default="./")
    flag("--num_workers", type=natural, default=4, help="data workers of each process")
    flag("--verify", action=switch, default=False, help="hold the sha256 of every file against its manifest first")
    flag("--allow_leak", action=switch, default=False, help="go on with subjects who are on both sides; results say so")
    # model
    flag("--model", choices=CLASSIFIERS, default="labram_base_patch200_200")
    flag("--finetune", help="checkpoint of run_labram_pretraining.py or this script, or the released labram-base.pth")
    flag("--freeze_backbone", action=switch, default=False, help="train the last norm and the head only")
    flag("--qkv_bias", action=switch, default=True, help="released weights have none")
    flag("--disable_qkv_bias", action="store_false", dest="qkv_bias")
    flag("--rel_pos_bias", action=switch, default=False, help="refused: LaBraM has no relative position bias")
    flag("--disable_rel_pos_bias", action="store_false", dest="rel_pos_bias")
    flag("--abs_pos_emb", action=switch, default=True, help="LaBraM's positions are absolute")
    flag("--layer_scale_init_value", type=nonnegative, help="default: 0.1 (base), 1e-5 (large), 1e-6 (huge); 0: none")
    flag("--drop_path", type=share, default=0.1, help="stochastic depth of the last block; 0.2 for huge in the paper")
    # training
    flag("--epochs", type=positive, default=50)
    flag("--warmup_epochs", type=natural, default=5)
    flag("--max_steps", type=positive, help="stop after so many steps; the schedule is fitted to them")
    flag("--overfit_batches", type=natural, default=0, help="check: read so many batches over and over, into overfit/")
    flag("--batch_size", type=positive, default=64, help="windows of a process and micro-batch")
    flag("--update_freq", type=positive, default=1, help="micro-batches of a step")
    flag("--opt", choices=OPTIMIZERS, default="adamw")
    flag("--opt_betas", type=share, nargs=2, default=(0.9, 0.999))
    flag("--opt_eps", type=nonnegative, default=1e-8)
    flag("--lr", type=nonnegative, default=5e-4)
    flag("--min_lr", type=nonnegative, default=1e-6)
    flag("--layer_decay", type=nonnegative, default=0.65, help="factor of the rate from a block to the one below")
    flag("--weight_decay", type=nonnegative, default=0.05)
    flag("--clip_grad", type=nonnegative, default=0.0, help="0: no clipping")
    flag("--smoothing", type=share, default=0.1, help="of the labels, with more than two classes")
    flag("--model_ema", action=switch, default=False, help="evaluate a moving average of the weights")
    flag("--model_ema_decay", type=share, default=0.9999)
    flag("--eval", action=switch, default=False, help="only test --finetune, or checkpoint-best.pth of output_dir")
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
    flag("--wandb_runname", default="finetuning")
    flag("--wandb_api_key", help="better: `wandb login`, or WANDB_API_KEY in the environment")
    return parser.parse_args(argv)


def main(args):
    # ---------------------------------------------------------------------------------------------------------- run
    run = start_run(args.device, args.dtype, args.seed, args.timeout_minutes)
    output_dir = Path(args.output_dir, "overfit" if args.overfit_batches else "")
    if args.rel_pos_bias or not args.abs_pos_emb:
        raise errors.UserError("LaBraM has absolute positions only: leave out --rel_pos_bias and --no-abs_pos_emb")

    # --------------------------------------------------------------------------------------------------------- data
    folder = labelled_folder(args.dataset, args.dataset_dir)
    splits = ("test",) if args.eval else ("train", "val", "test")
    sets = {split: labram_labelled_windows(folder, split) for split in splits}
    classes = class_names(folder, sets.values())
    counts = ", ".join(f"{len(windows)} {split}" for split, windows in sets.items())
    run.say(f"{folder}: {counts} windows of {', '.join(classes)}")

    newest, path, keep_head = output_dir / "checkpoint.pth", None, True
    if args.eval or args.finetune:
        path = find_checkpoint(args.finetune, args.output_dir, "--finetune", "checkpoint-best.pth")
    goes_on = args.resume and newest.is_file() and not args.eval
    source = newest if goes_on else path  # whose head goes on
    if source and (goes_on or args.eval or "classes" in read_checkpoint(source)):
        classes, places, keep_head, said = follow_classes(
            folder, classes, read_checkpoint(source), source, must=goes_on or args.eval
        )
        sets = {split: windows.relabelled(places) for split, windows in sets.items()}
        if said:
            run.say(said)
    loading = {"batch_size": args.batch_size, "run": run, "num_workers": args.num_workers}

    # -------------------------------------------------------------------------------------------------------- model
    config = replace(CLASSIFIERS[args.model], qkv_bias=args.qkv_bias, drop_path=args.drop_path)
    if args.layer_scale_init_value is not None:
        config = replace(config, layer_scale=args.layer_scale_init_value)
    raw_model = Classifier(config, len(classes) if len(classes) > 2 else 1)  # two classes: one logit
    start = "from scratch"
    weights = model_state(read_checkpoint(path)) if path else None
    if args.eval:
        load_strictly(raw_model, weights, str(path))
    elif args.finetune:
        left_out, fresh = load_pretrained(raw_model, weights, str(path), keep_head)
        run.say(f"{path}: left out {', '.join(left_out) or 'nothing'}; new here: {', '.join(fresh) or 'nothing'}")
        start = "fine-tuned"
    if args.freeze_backbone:
        raw_model.freeze_backbone()
        start = "linear probe"
    raw_model.to(run.device)
    method = f"{args.model}, {start}"
    trained_on, found = screen(args, run, {split: [windows] for split, windows in sets.items()}, [folder], path)

    if args.eval:
        result = classify_windows(raw_model, sets["test"], classes, name=folder.name, split="test", **loading)
        about = {"method": f"{args.model}, {path}", "seed": args.seed, **found}
        report(output_dir / "eval", [result], run, **about)
        return

    # -------------------------------------------------------------------------------------------- optimizer, resume
    loader = Loader(
        sets["train"], args.batch_size, run, collate_montage, args.update_freq, args.num_workers,
        sets["train"].same_shape(), overfit_batches=args.overfit_batches, check=check_eeg,
    )  # fmt: skip
    steps = min(args.epochs * loader.steps_per_epoch, args.max_steps or float("inf"))
    groups = parameter_groups(raw_model, args.weight_decay, args.layer_decay)
    optimizer = make_optimizer(groups, args.lr, args.opt_betas, run.device, args.opt_eps, args.opt)
    trainer = begin_training(
        raw_model, run, args, optimizer,
        learning_rates(args.lr, args.min_lr, steps, args.warmup_epochs * loader.steps_per_epoch),
        newest, loader, log_dir=args.log_dir, grad_clip=args.clip_grad,
        ema_decay=args.model_ema_decay if args.model_ema else 0.0,
        extra={"args": public_config(args), "classes": list(classes)}
        | describe_inputs(run, [folder], modules={"weights": weights})
        | {"tasks": describe_tasks({Task(folder.name, f"{folder.name}:", classes): sets["train"]})}
        | {"trained_on": trained_on, **found},
    )  # fmt: skip

    # --------------------------------------------------------------------------------------------------------- loop
    for epoch in trainer.epochs():
        for micro_batches in trainer.steps():
            shares = run.world_size * len(micro_batches)  # all of one shape and size
            for batch in micro_batches:
                with trainer.forward(last=batch is micro_batches[-1]):
                    logits = trainer.model(batch["x"], batch["chans"])
                loss = class_loss(logits, batch["label"], args.smoothing)
                correct = most_likely(class_probabilities(logits.detach())) == batch["label"]
                trainer.backward({"class": loss / shares}, accuracy=correct.float().mean() / shares)
            trainer.update(samples=args.batch_size * shares)

        # --------------------------------------------------------------------------------------------- validation
        result = classify_windows(trainer.evaluated, sets["val"], classes, name=folder.name, split="val", **loading)
        log_answers(trainer, result, "val")
        trainer.logger.end_epoch(epoch + 1)
        trainer.logger.say(f"epoch {epoch + 1}\n{results_table([result])}")
        trainer.keep_best(result.selection)

    # --------------------------------------------------------------------------------------------------------- test
    trainer.load_best()
    result = classify_windows(trainer.evaluated, sets["test"], classes, name=folder.name, split="test", **loading)
    log_answers(trainer, result, "test")
    trainer.logger.close()
    report(output_dir, [result], run, method=method, seed=args.seed, **found)


if __name__ == "__main__":
    errors.run(main, get_args)
