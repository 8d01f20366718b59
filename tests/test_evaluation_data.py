"""What judges a model is looked at first, by recording; makers and predict.py refuse what is no number or no EEG."""

import re

import h5py
import numpy as np
import pytest
import stages
import torch
from raw_files import EEGMAT, run_maker, table, write_edf, write_workload
from refusals import assert_refused
from test_labram_scripts import CLASSIFIER, CPU, TOKENIZER
from test_predict import LABRAM, made, run_predict  # noqa: F401 - made is a fixture
from toy_eeg import write_toy

import run_class_finetuning
import run_vqnsp_training
from dataset.checks import check_recordings
from dataset.windows import Windows, labram_labelled_windows, open_dataset
from dataset_maker import make_h5dataset_for_pretrain, make_Workload
from errors import UserError
from evaluation.answers import classify_windows
from model.labram import CLASSIFIERS, Classifier
from model.weights import read_checkpoint
from training.checkpoints import write_checkpoint
from utils import start_run


def damage(folder, recording, change):
    """Change the eeg (C, T) of a recording, in uV."""
    (path,) = folder.glob(f"*/{recording}.h5")
    with h5py.File(path, "r+") as file:
        file[recording]["eeg"][:] = change(file[recording]["eeg"][:])


def nan_late(eeg):
    """NaN for a moment in window 9 of 20, which a look at a few windows passes over."""
    eeg[0, 9 * 400 + 7] = np.nan
    return eeg


def one_loud(eeg):
    return eeg * np.where(np.arange(len(eeg)) == 1, 1e6, 1.0)[:, None]


DAMAGES = [
    (lambda eeg: eeg * np.nan, "NaN or infinite values"),
    (nan_late, "NaN or infinite values"),
    (lambda eeg: 0 * eeg, "no channel moves by 0.1 uV: is it flat, or in V?"),
    (lambda eeg: 1e-6 * eeg, "no channel moves by 0.1 uV: is it flat, or in V?"),
    (lambda eeg: 1e3 * eeg, "is it in V, mV or raw counts?"),
    (one_loud, "median absolute amplitude above 5000 uV in C4"),
]


@pytest.mark.parametrize("change, said", DAMAGES)
def test_neurolm_does_not_answer_recordings_that_are_no_eeg(tmp_path, capsys, untrained, change, said):
    folder = write_toy(tmp_path / "data" / "Toy", window=2, splits=(("train", 2), ("val", 1), ("test", 2)))
    (tmp_path / "task.yaml").write_text(stages.TASK)
    damage(folder, "test1", change)
    argv = stages.flags("instruction", untrained, tmp_path / "out", "--tasks", tmp_path / "task.yaml")
    for more in (["--eval_only"], ["--eval_only", "--cache_features", str(tmp_path / "cache")]):
        assert_refused(capsys, stages.SCRIPTS["instruction"], [*argv, *more], ["recording test1", said])
    assert not list(tmp_path.rglob("results.json"))


@pytest.mark.parametrize("change, said", DAMAGES)
def test_labram_does_not_answer_them_either(tmp_path, capsys, change, said):
    folder = write_toy(tmp_path / "Toy", window=2, splits=(("train", 2), ("val", 1), ("test", 2)))
    damage(folder, "test1", change)
    write_checkpoint({"model": Classifier(CLASSIFIERS[CLASSIFIER[1]], 1).state_dict()}, tmp_path / "best.pth")
    argv = ["--dataset_dir", tmp_path, "--dataset", "Toy", "--output_dir", tmp_path, *CLASSIFIER, *CPU]
    argv += ["--batch_size", 8, "--max_steps", 1]
    for more in (["--eval", "--finetune", tmp_path / "best.pth"], []):
        assert_refused(capsys, run_class_finetuning, [*map(str, [*argv, *more])], ["recording test1", said])
    assert not list(tmp_path.rglob("results.json"))


@pytest.mark.parametrize("script", ["vq", "labram"])
def test_pretraining_looks_at_its_validation(tmp_path, capsys, untrained, script):
    folder = write_toy(tmp_path / "data" / "pair", seconds=40)
    damage(folder, "val0", lambda eeg: 1e3 * eeg)
    if script == "vq":
        script = stages.SCRIPTS["vq"]
        argv = stages.flags("vq", untrained, tmp_path, "--dataset_dir", folder.parent, "--datasets", "pair")
    else:
        script = run_vqnsp_training
        argv = ["--dataset_dir", folder, "--output_dir", tmp_path, *TOKENIZER, *CPU, "--batch_size", 4]
    assert_refused(capsys, script, [*map(str, argv)], ["recording val0", "is it in V, mV or raw counts?"])


