"""Bad input ends a script with status 2 and one line that names the file, the value, what was expected and the cure."""

import pickle
import re

import h5py
import numpy as np
import pytest
import stages
import yaml
from conftest import run_script
from raw_files import run_maker, table, write_edf
from test_checkpoints import Harm
from toy_eeg import write_toy

import errors
from dataset_maker import make_Workload
from model.vq import VQ_Align
from training.checkpoints import write_checkpoint

BOTH = pytest.mark.parametrize("stage", ["vq", "pretrain"])


@BOTH
def test_dataset_folder(refused, stage, tmp_path):
    refused(stage, ["--dataset_dir", tmp_path / "nowhere"], tmp_path / "nowhere", "does not exist", "dataset_maker/")
    refused(stage, ["--dataset_dir", tmp_path], tmp_path, "holds no dataset", "manifest.csv")
    refused(stage, ["--datasets", "pair", "nothing"], "--datasets nothing", "four, pair")


@BOTH
def test_empty_split(refused, stage, tmp_path):
    write_toy(tmp_path / "data" / "pair", splits=(("train", 1),))
    refused(stage, ["--dataset_dir", tmp_path / "data", "--datasets", "pair"], "pair", "'val'", "['train']")
    write_toy(tmp_path / "short", seconds=1)
    refused(stage, ["--dataset_dir", tmp_path / "short", "--datasets", "short"], "short", "no train recording", "2 s")


@BOTH
def test_unknown_channel(refused, stage, tmp_path):
    folder = write_toy(tmp_path / "data" / "pair")
    manifest = folder / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("C3 C4", "C3 XX9"))
    refused(stage, ["--dataset_dir", folder, "--datasets", "pair"], manifest, "row 1", "unknown channel XX9", "alias")


@BOTH
def test_too_many_channels_for_a_window(refused, stage):
    refused(stage, ["--block_size", 6], "4 channels", "--block_size 6", "raise --block_size to 8")


def test_truncated_edf(tmp_path, capsys):
    write_edf(tmp_path / "raw" / "Subject01_1.edf")
    cut = tmp_path / "raw" / "Subject02_1.edf"
    write_edf(cut)
    cut.write_bytes(cut.read_bytes()[:50000])
    run_maker(make_Workload, "--raw_dir", cut.parent, "--out_dir", tmp_path / "W", "--workers", 1, status=3)
    (row,) = (row for row in table(tmp_path / "W" / "report.csv") if "Subject02_1" in row["file"])
    assert row["status"] == "refused" and re.search("truncated|cut|short", row["notes"])
    assert "Traceback" not in capsys.readouterr().err


def test_truncated_recording(refused, tmp_path):
    folder = write_toy(tmp_path / "pair")
    for path in (folder / "train").iterdir():
        path.write_bytes(path.read_bytes()[:9000])
    refused("vq", ["--dataset_dir", folder, "--datasets", "pair"], "train/train", "run its maker again")


@BOTH
def test_a_pickle_that_would_run_code(refused, stage, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "old" / split).mkdir(parents=True)
        with open(tmp_path / "old" / split / "a.pkl", "wb") as file:
            pickle.dump({"X": np.ones((1, 800)), "ch_names": ["C3"], "y": Harm(tmp_path / "ran")}, file)
    refused(stage, ["--dataset_dir", tmp_path / "old", "--datasets", "old"], "a.pkl", "refused", "mkdir")
    assert not (tmp_path / "ran").exists()


def test_checkpoints_of_another_size_or_stage(refused, untrained, tmp_path):
    vq, lm = (stages.reference(untrained, stage) / "ckpt.pt" for stage in ("vq", "pretrain"))
    refused("instruction", ["--size", "L"], lm, "2 layers", "--size L needs 24 layers")
    refused("instruction", ["--size", "B", "--eval_only"], lm, "--size B needs 12 layers")
    refused("pretrain", ["--tokenizer_path", lm], lm, "lacks the dictionary", "train_vq.py")
    refused("instruction", ["--NeuroLM_path", vq], vq, "lacks the dictionary", "train_pretrain.py")
    newest = tmp_path / "out" / "checkpoints" / "NeuroLM-tiny" / "ckpt.pt"
    write_checkpoint({"model": VQ_Align.load(vq).state_dict(), "optimizer": {}}, newest)
    refused("pretrain", [], newest, "does not fit this model", "--size")


