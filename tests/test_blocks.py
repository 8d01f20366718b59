"""Attention in blocks, as compiled code on a GPU does it: the numbers and gradients of the dense mask, on a CPU too."""

import shutil
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import test_compile
import torch
from processes import run_processes
from small_models import make_lm, make_vq, samples
from test_packing import losses_and_gradients
from test_tiles import sample
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.nn.attention import flex_attention
from torch.testing import assert_close

from dataset.batches import QuestionCollate
from dataset.text import load_tokenizer
from model.packing import clock_blocks, clock_mask, in_blocks
from utils import start_run, wrap

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@contextmanager
def blocks_on_a_cpu():
    """FlexAttention is chosen here as on a GPU, and may compute gradients: slowly, but the same."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("packing", "neural_transformer"):
            patch.setattr(f"model.{module}.in_blocks", lambda x, dropout: not dropout)
        patch.setattr(flex_attention, "_validate_device", lambda *_: None)
        yield


def padded_and_packed():
    """Questions about windows of four montages, with text beside them: packed rows of mixed lengths, then padded."""
    batch = QuestionCollate(load_tokenizer())(samples())
    text = {"tokens": torch.arange(20).view(2, 10), "target": torch.arange(20).view(2, 10)}
    uncounted = {name: value for name, value in batch.items() if name not in ("counts", "tokens_counts")}
    return {"eeg": batch, "text": text}, {"eeg": uncounted, "text": text}


@pytest.mark.parametrize("given", padded_and_packed(), ids=["packed", "padded"])
def test_losses_and_gradients_are_those_of_the_dense_mask(given):
    model = make_lm()
    dense = losses_and_gradients(model, **given)
    with blocks_on_a_cpu():
        blocks = losses_and_gradients(model, **given)
    for name, expected in dense[0].items():
        assert_close(blocks[0][name], expected, **CLOSE)
    for name, expected in dense[1].items():
        assert_close(blocks[1][name], expected, rtol=1e-3, atol=1e-4 * float(1 + expected.abs().max()), msg=name)


def test_features_of_padded_windows_are_those_of_the_dense_mask():
    encoder, eeg = make_vq().VQ.encoder, sample()
    given = [eeg[name] for name in ("x", "chans", "time", "valid")]
    dense = encoder(*given)[eeg["valid"]]
    with blocks_on_a_cpu():
        assert_close(encoder(*given)[eeg["valid"]], dense, **CLOSE)


def test_blocks_that_the_clock_forbids_are_passed_over():
    eeg = sample(channels=32, seconds=32)  # 1024 tokens: 8 x 8 blocks of 4 seconds
    clock = (eeg["time"], eeg["time"], eeg["valid"])
    mask = clock_blocks(*clock)
    assert torch.equal(mask.to_dense()[0, 0] > 0, torch.ones(8, 8).tril() > 0)
    covered = mask.to_dense().repeat_interleave(128, 2).repeat_interleave(128, 3) > 0
    assert not (clock_mask(*clock) & ~covered).any()


def test_only_compiled_code_on_a_gpu_attends_in_blocks(monkeypatch):
    here, there = torch.empty(1), torch.empty(1, device="meta")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch.Tensor, "device", property(lambda x: torch.device("cuda" if x is there else "cpu")))
    assert in_blocks(there, 0.0) and not in_blocks(there, 0.1) and not in_blocks(here, 0.0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    assert not in_blocks(there, 0.0)


@pytest.mark.slow  # test_compile keeps the one graph, the tests above the numbers
@pytest.mark.parametrize("script", ["train_vq", "train_pretrain", "train_instruction"])
def test_a_step_in_blocks_is_one_graph(script, monkeypatch):
    make, read = test_compile.MODELS[script]
    torch._dynamo.reset()
    counter, losses = CompileCounterWithBackend("eager"), {}
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter, fullgraph=True))
    for compiled in (False, True):
        torch.manual_seed(0)
        raw = make().train()
        model, losses[compiled] = wrap(raw, start_run("cpu"), compile=compiled), []
        for batch in read(raw):
            with blocks_on_a_cpu() if compiled else nullcontext():
                loss = test_compile.total(model(**batch))
                loss.backward()
            losses[compiled].append(loss.detach())
    assert 1 <= counter.frame_count <= test_compile.MOST_GRAPHS
    assert any("flex_attention" in str(node.target) for graph in counter.graphs for node in graph.graph.nodes)
    assert_close(losses[True], losses[False], rtol=1e-5, atol=1e-5)


def take_shared_steps():
    model = make_lm(layers=1).train()
    with blocks_on_a_cpu():
        compiled = wrap(model, start_run("cpu", "float32"), compile=True)
        for given in test_compile.questions(model)[:2]:
            loss = test_compile.total(compiled(**given))
            assert_close(loss, test_compile.total(model(**given)), **CLOSE)
            loss.backward()


def test_gradients_of_compiled_blocks_are_shared_by_processes(monkeypatch):
    """DistributedDataParallel exchanges them, also where lengths vary from step to step."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    run_processes(2, take_shared_steps)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")
def test_the_kernel_that_is_made_computes_the_same():
    def attend(x, *clock):
        return flex_attention.flex_attention(x, x, x, block_mask=clock_blocks(*clock))

    eeg, x = sample(), torch.randn(2, 1, 640, 32)
    clock = (eeg["time"], eeg["time"], eeg["valid"])
    dense = F.scaled_dot_product_attention(x, x, x, attn_mask=clock_mask(*clock))
    assert_close(torch.compile(attend)(x, *clock), dense, **CLOSE)
