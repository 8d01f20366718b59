"""From raw EDF to a table of answers: makers and stages as a user runs them, as one process and as two."""

import json
import math
import shutil

import pandas as pd
import pytest
import torch
from processes import run_processes
from raw_files import run_maker, write_text
from torch.testing import assert_close

import train_instruction
import train_pretrain
import train_vq
from dataset_maker import make_h5dataset_for_pretrain, make_Workload, simulate
from model.weights import read_checkpoint

pytestmark = pytest.mark.e2e

STEPS = 4
STAGES = {
    "VQ": (train_vq, "batch_size", {"encoder_args", "decoder_args"}),
    "NeuroLM-tiny": (train_pretrain, "eeg_batch_size", {"model_args"}),
    "instruction-tiny": (train_instruction, "eeg_batch_size", {"model_args"}),
}
OFFICIAL = {"model", "optimizer", "iter_num", "epoch"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Workload of four subjects, an unlabelled corpus of four montages, and text, all made by their scripts."""
    corpus = tmp_path_factory.mktemp("corpus")
    simulate.simulate("Workload", corpus / "raw" / "Workload", subjects=4, seconds=60)
    simulate.simulate("pretrain", corpus / "raw" / "pretrain", subjects=4, seconds=20)
    for here, there in (("02", "26"), ("03", "31")):  # of train, to val and test
        for run in (1, 2):
            (corpus / f"raw/Workload/Subject{here}_{run}.edf").rename(corpus / f"raw/Workload/Subject{there}_{run}.edf")
    for name, maker, more in (
        ("Workload", make_Workload, ()),
        ("pretrain", make_h5dataset_for_pretrain, ("--val_fraction", 0.3)),
    ):
        raw, out = corpus / "raw" / name, corpus / "data" / name
        run_maker(maker, "--raw_dir", raw, "--out_dir", out, "--workers", 1, *more)
    write_text(corpus / "text")
    return corpus


def flags(name, corpus, out_dir, nproc=1):
    """A stage of few steps with a global batch of 4 windows and 2 texts, after the stage before it in `corpus`/one."""
    before = corpus / "one" / "checkpoints"
    words = ["--size", "tiny", "--dataset_dir", corpus / "data", "--out_dir", out_dir, "--text_dir", corpus / "text"]
    words += ["--device", "cpu", "--max_steps", STEPS, "--block_size", 128, "--log_interval", 1, "--num_workers", 0]
    words += [f"--{STAGES[name][1]}", 4 // nproc, "--text_batch_size", 2 // nproc, "--warmup_epochs", 0]
    words += ["--tokenizer_path", before / "VQ" / "ckpt.pt"] * (name == "NeuroLM-tiny")
    words += ["--NeuroLM_path", before / "NeuroLM-tiny" / "ckpt.pt"] * (name == "instruction-tiny")
    return list(map(str, words))


@pytest.fixture(scope="module")
def one(corpus):
    """The three stages in this process -> the folder of their checkpoints."""
    for name, (script, *_) in STAGES.items():
        script.main(script.get_args(flags(name, corpus, corpus / "one")))
    return corpus / "one" / "checkpoints"


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", STAGES)
def test_checkpoints_and_metrics(one, name):
    checkpoint = read_checkpoint(one / name / "ckpt.pt")
    assert checkpoint.keys() >= OFFICIAL | STAGES[name][2] and checkpoint["iter_num"] == STEPS
    assert checkpoint["config"]["max_steps"] == STEPS and "wandb_api_key" not in checkpoint["config"]
    lines = read_metrics(one / name)
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert all(math.isfinite(value) for line in lines for value in line.values() if value is not None)
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == list(range(1, STEPS + 1))
    assert all(line["train/grad_norm"] > 0 for line in training)
    assert any(key.startswith("val") for line in lines for key in line)
    parts = {"VQ": ("commitment", "frequency", "raw", "domain_eeg", "domain_text"), "NeuroLM-tiny": ("eeg", "text")}
    for line in training:
        total = sum(line[f"train/{part}"] for part in parts.get(name, ("answer", "text")))
        assert line["train/loss"] == pytest.approx(total, rel=1e-4)


def test_frozen_tokenizer_is_the_one_of_stage_1(one):
    encoder = {k.removeprefix("VQ.encoder."): v for k, v in read_checkpoint(one / "VQ" / "ckpt.pt")["model"].items()}
    for name in ("NeuroLM-tiny", "instruction-tiny"):
        for key, value in read_checkpoint(one / name / "ckpt.pt")["model"].items():
            if key.startswith("tokenizer."):
                assert torch.equal(value, encoder[key.removeprefix("tokenizer.")]), key


def test_results(one):
    content = json.loads((one / "instruction-tiny" / "results.json").read_text())
    (result,) = content["results"]
    assert (result["dataset"], result["split"], result["windows"]) == ("Workload", "test", 58)
    assert content["about"]["method"] == "NeuroLM-tiny" and content["about"]["seed"] == 1337
    assert {"balanced_accuracy", "auc_pr", "auroc", "accuracy"} <= result["metrics"].keys()
    windows = pd.read_csv(one / "instruction-tiny" / result["predictions"])
    assert len(windows) == 58 and set(windows["recording"]) == {"Subject31_1", "Subject31_2"}
    assert_close(torch.tensor(windows.filter(like="p_").sum(axis=1).to_numpy()), torch.ones(58, dtype=torch.float64))
    right = (windows["p_Yes"] > windows["p_No"]) == (windows["label"] == 1)
    assert right.mean() == pytest.approx(result["metrics"]["accuracy"], abs=1e-3)


def test_evaluation_alone_needs_neither_text_nor_training_data(one, corpus, tmp_path, capsys):
    shutil.copytree(corpus / "data", tmp_path / "data")
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "data" / "Workload" / split)
    best = one / "instruction-tiny" / "ckpt-best.pt"
    words = ["--dataset_dir", tmp_path / "data", "--out_dir", tmp_path, "--size", "tiny", "--num_workers", 0]
    words += ["--NeuroLM_path", best, "--eval_only", "--device", "cpu", "--eeg_batch_size", 7]
    train_instruction.main(train_instruction.get_args(list(map(str, words))))
    table = capsys.readouterr().out
    assert "| Workload | test" in table and "58 windows" in table and "results.json" in table
    folders = (one / "instruction-tiny", tmp_path / "checkpoints" / "instruction-tiny" / "eval_score")
    trained, alone = (json.loads((folder / "results.json").read_text())["results"] for folder in folders)
    for name, value in trained[0]["metrics"].items():
        assert alone[0]["metrics"][name] == pytest.approx(value, abs=1e-6)
    assert alone[0]["confusion"] == trained[0]["confusion"]


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_make_the_same_steps(one, corpus, name, capfd):
    script = STAGES[name][0]
    run_processes(2, lambda: script.main(script.get_args(flags(name, corpus, corpus / "two", nproc=2))))
    said = capfd.readouterr()
    assert "2 process(es) on cpu" in said.out and "Traceback" not in said.err
    two = corpus / "two" / "checkpoints" / name
    for a, b in zip(read_metrics(one / name), read_metrics(two), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if key.startswith(("train/", "val")) and a[key] is not None:
                close = {"rel": 0.02} if "codebook" in key else {"rel": 2e-3, "abs": 1e-4}  # a code may tip over
                assert b[key] == pytest.approx(a[key], **close), (a["step"], key)
    first, second = (read_checkpoint(folder / "ckpt.pt")["model"] for folder in (one / name, two))
    for key, value in first.items():
        if ".quantize." in key:
            close = torch.isclose(second[key], value, rtol=1e-3, atol=1e-3)
            assert close.float().mean() > 0.95, key
        else:
            assert_close(second[key], value, rtol=1e-3, atol=2e-4, msg=lambda said, key=key: f"{key}: {said}")
