"""--tune: what trains is said, nothing else moves; adapters are saved alone, resumed exactly, and merge to the same."""

import json

import pytest
import stages
import torch
from conftest import run_script
from processes import run_processes
from small_models import make_lm, samples
from torch.testing import assert_close

import run_class_finetuning
from dataset.batches import QuestionCollate
from dataset.text import load_tokenizer
from errors import UserError
from evaluation.inference import load_model
from model.labram import BACKBONES, Classifier
from model.neurolm import NeuroLM
from model.weights import ADAPTS, read_checkpoint
from training.checkpoints import write_checkpoint
from training.trainer import Trainer
from training.tuning import tune
from utils import Run

RUN = Run(0, 1, torch.device("cpu"), torch.float32, seed=0)
LM_PARTS, LABRAM_PARTS = "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj", "attn.qkv attn.proj mlp.fc1 mlp.fc2"
LM_LAYERS = [f"GPT2.transformer.h.{i}.{layer}" for i in range(2) for layer in LM_PARTS.split()]
LABRAM_LAYERS = [f"blocks.{i}.{layer}" for i in range(2) for layer in LABRAM_PARTS.split()]
FLAGS = {"model": "labram_tiny_patch200_200", "qkv_bias": False, "layer_scale_init_value": None}
ABOUT = {"args": FLAGS, "classes": ["a", "b", "c"]}
LM_HEAD = {"GPT2.transformer.ln_f.weight", "GPT2.transformer.ln_f.bias", "GPT2.lm_head.weight"}
HEAD = {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
EXPECTED = {
    ("lm", "probe"): LM_HEAD,
    ("lm", "lora"): {f"{layer}.lora_{part}.default.weight" for layer in LM_LAYERS for part in "AB"},
    ("labram", "probe"): HEAD,
    ("labram", "lora"): HEAD | {f"{layer}.lora_{part}.default.weight" for layer in LABRAM_LAYERS for part in "AB"},
}


def make(system):
    model = make_lm() if system == "lm" else Classifier(BACKBONES["tiny"], 3)
    if system == "labram":
        model.head.weight.data.mul_(1000)  # logits start near 0
    return model


def logits(model):
    model.eval()
    if isinstance(model, Classifier):
        x = torch.randn(2, 3, 2, 200, generator=torch.Generator().manual_seed(0))
        return model(x, torch.arange(6).view(2, 3)).detach()
    batch = QuestionCollate(load_tokenizer())(samples())
    return model.GPT2.lm_head(model.read(batch)[0]).detach()


@pytest.fixture(scope="module")
def labram(untrained):
    """A masked model that nobody trained, as run_labram_pretraining.py writes it."""
    torch.manual_seed(0)
    state = Classifier(BACKBONES["tiny"], 1).state_dict()
    state = {f"student.{name}": value for name, value in state.items() if name not in HEAD}
    path = untrained / "masked.pth"
    write_checkpoint({"model": state | {"student.mask_token": torch.zeros(1, 1, 100)}, "trained_on": []}, path)
    return path


@pytest.fixture(params=["labram", "lm"])
def script(request, untrained, labram):
    """Runs a script with --tune in a folder -> its newest checkpoint; and the checkpoint that it starts from."""

    def finetune(folder, *more):
        flags = ["--dataset_dir", untrained / "data", "--dataset", "Toy", "--output_dir", folder, "--device", "cpu"]
        flags += ["--model", "labram_tiny_patch200_200", "--disable_qkv_bias", "--finetune", labram, "--batch_size", 4]
        flags += ["--epochs", 2, "--warmup_epochs", 1, "--num_workers", 0, "--log_interval", 3, *more]
        run_class_finetuning.main(run_class_finetuning.get_args([*map(str, flags)]))
        return folder / "checkpoint.pth"

    def instruct(folder, *more):
        return stages.train("instruction", untrained, folder, *more) / "ckpt.pt"

    if request.param == "labram":
        return finetune, labram
    return instruct, stages.reference(untrained, "pretrain") / "ckpt.pt"


@pytest.mark.parametrize(("system", "how"), EXPECTED)
def test_what_trains_is_said(system, how, tmp_path, capsys):
    model = make(system)
    write_checkpoint({"model": model.state_dict()}, tmp_path / "base.pt")
    tune(model, how, 3, RUN, tmp_path / "base.pt")
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert trained.keys() == EXPECTED[system, how]
    everything = list(model.parameters())
    count = f"{sum(value.numel() for value in trained.values()):,} of {sum(value.numel() for value in everything):,}"
    said = capsys.readouterr().out
    assert f"trains {len(trained)} of {len(everything)} tensors, {count} parameters: " in said
    assert all(f"{name.replace('.0.', '.*.')}" in said for name in trained if ".1." not in name)


@pytest.mark.parametrize("system", ["lm", "labram"])
def test_merged_adapters_give_the_same_logits(system, tmp_path):
    model, adapted = make(system), tmp_path / "adapted.pt"
    base = {"model": model.state_dict()} | (model.config_args() if system == "lm" else ABOUT)
    write_checkpoint(base, tmp_path / "base.pt")
    before = logits(model)
    adapts = tune(model, "lora", 4, RUN, tmp_path / "base.pt")
    assert_close(logits(model), before, rtol=0, atol=0)  # B = 0
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.2)
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    write_checkpoint(base | adapts | {"model": trained, "optimizer": {}}, adapted)
    run_script("export.py", adapted, tmp_path / "merged.pt")
    merged = read_checkpoint(tmp_path / "merged.pt", whole=False)
    assert not {ADAPTS, "optimizer"} & merged.keys()
    plain = NeuroLM.load(tmp_path / "merged.pt") if system == "lm" else make(system)
    plain.load_state_dict(merged["model"])
    after = logits(model)
    assert_close(logits(plain), after, rtol=1e-5, atol=1e-5)
    assert (after - before).abs().max() > 1e-3
    (tmp_path / "moved").mkdir()
    for name in ("base.pt", "adapted.pt"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert stages.same(read_checkpoint(tmp_path / "moved" / "adapted.pt")["model"], merged["model"])


def test_adapters_alone_are_saved_and_resumed(script, tmp_path, monkeypatch):
    train, base = script
    lora = ["--tune", "lora", "--lora_rank", 2, "--save_every_steps", 2]
    newest = train(tmp_path / "a", *lora)
    best = newest.with_stem(f"{newest.stem}-best")
    raw, whole, start = read_checkpoint(best, whole=False), read_checkpoint(best), read_checkpoint(base)["model"]
    assert best.stat().st_size < 0.1 * base.stat().st_size
    layers = LABRAM_LAYERS if train.__name__ == "finetune" else LM_LAYERS
    moved = {f"{layer}.weight" for layer in layers} | (HEAD if train.__name__ == "finetune" else set())
    assert len(raw["model"]) == 2 * len(layers) + len(moved & HEAD)
    for name, value in whole["model"].items():
        before = start.get(name, start.get(f"student.{name}"))
        assert (before is not None and torch.equal(value, before)) == (name not in moved), name

    def save_and_die(trainer, *arguments, save=Trainer.save):
        save(trainer, *arguments)
        if trainer.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "save", save_and_die)
        train(tmp_path / "b", *lora)
    again = train(tmp_path / "b", *lora)
    for name in (newest.name, best.name):
        ours, theirs = (read_checkpoint(path.with_name(name), whole=False) for path in (again, newest))
        assert all(stages.same(ours[part], theirs[part]) for part in ("model", ADAPTS))
    assert stages.read_metrics(again.parent) == stages.read_metrics(newest.parent)
    with pytest.raises(UserError, match="--lora_rank is 3, was 2"):
        train(tmp_path / "b", *lora, "--lora_rank", 3)

    path, evaluate = ("--finetune", "--eval") if train.__name__ == "finetune" else ("--NeuroLM_path", "--eval_only")
    train(tmp_path / "a", evaluate, path, best)
    (evaluated,) = newest.parent.glob("eval*/results.json")
    load_model(Classifier if path == "--finetune" else NeuroLM, best)  # as predict.py does
    results = [json.loads(file.read_text())["results"] for file in (evaluated, newest.parent / "results.json")]
    assert results[0][0]["metrics"] == pytest.approx(results[1][0]["metrics"], abs=1e-6)
    with pytest.raises(UserError, match="holds adapters alone: merge them first, python export.py"):
        train(tmp_path / "c", *lora, path, best)


