"""The vector quantizer against a slow one-hot reference, and its codebook over processes."""

import json
import os

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch.nn import functional as F
from torch.testing import assert_close

import model.quantizer as quantizer
from model.quantizer import Quantizer, codebook_use

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def make(n_codes=12, width=6, **kwargs):
    torch.manual_seed(0)
    return Quantizer(n_codes, width, **kwargs)


def vectors(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(rows, z, valid, decay):
    """Nearest code, distance and the codebook after one step, all by one-hot matrices in float64."""
    z, rows = F.normalize(z.double(), dim=-1), rows.double()
    similarity = torch.einsum("mk,nk->mn", z, rows)
    indices = similarity.argmax(-1)
    one_hot = F.one_hot(indices, len(rows)).double() * valid.double()[:, None]
    count, total = one_hot.sum(0), torch.einsum("mn,mk->nk", one_hot, z)
    mean = F.normalize(total / count.clamp(min=1)[:, None], dim=-1)
    moved = F.normalize(decay * rows + (1 - decay) * mean, dim=-1)
    distance = (rows[indices] - z).square().mean(-1)
    return indices, rows[indices], distance, torch.where(count[:, None] > 0, moved, rows), count


@pytest.mark.parametrize("block", [8192, 7])
@pytest.mark.parametrize("masked", [False, True])
def test_a_training_step_is_the_reference(monkeypatch, block, masked):
    monkeypatch.setattr(quantizer, "BLOCK", block)
    model = make(kmeans_init=False, decay=0.9).train()
    z = vectors(4, 10, 6)
    z[:, 0] *= 100  # only directions count
    valid = vectors(4, 10, seed=2) > -0.5 if masked else None
    rows = model.embedding.weight.clone()
    codes, indices, distance = model(z, valid)
    flags = torch.ones(40, dtype=torch.bool) if valid is None else valid.flatten()
    expected = reference(rows, z.reshape(40, 6), flags, 0.9)
    assert torch.equal(indices.flatten(), expected[0])
    for seen, wanted in zip((codes.reshape(40, 6), distance.flatten()), expected[1:3], strict=True):
        assert_close(seen.double(), wanted, **CLOSE)
    assert_close(model.embedding.weight.double(), expected[3], **CLOSE)
    assert_close(model.cluster_size, 0.1 * expected[4].float(), **CLOSE)


def test_unused_codes_stay_and_padding_moves_none():
    model = make(kmeans_init=False).train()
    z = model.embedding.weight[[3, 3, 5]] + 0.01 * vectors(3, 6)
    before = model.embedding.weight.clone()
    model(z[None], torch.tensor([[True, True, False]]))
    moved = (model.embedding.weight != before).any(1)
    assert moved.nonzero().flatten().tolist() == [3]
    assert model.cluster_size.nonzero().flatten().tolist() == [3]


def test_straight_through_gradient_and_commitment():
    model = make(kmeans_init=False).eval()
    z = vectors(5, 6).requires_grad_()
    codes, indices, distance = model(z)
    (gradient,) = torch.autograd.grad((codes * torch.arange(6.0)).sum(), z, retain_graph=True)
    (expected,) = torch.autograd.grad((F.normalize(z, dim=-1) * torch.arange(6.0)).sum(), z)
    assert_close(gradient, expected, **CLOSE)
    pulled = (model.lookup(indices).detach() - F.normalize(z, dim=-1)).square().mean()
    assert_close(torch.autograd.grad(distance.mean(), z), torch.autograd.grad(pulled, z), **CLOSE)


def test_arithmetic_is_float32_under_autocast():
    models = [make(64, 32, kmeans_init=False).train() for _ in range(2)]
    z = vectors(300, 32)
    expected = reference(models[0].embedding.weight, z, torch.ones(300), 0.99)[0]
    plain = models[0](z)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = models[1](z)
    assert torch.equal(mixed[1], expected)
    for a, b in zip(plain, mixed, strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
    assert torch.equal(models[0].embedding.weight, models[1].embedding.weight)


def test_evaluation_changes_nothing():
    model = make().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(vectors(50, 6))
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not model.ready


def test_kmeans_places_the_codes_on_the_valid_vectors_once():
    centres = F.normalize(vectors(4, 6), dim=-1)
    z = (centres.repeat(25, 1) + 0.02 * vectors(100, 6, seed=3))[None]
    valid = torch.ones(1, 100, dtype=torch.bool)
    z[0, 60:], valid[0, 60:] = -9.0, False
    placed = []
    for _ in range(2):
        model = make(8)
        torch.manual_seed(5)
        _, indices, distance = model.train()(z, valid)
        placed.append(model.embedding.weight.clone())
        assert distance[valid].max() < 0.01 and model.embedding.initted.item() == 1
    assert torch.equal(*placed)
    state = model.state_dict()
    other = make(8).train()
    other.load_state_dict(state)
    other(vectors(1, 30, 6))  # a loaded codebook is not placed again
    assert (other.embedding.weight - state["embedding.weight"]).abs().max() < 0.05


def test_fewer_vectors_than_codes():
    model = make(32).train()
    _, indices, distance = model(vectors(5, 6))
    assert distance.max() < 1e-6 and torch.isfinite(model.embedding.weight).all()


def test_codes_long_idle_move_onto_the_worst_coded_vectors():
    model = make(8, kmeans_init=False).train()
    model.revive_after = 3
    z = F.normalize(model.embedding.weight[:4], dim=-1).repeat(5, 1)
    outlier = -z.sum(0, keepdim=True)  # far from the four codes in use, though nearest to one of them
    for step in range(1, 5):
        before = model.embedding.weight.clone()
        model(torch.cat([z, outlier])[None])
        jumped = ((model.embedding.weight - before).abs().amax(1) > 0.1).nonzero().flatten()
        if step < 3:
            assert len(jumped) == 0
        if step == 3:
            assert len(jumped) and (jumped >= 4).all()
            assert (model.embedding.weight[jumped] @ F.normalize(outlier, dim=-1).T).max() > 0.999
    assert (model.embedding.cluster_size >= 0).all()


def test_use_of_a_codebook():
    use = codebook_use(torch.tensor([5.0, 5.0, 0.0, 0.0]))
    assert use == {"used": 0.5, "perplexity": pytest.approx(2.0), "dead": 2}


def learn(path):
    """One process reads rows 0..5, or two read three of them each, with padding of their own and a codebook that
    revives; rank 0 writes what each has seen."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = Quantizer(48, 6).train()
    model.revive_after = 3
    seen = []
    for step in range(6):
        z = torch.randn(6, 8, 6, generator=torch.Generator().manual_seed(step))
        lengths = torch.tensor([8, 5, 6, 3, 2, 3])
        torch.manual_seed(100 + rank)
        own = torch.arange(6).chunk(world)[rank]
        longest = int(lengths[own].max())
        valid = torch.arange(longest) < lengths[own][:, None]
        _, indices, distance = model(z[own, :longest], valid)
        seen.append(distance[valid].sum().item())
    mine = {"sums": seen, "rows": model.embedding.weight.tolist(), "size": model.cluster_size.tolist()}
    everyone = [mine | {"idle": model.embedding.cluster_size.tolist()}] * world
    if world > 1:
        dist.all_gather_object(everyone, everyone[0])
        dist.destroy_process_group()
    if rank == 0:
        path.write_text(json.dumps(everyone))


def test_two_processes_learn_the_codebook_of_one(tmp_path):
    seen = {}
    for nproc in (1, 2):
        run_processes(nproc, learn, tmp_path / f"{nproc}.json")
        seen[nproc] = json.loads((tmp_path / f"{nproc}.json").read_text())
    (one,), (first, second) = seen[1], seen[2]
    for name in ("rows", "size", "idle"):
        assert first[name] == second[name]
        assert_close(torch.tensor(first[name]), torch.tensor(one[name]), **CLOSE)
    sums = torch.tensor(first["sums"]) + torch.tensor(second["sums"])
    assert_close(sums, torch.tensor(one["sums"]), **CLOSE)
