"""LaBraM's three scripts as a user runs them: the chain, resuming, two processes, linear probe, mistakes."""

import json

import pytest
import torch
from processes import run_processes
from toy_eeg import write_toy

import run_class_finetuning
import run_labram_pretraining
import run_vqnsp_training
from errors import UserError
from model.weights import read_checkpoint
from training.trainer import Trainer

TOKENIZER = ["--model", "vqnsp_encoder_tiny_decoder_1x100x2", "--codebook_n_emd", "64", "--codebook_emd_dim", "16"]
MASKED = ["--model", "labram_tiny_patch200_1600_8k_vocab", "--tokenizer_model", "vqnsp_encoder_tiny_decoder_1x100x2"]
MASKED += ["--codebook_size", "64", "--codebook_dim", "16"]
CLASSIFIER = ["--model", "labram_tiny_patch200_200", "--disable_qkv_bias"]
CPU = ["--device", "cpu", "--num_workers", "0", "--log_interval", "1"]
SCRIPTS = (run_vqnsp_training, run_labram_pretraining, run_class_finetuning)
OFFICIAL_KEYS = {"model", "optimizer", "epoch", "scaler", "args"}


def call(script, *flags):
    script.main(script.get_args([*map(str, flags), *CPU]))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(folder):
    return [line["train/loss"] for line in read_lines(folder / "metrics.jsonl") if "train/loss" in line]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two unlabelled datasets of different montages, and a labelled one."""
    folder = tmp_path_factory.mktemp("data")
    write_toy(folder / "pair", seconds=30, splits=(("train", 3), ("val", 1)))
    write_toy(folder / "many", 19, seconds=24, splits=(("train", 3), ("val", 1)))
    write_toy(folder / "Toy", seconds=40, window=2, splits=(("train", 4), ("val", 2), ("test", 2)))
    return folder


@pytest.fixture(scope="module")
def tokenizer(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vqnsp")
    call(
        run_vqnsp_training, "--dataset_dir", data, "--output_dir", folder, *TOKENIZER, "--quantize_kmeans_init",
        "--epochs", 2, "--warmup_epochs", 1, "--batch_size", 8, "--save_ckpt_freq", 1, "--log_dir", folder / "board",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def masked(data, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labram")
    call(
        run_labram_pretraining, "--dataset_dir", data, "--output_dir", folder, *MASKED, "--tokenizer_weight",
        tokenizer / "checkpoint.pth", "--epochs", 2, "--warmup_epochs", 1, "--batch_size", 4,
    )  # fmt: skip
    return folder


def test_outputs_of_the_tokenizer(tokenizer):
    for name in ("checkpoint.pth", "checkpoint-1.pth", "checkpoint-2.pth"):
        assert read_checkpoint(tokenizer / name).keys() >= OFFICIAL_KEYS
    epochs = read_lines(tokenizer / "log.txt")
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert epochs[1]["val/loss"] < epochs[0]["val/loss"]
    assert 0 < epochs[1]["val/codebook_perplexity"] <= 64
    assert next((tokenizer / "board").glob("events.out.tfevents.*")).stat().st_size > 1000


def test_masked_model_learns(masked):
    epochs = read_lines(masked / "log.txt")
    assert epochs[1]["val/loss"] < epochs[0]["val/loss"] < 2 * 4.3  # 2 ln 64 = 8.3 is chance


def finetune(data, folder, *flags):
    call(
        run_class_finetuning, "--dataset_dir", data, "--dataset", "Toy", "--output_dir", folder, *CLASSIFIER,
        "--batch_size", 8, "--lr", 2e-3, "--epochs", 4, "--warmup_epochs", 1, *flags,
    )  # fmt: skip
    written = folder / ("eval/results.json" if "--eval" in flags else "results.json")
    (result,) = json.loads(written.read_text())["results"]
    return result


def test_fine_tuning_keeps_the_best_epoch_and_tests_it(data, masked, tmp_path):
    result = finetune(data, tmp_path, "--finetune", masked / "checkpoint.pth")
    assert result["windows"] == 40
    assert result["metrics"]["auroc"] > 0.9
    best = read_checkpoint(tmp_path / "checkpoint-best.pth")
    lines = read_lines(tmp_path / "log.txt")
    scores = [line["val/auroc"] + 1e-6 * line["val/balanced_accuracy"] for line in lines]
    assert best["best"] == max(scores)
    assert best["epoch"] == scores.index(max(scores)) + 1
    assert best["classes"] == ["slow", "fast"]
    (task,) = best["tasks"]  # what predict.py asks it
    assert list(task["answers"]) == best["classes"] and task["seconds"] > 0
    again = finetune(data, tmp_path / "again", "--eval", "--finetune", tmp_path / "checkpoint-best.pth")
    assert again["metrics"] == result["metrics"]


def test_linear_probe_and_moving_average(data, masked, tmp_path):
    finetune(data, tmp_path, "--finetune", masked / "checkpoint.pth", "--freeze_backbone", "--epochs", 1)
    student, probe = (read_checkpoint(folder / "checkpoint.pth")["model"] for folder in (masked, tmp_path))
    for name, value in probe.items():
        if not name.startswith(("fc_norm.", "head.")):
            assert torch.equal(value, student["student." + name]), name
    assert probe["head.bias"].any()

    finetune(data, tmp_path / "ema", "--model_ema", "--model_ema_decay", 0.5, "--epochs", 1)
    newest, best = (read_checkpoint(tmp_path / "ema" / f"checkpoint{which}.pth") for which in ("", "-best"))
    assert torch.equal(newest["model_ema"]["head.weight"], best["model"]["head.weight"])
    assert not torch.equal(newest["model_ema"]["head.weight"], newest["model"]["head.weight"])


def runs(data, tokenizer):
    """Short runs of each script, with drop path and accumulated gradients where there are any."""
    shared = ["--dataset_dir", data, "--max_steps", 5]
    accumulate = ["--batch_size", 4, "--gradient_accumulation_steps", 2]
    weight = ["--tokenizer_weight", tokenizer / "checkpoint.pth"]
    return [
        (run_vqnsp_training, [*shared, *TOKENIZER, *accumulate, "--quantize_kmeans_init"]),
        (run_labram_pretraining, [*shared, *MASKED, *weight, *accumulate, "--drop_path", 0.1]),
        (run_class_finetuning, [*shared, *CLASSIFIER, "--dataset", "Toy", "--batch_size", 64, "--drop_path", 0.3]),
    ]


@pytest.mark.parametrize("which", range(3))
def test_a_killed_run_goes_on_at_the_next_step_bit_for_bit(data, tokenizer, tmp_path, monkeypatch, which):
    script, flags = runs(data, tokenizer)[which]
    call(script, *flags, "--output_dir", tmp_path / "whole")

    update = Trainer.update

    def die(trainer, **counts):
        if trainer.step == 3:
            raise KeyboardInterrupt
        update(trainer, **counts)

    monkeypatch.setattr(Trainer, "update", die)
    with pytest.raises(KeyboardInterrupt):
        call(script, *flags, "--output_dir", tmp_path / "halved", "--save_every_steps", 2)
    monkeypatch.setattr(Trainer, "update", update)
    call(script, *flags, "--output_dir", tmp_path / "halved", "--save_every_steps", 2)

    whole, halved = (read_checkpoint(tmp_path / name / "checkpoint.pth") for name in ("whole", "halved"))
    assert whole["iter_num"] == halved["iter_num"] == 5
    for name, value in whole["model"].items():
        assert torch.equal(value, halved["model"][name]), name
    assert losses(tmp_path / "whole") == losses(tmp_path / "halved")


@pytest.mark.e2e
@pytest.mark.parametrize("which", range(3))
def test_two_processes_make_the_steps_of_one(data, tokenizer, tmp_path, which):
    script, flags = runs(data, tokenizer)[which]
    flags = [*flags, "--drop_path", 0] if which else flags
    size = flags.index("--batch_size") + 1
    for nproc in (1, 2):
        flags[size] = 4 // nproc
        run_processes(nproc, call, script, *flags, "--output_dir", tmp_path / str(nproc))
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-4)
    one, two = (read_checkpoint(tmp_path / str(nproc) / "checkpoint.pth")["model"] for nproc in (1, 2))
    for name, value in one.items():
        if name.startswith("student.patch_embed.conv") and name.endswith("bias"):
            continue  # it starts at 0, and GroupNorm of one channel takes it away: Adam follows its rounding
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=1e-4, msg=name)
    name = "val/auroc" if which == 2 else "val/loss"
    first, second = (read_lines(tmp_path / str(nproc) / "log.txt")[-1][name] for nproc in (1, 2))
    assert second == pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (run_vqnsp_training, ["--batch_size", 500], "fewer than the 500 of one step"),
        (run_vqnsp_training, ["--datasets", "Other"], "--datasets Other: not under"),
        (run_labram_pretraining, ["--batch_size", 4, "--tokenizer_weight", "no.pth"], "_weight: no checkpoint found"),
        (run_class_finetuning, ["--dataset", "Other"], "--dataset Other: no such dataset folder"),
        (run_class_finetuning, ["--dataset", "Toy", "--rel_pos_bias"], "absolute positions only"),
        (run_class_finetuning, ["--dataset", "Toy", "--finetune", "no.pth"], "--finetune: no checkpoint found"),
        (run_class_finetuning, ["--dataset", "Toy", "--eval"], "no checkpoint found, tried .*/checkpoint-best.pth;"),
    ],
)
def test_mistakes_are_said_in_one_line(data, tmp_path, script, flags, message):
    with pytest.raises(UserError, match=message) as caught:
        call(script, "--dataset_dir", data, "--output_dir", tmp_path, *flags)
    assert "\n" not in str(caught.value)


TOKENIZER_COMMAND = """run_vqnsp_training.py --output_dir {out}/checkpoints/vqnsp/ --log_dir {out}/log/vqnsp/
    --model vqnsp_encoder_base_decoder_3x200x12 --codebook_n_emd 8192 --codebook_emd_dim 64 --quantize_kmeans_init
    --batch_size 128 --opt adamw --opt_betas 0.9 0.99 --weight_decay 1e-4 --warmup_epochs 10 --epochs 100
    --save_ckpt_freq 20"""
PRETRAINING_COMMAND = """run_labram_pretraining.py --output_dir {out}/checkpoints/labram_base --log_dir {out}/log/base
    --model labram_base_patch200_1600_8k_vocab --tokenizer_model vqnsp_encoder_base_decoder_3x200x12
    --tokenizer_weight {out}/checkpoints/vqnsp/checkpoint.pth --batch_size 64 --lr 5e-4 --warmup_epochs 5
    --clip_grad 3.0 --drop_path 0. --layer_scale_init_value 0.1 --opt_betas 0.9 0.98 --opt_eps 1e-8 --epochs 50
    --save_ckpt_freq 5 --codebook_dim 64 --gradient_accumulation_steps 1"""
FINETUNING_COMMAND = """run_class_finetuning.py --output_dir {out}/checkpoints/finetune_tuab_base/ --log_dir {out}/log/f
    --model labram_base_patch200_200 --finetune {out}/checkpoints/labram_base/checkpoint.pth --weight_decay 0.05
    --batch_size 64 --lr 5e-4 --update_freq 1 --warmup_epochs 5 --epochs 50 --layer_decay 0.65 --drop_path 0.1
    --save_ckpt_freq 5 --disable_rel_pos_bias --abs_pos_emb --dataset TUAB --disable_qkv_bias --seed 0"""


@pytest.mark.e2e
def test_the_published_commands_run_as_written(tmp_path):
    write_toy(tmp_path / "data" / "pair", seconds=120)
    write_toy(tmp_path / "data" / "TUAB", seconds=60, window=2, splits=(("train", 3), ("val", 2), ("test", 2)))
    commands = (TOKENIZER_COMMAND, PRETRAINING_COMMAND, FINETUNING_COMMAND)
    for script, command in zip(SCRIPTS, commands, strict=True):
        name, *words = command.format(out=tmp_path).split()
        assert name == f"{script.__name__}.py"
        call(script, *words, "--dataset_dir", tmp_path / "data", "--max_steps", 1)
    folders = [tmp_path / "checkpoints" / name for name in ("vqnsp", "labram_base", "finetune_tuab_base")]
    assert [read_checkpoint(folder / "checkpoint.pth")["iter_num"] for folder in folders] == [1, 1, 1]
    assert (folders[2] / "results.json").is_file()


@pytest.mark.e2e
@pytest.mark.parametrize(("which", "steps", "lr"), [(0, 250, 0.3), (1, 60, 5e-3), (2, 60, 5e-3)])
def test_one_batch_can_be_learnt_by_heart(data, tokenizer, tmp_path, which, steps, lr):
    script, flags = runs(data, tokenizer)[which]
    flags = [*flags, "--output_dir", tmp_path, "--overfit_batches", 1, "--max_steps", steps, "--epochs", steps]
    flags += ["--batch_size", 2 if which else 1, "--lr", lr, "--warmup_epochs", 0, "--clip_grad", 1]
    flags += ["--drop_path", 0] if which else ["--gradient_accumulation_steps", 1, "--datasets", "pair"]
    call(script, *flags)
    found = losses(tmp_path / "overfit")
    assert len(found) == steps
    assert found[-1] < 0.05 * found[0]
