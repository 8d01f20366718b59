"""What a run tells: metrics.jsonl, figures, what made a checkpoint, W&B offline as its server reads it, guards."""

import json
import shutil
import struct

import numpy as np
import pytest
import stages
import torch
import yaml
from conftest import run_script
from wandb.proto.wandb_internal_pb2 import Record

from dataset.checks import check_eeg
from errors import UserError
from evaluation.figures import plot_codebook_use, plot_confusion, plot_losses
from model.weights import read_checkpoint
from training import logger
from training.provenance import describe_data
from training.trainer import Trainer
from utils import Run

KEY = "0123456789abcdef" * 2 + "01234567"
BLOCK = 32 * 1024


@pytest.fixture
def folder(corpus):
    return stages.reference(corpus, "vq")


def read_wandb(path):
    """The records of a .wandb file: LevelDB's log format, of Protocol Buffers."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:  # too little left in a block for a header
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def test_wandb_offline_keeps_one_run_and_no_key(corpus, tmp_path):
    flags = ["--wandb_log", "--wandb_project", "Project", "--wandb_runname", "Name", f"--wandb_api_key={KEY}"]
    flags += ["--no-decay_lr", "--warmup_epochs", 0, "--log_dir", tmp_path / "board"]
    for steps in (3, 4):
        run_script("train_vq.py", *stages.flags("vq", corpus, tmp_path, *flags, "--max_steps", steps))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    boards = sorted((tmp_path / "board").glob("events.out.tfevents.*"))
    assert len(boards) == 2 and all(path.stat().st_size > 1000 for path in boards)  # TensorBoard, a file a run
    assert not [path for path in files if KEY.encode() in path.read_bytes()]

    first, second = (list(read_wandb(path)) for path in sorted(tmp_path.rglob("*.wandb"), key=lambda path: path.parent))
    runs = [next(record.run for record in records if record.HasField("run")) for records in (first, second)]
    assert runs[0].run_id == runs[1].run_id
    assert (runs[1].project, runs[1].display_name) == ("Project", "Name")
    config = {item.key: json.loads(item.value_json) for item in runs[1].config.update}
    assert config["batch_size"] == 2 and config["versions"]["torch"] == torch.__version__
    assert config["datasets"]["pair"]["manifest_sha256"]
    rows = [record.history for records in (first, second) for record in records if record.HasField("history")]
    named = {"/".join(item.nested_key): json.loads(item.value_json) for row in rows for item in row.item}
    for name in ("train/loss", "train/lr", "train/grad_norm", "val/loss", "val/codebook_dead", "system/data_wait"):
        assert np.isfinite(named[name])
    assert named["val/reconstruction/_type"] == "image-file"
    steps = [json.loads(item.value_json) for row in rows for item in row.item if item.nested_key == ["_step"]]
    assert steps == sorted(steps) and steps[-1] == 4


def test_wandb_that_cannot_log_in_says_so(tmp_path, monkeypatch):
    import wandb

    def refuse(**settings):
        raise wandb.errors.UsageError("api_key not configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match="W&B: api_key not configured.*WANDB_MODE=offline"):
        logger._start_wandb(tmp_path, {"config": {}}, False, "Project", "Name", None)


def test_every_log_step_says_how_the_run_goes(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in trained] == [3, 6, 9, 10]
    system = {"tokens_per_s", "samples_per_s", "step_s", "data_wait", "memory_gib"}
    for line in trained:
        assert {"train/lr", "train/grad_norm", "train/commitment"} | {f"system/{name}" for name in system} <= set(line)
        assert 0 <= line["system/data_wait"] <= 1 and line["system/samples_per_s"] > 0
    assert [line["step"] for line in lines if "val/codebook_dead" in line] == [5, 10]
    for name in ("val_codebook_use", "val_reconstruction"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_says_what_made_it(folder, corpus, tmp_path):
    state, written = read_checkpoint(folder / "ckpt.pt"), json.loads((folder / "config.json").read_text())
    for about in (state, written):
        assert about["config"]["batch_size"] == 2 and "wandb_api_key" not in about["config"]
        assert {"python", "torch", "numpy", "mne"} <= about["versions"].keys() and about["git_commit"]
        assert yaml.safe_load(about["datasets"]["four"]["preprocessing"])["rate"] == 200
    kept = state["datasets"]["pair"]["manifest_sha256"]
    assert describe_data([corpus / "data" / "pair"])["pair"]["manifest_sha256"] == kept
    shutil.copytree(corpus / "data" / "pair", tmp_path / "pair")
    with open(tmp_path / "pair" / "manifest.csv", "a") as manifest:
        manifest.write("\n")
    assert describe_data([tmp_path / "pair"])["pair"]["manifest_sha256"] != kept


def test_a_collapsed_codebook_warns_after_the_warm_up(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("evaluation.validation.COLLAPSE", 0.9)
    stages.train("vq", corpus, tmp_path)
    said = capsys.readouterr().out
    assert said.count("warning: the codebook has collapsed") == 1  # the first of two epochs is warm-up
    assert "--revive_dead_codes" in said


def test_a_number_that_is_not_finite_stops_the_run(corpus, tmp_path, monkeypatch):
    backward = Trainer.backward

    def poisoned(trainer, losses, **measures):
        if trainer.step == 4:
            losses = losses | {"raw": losses["raw"] * float("nan")}
        backward(trainer, losses, **measures)

    monkeypatch.setattr(Trainer, "backward", poisoned)
    with pytest.raises(UserError, match=r"not finite at step 4 on rank 0, in a batch of .*train\d") as stop:
        stages.train("vq", corpus, tmp_path, "--save_every_steps", 2)
    newest = tmp_path / "checkpoints" / "VQ" / "ckpt.pt"
    assert str(newest) in str(stop.value)
    state = read_checkpoint(newest)
    assert state["iter_num"] == 4
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_full_disk_stops_the_log_with_one_line(tmp_path):
    log = logger.Logger(tmp_path, Run(0, 1, torch.device("cpu"), torch.float32, 0), {"config": {}}, 1)
    log.file.close()
    log.file = open("/dev/full", "w", buffering=1)  # noqa: SIM115 - a disk without space, which closing would notice too
    with pytest.raises(UserError, match="metrics.jsonl could not be written .No space left.*it resumes"):
        log.write(1, {"train/loss": 1.0})


@pytest.mark.parametrize("factor, said", [(1e-6, "V, mV or raw counts"), (1e3, "V, mV or raw counts"), (np.nan, "NaN")])
def test_the_first_batches_must_be_eeg_in_microvolts(factor, said):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 200)) * 0.3)
    check_eeg({"x": x, "files": ["a", "b"]})
    with pytest.raises(UserError, match=f"(a, b.*)?{said}|{said}.*a, b"):
        check_eeg({"x": x * factor, "files": ["a", "b"]})


def test_figures_of_odd_numbers(tmp_path):
    assert plot_codebook_use(np.zeros(8), tmp_path / "unused.png").stat().st_size > 1000
    path = plot_confusion([[3, 0, 1], [0, 0, 0]], ("No", "Yes"), tmp_path / "new" / "confusion.png", "validation")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="nowhere.jsonl"):
        plot_losses({"stage": tmp_path / "nowhere.jsonl"}, tmp_path / "losses.png")
