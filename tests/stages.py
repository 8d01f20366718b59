"""NeuroLM's three stages on toy data, as small as they go: what the tests of training share."""

import json
from pathlib import Path

import numpy as np
import torch
from toy_eeg import write_toy

import train_instruction
import train_pretrain
import train_vq
from model.weights import read_checkpoint

TASK = """
name: Toy
question: Which rhythm is this?
answers: [slow, fast]
dataset: data/Toy
"""
SCRIPTS = {"vq": train_vq, "pretrain": train_pretrain, "instruction": train_instruction}
FOLDERS = {"vq": "VQ", "pretrain": "NeuroLM-tiny", "instruction": "instruction-tiny"}


def write_corpus(folder):
    """Two unlabelled datasets of different montages, a labelled one with its task, and text."""
    write_toy(folder / "data" / "pair", seconds=64, splits=(("train", 3), ("val", 1)))
    write_toy(folder / "data" / "four", 4, seconds=40, splits=(("train", 2), ("val", 1)))
    write_toy(folder / "data" / "Toy", seconds=40, window=2, splits=(("train", 1), ("val", 1), ("test", 1)))
    (folder / "task.yaml").write_text(TASK)
    (folder / "text").mkdir()
    for name, size in (("train", 2000), ("val", 100)):
        tokens = np.random.default_rng(0).integers(50257, size=size).astype("<u2")
        (folder / "text" / f"{name}.bin").write_bytes(tokens.tobytes())
    return folder


def flags(stage: str, corpus, out_dir, *more) -> list[str]:
    """Two epochs of five steps of two micro-batches, starting from what `train_all` made; `more` flags win."""
    common = ["--size", "tiny", "--device", "cpu", "--out_dir", out_dir, "--text_dir", corpus / "text"]
    common += ["--num_workers", 0, "--log_interval", 3, "--block_size", 32, "--text_batch_size", 1]
    common += ["--gradient_accumulation_steps", 2, "--epochs", 2, "--warmup_epochs", 1, "--save_ckpt_freq", 1]
    if stage == "instruction":
        common += ["--tasks", corpus / "task.yaml", "--NeuroLM_path", reference(corpus, "pretrain") / "ckpt.pt"]
    else:
        common += ["--dataset_dir", corpus / "data", "--datasets", "pair", "four"]
    if stage == "pretrain":
        common += ["--tokenizer_path", reference(corpus, "vq") / "ckpt.pt"]
    common += ["--batch_size", 2] if stage == "vq" else ["--eeg_batch_size", 2, "--dropout", 0.1]
    return [*map(str, common), *map(str, more)]


def train(stage: str, corpus, out_dir, *more) -> Path:
    """Run a stage in this process -> its folder."""
    script = SCRIPTS[stage]
    script.main(script.get_args(flags(stage, corpus, out_dir, *more)))
    return out_dir / "checkpoints" / FOLDERS[stage]


def reference(corpus, stage: str) -> Path:
    """The folder of a stage that `train_all` made."""
    return corpus / "reference" / "checkpoints" / FOLDERS[stage]


def train_all(corpus) -> None:
    """The three stages, one after another."""
    for stage in SCRIPTS:
        train(stage, corpus, corpus / "reference")


def same(a, b) -> bool:
    """Whether two nested states hold the same values, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_run(folder, reference) -> None:
    """Two runs left the same: every checkpoint, and every line of the log except for speed."""
    assert sorted(path.name for path in folder.glob("*.pt")) == sorted(path.name for path in reference.glob("*.pt"))
    for path in reference.glob("*.pt"):
        ours, theirs = read_checkpoint(folder / path.name), read_checkpoint(path)
        assert ours.keys() == theirs.keys()
        names = ours.keys() - {"config", "git_commit"}  # another --out_dir, a commit in between
        different = [name for name in names if not same(ours[name], theirs[name])]
        assert not different, f"{path.name}: {different}"
    assert read_metrics(folder) == read_metrics(reference)


def read_metrics(folder) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the machine's speed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("system/")} for line in lines]