def test_an_artefact_is_no_reason_to_refuse_a_recording(tmp_path):
    folder = write_toy(tmp_path / "Toy", window=2, splits=(("test", 1),))
    windows = Windows.labelled(open_dataset(folder, "test"))
    few = Windows(windows.recordings, windows.index[5:6])
    damage(folder, "test0", lambda eeg: np.where(np.arange(eeg.shape[1]) // 400 == 5, 100 * eeg, eeg))
    assert np.median(np.abs(few[0]["eeg"])) > 5
    check_recordings(few, start_run("cpu"))


def test_a_nan_is_blamed_on_the_recording_and_not_on_the_weights(tmp_path):
    folder = write_toy(tmp_path / "Toy", window=2, splits=(("test", 2),))
    damage(folder, "test1", nan_late)
    windows = labram_labelled_windows(folder, "test")
    model = Classifier(CLASSIFIERS[CLASSIFIER[1]], 1)
    about = {"name": "Toy", "split": "test", "batch_size": 8, "run": start_run("cpu")}
    with pytest.raises(UserError, match="^recording test1 holds NaN or infinite values"):
        classify_windows(model, windows, ("slow", "fast"), **about)


def make_channel_loud(path, number):
    """Let an EDF's header say of one channel that its physical range is a million times larger."""
    data = bytearray(path.read_bytes())
    signals = int(data[252:256])
    for field in (104, 112):  # physical minimum and maximum
        start = 256 + field * signals + 8 * number
        value = float(data[start : start + 8])
        data[start : start + 8] = f"{value:.0f}e6".ljust(8).encode()
    path.write_bytes(data)


def test_makers_look_at_each_channel(tmp_path):
    raw = write_workload(tmp_path / "raw")
    make_channel_loud(raw / "Subject31_1.edf", EEGMAT.index("T5"))
    common = ("--raw_dir", raw, "--workers", 1)
    run_maker(make_Workload, *common, "--out_dir", tmp_path / "fixed", status=3)
    (refused,) = [row for row in table(tmp_path / "fixed" / "report.csv") if row["status"] == "refused"]
    assert refused["file"] == "Subject31_1.edf"
    assert re.match(r"median absolute amplitude above 5000 uV in T5 \(.*e\+06 uV\): .*--channels", refused["notes"])
    run_maker(make_h5dataset_for_pretrain, *common, "--out_dir", tmp_path / "free", "--subject", r"Subject\d+")
    (dropped,) = [row for row in table(tmp_path / "free" / "report.csv") if "5000 uV in T5" in row["notes"]]
    assert dropped["file"] == "Subject31_1.edf" and dropped["notes"].startswith("channels dropped: ")
    rows = {row["recording"]: row["channels"].split() for row in table(tmp_path / "free" / "manifest.csv")}
    assert "T5" not in rows["Subject31_1"] and len(rows["Subject31_1"]) == 18 and len(rows["Subject31_2"]) == 19


def test_most_channels_in_another_unit_are_not_dropped(tmp_path):
    path = tmp_path / "raw" / "a.edf"
    write_edf(path)
    for number in range(12):
        make_channel_loud(path, number)
    argv = ("--raw_dir", path.parent, "--out_dir", tmp_path / "out", "--workers", 1, "--val_fraction", 0)
    with pytest.raises(UserError, match="no file of .* was usable"):
        run_maker(make_h5dataset_for_pretrain, *argv)
    (row,) = table(tmp_path / "out" / "report.csv")
    assert row["notes"].startswith("median absolute amplitude above 5000 uV in FP1")


@pytest.mark.parametrize("more", [(), ("--answer_by", "generate")])
def test_predict_refuses_answers_that_are_not_finite(made, tmp_path, more):  # noqa: F811
    checkpoint = dict(read_checkpoint(made / "model.pt"))
    checkpoint["model"] = dict(checkpoint["model"])
    name = "GPT2.transformer.ln_f.weight"
    checkpoint["model"][name] = checkpoint["model"][name] * torch.nan
    write_checkpoint(checkpoint, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"Subject00_2\.edf: the model gives no finite answer .*in 15 of 15 windows"):
        run_predict(made, tmp_path / "out", *more, model=("--NeuroLM_path", tmp_path / "nan.pt"))
    assert not list((tmp_path / "out").glob("*.csv"))


def test_predict_refuses_those_of_a_classifier_too(made, tmp_path):  # noqa: F811
    checkpoint = read_checkpoint(made / "labram.pth")
    checkpoint["model"]["head.bias"] = checkpoint["model"]["head.bias"] * torch.nan
    write_checkpoint(checkpoint, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"Subject00_2\.edf: the model gives no finite answer"):
        run_predict(made, tmp_path / "out", model=(LABRAM[0], tmp_path / "nan.pth"))
