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

from dataclasses import replace
from pathlib import Path

import errors

if __name__ == "__main__":
    errors.requeue_when_told()  # first: what follows takes seconds to import

from dataset.batches import collate_montage
from dataset.channels import follow_places
from dataset.checks import check_eeg
from dataset.labels import follow_classes
from dataset.protocol import read_protocol
from dataset.tasks import Task
from dataset.windows import class_names, describe_tasks, labelled_folder, labram_labelled_windows
from evaluation.answers import classify_windows
from evaluation.metrics import most_likely
from evaluation.results import report, results_table
from evaluation.validation import log_answers
from model.labram import (
    CLASSIFIERS,
    POWER,
    Classifier,
    class_loss,
    class_probabilities,
    load_pretrained,
    model_state,
    parameter_groups,
)
from model.weights import load_strictly, read_checkpoint
from training.checkpoints import find_checkpoint
from training.flags import (
    add_labram_training_flags,
    add_log_flags,
    add_protocol_flags,
    add_run_flags,
    add_trust_flags,
    add_tuning_flags,
    follow_size,
    make_parser,
    nonnegative,
    share,
    switch,
)
from training.loading import Loader
from training.provenance import describe_inputs, public_config
from training.screening import screen
from training.starting import begin_training, start_script
from training.tuning import tune
from utils import learning_rates, make_optimizer


def get_args(argv=None):
    parser = make_parser(__doc__)
    flag = parser.add_argument_group("data").add_argument
    flag("--dataset", default="TUAB", help="name of a dataset folder under dataset_dir, or its path")
    flag("--dataset_dir", nargs="+", default=["./"], help="folders of dataset folders, or s3://bucket/folder")
    flag("--output_dir", "--out_dir", default="./", help="where checkpoints, logs and results go")
    add_protocol_flags(flag)
    add_trust_flags(flag)
    flag = parser.add_argument_group("model").add_argument
    flag("--model", choices=CLASSIFIERS, default="labram_base_patch200_200", help="size of the network; "
         "the paper trains large and huge for 30 epochs, 3 of them warm-up")  # fmt: skip
    flag("--finetune", help="checkpoint of run_labram_pretraining.py or this script, or the released labram-base.pth")
    add_tuning_flags(flag)
    flag("--freeze_backbone", action="store_const", const="probe", dest="tune", help="the same as --tune probe")
    flag("--qkv_bias", action=switch, default=True, help="released weights have none")
    flag("--disable_qkv_bias", action="store_false", dest="qkv_bias", help="the same as --no-qkv_bias")
    flag("--rel_pos_bias", action=switch, default=False, help="refused: LaBraM has no relative position bias")
    flag("--disable_rel_pos_bias", action="store_false", dest="rel_pos_bias", help="the same as --no-rel_pos_bias")
    flag("--abs_pos_emb", action=switch, default=True, help="LaBraM's positions are absolute")
    flag("--layer_scale_init_value", type=nonnegative, help="default: 0.1 (base), 1e-5 (large), 1e-6 (huge); 0: none")
    flag("--band_power", action=switch, default=False, help="also give the network each token's log band power, "
         "standardized; the paper does not")  # fmt: skip
    flag("--drop_path", type=share, default=0.1, help="stochastic depth of the last block; 0.2 for huge in the paper")
    flag = add_labram_training_flags(
        parser, epochs=50, warmup_epochs=5, batch_size=64, accumulation_flag="--update_freq", betas=(0.9, 0.999),
        lr=5e-4, min_lr=1e-6, weight_decay=0.05,
    )  # fmt: skip
    flag("--layer_decay", type=nonnegative, default=0.65, help="factor of the rate from a block to the one below; "
         "in the paper 0.8 for large and huge")  # fmt: skip
    flag("--smoothing", type=share, default=0.1, help="of the labels, with more than two classes")
    flag("--model_ema", action=switch, default=False, help="evaluate a moving average of the weights")
    flag("--model_ema_decay", type=share, default=0.9999, help="of that average, a step")
    flag("--eval", "--eval_only", action=switch, default=False, help="only test --finetune, or the best epoch")
    add_run_flags(parser, seed=0, save_ckpt_freq=5)
    add_log_flags(parser, project="LaBraM", runname="finetuning")
    args = parser.parse_args(argv)
    return follow_size(args, "lr", 5e-4, CLASSIFIERS[args.model].n_embd, 200)


