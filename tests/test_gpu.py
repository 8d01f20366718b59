"""What only a GPU can show, in a few minutes: `make gpu`. With NEUROLM_DEVICE=cpu the same tests run on a CPU, where
--compile runs the graphs as they are."""

import copy
import os
from functools import partial

import pytest
import stages
import torch
import torch.distributed as dist
from small_models import make_lm
from test_compile import text
from test_tiles import sample
from torch.testing import assert_close

import utils
from dataset.text import load_tokenizer
from errors import REQUEUE, UserError
from model.weights import read_checkpoint
from training import starting
from training.sharding import filled_copy, shard, whole_state
from training.trainer import Trainer
from utils import Run, decay_groups, make_optimizer

DEVICE = os.environ.get("NEUROLM_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU"),
]
STEPS = ["--max_steps", 20, "--epochs", 4, "--log_interval", 1, "--save_ckpt_freq", 0]


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """fp32 without TF32, so that its steps can be compared with a CPU's."""
    start = starting.start_run

    def start_exactly(*arguments):
        run = start(*arguments)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return run

    monkeypatch.setattr(starting, "start_run", start_exactly)
    if DEVICE == "cpu":
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        monkeypatch.setattr(utils, "choose_dtype", lambda name, device: utils.DTYPES[name])  # float16 too


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    corpus = stages.write_corpus(tmp_path_factory.mktemp("corpus"))
    for stage in ("vq", "pretrain"):
        stages.train(stage, corpus, corpus / "reference")
    return corpus


def train(stage, corpus, out_dir, *more, device=DEVICE, dtype="float32"):
    """20 steps -> the folder, and the losses of each step."""
    given = [*STEPS, "--device", device, "--dtype", dtype, *["--dropout", 0] * (stage != "vq"), *more]
    folder = stages.train(stage, corpus, out_dir, *given)
    return folder, [line["train/loss"] for line in stages.read_metrics(folder) if "train/loss" in line]


@pytest.fixture(scope="module")
def on_cpu(corpus):
    folder, losses = train("pretrain", corpus, corpus / "cpu", device="cpu")
    assert len(losses) == 20
    return folder, losses


def assert_close_weights(folder, reference):
    model, expected = (read_checkpoint(path / "ckpt.pt")["model"] for path in (folder, reference))
    for name, value in expected.items():
        if "quantize" not in name:  # a vector between two codes may fall on either side
            assert_close(model[name].cpu(), value, rtol=1e-3, atol=5e-4, msg=lambda said, at=name: f"{at}: {said}")


def test_20_steps_of_stage_2_are_the_cpus(on_cpu, corpus, tmp_path):
    folder, losses = train("pretrain", corpus, tmp_path)
    assert losses == pytest.approx(on_cpu[1], rel=1e-3)
    assert_close_weights(folder, on_cpu[0])


@pytest.mark.parametrize("stage", ["vq", "instruction"])
def test_20_steps_of_stages_1_and_3_are_the_cpus(stage, corpus, tmp_path):
    if stage == "instruction":
        try:
            load_tokenizer()
        except UserError as error:
            pytest.skip(f"stage 3 needs GPT-2's vocabulary: {error}")
    reference, expected = train(stage, corpus, tmp_path / "cpu", device="cpu")
    folder, losses = train(stage, corpus, tmp_path / "here")
    assert losses == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert_close_weights(folder, reference)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_learns_as_float32(dtype, on_cpu, corpus, tmp_path):
    steps = 20 if DEVICE == "cuda" else 6  # of the same warm-up; few CPUs are fast at it
    folder, losses = train("pretrain", corpus, tmp_path, "--max_steps", steps, dtype=dtype)
    expected = on_cpu[1][:steps]
    assert losses == pytest.approx(expected, rel=0.05)  # the loss scale may leave out the first steps
    scaled = read_checkpoint(folder / "ckpt.pt")["scaler"]
    assert bool(scaled) == (dtype == "float16") and all(value.dtype == torch.float32 for value in
                                                        read_checkpoint(folder / "ckpt.pt")["model"].values()
                                                        if value.is_floating_point())  # fmt: skip


@pytest.mark.parametrize("stage", ["vq", "pretrain"])
def test_compiled_steps_are_the_same(stage, on_cpu, corpus, tmp_path):
    torch._dynamo.reset()
    expected = on_cpu[1] if stage == "pretrain" else train(stage, corpus, tmp_path / "eager")[1]
    assert train(stage, corpus, tmp_path, "--compile")[1] == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_compiled_attention_over_padded_windows_is_the_dense_one(dtype, close):
    """640 tokens, of which a GPU passes over the blocks that the clock forbids."""
    torch._dynamo.reset()
    model, eeg = make_lm().to(DEVICE).train(), sample()
    eeg |= {"source": torch.arange(640), "target": torch.arange(640)}
    given = [{name: value.to(DEVICE) for name, value in part.items()} for part in (eeg, text(8))]
    found = []
    for compiled in (False, True):
        model.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            sums = (torch.compile(model) if compiled else model)(eeg=given[0], text=given[1])
        sum(part["loss"] for part in sums.values()).backward()
        found.append([sums["eeg"]["loss"].detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for ours, expected in zip(found[1], found[0], strict=True):
        assert (ours - expected).norm() <= close * expected.norm() + 1e-6


def test_a_run_that_was_stopped_goes_on(corpus, tmp_path, monkeypatch):
    """With dropout, whose masks the seed of each step gives."""
    _, expected = train("pretrain", corpus, tmp_path / "whole", "--dropout", 0.1)
    update = Trainer.update

    def update_and_stop(trainer, **counts):
        update(trainer, **counts)
        trainer._told_to_stop = trainer.step == 7

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(Trainer, "update", update_and_stop)
        train("pretrain", corpus, tmp_path / "stopped", "--dropout", 0.1)
    assert stop.value.code == REQUEUE
    assert train("pretrain", corpus, tmp_path / "stopped", "--dropout", 0.1)[1] == pytest.approx(expected, rel=1e-3)


def test_shards_on_one_device_make_the_same_steps(tmp_path):
    run = Run(0, 1, torch.device(DEVICE), torch.bfloat16, seed=0)
    whole_model, eeg = make_lm().to(DEVICE).train(), {name: value.to(DEVICE) for name, value in text(8).items()}
    sharded, losses, states = copy.deepcopy(whole_model), [], []
    place = f"file://{tmp_path / 'store'}"
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo", init_method=place, rank=0, world_size=1)
    try:
        template = shard(sharded, run)
        for model in (whole_model, sharded):
            optimizer = make_optimizer(decay_groups(model, 0.1), 1e-3, (0.9, 0.95), run.device)
            for _ in range(5):
                with run.autocast():
                    loss = model(text=eeg)["text"]["loss"] / 16
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss.item())
            states.append(whole_state(model.state_dict(), keep=True))
        filled = filled_copy(template, sharded, run.device).state_dict()
    finally:
        dist.destroy_process_group()
    assert losses[5:] == pytest.approx(losses[:5], rel=1e-3) and losses[4] < losses[0]
    for name, value in states[0].items():
        assert_close(states[1][name].cpu(), value.cpu(), rtol=1e-2, atol=2e-3)
        assert_close(filled[name].cpu(), states[1][name].cpu(), rtol=0, atol=0)
