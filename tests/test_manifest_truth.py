"""A manifest is held against its files: windows, labels, and on request every byte."""

import csv

import h5py
import numpy as np
import pytest
import stages
from raw_files import table
from refusals import assert_refused
from toy_eeg import write_toy

import run_class_finetuning
import run_labram_pretraining
import run_vqnsp_training
from dataset.tasks import Task
from dataset.verify import hash_file
from dataset.windows import open_tasks
from dataset_maker import check_dataset
from errors import UserError
from model.vqnsp import TOKENIZERS, VQNSP
from training.checkpoints import write_checkpoint

TASK = Task("Toy", "Which rhythm is this?", ("slow", "fast"))
TINY = "vqnsp_encoder_tiny_decoder_1x100x2"


def write_manifest(folder, change):
    """The manifest again, each row as `change(row)` left it."""
    rows = table(folder / "manifest.csv")
    for row in rows:
        change(row)
    with open(folder / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def add_sums(folder):
    write_manifest(folder, lambda row: row.update(sha256=hash_file(folder / row["split"] / f"{row['recording']}.h5")))
    return folder


@pytest.fixture
def toy(tmp_path):
    return add_sums(write_toy(tmp_path / "Toy", window=2, splits=(("train", 2), ("val", 1), ("test", 1))))


@pytest.mark.parametrize("counts, said", [("9 10", "19 .9 of label 0, 10 of"), ("9 11", "20 .9 of label 0, 11 of")])
def test_windows_and_labels_are_those_of_the_manifest(toy, counts, said):
    def change(row):
        if row["recording"] == "test0":
            row.update(windows=sum(map(int, counts.split())), windows_per_label=counts)

    write_manifest(toy, change)
    assert open_tasks({TASK: toy}, "train")
    with pytest.raises(UserError, match=rf"test0\.h5 holds 20 windows .10 of label 0, 10 of label 1.*says {said}"):
        open_tasks({TASK: toy}, "test")


def test_labels_turned_round_are_noticed_where_their_counts_differ(tmp_path):
    folder = write_toy(tmp_path / "Toy", seconds=10, window=2, splits=(("test", 1),))  # 3 slow, 2 fast
    with h5py.File(folder / "test" / "test0.h5", "r+") as file:
        file["test0"]["segments"][:, 2] = 1 - file["test0"]["segments"][:, 2]
    with pytest.raises(UserError, match=r"2 of label 0, 3 of label 1.*says 5 .3 of label 0, 2 of label 1"):
        open_tasks({TASK: folder}, "test")


@pytest.mark.parametrize("stage", stages.SCRIPTS)
def test_verify_in_the_stages_of_neurolm(refused, stage):
    refused(stage, ["--verify"], "train/train0.h5 is not the file that its maker wrote", "the manifest says x...")


@pytest.mark.parametrize("script", [run_vqnsp_training, run_labram_pretraining, run_class_finetuning])
def test_verify_in_the_stages_of_labram(toy, tmp_path, capsys, script):
    weights = tmp_path / "vqnsp.pth"
    write_checkpoint({"model": VQNSP(*TOKENIZERS[TINY], n_codes=64, code_dim=16).state_dict()}, weights)
    argv = ["--dataset_dir", tmp_path, "--output_dir", tmp_path / "out", "--verify", "--batch_size", 4]
    argv += ["--device", "cpu", "--num_workers", 0]
    if script is run_labram_pretraining:
        argv += ["--tokenizer_weight", weights, "--tokenizer_model", TINY, "--codebook_size", 64, "--codebook_dim", 16]
    elif script is run_class_finetuning:
        argv += ["--dataset", "Toy", "--model", "labram_tiny_patch200_200"]
    with h5py.File(toy / "val" / "val0.h5", "r+") as file:
        file["val0"]["eeg"][0, 0] += 1
    assert_refused(capsys, script, [*map(str, argv)], ["val/val0.h5 is not the file that its maker wrote"])


def check(*folders):
    """Run check_dataset.py -> its exit status."""
    try:
        check_dataset.main(check_dataset.get_args([*map(str, folders), "--workers", "1"]))
    except SystemExit as stop:
        return stop.code
    return 0


def test_a_sound_dataset_has_no_problem(toy, capsys):
    assert check(toy) == 0
    assert "4 recordings of 1 datasets: no problems" in capsys.readouterr().out


def break_sum(toy):
    write_manifest(toy, lambda row: row.update(sha256="0" * 64) if row["recording"] == "val0" else None)


def break_values(toy, change=lambda eeg: np.nan * eeg):
    with h5py.File(toy / "val" / "val0.h5", "r+") as file:
        file["val0"]["eeg"][:] = change(file["val0"]["eeg"][:])
    add_sums(toy)


def loud(eeg):
    return eeg * np.array([[1.0], [1e6]])


BROKEN = [
    (break_sum, "val0.h5: its sha256 is not the manifest's"),
    (break_values, "val0.h5: NaN or infinite values in C3, C4"),
    (lambda toy: break_values(toy, loud), "val0.h5: median absolute amplitude above 5000 uV in C4"),
    (lambda toy: break_values(toy, lambda eeg: 0 * eeg), "val0.h5: no channel moves by 0.1 uV"),
    (lambda toy: break_values(toy, lambda eeg: 1e3 * eeg), "val0.h5: the median absolute amplitude of it is"),
    (lambda toy: (toy / "val" / "val0.h5").unlink(), "val0.h5 is missing"),
    (lambda toy: (toy / "val" / "more.h5").touch(), "more.h5 is not in the manifest"),
    (lambda toy: write_manifest(toy, lambda row: row.update(seconds=41)), "its manifest says 2 x 8200"),
    (lambda toy: write_manifest(toy, lambda row: row.pop("channels")), "column 'channels' is missing"),
    (lambda toy: write_manifest(toy, lambda row: row.update(subject="s")), "s: in training of Toy and in test and val"),
    (lambda toy: write_manifest(toy, lambda row: row.update(split="dev")), "row 1: 40 s in dev: expected a split"),
]


@pytest.mark.parametrize("damage, said", BROKEN)
def test_each_problem_is_a_line(toy, capsys, damage, said):
    damage(toy)
    assert check(toy) == check_dataset.PROBLEMS
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert any(said in line for line in problems), problems
