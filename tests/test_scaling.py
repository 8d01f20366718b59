"""What follows the size and the hours: learning rates, how much is read, and the series over both."""

import importlib
import json
import shlex

import pytest
from test_flags import REQUIRED, parse
from test_pooling import few_draws, write_fold  # noqa: F401 - a fixture
from toy_eeg import write_toy

from benchmarks import scaling
from dataset.windows import labram_pretraining_windows, pretraining_windows
from training.agreement import agree

ARGV = ["--dataset_dir", "D", "--datasets", "eegmmidb", "--tasks", "Workload", "--text_dir", "T", "--folds", "3"]


@pytest.mark.parametrize(
    ("script", "flag", "size", "expected"),
    [
        ("train_instruction", "learning_rate", ["--size", "B"], 5e-4),  # the paper's three
        ("train_instruction", "learning_rate", ["--size", "L"], 5e-5),
        ("train_instruction", "learning_rate", ["--size", "XL"], 2e-5),
        ("train_instruction", "learning_rate", ["--size", "tiny"], 1e-3),
        ("train_pretrain", "learning_rate", ["--size", "B"], 6e-4),
        ("train_pretrain", "learning_rate", ["--size", "tiny"], 1e-3),
        ("train_pretrain", "learning_rate", ["--size", "XL"], 6e-4 * 768 / 1600),
        ("train_vq", "learning_rate", ["--size", "L"], 5e-5),
        ("train_vq", "learning_rate", ["--size", "mini"], 1.5e-4),
        ("run_vqnsp_training", "lr", [], 5e-5),
        ("run_labram_pretraining", "lr", ["--model", "labram_huge_patch200_1600_8k_vocab"], 1.25e-4),
        ("run_class_finetuning", "lr", ["--model", "labram_tiny_patch200_200"], 1e-3),
    ],
)
def test_an_automatic_rate_follows_the_size(script, flag, size, expected):
    plain, auto = parse(script, *size), parse(script, *size, f"--{flag}", "auto")
    assert getattr(auto, flag) == pytest.approx(expected) and auto.min_lr == pytest.approx(expected / 10)
    assert isinstance(getattr(plain, flag), float) and script in REQUIRED
    before = {"config": vars(auto), "inputs": {}}  # a run that goes on has the same number
    same = vars(parse(script, *size, f"--{flag}", str(getattr(auto, flag)), "--min_lr", str(auto.min_lr)))
    assert agree({"config": same, "inputs": {}}, before, "ckpt.pt")[1] == []


def test_fewer_hours_are_some_of_more(tmp_path):
    folder = write_toy(tmp_path / "Toy", ["C3"], seconds=36, splits=(("train", 6), ("val", 1)))
    read = {}
    for count in (1, 3, 6):
        for windows in (
            pretraining_windows([folder], "train", 8, hours=count * 0.01),
            labram_pretraining_windows([folder], "train", 4, hours=count * 0.01),
        ):
            assert len(windows.recordings) == count
        read[count] = {recording.name for recording in windows.recordings}
    assert read[1] < read[3] < read[6]


def test_every_command_of_the_series_is_one():
    args = scaling.get_args([*ARGV, "--out_dir", "R"])
    for size in args.sizes:
        for hours in args.hours:
            for step in scaling.plan_cell(args, size, hours):
                words = step.format(seed=0, shared="S", protocol="--folds 3 --fold 1 --fold_seed 0", out="O")
                script, *argv = shlex.split(words)
                given = importlib.import_module(script.removesuffix(".py")).get_args(argv)
                assert given.size == size and given.learning_rate > 0 or hours == 0


def test_the_table_and_figure_of_what_is_there(tmp_path, capsys):
    for name, loss, lean in (("tiny-0h", 2.5, 0.0), ("tiny-0.5h", 2.0, 0.2)):
        log = tmp_path / "shared" / f"{name}-0" / "checkpoints" / "VQ" / "metrics.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text("".join(json.dumps({"val/loss": value}) + "\n" for value in (9.0, loss)) + '{"train/loss": 1}\n')
        for fold in range(3 if lean else 2):
            write_fold(tmp_path / name / f"folds0-{fold}-seed0", fold, lean=lean)
    scaling.main(scaling.get_args([*ARGV, "--out_dir", str(tmp_path), "--table"]))
    said = capsys.readouterr().out
    assert "| tiny | 0.5   | 2.0000" in said and "2.5" not in said  # one cell is not complete
    assert (tmp_path / "scaling.png").stat().st_size > 5000
