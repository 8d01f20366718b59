"""Stage 2 from files of features and codes: the same training, in half the space if wanted."""

import numpy as np
import pytest
from stages import read_metrics, reference, train, write_corpus

from errors import UserError
from model.weights import read_checkpoint
from training.checkpoints import write_checkpoint

FEW = ["--max_steps", 3, "--log_interval", 1, "--dropout", 0, "--epochs", 1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tokenizer, and three steps of stage 2 that encode every batch."""
    folder = write_corpus(tmp_path_factory.mktemp("codes"))
    train("vq", folder, folder / "reference", "--max_steps", 2)
    train("pretrain", folder, folder / "reference", *FEW)
    return folder


def cached(corpus, tmp_path, *more):
    return train("pretrain", corpus, tmp_path, *FEW, "--cache_features", tmp_path / "cache", *more)


def numbers(folder) -> list[list[float]]:
    names = ("train/eeg", "train/text", "train/eeg_accuracy", "val/eeg", "val/eeg_accuracy", "val/text")
    return [[row[name] for name in names if name in row] for row in read_metrics(folder)]


@pytest.mark.parametrize(("more", "rtol"), [([], 1e-5), (["--cache_half"], 1e-3), (["--band_power"], None)])
def test_files_give_the_losses_of_the_encoder(corpus, tmp_path, monkeypatch, capsys, more, rtol):
    expected = reference(corpus, "pretrain") if rtol else train("pretrain", corpus, tmp_path / "plain", *FEW, *more)
    capsys.readouterr()
    first = cached(corpus, tmp_path, *more)
    for ours, theirs in zip(numbers(first), numbers(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol or 1e-5)
    said = capsys.readouterr().out
    assert "still to compute" in said and ("off by 0.05 %" in said) == ("--cache_half" in more)
    files = sorted((tmp_path / "cache").glob("*/*.npy"))
    assert len(files) == 4  # two datasets, training and validation
    monkeypatch.setattr("model.vq.VQ.tokenize", None)  # nothing is left to compute
    assert numbers(cached(corpus, tmp_path, *more, "--no-resume")) == numbers(first)


def test_half_takes_half(corpus, tmp_path):
    sizes = []
    for more in ([], ["--cache_half"]):
        cached(corpus, tmp_path / str(more), *more)
        sizes.append(sum(np.load(path).nbytes for path in (tmp_path / str(more) / "cache").glob("*/*.npy")))
    assert sizes[1] / sizes[0] == pytest.approx((2 * 128 + 4) / (4 * 128 + 4))


def test_features_beyond_float16_are_refused(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("model.neurolm.NeuroLM.encode", lambda model, batch, features: features * 1e6)
    with pytest.raises(UserError, match="--cache_half: features of .* are beyond float16's 65504: leave it out"):
        cached(corpus, tmp_path, "--cache_half")


def test_codes_of_another_codebook_are_never_read(corpus, tmp_path):
    cached(corpus, tmp_path)
    other = read_checkpoint(reference(corpus, "vq") / "ckpt.pt")
    (name,) = [name for name in other["model"] if name.endswith("quantize.embedding.weight")]
    other["model"][name] = other["model"][name].flip(0)
    write_checkpoint(other, tmp_path / "other.pt")
    cached(corpus, tmp_path, "--no-resume", "--tokenizer_path", tmp_path / "other.pt")
    assert len(list((tmp_path / "cache").glob("*/*.npy"))) == 8
