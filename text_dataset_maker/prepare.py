"""Turn English text into GPT-2 tokens: `train.bin` and `val.bin`, uint16, the end token after each document. With --lm
into those of another language model, uint32 where needed, under a line that says whose they are.

    python text_dataset_maker/prepare.py --source stdlib --out_dir text                        # no download
    python text_dataset_maker/prepare.py --source files --files books notes.md --out_dir text  # .txt and .md files
    python text_dataset_maker/prepare.py --source openwebtext --out_dir text --num_proc 16  # the papers' text, 54 GB
    python text_dataset_maker/prepare.py --source stdlib --out_dir text-qwen --lm Qwen/Qwen3-0.6B

OpenWebText is split as published: 0.0005 of its documents, drawn with seed 2357, are for validation. Files and
Python's help topics (stdlib) are cut at blank lines into passages of about PASSAGE characters, each of them a document;
no passage is in both parts.
"""

import argparse
import os
import pydoc_data.topics
import re
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset.text import file_header, load_tokenizer
from dataset.vocabulary import read_vocabulary
from errors import UserError, check_file, run
from training.numbers import Help

PASSAGE = 4000  # characters, about 1000 tokens
SMALL_VAL = 16384  # characters: a small text gives at least this to validation, or a tenth of itself
BATCH = 256  # documents tokenized at once


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--source", choices=("openwebtext", "files", "stdlib"), required=True, help="of the text")
    parser.add_argument("--files", nargs="+", metavar="PATH", help=".txt and .md files, or folders of them")
    parser.add_argument("--out_dir", required=True, help="folder for train.bin and val.bin (a trainer's --text_dir)")
    parser.add_argument("--lm", help="whose tokenizer: a folder of transformers or a name on the hub; default: GPT-2")
    parser.add_argument("--lm_revision", help="branch, tag or commit of that on the hub")
    parser.add_argument("--val_fraction", type=float, help="default: 0.0005 for openwebtext, else 0.01")
    parser.add_argument("--seed", type=int, default=2357, help="of the draw for validation")
    parser.add_argument(
        "--num_proc", type=int, default=os.cpu_count(), help="processes to download, threads to tokenize"
    )
    parser.add_argument("--overwrite", action=argparse.BooleanOptionalAction, default=False, help="of both files")
    return parser.parse_args(argv)


def main(args):
    paths = {split: Path(args.out_dir) / f"{split}.bin" for split in ("train", "val")}
    check_args(args, paths)
    tokenizer = read_vocabulary(args.lm, args.lm_revision) if args.lm else load_tokenizer()
    fraction = args.val_fraction or (0.0005 if args.source == "openwebtext" else 0.01)
    if args.source == "openwebtext":
        splits = load_openwebtext(fraction, args.seed, args.num_proc)
    else:
        texts = read_files(args.files) if args.source == "files" else pydoc_data.topics.topics.values()
        splits = split_passages([passage for text in texts for passage in cut_passages(text)], fraction, args.seed)

    written, counts = {split: path.with_suffix(".bin.tmp") for split, path in paths.items()}, {}
    try:
        paths["train"].parent.mkdir(parents=True, exist_ok=True)
        for split, documents in splits.items():
            counts[split] = write_tokens(written[split], documents, tokenizer, args.num_proc, split)
        for split, path in paths.items():
            os.replace(written[split], path)
    except OSError as error:
        raise UserError(f"--out_dir {args.out_dir} cannot be written: {error}") from error
    finally:
        for path in written.values():
            path.unlink(missing_ok=True)
    for split, path in paths.items():
        print(f"{path}: {len(splits[split]):,} documents, {counts[split]:,} tokens")


def check_args(args, paths):
    """Raise UserError for flags that contradict one another and for files that would be lost."""
    if (args.source == "files") != bool(args.files):
        raise UserError("--files PATH... goes with --source files, and only with it")
    if args.val_fraction is not None and not 0 < args.val_fraction < 1:
        raise UserError(f"--val_fraction is {args.val_fraction}, must be between 0 and 1")
    for path in paths.values():
        if path.exists() and not args.overwrite:
            raise UserError(f"{path} exists: give --overwrite to replace it, or another --out_dir")


def load_openwebtext(fraction, seed, num_proc):
    """OpenWebText from the Hugging Face hub or its local cache: {"train", "val"} of batched texts."""
    import datasets  # slow to import, and needed for this source alone

    try:
        loaded = datasets.load_dataset("Skylion007/openwebtext", split="train", num_proc=num_proc)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"OpenWebText cannot be loaded ({error}): connect this machine, or take --source files or --source stdlib"
        ) from error
    parts = loaded.train_test_split(test_size=fraction, seed=seed, shuffle=True)
    return {"train": parts["train"]["text"], "val": parts["test"]["text"]}


def read_files(given):
    """Texts of all .txt and .md files in the paths given, folders searched to any depth, in sorted order."""
    paths = {}
    for path in map(Path, given):
        found = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md")) if path.is_dir() else [path]
        if not found:
            raise UserError(f"--files {path}: the folder holds no .txt or .md file")
        paths |= {p.resolve(): p for p in found}
    texts = []
    for path in paths.values():
        check_file(path)
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--files {path}: no readable UTF-8 text ({error})") from error
    return texts


def cut_passages(text):
    """Whole paragraphs gathered into passages of at least PASSAGE characters; the last may be shorter."""
    passages, passage = [], ""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        passage += ("\n\n" if passage else "") + paragraph
        if len(passage) >= PASSAGE:
            passages.append(passage)
            passage = ""
    return passages + [passage] if passage else passages


def split_passages(passages, fraction, seed):
    """{"train", "val"} of distinct passages: a seeded draw gives val its share of the characters, never everything."""
    passages = list(dict.fromkeys(passage for passage in passages if passage.strip()))
    if len(passages) < 2:
        raise UserError(
            f"the text gives {len(passages)} passages of about {PASSAGE} characters, two are needed: add text"
        )
    sizes = np.array([len(passage) for passage in passages])
    order = np.random.default_rng(seed).permutation(len(passages))
    wanted = max(fraction * sizes.sum(), min(SMALL_VAL, sizes.sum() / 10))
    n_val = min(1 + np.searchsorted(sizes[order].cumsum(), wanted), len(passages) - 1)
    return {
        "train": [passages[i] for i in sorted(order[n_val:])],
        "val": [passages[i] for i in sorted(order[:n_val])],
    }


def write_tokens(path, documents, tokenizer, threads, split):
    """Write the documents' tokens to `path` and flush them to disk; returns how many there are."""
    count, (header, dtype) = 0, file_header(tokenizer)
    with open(path, "wb") as file, tqdm(total=len(documents), desc=split, unit="documents") as bar:
        file.write(header)
        for first in range(0, len(documents), BATCH):
            batch = tokenizer.encode_batch(documents[first : first + BATCH], threads)
            tokens = np.array([token for ids in batch for token in (*ids, tokenizer.end)], dtype=dtype)
            file.write(tokens.tobytes())
            count += len(tokens)
            bar.update(len(batch))
        file.flush()
        os.fsync(file.fileno())
    return count


if __name__ == "__main__":
    run(main, get_args)
