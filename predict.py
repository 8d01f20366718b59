"""Ask a trained model about recordings: for every window the answers with their probabilities, and features.

python predict.py my_recording.edf --NeuroLM_path checkpoints/instruction-B/ckpt-best.pt
python predict.py recordings/ bids_root/ 'more/*.vhdr' --LaBraM_path runs/TUAB/checkpoint-best.pth --out_dir answers
python predict.py a.edf --NeuroLM_path NeuroLM-B.pt --tasks TUAB my_task.yaml --window 10 --untrained
python predict.py my_array.npy --rate 250 --channels C3 Cz C4 --NeuroLM_path NeuroLM-B.pt --tasks my_task.yaml

Asks the questions that the model was trained on, over windows of the same length and channels. For each recording and
task it writes <out_dir>/<recording>_<task>.csv (start, stop, answer, probability of each), .json (what it was made of,
and the sums), .png (probabilities above the EEG) and _features.npz; and summary.csv over all of them. Nothing is ever
overwritten: a name that is taken gets a number. A recording that cannot be used is reported; then the exit status is 3.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

import errors
from dataset.channels import load_aliases
from dataset_maker.machinery.arrays import ARRAYS, SUFFIXES, add_array_arguments, array_format, is_nameless
from errors import UserError
from evaluation.metrics import ANSWERING
from training.numbers import Help, nonnegative, positive


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    switch, group = argparse.BooleanOptionalAction, parser.add_argument_group
    what = f"raw files ({' '.join(SUFFIXES + ARRAYS)}), folders, BIDS roots, 'patterns*'"
    parser.add_argument("recordings", nargs="+", help=what)
    models = group("model")
    model, flag = models.add_mutually_exclusive_group(required=True), models.add_argument
    model.add_argument("--NeuroLM_path", help="checkpoint of train_instruction.py, or a released NeuroLM")
    model.add_argument("--LaBraM_path", help="checkpoint of run_class_finetuning.py")
    flag("--tasks", nargs="+", help="names, or YAML files of own ones; default: those the model was trained on")
    flag("--untrained", action=switch, default=False, help="ask also what the model was never trained on")
    recording = group("recording")
    flag = recording.add_argument
    flag("--window", type=positive, help="seconds; default: as in the training")
    flag("--stride", type=nonnegative, help="seconds from window to window; default: end to end")
    flag("--notch", type=nonnegative, help="mains frequency in Hz where it was recorded, 0: none; default: as in the "
         "training, or 50 where its checkpoint does not say")  # fmt: skip
    flag("--channels", nargs="+", help="names of the table to use (default: those of the training); all of an array")
    add_array_arguments(recording)
    flag("--aliases", type=Path, help="YAML file of channel names and their places, 'E22: FP1'")
    flag = group("answers").add_argument
    flag("--out_dir", type=Path, default=Path("answers"), help="folder")
    flag("--answer_by", choices=ANSWERING, default="score", help="most likely answer (per token where a task is not of "
         "the training and its answers differ in length), one way for all, or freely written")  # fmt: skip
    flag("--features", action=switch, default=True, help="write the features of each window")
    flag("--figure", action=switch, default=True, help="draw the answers of each recording above its EEG")
    flag = group("run").add_argument
    flag("--official_padding", action=switch, help="GroupNorm over windows filled with zeros to 276 tokens, "
         "as officially; default: as in the training")  # fmt: skip
    flag("--batch_size", type=positive, default=64, help="windows answered at once")
    flag("--device", default="auto", help="auto, cpu, cuda, mps")
    flag("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of the arithmetic")
    return parser.parse_args(argv)


def main(args):
    # here: PyTorch and MNE take seconds to import, which --help and a mistyped flag need not wait for
    from dataset.windows import RATE
    from dataset_maker.machinery.corpus import SOME_REFUSED
    from dataset_maker.machinery.preprocessing import load_recording
    from evaluation.inference import UNTRAINED, answer_table, ask_all, cut, group_questions, load_model, summarize
    from evaluation.predictions import describe, find_recordings, summary_row, write_answers, write_summary
    from evaluation.reading import stored_filters
    from model.labram import Classifier
    from model.neurolm import NeuroLM
    from model.weights import read_checkpoint
    from training.checkpoints import find_checkpoint
    from training.padding import QUESTION_TOKENS, choose_padding
    from utils import start_run

    # ---------------------------------------------------------------------------------------------------------- run
    run = start_run(args.device, args.dtype)
    array = array_format(args)
    recordings = find_recordings(args.recordings, SUFFIXES + ARRAYS * bool(array))
    aliases = load_aliases(args.aliases) if args.aliases else None

    # -------------------------------------------------------------------------------------------------------- model
    kind = NeuroLM if args.NeuroLM_path else Classifier
    path = args.NeuroLM_path or args.LaBraM_path
    path = find_checkpoint(path, "./", "--NeuroLM_path" if args.NeuroLM_path else "--LaBraM_path")
    model, questions = load_model(kind, path, args.tasks, args.window)
    new = [question.task.name for question in questions if not question.trained]
    if new and not args.untrained:
        raise UserError(f"{path} does not say that it was trained on {', '.join(new)}: --untrained asks all the same")
    model.to(run.device)
    if kind is NeuroLM:
        choose_padding(model.tokenizer, args.official_padding, QUESTION_TOKENS, run)
    elif args.official_padding is not None:
        raise UserError("--official_padding: LaBraM pads nothing, the flag is for --NeuroLM_path")
    band, notch, unsure = stored_filters(read_checkpoint(path, whole=False), path)
    said = [question.said for question in questions] + [unsure if args.notch is None else ""]
    said += [f"{name}: {UNTRAINED}" for name in new]
    for sentence in filter(None, said):
        run.say(sentence)
    try:
        args.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out_dir {args.out_dir} cannot be made: {error.strerror}") from None

    # --------------------------------------------------------------------------------------------------- recordings
    cleaning = {"array": array, "unit": args.unit, "band": band, "scratch": args.out_dir}
    rows, refused = [], []
    for number, (recording, place) in enumerate(recordings.items(), start=1):
        bar = partial(tqdm, desc=f"{number}/{len(recordings)} {recording.name}", leave=False, disable=None)
        wanted = None if is_nameless(recording) else args.channels  # an array's channels are named, not chosen
        try:
            hum = notch if args.notch is None else args.notch
            clean = load_recording(recording, wanted, hum, aliases, **cleaning, progress=partial(bar, unit="block"))
            run.say(f"\n{recording}: {len(clean.channels)} channels, {clean.eeg.shape[1] / RATE:.0f} s")
            for note in clean.notes:
                run.say(f"  {note}")
            for channels, seconds, asked in group_questions(clean, questions, wanted, args.answer_by, model):
                windows = cut(clean, seconds, args.stride, channels)
                ways = [(question.task, way) for question, way, _ in asked]
                found, features = ask_all(model, ways, windows, args.batch_size, run, partial(bar, unit="batch"))
                starts = np.array(windows.starts) / RATE
                for (question, way, notes), probabilities in zip(asked, found, strict=True):
                    task, table = question.task, answer_table(question.task, probabilities, starts, seconds)
                    about = {"recording": str(recording), "model": str(path), **describe(question, table)}
                    about |= {"stride": args.stride or seconds, "channels": channels, "answer_by": way}
                    about |= {"band": [clean.low, clean.high], "notch": clean.notch, "notes": [*clean.notes, *notes]}
                    stem = args.out_dir / place.with_name(f"{place.name}_{task.name}")
                    stem = write_answers(stem, table, about, features if args.features else None, starts)
                    if args.figure:
                        from evaluation.figures import plot_answers  # matplotlib takes a second to import

                        title = "\n".join([f"{recording.name}: {task.question}", *about["warnings"]])
                        plot_answers(table, task.answers, clean.eeg, channels, windows.places, f"{stem}.png", title)
                    run.say(f"  {task.name}, {len(windows)} windows of {seconds} s: {summarize(task, table)}")
                    for sentence in notes:
                        run.say(f"  {sentence}")
                    rows.append(summary_row(about))
        except UserError as error:
            refused.append(f"{recording}: {str(error).removeprefix(f'{recording}: ')}")
            rows.append({"recording": str(recording), "refused": refused[-1].removeprefix(f"{recording}: ")})
            run.say(f"\nrefused: {refused[-1]}")

    # ------------------------------------------------------------------------------------------------------ summary
    if len(refused) == len(recordings):
        raise UserError(refused[0] + f" (and none of the other {len(refused) - 1} could be used)" * (len(refused) > 1))
    summary, text = write_summary(rows, args.out_dir)
    run.say(f"\n{text}\n\nwritten to {args.out_dir}, the summary to {summary}")
    if refused:
        sys.exit(SOME_REFUSED)


if __name__ == "__main__":
    errors.run(main, get_args)
