"""Own recordings with own labels: a folder and a CSV, annotations inside the files, or a BIDS root.

python dataset_maker/make_custom.py --raw_dir raw/hands --out_dir datasets/hands --window 4 --labels labels.csv
python dataset_maker/make_custom.py --raw_dir raw/eegmmidb --out_dir datasets/eegmmidb --window 4 \\
    --from_annotations --classes T0=rest T1=left T2=right --split_by run
python dataset_maker/make_custom.py --raw_dir raw/ds002034 --out_dir datasets/hands --bids --window 4
python dataset_maker/make_custom.py --raw_dir raw/arrays --out_dir datasets/hands --window 4 --labels labels.csv \\
    --rate 250 --unit mV --channels C3 Cz C4

The CSV has columns file (below --raw_dir), label, and if wanted start, stop (seconds; empty: all of the file), subject,
split (train, val, test). A subject that no column names is the sub-XX in the path or the folder that holds the file; no
split tears it apart unless --split_by session or run says so, for data of a single person. An EDF of annotations only
gives --from_annotations the labels of the recording beside it that begins then and has the name most like its own.

Any format, rate and montage; windows are cut end to end, or every --stride seconds, from each labelled stretch; a mark
without duration gives one window. Arrays (.csv .csv.gz .npy .npz .mat) need --rate; --channels names the channels of
those that hold no names, all of them in order.
"""

import csv
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import errors
from dataset.channels import canonical_names, load_aliases
from dataset.hdf5 import RATE
from dataset_maker.machinery.arrays import ARRAYS, SUFFIXES, add_array_arguments, array_format, is_array, is_nameless
from dataset_maker.machinery.corpus import Recipe, arguments, make, tiles, whole
from dataset_maker.machinery.edf import part_annotations
from dataset_maker.machinery.preprocessing import read_annotations
from dataset_maker.machinery.sources import find_files, list_sources
from dataset_maker.machinery.splits import add_subject_arguments, find_subject, split_files
from errors import check_file

SPLITS = ("train", "val", "test")
NOTHING = ("", "n/a")  # a cell that says nothing, in CSV or BIDS


@dataclass
class Labels:
    """What is known of one file: labelled stretches (start s, stop s or None for the end, text); None: look inside;
    `problem`: why its labels cannot be read, which refuses it when its turn comes."""

    subject: str = ""
    split: str = ""
    stretches: list[tuple[float, float | None, str]] | None = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True)
class Windows:
    """The recipe's cut: windows of the stretches whose text is a class, end to end or every `stride` samples."""

    classes: dict[str, int]  # text: label
    window: int
    stride: int

    def __call__(self, source, clean):
        samples, rows, left = clean.eeg.shape[1], [], 0
        if source.detail.problem:
            raise errors.UserError(source.detail.problem)
        stretches = source.detail.stretches
        if stretches is None:  # MNE puts the kind of a BrainVision marker before its text
            stretches = [(start, start + length, text.rsplit("/", 1)[-1]) for start, length, text in clean.events]
        for start, stop, text in stretches:
            if text not in self.classes:
                continue
            first = round(start * RATE)
            length = samples if stop is None else round((stop - start) * RATE) or self.window  # a mark: one window
            last = min(first + length, samples)
            found = tiles(first, last, self.classes[text], self.window, self.stride) if first >= 0 else []
            rows += found
            left += not found
        notes = (f"{left} labelled stretches left out: shorter than a window, or outside",) * bool(left)
        return whole(source, clean, rows, notes)


