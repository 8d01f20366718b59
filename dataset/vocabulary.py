"""The tokenizer of any language model of transformers, kept as bytes that travel with the model's checkpoints."""

import functools
import hashlib
import json
import zlib
from pathlib import Path

from errors import UserError, described


class Vocabulary:
    """The tokenizer in `stored`, of `read_vocabulary`, with what `Tokenizer` has; special tokens are never made from
    text, so no input can forge them. It travels to data workers."""

    def __init__(self, name: str, stored: bytes):
        """name: of its language model. Raises UserError for bytes that hold no tokenizer."""
        import tokenizers  # needed with --lm alone

        self.name, self.stored = name, stored
        try:
            content = zlib.decompress(stored)
            about = json.loads(content)
            self.end, self._backend = about["end"], tokenizers.Tokenizer.from_str(about["tokenizer"])
            self.separator = self.vocab = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
            if not 0 <= self.end < self.vocab:
                raise ValueError(f"its end token is {self.end}, it has {self.vocab}")
        except Exception as error:  # tokenizers raises bare ones
            raise UserError(f"the tokenizer of {name} is damaged ({described(error)})") from None
        self._backend.encode_special_tokens = True
        self.sha256 = hashlib.sha256(content).hexdigest()

    def __reduce__(self):
        return Vocabulary, (self.name, self.stored)

    def about(self) -> dict:
        """What checkpoints say of it."""
        end = self._backend.id_to_token(self.end)
        return {"sha256": self.sha256, "end": self.end, "end_token": end, "separator": self.separator}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, none of which is the end token."""
        return [i for i in self._backend.encode(text, add_special_tokens=False).ids if i != self.end]

    def encode_batch(self, texts: list[str], threads: int) -> list[list[int]]:
        """Ids of each text; tokenizers chooses its threads."""
        found = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [[i for i in row.ids if i != self.end] for row in found]

    def decode(self, ids) -> str:
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)


@functools.cache
def read_vocabulary(name: str, revision: str | None = None) -> Vocabulary:
    """The tokenizer of the language model in a folder, or called `name` on the hub. Raises UserError where it cannot be
    had, and where it is slow (of Python) or names no token that ends a document."""
    from transformers import AutoTokenizer

    if revision and Path(name).is_dir():
        raise UserError(f"--lm {name} is a folder, --lm_revision {revision} is of a name on the hub: leave it out")
    try:
        found = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        backend, end = found.backend_tokenizer, found.eos_token_id
        if end is None:
            raise ValueError("it names no token that ends a document: give its tokenizer_config.json an eos_token")
        backend.no_truncation()
        backend.no_padding()
        content = json.dumps({"end": end, "tokenizer": backend.to_str()})
    except Exception as error:  # the hub and damaged files fail in many ways
        raise UserError(f"--lm {name}: its tokenizer cannot be used ({described(error)})") from None
    return Vocabulary(name, zlib.compress(content.encode()))
