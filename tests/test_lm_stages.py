"""--lm from text to answers: three stages, resumed exactly, evaluated, asked, exported; adapters; several processes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import stages
import torch
from hf_models import prepare_text, save_lm
from processes import run_processes
from small_models import make_lm, samples
from test_lm_decoder import load as load_lm
from test_tune import RUN
from torch.testing import assert_close

import export
from dataset.batches import QuestionCollate
from dataset.text import open_text, tokenizer_of
from dataset.vocabulary import read_vocabulary
from errors import UserError
from evaluation.inference import load
from model.neurolm import NeuroLM
from model.vq import VQ_Align
from model.weights import ADAPTS, read_checkpoint
from training.checkpoints import write_checkpoint
from training.trainer import Trainer
from training.tuning import ADDED, tune

SHORT = ("--epochs", 1, "--gradient_accumulation_steps", 1, "--max_steps", 2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Data, a language model called `tiny`, so that folders are those of `stages`, its text, and two steps of each
    stage; `steps` trains on."""
    folder = stages.write_corpus(tmp_path_factory.mktemp("lm"))
    save_lm(folder / "tiny")
    (folder / "text").rename(folder / "gpt2")
    prepare_text(folder, folder / "tiny", folder / "text")
    for stage in stages.SCRIPTS:
        steps(stage, folder, folder / "reference")
    return folder


def steps(stage, corpus, out_dir, *more):
    dropout = [] if stage == "vq" else ["--dropout", 0]
    return stages.train(stage, corpus, out_dir, "--lm", corpus / "tiny", *SHORT, *dropout, *more)


def test_checkpoints_say_whose_words_they_know(corpus):
    words = read_vocabulary(str(corpus / "tiny"))
    for stage in ("pretrain", "instruction"):
        about = read_checkpoint(stages.reference(corpus, stage) / "ckpt.pt")
        lm = about["model_args"]
        assert (lm["name"], lm["revision"], len(lm["sha256"])) == (str(corpus / "tiny"), None, 64)
        assert lm["tokenizer"] == words.about() and lm["tokenizer"]["end_token"] == "<|endoftext|>"
        assert about["inputs"]["lm"] == lm["sha256"] and lm["tokenizer"]["separator"] == words.vocab
    model = NeuroLM.load(stages.reference(corpus, "instruction") / "ckpt.pt")
    assert tokenizer_of(model).encode("Answer: slow") == words.encode("Answer: slow")
    tokenizer = VQ_Align.load(stages.reference(corpus, "vq") / "ckpt.pt")
    start = NeuroLM.load(stages.reference(corpus, "pretrain") / "ckpt.pt").decoder
    assert tokenizer.wte.weight.shape == (start.text_rows, 32)
    assert tokenizer.text_transform_layer.weight.shape == (128, 32)


@pytest.mark.parametrize("stage", ["pretrain", "instruction"])
def test_a_killed_run_goes_on_exactly(stage, corpus, tmp_path, monkeypatch):
    more = ("--dropout", 0.1, "--save_every_steps", 1, "--max_steps", 3, "--tune", "lora", "--checkpoint_activations")
    whole = steps(stage, corpus, tmp_path / "whole", *more)

    def save_and_die(trainer, *arguments, save=Trainer.save):
        save(trainer, *arguments)
        if trainer.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "save", save_and_die)
        steps(stage, corpus, tmp_path / "killed", *more)
    stages.assert_same_run(steps(stage, corpus, tmp_path / "killed", *more), whole)
    state = read_checkpoint(whole / "ckpt.pt", whole=False)
    assert not any(name.startswith("lm.model.") and "lora" not in name for name in state["model"])
    own = read_checkpoint(whole / "ckpt.pt")["model"]
    base = NeuroLM.load(stages.reference(corpus, "pretrain") / "ckpt.pt").state_dict()
    assert own.keys() == base.keys() and "optimizer" in state
    with pytest.raises(UserError, match="--lora_rank is 3, was 8"):
        steps(stage, corpus, tmp_path / "killed", *more, "--lora_rank", 3)


def test_evaluated_asked_and_exported(corpus, tmp_path, capsys):
    folder = stages.reference(corpus, "instruction")
    best = folder / "ckpt-best.pt"
    steps("instruction", corpus, corpus / "reference", "--eval_only", "--NeuroLM_path", best)
    trained, alone = (
        json.loads(path.read_text())["results"][0]["metrics"]
        for path in (folder / "results.json", folder / "eval_score" / "results.json")
    )
    assert alone == pytest.approx(trained, abs=1e-6)
    eeg = samples()[0]["eeg"] * 100
    asked = load(best, device="cpu").answer(eeg, ["C3", "C4", "CZ"], 200)
    assert np.allclose(asked.filter(like="p_").sum(1), 1) and len(asked) == 2
    export.main(export.get_args([str(best), str(tmp_path / "folder"), "--no-encoder"]))
    export.main(export.get_args([str(tmp_path / "folder"), str(tmp_path / "again.pt")]))
    again = load(tmp_path / "again.pt", device="cpu").answer(eeg, ["C3", "C4", "CZ"], 200)
    assert again.equals(asked)
    hidden = load(best, device="cpu").features(eeg, ["C3", "C4", "CZ"], 200, level="hidden")
    assert hidden.shape == (2, 32)


