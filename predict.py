"""Ask a trained model about recordings: for every window the answers with their probabilities, and features.

python predict.py my_recording.edf --NeuroLM_path checkpoints/instruction-B/ckpt-best.pt
python predict.py a.edf b.vhdr --NeuroLM_path NeuroLM-B.pt --tasks TUAB my_task.yaml --window 10 --out_dir answers
python predict.py my_recording.edf --LaBraM_path runs/TUAB/checkpoint-best.pth
python predict.py my_array.npy --rate 250 --channels C3 Cz C4 --NeuroLM_path NeuroLM-B.pt --tasks my_task.yaml

Asks the questions that the model was trained on, over windows of the same length and channels. For each recording and
task it writes <out_dir>/<recording>_<task>.csv (start, stop, answer, probability of each) and <...>_features.npz.
"""

import argparse
from pathlib import Path

import numpy as np

import errors
from dataset.channels import load_aliases
from dataset_maker.machinery.arrays import ARRAYS, SUFFIXES, add_array_arguments, array_format, is_nameless, stem_of
from errors import UserError
from evaluation.metrics import ANSWERING


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag, switch = parser.add_argument, argparse.BooleanOptionalAction
    flag("recordings", nargs="+", type=Path, help=f"raw files: {' '.join(SUFFIXES + ARRAYS)}")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--NeuroLM_path", help="checkpoint of train_instruction.py, or a released NeuroLM")
    model.add_argument("--LaBraM_path", help="checkpoint of run_class_finetuning.py")
    flag("--tasks", nargs="+", help="names, or YAML files of own ones; default: those the model was trained on")
    flag("--out_dir", type=Path, default=Path("answers"))
    flag("--window", type=int, help="seconds; default: as in the training")
    flag("--stride", type=float, help="seconds from window to window; default: end to end")
    flag("--notch", type=float, default=50.0, help="mains frequency in Hz where it was recorded, 0: none")
    flag("--channels", nargs="+", help="names of the table to use (default: those of the training); all of an array")
    add_array_arguments(parser)
    flag("--aliases", type=Path, help="YAML file of channel names and their places, 'E22: FP1'")
    flag("--answer_by", choices=ANSWERING, default="score", help="most likely answer (per token where a task is not of "
         "the training and its answers differ in length), one way for all, or freely written")  # fmt: skip
    flag("--features", action=switch, default=True, help="write the features of each window")
    flag("--official_padding", action=switch, help="GroupNorm over windows filled with zeros to 276 tokens, "
         "as officially; default: as in the training")  # fmt: skip
    flag("--batch_size", type=int, default=64)
    flag("--device", default="auto", help="auto, cpu, cuda, mps")
    flag("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    return parser.parse_args(argv)


def main(args):
    # here: PyTorch and MNE take seconds to import, which --help and a mistyped flag need not wait for
    from dataset_maker.machinery.preprocessing import load_recording
    from evaluation.answers import choose_scoring
    from evaluation.inference import answer_table, ask, choose_channels, cut, load_model, summarize
    from model.labram import Classifier
    from model.neurolm import NeuroLM
    from training.checkpoints import find_checkpoint
    from training.padding import QUESTION_TOKENS, choose_padding
    from utils import start_run

    run = start_run(args.device, args.dtype)
    stems = [stem_of(path) for path in args.recordings]
    repeated = sorted({stem for stem in stems if stems.count(stem) > 1})
    if repeated:
        raise UserError(f"two recordings are called {', '.join(repeated)}: their answers would share a file")
    kind = NeuroLM if args.NeuroLM_path else Classifier
    path = args.NeuroLM_path or args.LaBraM_path
    path = find_checkpoint(path, "./", "--NeuroLM_path" if args.NeuroLM_path else "--LaBraM_path")
    model, questions = load_model(kind, path, args.tasks, args.window)
    model.to(run.device)
    if kind is NeuroLM:
        choose_padding(model.tokenizer, args.official_padding, QUESTION_TOKENS, run)
    elif args.official_padding is not None:
        raise UserError("--official_padding: LaBraM pads nothing, the flag is for --NeuroLM_path")
    for said in (question.said for question in questions if question.said):
        run.say(said)
    aliases = load_aliases(args.aliases) if args.aliases else None
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out_dir {args.out_dir} cannot be made: {error.strerror}") from None

    array = array_format(args)
    for recording in args.recordings:
        wanted = None if is_nameless(recording) else args.channels  # an array's channels are named, not chosen
        clean = load_recording(recording, wanted, args.notch, aliases, array=array)
        run.say(f"\n{recording}: {len(clean.channels)} channels, {clean.eeg.shape[1] / 200:.0f} s")
        for note in clean.notes:
            run.say(f"  {note}")
        for question in questions:
            task, seconds = question.task, question.seconds
            way, scored = choose_scoring(task, question.trained, args.answer_by)
            try:
                chosen, said = choose_channels(clean, None if wanted else question.channels)
                windows = cut(chosen, seconds, args.stride)
                probabilities, features = ask(model, task, windows, args.batch_size, run, way)
            except UserError as error:
                raise UserError(f"{recording}: {error}") from None
            starts = np.arange(len(windows)) * (args.stride or seconds)
            table = answer_table(task, probabilities, starts, seconds)
            stem = args.out_dir / f"{stem_of(recording)}_{task.name}"
            table.to_csv(f"{stem}.csv", index=False, float_format="%.6g")
            if args.features:
                np.savez(f"{stem}_features.npz", features=features, start=starts, channels=chosen.channels)
            run.say(f"  {task.name}, {len(windows)} windows of {seconds} s: {summarize(task, table)}")
            for sentence in filter(None, (said, scored)):
                run.say(f"  {sentence}")
    run.say(f"\nwritten to {args.out_dir}")


if __name__ == "__main__":
    errors.run(main, get_args)