def main(args):
    # ---------------------------------------------------------------------------------------------------------- run
    output_dir = Path(args.output_dir, "overfit" if args.overfit_batches else "")
    run = start_script(args, output_dir / "checkpoint.pth")
    if args.rel_pos_bias or not args.abs_pos_emb:
        raise errors.UserError("LaBraM has absolute positions only: leave out --rel_pos_bias and --no-abs_pos_emb")

    # --------------------------------------------------------------------------------------------------------- data
    folder, protocol = labelled_folder(args.dataset, args.dataset_dir), read_protocol(args)
    splits = ("test",) if args.eval else ("train", "val", "test")
    sets = {split: labram_labelled_windows(folder, split, protocol) for split in splits}
    classes = class_names(folder, sets.values())
    counts = ", ".join(f"{len(windows)} {split}" for split, windows in sets.items())
    run.say(f"{folder}: {counts} windows of {', '.join(classes)}")

    newest, path, keep_head = output_dir / "checkpoint.pth", None, True
    if args.eval or args.finetune:
        path = find_checkpoint(args.finetune, args.output_dir, "--finetune", "checkpoint-best.pth")
    goes_on = args.resume and newest.is_file() and not args.eval
    source = newest if goes_on else path  # whose head goes on
    known = read_checkpoint(source, whole=False) if source else {}
    for line in follow_places(sets.values(), known.get("tasks") or ()):
        run.say(line)
    if source and (goes_on or args.eval or "classes" in known):
        classes, places, keep_head, said = follow_classes(folder, classes, known, source, must=goes_on or args.eval)
        sets = {split: windows.relabelled(places) for split, windows in sets.items()}
        if said:
            run.say(said)
    loading = {"batch_size": args.batch_size, "run": run, "num_workers": args.num_workers}

    # -------------------------------------------------------------------------------------------------------- model
    config = replace(CLASSIFIERS[args.model], qkv_bias=args.qkv_bias, drop_path=args.drop_path)
    if args.layer_scale_init_value is not None:
        config = replace(config, layer_scale=args.layer_scale_init_value)
    weights = model_state(read_checkpoint(path)) if path else None
    known_power, outputs = POWER in (weights or ()), len(classes) if len(classes) > 2 else 1  # two classes: one logit
    raw_model = Classifier(config, outputs, args.band_power or known_power)
    start = "from scratch"
    if args.eval:
        load_strictly(raw_model, weights, str(path))
    elif args.finetune:
        left_out, fresh = load_pretrained(raw_model, weights, str(path), keep_head)
        run.say(f"{path}: left out {', '.join(left_out) or 'nothing'}; new here: {', '.join(fresh) or 'nothing'}")
        start = "fine-tuned"
    adapts = {} if args.eval else tune(raw_model, args.tune, args.lora_rank, run, path)
    if args.tune != "full":
        start = "linear probe" if args.tune == "probe" else f"LoRA of rank {args.lora_rank}"
    raw_model.to(run.device)
    method = f"{args.model}, {start}{', band power' * (raw_model.power_embed is not None)}"
    read = {split: [windows] for split, windows in sets.items()}
    trained_on, found = screen(args, run, read, [folder], path, protocol)

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
    if args.band_power and not known_power and not goes_on:
        raw_model.measure_power(loader.to_measure())
    groups = parameter_groups(raw_model, args.weight_decay, args.layer_decay)
    optimizer = make_optimizer(groups, args.lr, args.opt_betas, run.device, args.opt_eps, args.opt)
    trainer = begin_training(
        raw_model, run, args, optimizer,
        learning_rates(args.lr, args.min_lr, steps, args.warmup_epochs * loader.steps_per_epoch),
        newest, loader, grad_clip=args.clip_grad,
        ema_decay=args.model_ema_decay if args.model_ema else 0.0,
        extra={"args": public_config(args), "classes": list(classes)}
        | describe_inputs(run, [folder], modules={"weights": weights})
        | {"tasks": describe_tasks({Task(folder.name, f"{folder.name}:", classes): sets["train"]})}
        | {"trained_on": trained_on, **found, **adapts},
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
