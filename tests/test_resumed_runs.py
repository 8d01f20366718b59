"""The six scripts, resumed with something else than they were started with."""

import json
import re

import numpy as np
import pytest
import stages
import torch
from processes import run_processes
from test_labram_scripts import CLASSIFIER, MASKED, TOKENIZER, call
from toy_eeg import write_toy

import run_class_finetuning
import run_labram_pretraining
import run_vqnsp_training
from errors import UserError
from model.weights import read_checkpoint
from training.checkpoints import write_checkpoint

STAGES = ["vq", "pretrain", "instruction"]
SHORT = ("--gradient_accumulation_steps", 1, "--max_steps", 2)


@pytest.fixture(scope="module")
def corpus(untrained):
    """Every stage of NeuroLM after two steps, in <corpus>/run."""
    for stage in STAGES:
        stages.train(stage, untrained, untrained / "run", *SHORT)
    return untrained


def perturb(path, target, name) -> None:
    """A checkpoint with other values in one tensor."""
    checkpoint = read_checkpoint(path)
    checkpoint["model"] = {key: value + (key == name) for key, value in checkpoint["model"].items()}
    write_checkpoint(checkpoint, target)


def refused(corpus, stage, *more) -> str:
    newest = corpus / "run" / "checkpoints" / stages.FOLDERS[stage] / "ckpt.pt"
    before = newest.read_bytes()
    with pytest.raises(UserError) as caught:
        stages.train(stage, corpus, corpus / "run", *SHORT, *more)
    assert newest.read_bytes() == before
    return str(caught.value)


@pytest.mark.parametrize("stage", STAGES)
def test_data_text_and_seed(stage, corpus, tmp_path):
    for split in ("train", "val"):
        tokens = np.random.default_rng(1).integers(50257, size=2000).astype("<u2")
        (tmp_path / f"{split}.bin").write_bytes(tokens.tobytes())
    said = refused(corpus, stage, "--text_dir", tmp_path, "--seed", 7)
    assert re.search(r"--seed is 7, was 1337; text is \w{12}, was \w{12}\. .*--allow_changed seed text$", said)
    if stage != "instruction":
        said = refused(corpus, stage, "--datasets", "pair")
        assert re.search(r"datasets is four nothing, was four \w{12}\.", said)


@pytest.mark.parametrize("name", ["encoder.cls", "encode_task_layer.0.weight", "quantize.embedding.weight"])
def test_another_tokenizer_in_stage_2(name, corpus, tmp_path):
    path = stages.reference(corpus, "vq") / "ckpt.pt"
    names = [key for key in read_checkpoint(path)["model"] if key.startswith("VQ.encoder.")]
    name = names[0] if name == "encoder.cls" else f"VQ.{name}"
    perturb(path, tmp_path / "ckpt.pt", name)
    said = refused(corpus, "pretrain", "--tokenizer_path", tmp_path / "ckpt.pt")
    assert re.search(r"tokenizer is \w{12}, was \w{12}\. .*--allow_changed tokenizer$", said)


def test_another_start_and_task_in_stage_3(corpus, tmp_path):
    path = stages.reference(corpus, "pretrain") / "ckpt.pt"
    perturb(path, tmp_path / "ckpt.pt", "tokenizer.fc_norm.weight")
    said = refused(corpus, "instruction", "--NeuroLM_path", tmp_path / "ckpt.pt")
    assert said.endswith("--allow_changed tokenizer weights")
    task = stages.TASK.replace("data/Toy", str(corpus / "data" / "Toy"))
    (tmp_path / "task.yaml").write_text(task.replace("Which rhythm", "What rhythm"))
    said = refused(corpus, "instruction", "--tasks", tmp_path / "task.yaml")
    assert "tasks is Toy question 'What rhythm is this?', was Toy question 'Which rhythm is this?'" in said


