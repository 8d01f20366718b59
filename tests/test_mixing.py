"""Tasks in the steps of stage 3: the official mixture, and each task's share of the loss."""

import numpy as np
import pytest
import torch
from small_models import make_lm, samples

import train_instruction
from dataset.batches import QuestionCollate
from dataset.tasks import TASKS
from dataset.text import load_tokenizer
from training.sampling import Mixture, mixing_shares

# of training, a tenth of what the published sets have
WINDOWS = {"TUAB": 29710, "TUEV": 6808, "SEED": 2308, "HMC": 9100, "Workload": 150, "TUSL": 16}
TOKENS = {"TUAB": 230, "TUEV": 115, "SEED": 248, "HMC": 120, "Workload": 76, "TUSL": 230}
TASK_OF = np.repeat(np.arange(6), list(WINDOWS.values()))


def supervised():
    return np.array([len(TASKS[name].encode(load_tokenizer(), 0)[1]) for name in WINDOWS])


def loss_shares(rows):
    """The mean over steps of each task's share of a step's supervised tokens; rows (steps, windows): positions."""
    tokens = np.stack([np.bincount(TASK_OF[row], minlength=6) for row in rows]) * supervised()
    return (tokens / tokens.sum(1, keepdims=True)).mean(0)


def drawn(pool):
    groups = np.split(np.arange(len(TASK_OF)), np.cumsum(list(WINDOWS.values()))[:-1])
    shares = mixing_shares(list(WINDOWS.values()), "proportional", 2.0)
    lengths = np.array(list(TOKENS.values()))[TASK_OF]
    return Mixture(groups, shares, lengths, pool).positions(0, 0, 512)


@pytest.fixture(scope="module")
def official():
    """Shares where each process takes the mean over the supervised tokens of 64 windows, shuffled over all tasks."""
    order = np.random.default_rng(0).permutation(len(TASK_OF))
    return loss_shares(order[: len(order) // 64 * 64].reshape(-1, 64))


def test_by_default_tasks_have_their_official_shares_of_the_loss(official):
    pool = train_instruction.get_args([]).length_pool
    rows = drawn(pool)
    assert pool == 1 and np.abs(loss_shares(rows) - official).max() < 0.005
    assert min(len(np.unique(TASK_OF[row])) for row in rows) >= 4  # none is of one task
    np.testing.assert_allclose(loss_shares(rows)[:4], [0.51, 0.19, 0.04, 0.26], atol=0.005)  # docs/differences.md


def test_a_pool_shifts_them(official):
    rows = drawn(8)
    single = np.mean([len(np.unique(TASK_OF[row])) == 1 for row in rows])
    assert 0.3 < single < 0.6 and loss_shares(rows)[0] > official[0] + 0.08


def test_the_loss_is_the_mean_over_the_supervised_tokens_of_all_tasks():
    """As F.cross_entropy(logits, targets, ignore_index=-1) over a batch of several tasks."""
    model, batch = make_lm(), QuestionCollate(load_tokenizer())(samples())
    with torch.no_grad():
        ours = model(eeg=batch)["eeg"]["loss"] / len(batch["source"])
        logits = model.GPT2.lm_head(model.read(batch)[0])
    targets = torch.full(logits.shape[:2], -1)
    targets.view(-1)[batch["source"]] = batch["target"]
    assert (targets >= 0).sum(1).tolist() == [5, 3, 4, 3]  # TUEV, TUAB, TUSL, TUAB
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