def test_a_probe_moves_nothing_but_the_head(script, tmp_path):
    train, base = script
    probed = read_checkpoint(train(tmp_path, "--tune", "probe"), whole=False)["model"]
    start = read_checkpoint(base)["model"]
    for name, value in probed.items():
        before = start.get(name, start.get(f"student.{name}"))
        assert (before is None or not torch.equal(value, before)) == (name in LM_HEAD | HEAD), name


@pytest.mark.parametrize("flags", [[], ["--fsdp"]])
def test_two_processes_train_the_same_adapters(untrained, tmp_path, flags):
    batch = ["--dropout", 0, "--tune", "lora", "--gradient_accumulation_steps", 1, "--text_batch_size", 0]
    alone = stages.train("instruction", untrained, tmp_path / "1", *batch, "--eeg_batch_size", 4)
    run_processes(2, stages.train, "instruction", untrained, tmp_path / "2", *batch, "--eeg_batch_size", 2, *flags)
    ours = read_checkpoint(tmp_path / "2" / "checkpoints" / alone.name / "ckpt.pt", whole=False)
    theirs = read_checkpoint(alone / "ckpt.pt", whole=False)
    assert ours[ADAPTS] == theirs[ADAPTS]
    assert_close(ours["model"], theirs["model"], rtol=1e-3, atol=2e-4)