def test_the_schedule_and_the_optimizer_follow_the_new_flags(corpus, tmp_path, capsys):
    stages.train("vq", corpus, tmp_path, *SHORT)
    new = ("--max_steps", 4, "--weight_decay", 0.2, "--beta1", 0.5, "--learning_rate", 0.1, "--no-decay_lr")
    folder = stages.train("vq", corpus, tmp_path, *SHORT, *new, "--save_every_steps", 1)
    said = capsys.readouterr().out
    for line in ("--weight_decay is 0.2, was 0.0001", "--beta1 is 0.5, was 0.9", "--decay_lr is False, was True"):
        assert said.count(f"resumed: {line}\n") == 1
    state, written = read_checkpoint(folder / "ckpt.pt"), json.loads((folder / "config.json").read_text())
    groups = state["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]
    assert all(group["betas"] == (0.5, 0.999) and group["lr"] > 0.01 for group in groups)
    assert [entry["step"] for entry in state["history"]] == [0, 2]
    assert [entry["config"]["weight_decay"] for entry in state["history"]] == [1e-4, 0.2]
    assert written["history"] == json.loads(json.dumps(state["history"])) and written["config"]["beta1"] == 0.5
    assert "wandb_api_key" not in json.dumps(written) and written["config"]["dtype"] == "float32"


def test_allowed_changes_go_on_and_are_remembered(corpus, tmp_path, capsys):
    stages.train("vq", corpus, tmp_path, *SHORT)
    more = ("--seed", 7, "--allow_changed", "seed", "--max_steps", 3)
    state = read_checkpoint(stages.train("vq", corpus, tmp_path, *SHORT, *more) / "ckpt.pt")
    assert "resumed, as allowed: --seed is 7, was 1337" in capsys.readouterr().out
    assert [(entry["step"], entry["config"]["seed"]) for entry in state["history"]] == [(0, 1337), (2, 7)]


def test_an_allowed_tokenizer_is_read_whole(corpus, tmp_path):
    """Not the encoder of the checkpoint with the codebook of another one."""
    stages.train("pretrain", corpus, tmp_path, *SHORT)
    perturb(stages.reference(corpus, "vq") / "ckpt.pt", tmp_path / "other.pt", "VQ.encoder.fc_norm.weight")
    more = ("--tokenizer_path", tmp_path / "other.pt", "--allow_changed", "tokenizer", "--max_steps", 3)
    state = read_checkpoint(stages.train("pretrain", corpus, tmp_path, *SHORT, *more) / "ckpt.pt")
    expected = read_checkpoint(tmp_path / "other.pt")["model"]["VQ.encoder.fc_norm.weight"]
    assert torch.equal(state["model"]["tokenizer.fc_norm.weight"], expected)
    assert len({entry["inputs"]["tokenizer"] for entry in state["history"]}) == 2


def refuse_alike(corpus):
    with pytest.raises(UserError, match="tokenizer is .*--allow_changed tokenizer$"):
        stages.train("pretrain", corpus, corpus / "run", *SHORT, "--tokenizer_path", corpus / "other.pt")


def test_all_processes_refuse_alike(corpus):
    path = stages.reference(corpus, "vq") / "ckpt.pt"
    perturb(path, corpus / "other.pt", "VQ.quantize.embedding.weight")
    run_processes(2, refuse_alike, corpus)


@pytest.fixture(scope="module")
def labram(tmp_path_factory):
    """The flags of LaBraM's scripts, each trained for two steps."""
    folder = tmp_path_factory.mktemp("labram")
    write_toy(folder / "pair", seconds=30, splits=(("train", 3), ("val", 1)))
    write_toy(folder / "Toy", seconds=40, window=2, splits=(("train", 2), ("val", 1), ("test", 1)))
    common = ["--dataset_dir", folder, "--max_steps", 2, "--batch_size", 4, "--warmup_epochs", 0]
    weight = ["--tokenizer_weight", folder / "vq" / "checkpoint.pth"]
    start = ["--finetune", folder / "masked" / "checkpoint.pth"]
    flags = {
        run_vqnsp_training: [*common, *TOKENIZER, "--output_dir", folder / "vq"],
        run_labram_pretraining: [*common, *MASKED, *weight, "--output_dir", folder / "masked"],
        run_class_finetuning: [*common, *CLASSIFIER, *start, "--dataset", "Toy", "--output_dir", folder / "tuned"],
    }
    for script, words in flags.items():
        call(script, *words)
    return folder, flags


def test_labram_refuses_other_weights_data_and_models(labram, tmp_path):
    folder, flags = labram
    for script, part, flag, said in (
        (run_labram_pretraining, "vq", "--tokenizer_weight", "tokenizer is .*--allow_changed tokenizer$"),
        (run_class_finetuning, "masked", "--finetune", "weights is .*--allow_changed weights$"),
    ):
        path = folder / part / "checkpoint.pth"
        state = read_checkpoint(path)["model"]
        name = next(name for name in state if name.endswith("blocks.0.norm1.weight"))
        perturb(path, tmp_path / "other.pth", name)
        with pytest.raises(UserError, match=said):
            call(script, *flags[script], flag, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"--codebook_emd_dim is 8, was 16\..*--allow_changed codebook_emd_dim"):
        call(run_vqnsp_training, *flags[run_vqnsp_training], "--codebook_emd_dim", 8)
    write_toy(tmp_path / "pair", seconds=31, splits=(("train", 3), ("val", 1)))
    with pytest.raises(UserError, match=r"datasets is pair \w{12}, was pair \w{12}\..*--allow_changed datasets$"):
        call(run_vqnsp_training, *flags[run_vqnsp_training], "--dataset_dir", tmp_path)


def test_labram_applies_decay_by_layer_and_kind_of_optimizer(labram, capsys):
    folder, flags = labram
    new = ["--max_steps", 3, "--layer_decay", 1.0, "--weight_decay", 0, "--opt", "adam", "--opt_eps", 1e-6]
    call(run_class_finetuning, *flags[run_class_finetuning], *new)
    said = capsys.readouterr().out
    for line in ("--layer_decay is 1.0, was 0.65", "--weight_decay is 0.0, was 0.05", "--opt is 'adam', was 'adamw'"):
        assert said.count(f"resumed: {line}\n") == 1
    groups = read_checkpoint(folder / "tuned" / "checkpoint.pth")["optimizer"]["param_groups"]
    assert {(g["lr_scale"], g["weight_decay"], g["eps"], g["decoupled_weight_decay"]) for g in groups} == {
        (1.0, 0.0, 1e-6, False)
    }
    assert torch.equal(torch.tensor([g["lr"] for g in groups]), torch.full((len(groups),), groups[0]["lr"]))
