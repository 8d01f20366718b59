"""--official_padding: the official encoder's numbers on official checkpoints, kept by checkpoints of our own."""

import csv
from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml
from small_models import make_vq, samples
from stages import TASK, reference, train, write_corpus
from test_golden import Reference
from test_invariance import padded
from test_recordings import COLUMNS, write_h5
from torch.testing import assert_close
from toy_eeg import write_toy

import predict
import train_instruction
from dataset.batches import collate_eeg
from dataset.channels import STANDARD_1020
from dataset_maker.machinery.preprocessing import CleanEEG
from errors import UserError
from model.neural_transformer import NTConfig
from model.neurolm import NeuroLM
from model.weights import read_checkpoint
from training.checkpoints import write_checkpoint
from training.padding import QUESTION_TOKENS, choose_padding
from utils import start_run

PARTS = ("x", "chans", "time", "valid")
TAGS = pytest.mark.parametrize(("more", "tag"), [(["--official_padding"], "padded"), ([], "full")])


@pytest.fixture(scope="module")
def official(golden, tmp_path_factory):
    """The reference; a folder with its EEG as the test set of a task, and a checkpoint with the official keys only."""
    reference, folder = Reference(golden), tmp_path_factory.mktemp("official")
    torch.manual_seed(0)
    model = NeuroLM.from_size("tiny", NTConfig(**reference.cases["encoder"]), 8)
    model.tokenizer.load_state_dict(reference.vq().VQ.encoder.state_dict())
    about = {"model_args": asdict(model.GPT2.config) | {"vocab_size": 50257}, "iter_num": 1, "epoch": 0}
    write_checkpoint({"model": model.state_dict(), **about}, folder / "released.pt")
    channels, seconds = reference.cases["channels"], reference.cases["seconds"]
    rows = []
    for i, x in enumerate(reference.eeg("full")["x"].numpy()):
        eeg = x.reshape(seconds, len(channels), 200).swapaxes(0, 1).reshape(len(channels), -1) * np.float32(100)
        write_h5(folder / "Toy" / "test" / f"r{i}.h5", eeg, names=channels, rows=[(0, 200 * seconds, i % 2)])
        rows.append((f"r{i}", "test", f"s{i}", " ".join(channels), seconds, 1, "1 0" if i % 2 == 0 else "0 1", "x"))
    with open(folder / "Toy" / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    about = {"name": "Toy", "labels": ["slow", "fast"], "rate": 200}
    (folder / "Toy" / "dataset.yaml").write_text(yaml.safe_dump(about))
    (folder / "task.yaml").write_text(TASK.replace("data/Toy", "Toy"))
    yield reference, folder
    (folder / "released.pt").unlink()  # 0.1 GB


@TAGS
def test_evaluating_an_official_checkpoint(official, tmp_path, monkeypatch, more, tag):
    """The features are taken from the files of --cache_features, which both ways of padding share."""
    reference, folder = official
    monkeypatch.setattr(train_instruction, "QUESTION_TOKENS", reference.cases["padded_length"])
    cache = folder / "cache"
    before = set(cache.glob("*/*.npy"))
    words = ["--eval_only", "--tasks", folder / "task.yaml", "--NeuroLM_path", folder / "released.pt", "--size", "tiny"]
    words += ["--out_dir", tmp_path, "--device", "cpu", "--num_workers", 0, "--cache_features", cache, *more]
    train_instruction.main(train_instruction.get_args([*map(str, words)]))
    (path,) = set(cache.glob("*/*.npy")) - before
    features = torch.from_numpy(np.load(path)["features"]).view(reference.batch, reference.n, -1)
    reference.check(f"vq/{tag}/encoder_features", features)


@TAGS
def test_predicting_with_an_official_checkpoint(official, tmp_path, monkeypatch, more, tag):
    reference, folder = official
    monkeypatch.setattr("training.padding.QUESTION_TOKENS", reference.cases["padded_length"])
    channels, seconds = reference.cases["channels"], reference.cases["seconds"]
    x = reference.eeg("full")["x"].numpy()  # the windows of one recording, one after another
    eeg = x.reshape(-1, len(channels), 200).swapaxes(0, 1).reshape(len(channels), -1) * np.float32(100)
    clean = CleanEEG(tuple(channels), eeg, 0.1, 75.0, 50.0, (), ())
    monkeypatch.setattr("dataset_maker.machinery.preprocessing.load_recording", lambda *about, **more: clean)
    words = ["r.edf", "--NeuroLM_path", folder / "released.pt", "--tasks", "TUAB", "--untrained", "--window", seconds]
    predict.main(predict.get_args([*map(str, words), "--out_dir", str(tmp_path), "--device", "cpu", *more]))
    with np.load(tmp_path / "r_TUAB_features.npz") as saved:
        expected = reference.arrays[f"vq/{tag}/encoder_features"].mean(1)
        np.testing.assert_allclose(saved["features"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [28, 29, 276])
def test_alone_and_in_a_batch_as_if_filled_with_zeros(length):
    """Numbers and gradients of the encoder are those of a batch that is really filled, whatever pads the batch."""
    encoder, batch = make_vq().VQ.encoder, collate_eeg(samples()[:2])
    filled = padded(batch, length - batch["x"].size(1))
    filled["x"][~filled["valid"]] = 0
    encoder.patch_embed.norm_over_padding = True
    expected = encoder(*(filled[part] for part in PARTS))
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0)) * filled["valid"][..., None]
    trained = list(encoder.parameters())
    gradients = torch.autograd.grad((expected * weight).sum(), trained)

    encoder.pad_windows(length)
    noisy = padded(batch, min(5, length - batch["x"].size(1)))
    n = noisy["x"].size(1)
    seen = encoder(*(noisy[part] for part in PARTS))
    assert_close(seen[noisy["valid"]], expected[filled["valid"]], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad((seen * weight[:, :n]).sum(), trained), gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(1 + theirs.abs().max()))
    alone = collate_eeg(samples()[1:2])
    assert alone["valid"] is None
    assert_close(encoder(*(alone[part] for part in PARTS))[0], seen[1][noisy["valid"][1]], rtol=1e-4, atol=1e-5)
    encoder.pad_windows(0)
    assert (encoder(*(alone[part] for part in PARTS))[0] - seen[1][noisy["valid"][1]]).abs().max() > 0.01


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three stages, of which only the first was told of the padding."""
    folder = write_corpus(tmp_path_factory.mktemp("padding"))
    for stage, more in (("vq", ["--official_padding"]), ("pretrain", []), ("instruction", [])):
        train(stage, folder, folder / "reference", "--max_steps", 2, *more)
    return folder


def padding(path):
    config = read_checkpoint(path)["encoder_args"]
    return config["norm_over_padding"], config["padded_length"]


def test_the_stages_after_it_follow(corpus):
    made = corpus / "reference" / "checkpoints"
    assert padding(made / "VQ" / "ckpt.pt") == padding(made / "NeuroLM-tiny" / "ckpt.pt") == (True, 32)
    best = made / "instruction-tiny" / "ckpt-best.pt"
    assert padding(best) == (True, QUESTION_TOKENS) and QUESTION_TOKENS == 276
    model, batch = NeuroLM.load(best), collate_eeg(samples()[:2])
    filled = padded(batch, 276 - batch["x"].size(1))
    filled["x"][~filled["valid"]] = 0
    model.tokenizer.eval().patch_embed.padded_length = 0
    with torch.no_grad():
        expected = model.tokenizer(*(filled[part] for part in PARTS))[filled["valid"]]
        assert_close(NeuroLM.load(best).encode(batch)[batch["valid"]], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", ["instruction", "pretrain", "vq"])  # the last first: each starts from the one before
def test_a_run_goes_on_as_it_began(corpus, stage):
    path = reference(corpus, stage) / "ckpt.pt"
    kept = padding(path)
    with pytest.raises(UserError, match=r"^--no-official_padding: the run of .*ckpt\.pt began with it: .*--no-resume"):
        train(stage, corpus, corpus / "reference", "--no-official_padding", "--max_steps", 3)
    train(stage, corpus, corpus / "reference", "--max_steps", 3)
    assert read_checkpoint(path)["iter_num"] == 3 and padding(path) == kept and kept[0]


def test_the_run_that_goes_on_decides_then_the_flag_then_the_stage_before(corpus, tmp_path):
    encoder, run, newest = make_vq().VQ.encoder, start_run("cpu"), reference(corpus, "instruction") / "ckpt.pt"
    official = tmp_path / "official.pt"  # which does not say
    write_checkpoint({"model": {}, "model_args": {}}, official)
    for before, wanted, going_on, expected in (
        (False, None, newest, True), (True, None, None, True), (False, None, None, False), (True, False, None, False),
        (False, True, official, True), (True, None, official, True),
    ):  # fmt: skip
        encoder.pad_windows(99 if before else 0)
        assert choose_padding(encoder, wanted, 276, run, going_on) is expected
        assert encoder.config.padded_length == encoder.patch_embed.padded_length == (276 if expected else 0)
        assert encoder.config.norm_over_padding is encoder.patch_embed.norm_over_padding is expected


def test_windows_that_are_too_long_are_refused_before_the_training(refused, tmp_path):
    write_toy(tmp_path / "Wide", STANDARD_1020[:70], 8, [(split, 1) for split in ("train", "val", "test")], window=4)
    path = tmp_path / "wide.yaml"
    path.write_text(TASK.replace("data/Toy", "Wide").replace("Toy", "Wide"))
    words = ("a window of task Wide", "280 EEG tokens", "276", "fewer channels or shorter windows")
    refused("instruction", ["--official_padding", "--tasks", path], *words)


def test_a_window_that_is_too_long_is_refused_by_the_encoder():
    encoder = make_vq().VQ.encoder
    encoder.pad_windows(8)
    with pytest.raises(UserError, match="a window has 12 EEG tokens .*, more than the 8 to which"):
        encoder(*(collate_eeg(samples()[:1])[part] for part in PARTS))