def read_table(path, delimiter, columns) -> list[dict[str, str]]:
    """Rows of a CSV or TSV file. Raises UserError when it cannot be read or lacks a column."""
    check_file(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter, restkey="", restval="")
            rows = [{column: value.strip() for column, value in row.items() if column} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise errors.UserError(f"{path} cannot be read as a table: {error}") from None
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise errors.UserError(f"{path} has no column {', '.join(missing)}; its columns: {reader.fieldnames}")
    return rows


def seconds(path, number, row, column, default) -> float | None:
    """A time in row `number` of a table. Raises UserError when it is none."""
    text = row.get(column, "")
    try:
        time = default if text in NOTHING else float(text)
        if time is not None and not math.isfinite(time):
            raise ValueError
        return time
    except ValueError:
        raise errors.UserError(f"{path}, row {number}: {column} {text!r} is no time in seconds") from None


def files_of_table(args) -> dict[Path, Labels]:
    """The files that the CSV names, and what it says of them."""
    files = {}
    for number, row in enumerate(read_table(args.labels, ",", ("file", "label")), start=1):
        path = args.raw_dir / row["file"]
        start, stop = (seconds(args.labels, number, row, *cell) for cell in (("start", 0.0), ("stop", None)))
        known = files.setdefault(path, Labels(row.get("subject", ""), row.get("split", "")))
        outside = ".." in path.parts or Path(row["file"]).is_absolute()
        if outside or not path.name.lower().endswith(SUFFIXES + ARRAYS):
            raise errors.UserError(f"{args.labels}, row {number}: {row['file']!r} is no recording below --raw_dir")
        if (known.subject, known.split) != (row.get("subject", ""), row.get("split", "")):
            raise errors.UserError(f"{args.labels}, row {number}: {row['file']} has another subject or split above")
        if known.split not in ("", *SPLITS) or (stop is not None and stop < start):
            raise errors.UserError(f"{args.labels}, row {number}: stop before start, or split not {', '.join(SPLITS)}")
        known.stretches.append((start, stop, row["label"]))
    return files


def files_of_bids(args) -> dict[Path, Labels]:
    """A BIDS root's EEG files, with the stretches of each one's _events.tsv (none where there is no such file)."""
    files = {}
    for path in find_files(args.raw_dir, [f"_eeg{suffix}" for suffix in SUFFIXES], "sub-*/**/*_eeg.*, as BIDS has it"):
        files[path] = Labels()
        events = path.with_name(path.name.rsplit("_eeg", 1)[0] + "_events.tsv")
        try:
            files[path].stretches = read_stretches(events) if events.exists() else []
        except errors.UserError as error:
            files[path].problem = str(error)
    return files


def read_stretches(events) -> list[tuple[float, float, str]]:
    """The labelled stretches of a BIDS _events.tsv. Raises UserError when it is malformed."""
    stretches = []
    for number, row in enumerate(read_table(events, "\t", ("onset", "trial_type")), start=1):
        start, length = (seconds(events, number, row, column, 0.0) for column in ("onset", "duration"))
        stretches.append((start, start + length, row["trial_type"]))
    return stretches


def files_of_annotations(args) -> tuple[dict[Path, Labels], list[tuple[Path, str]]]:
    """All recordings, whose labels are inside or in a file of annotations beside them, and what is left out."""
    recordings, beside = part_annotations(find_files(args.raw_dir, SUFFIXES, "recordings"))
    files = {path: Labels(stretches=None) for path in recordings}
    for path, (recording, _) in beside.items():
        if recording is None:
            continue
        known = files[recording]
        if known.stretches is not None:
            known.problem = f"two files of annotations are its labels, {path.name} is one: take the other away"
        try:
            known.stretches = read_annotations(path)
        except errors.UserError as error:
            known.problem = str(error)
    return files, [(path, reason) for path, (_, reason) in beside.items()]


def choose_classes(args, files) -> dict[str, str]:
    """{text of a label: name of its class} in label order. Raises UserError when they must be named and are not."""
    if args.classes:
        return {text: name or text for text, _, name in (word.partition("=") for word in args.classes)}
    if args.from_annotations:
        path = next(iter(files))
        stretches = files[path].stretches
        stretches = read_annotations(path) if stretches is None else stretches
        texts = sorted({text for _, _, text in stretches})
        raise errors.UserError(f"--from_annotations needs --classes; {path.name} has {texts}")
    texts = {text for known in files.values() for _, _, text in known.stretches} - set(NOTHING)
    if len(texts) < 2:
        raise errors.UserError(f"labels {sorted(texts)}: at least two classes are needed")
    return {text: text for text in sorted(texts)}


def add_flags(parser):
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--labels", type=Path, help="CSV of file, start, stop, label")
    labels.add_argument("--from_annotations", action="store_true", help="labels are annotations inside the files")
    labels.add_argument("--bids", action="store_true", help="--raw_dir is a BIDS root with _events.tsv files")
    parser.add_argument("--classes", nargs="+", help="labels to use, in order, each TEXT or TEXT=NAME (default: all)")
    parser.add_argument("--window", type=int, required=True, help="seconds of a window")
    parser.add_argument("--stride", type=int, help="seconds from window to window (default: --window)")
    parser.add_argument("--channels", nargs="+", help="names of the table, in order (default: all that a file has)")
    add_array_arguments(parser)
    parser.add_argument("--aliases", type=Path, help="YAML file of channel names and their places, 'E22: FP1'")
    parser.add_argument("--name", help="of the dataset (default: that of --out_dir)")
    parser.add_argument("--val_fraction", type=float, default=0.2, help="share of the subjects")
    parser.add_argument("--test_fraction", type=float, default=0.2, help="share of the subjects")
    add_subject_arguments(parser)


get_args = arguments(__doc__, 50.0, add_flags)


def main(args):
    excluded, array = [], array_format(args)
    if args.labels:
        files = files_of_table(args)
        if not array and any(map(is_array, files)):
            raise errors.UserError(f"{args.labels} names arrays, which do not say their rate: give --rate")
        found = find_files(args.raw_dir, SUFFIXES + ARRAYS * bool(array), "recordings")
        others = set(found) - {args.labels, *files}
        excluded = [(path, f"not in {args.labels.name}") for path in found if path in others]
    elif args.bids:
        files = files_of_bids(args)
    else:
        files, excluded = files_of_annotations(args)
    classes = choose_classes(args, files)
    for path, known in files.items():
        known.subject = known.subject or find_subject(path, args.raw_dir, args.subject)
    given, rule, shares = {known.split for known in files.values()}, "as given", None
    if given == {""}:
        shares = {"val": args.val_fraction, "test": args.test_fraction}
        rule = f"{args.val_fraction:g} val, {args.test_fraction:g} test"
        shares["train"] = 1 - sum(shares.values())
    elif "" in given:
        raise errors.UserError(f"{args.labels}: some files have a split and others have none; give all or none")
    for path, split in split_files(args, {path: known.subject for path, known in files.items()}, shares).items():
        files[path].split = split
    paths = sorted(files, key=lambda path: path.relative_to(args.raw_dir).as_posix())
    known = [files[path] for path in paths]
    sources = list_sources(paths, args.raw_dir, [one.subject for one in known], [one.split for one in known], known)
    stride = args.stride or args.window
    if min(args.window, stride) < 1:
        raise errors.UserError(f"--window {args.window} --stride {stride}: both are whole seconds, 1 at least")
    labels = tuple(dict.fromkeys(classes.values()))  # several texts may name one class
    windows = Windows({text: labels.index(name) for text, name in classes.items()}, args.window * RATE, stride * RATE)
    chosen = args.channels and not all(map(is_nameless, files))  # of nameless arrays they name, not choose
    about = {"array": vars(array) | {"channels": args.channels}} if array else {}
    about |= {"unit": args.unit} if args.unit else {}
    recipe = Recipe(
        args.name or args.out_dir.resolve().name,
        f"by {args.split_by}, {rule}",
        labels=labels,
        channels=canonical_names(args.channels, "--channels: ") if chosen else None,
        cut=windows,
        reader={"min_seconds": args.window, "aliases": args.aliases and load_aliases(args.aliases), "array": array}
        | {"unit": args.unit},
        parameters=about | {"window": args.window, "stride": stride, "classes": classes},
        split_by=args.split_by,
    )
    make(args, recipe, sources, excluded)


if __name__ == "__main__":
    errors.run(main, get_args)
