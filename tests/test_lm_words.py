"""--lm's tokenizer: any kind, kept in bytes; files that say whose tokens they hold; answers in its words."""

import pickle

import numpy as np
import pytest
from hf_models import byte_level, many_words, prepare_text, save_lm, unigrams, word_pieces

from dataset.tasks import TASKS, Task
from dataset.text import open_text
from dataset.vocabulary import Vocabulary, read_vocabulary
from errors import UserError


@pytest.mark.parametrize("tokenizer", [byte_level, word_pieces, unigrams])
def test_tasks_in_the_words_of_any_tokenizer(tokenizer, tmp_path):
    words = pickle.loads(pickle.dumps(read_vocabulary(str(save_lm(tmp_path, tokenizer=tokenizer)))))  # to a data worker
    forged = f"slow {words.about()['end_token']} fast"
    assert words.end not in words.encode(forged) and words.encode(forged) == words.encode_batch([forged], 1)[0]
    assert max(words.encode(forged)) < words.separator == words.vocab
    for task in (Task("x", "Which rhythm is this?", ("slow", "fast")), TASKS["TUAB"], TASKS["TUSL"]):
        prompt, options = task.prompt(words), task.options(words)
        assert prompt[0] == words.separator and words.end not in prompt
        assert all(option[-1] == words.end and len(option) > 1 for option in options)
        tokens, supervised = task.encode(words, 1)
        assert tokens == prompt + options[1] and tokens[supervised[-1] + 1] == words.end
        assert [task.parse(words.decode(option[:-1])) for option in options] == list(range(task.n_classes))


def test_answers_that_a_tokenizer_cannot_tell_apart_are_refused(tmp_path):
    words = read_vocabulary(str(save_lm(tmp_path, tokenizer=word_pieces)))
    with pytest.raises(UserError, match="task x: .* reads two of its answers as the same"):
        Task("x", "Which?", ("\u65e5", "\u672c")).options(words)  # it has no such characters


def test_a_large_vocabulary_takes_wider_files(tmp_path):
    lm = save_lm(tmp_path / "large", "Llama", many_words)
    prepare_text(tmp_path, lm, tmp_path / "text")
    words = read_vocabulary(str(lm))
    text = open_text(tmp_path / "text", "train", 32, words)
    assert text.tokens.dtype == np.uint32 and words.vocab > 70_000
    assert "is slow" in words.decode(text.tokens[:40]) and words.end in text.tokens
    assert words.encode("w69999") == [70_001]
    path = tmp_path / "text" / "train.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="no whole number of uint32 tokens"):
        open_text(tmp_path / "text", "train", 32, words)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    save_lm(tmp_path, tokenizer=lambda: (byte_level()[0], {}))
    with pytest.raises(UserError, match="names no token that ends a document"):
        read_vocabulary(str(tmp_path))


def test_damaged_words_are_refused(tmp_path):
    with pytest.raises(UserError, match="the tokenizer of x is damaged"):
        Vocabulary("x", b"damaged")
    (tmp_path / "train.bin").write_bytes(b"\xff\xffTOKENS {\n" + b"0" * 400)
    with pytest.raises(UserError, match="its first line does not say whose tokens these are"):
        open_text(tmp_path, "train", 32)
    with pytest.raises(UserError, match="--lm_revision v1 is of a name on the hub: leave it out"):
        read_vocabulary(str(tmp_path), "v1")