def test_missing_and_hostile_checkpoints(refused, tmp_path):
    write_checkpoint({"model": Harm(tmp_path / "ran")}, tmp_path / "VQ.pt")
    refused("pretrain", ["--tokenizer_path", tmp_path / "VQ.pt"], tmp_path / "VQ.pt", "cannot be read safely")
    assert not (tmp_path / "ran").exists()
    refused("pretrain", ["--tokenizer_path", "no.pt"], "--tokenizer_path", "no.pt", tmp_path / "out" / "no.pt")
    refused("instruction", ["--NeuroLM_path", "no.pt"], "--NeuroLM_path", tmp_path / "out" / "no.pt")
    best = tmp_path / "out" / "checkpoints" / "instruction-tiny" / "ckpt-best.pt"
    refused("instruction", ["--NeuroLM_path", "", "--eval_only"], best)


@pytest.mark.parametrize("stage", stages.SCRIPTS)
def test_text(refused, stage, tmp_path):
    refused(stage, ["--text_dir", tmp_path], tmp_path / "train.bin", "prepare.py", "--source")
    for split in ("train", "val"):
        (tmp_path / f"{split}.bin").write_bytes(bytes(40))
    refused(stage, ["--text_dir", tmp_path], tmp_path / "train.bin", "20 tokens", "needs 33", "--block_size")
    (tmp_path / "train.bin").write_bytes(bytes(4001))
    refused(stage, ["--text_dir", tmp_path], tmp_path / "train.bin", "4001 bytes")


def test_missing_gpt2_weights_offline(refused, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    refused("pretrain", ["--size", "L"], "gpt2-medium", "--gpt2_path", "--init_from scratch")
    refused("pretrain", ["--size", "B", "--gpt2_path", tmp_path / "no"], tmp_path / "no", "save_pretrained")


def write_task(folder, seconds=40, window=2, **changes):
    """A labelled dataset and its task file -> the flags that ask for it."""
    write_toy(folder / "Own", seconds=seconds, window=window, splits=(("train", 2), ("val", 1), ("test", 1)))
    task = yaml.safe_load(stages.TASK) | {"dataset": "Own"} | changes
    (folder / "own.yaml").write_text(yaml.safe_dump(task))
    return ["--tasks", folder / "own.yaml"]


def test_windows_and_labels_that_do_not_fit(refused, untrained, tmp_path):
    more = write_task(tmp_path / "long", seconds=130, window=65)
    refused("instruction", more, "Own", "65 s", "64 at most", "--window")
    more = write_task(tmp_path / "more", answers=["slow", "fast", "none"])
    refused("instruction", more, "dataset.yaml", "['slow', 'fast', 'none']", "one answer for each label")
    more = write_task(tmp_path / "none", dataset=str(untrained / "data" / "pair"))
    refused("instruction", more, "pair", "no labelled windows", "labels")


def test_a_label_beyond_the_answers_of_an_official_dataset(refused, tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / "TUAB" / split).mkdir(parents=True)
        for label in range(3):
            sample = {"X": 30 * np.random.default_rng(label).normal(size=(1, 800)), "ch_names": ["C3"], "y": label}
            (tmp_path / "TUAB" / split / f"s_{label}.pkl").write_bytes(pickle.dumps(sample))
    refused("instruction", ["--dataset_dir", tmp_path, "--tasks", "TUAB"], "TUAB", "label 2", "2 answers", "No, Yes")


def test_tasks(refused, untrained):
    data = ["--dataset_dir", untrained / "data"]
    refused("instruction", [*data, "--tasks", "TUBA"], "unknown task 'TUBA'", "TUAB, TUEV", ".yaml")
    refused("instruction", [*data, "--tasks", "TUEV"], "TUEV", untrained / "data", "make_TUEV.py")
    refused("instruction", ["--tasks", "no.yaml"], "no.yaml", "cannot be read")


def test_device_precision_and_sizes(refused):
    refused("vq", ["--device", "tpu"], "--device tpu", "cpu")
    refused("vq", ["--dtype", "float16"], "--dtype float16", "float32")
    refused("vq", ["--batch_size", 9999], "fewer than", "9999", "smaller batch size")
    refused("instruction", ["--eeg_batch_size", 9999], "smaller batch size")


def test_ctrl_c(capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        errors.run(interrupt, lambda: None)
    assert capsys.readouterr().err.strip() == "interrupted"


def test_recordings_that_are_no_eeg(refused, tmp_path):
    folder = write_toy(tmp_path / "volts", seed=1)
    for path in (folder / "train").iterdir():
        with h5py.File(path, "r+") as file:
            file[path.stem]["eeg"][...] *= 1e-6
    refused("vq", ["--dataset_dir", folder, "--datasets", "volts"], "uV", "train", "raw counts")


def test_a_folder_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "out").write_text("a file")
    refused("vq", [], tmp_path / "out")


@pytest.mark.e2e
def test_as_a_user_sees_it(tmp_path):
    done = run_script("train_vq.py", "--dataset_dir", tmp_path / "no", "--device", "cpu", check=False)
    assert done.returncode == 2 and re.fullmatch(rf"error: .*{tmp_path}/no.*\n", done.stderr)