def test_merged_adapters_give_the_same_logits(corpus, tmp_path):
    """Of the language model itself, in stage 2, and of a checkpoint, in stage 3."""
    for base in (None, stages.reference(corpus, "pretrain") / "ckpt.pt"):
        folder = steps("pretrain", corpus, tmp_path / str(bool(base)), "--tune", "lora", "--max_steps", 1)
        about = read_checkpoint(folder / "ckpt.pt", whole=False)
        model = NeuroLM.load(base or folder / "ckpt.pt")
        if base is None:  # back to where that run began
            model.decoder.model.load_state_dict(load_lm(corpus / "tiny").model.state_dict())
            model.decoder.about["sha256"] = about[ADAPTS]["sha256"]
        adapts = tune(model, "lora", 4, RUN, base)
        for name, value in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.2)
        names = adapts[ADAPTS]["names"]
        state = model.state_dict()
        kept = {name: value for name, value in state.items() if name.replace(".base_layer", "") not in names}
        write_checkpoint(about | adapts | {"model": kept}, tmp_path / "adapted.pt")
        merged = NeuroLM.load(tmp_path / "adapted.pt").eval()
        batch = QuestionCollate(tokenizer_of(merged))(samples())
        with torch.no_grad():
            ours, theirs = (m.read(batch)[0] @ m.decoder.head().T for m in (merged, model.eval()))
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        trained = {name for name, value in model.named_parameters() if value.requires_grad and "lora_" not in name}
        assert trained and all(name.startswith(ADDED) for name in trained) and "lm.codes" in trained


def test_weights_under_adapters_are_in_bfloat16_where_it_computes_so(corpus):
    model = NeuroLM.load(stages.reference(corpus, "pretrain") / "ckpt.pt")
    tune(model, "lora", 2, replace(RUN, dtype=torch.bfloat16), stages.reference(corpus, "pretrain") / "ckpt.pt")
    kinds = {(value.dtype, value.requires_grad) for name, value in model.named_parameters() if name.startswith("lm.")}
    assert kinds == {(torch.bfloat16, False), (torch.float32, True)}
    batch = QuestionCollate(tokenizer_of(model))(samples())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(eeg=batch)["eeg"]["loss"]
    loss.backward()
    assert loss.isfinite() and model.decoder.separator.grad.isfinite().all()


@pytest.mark.parametrize("more", [[], ["--fsdp", "--tune", "lora"], ["--fsdp", "--checkpoint_activations"]])
def test_two_processes_train_the_same(corpus, tmp_path, more):
    stage = "instruction" if "lora" in more else "pretrain"
    for n in (1, 2):
        work = ["--eeg_batch_size", 4 // n, "--text_batch_size", 2 // n, *more]
        run_processes(n, steps, stage, corpus, tmp_path / str(n), *work)
    one, two = (
        read_checkpoint(tmp_path / str(n) / "checkpoints" / stages.FOLDERS[stage] / "ckpt.pt", whole=False)["model"]
        for n in (1, 2)
    )
    assert_close(two, one, rtol=1e-3, atol=2e-4)
    logs = (stages.read_metrics(tmp_path / n / "checkpoints" / stages.FOLDERS[stage]) for n in "12")
    for a, b in zip(*logs, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3, nan_ok=True)


def test_recomputed_activations_give_the_same_gradients(corpus):
    gradients = []
    for again in (False, True):
        for model in (NeuroLM.load(stages.reference(corpus, "pretrain") / "ckpt.pt").train(), make_lm().train()):
            batch = QuestionCollate(tokenizer_of(model))(samples())
            if again:
                model.decoder.recompute()
            model(eeg=batch)["eeg"]["loss"].backward()
            gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert_close(gradients[:2], gradients[2:], rtol=0, atol=0)


def test_what_does_not_belong_together_is_refused(corpus, tmp_path):
    with pytest.raises(UserError, match=r"gpt2/train.bin holds tokens of GPT-2 .* again with --lm .*tiny"):
        steps("pretrain", corpus, tmp_path, "--text_dir", corpus / "gpt2")
    with pytest.raises(UserError, match=r"text/train.bin holds tokens of .*tiny .* those of GPT-2 .*without --lm"):
        open_text(corpus / "text", "train", 32)
    with pytest.raises(UserError, match=r"has the language model .*tiny, --lm is not given"):
        stages.train("instruction", corpus, tmp_path)
    with pytest.raises(UserError, match="--init_from scratch is for GPT-2"):
        steps("pretrain", corpus, tmp_path, "--init_from", "scratch")
    other = save_lm(tmp_path / "tiny", "Llama", num_hidden_layers=1)
    with pytest.raises(UserError, match=r"lm is \w{12}, was \w{12}"):
        steps("vq", corpus, corpus / "reference", "--lm", other)


ODD = ({"model_type": "x"}, {"num_hidden_layers": 10**9}, {"max_position_embeddings": 10**13}, {"vocab_size": 10**7})


@pytest.mark.parametrize("change", ODD)
def test_a_checkpoint_that_describes_another_model_is_refused(corpus, change):
    state = read_checkpoint(stages.reference(corpus, "pretrain") / "ckpt.pt")
    state["model_args"]["config"] |= change
    with pytest.raises(UserError, match="here") as caught:
        NeuroLM.from_checkpoint(state, "here")
    assert "\n" not in str(caught.value)
