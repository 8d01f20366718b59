"""A sample alone, padded, or beside others gives the same features, codes, losses and answers."""

import copy

import pytest
import torch
from small_models import make_lm, make_vq, samples
from torch.testing import assert_close

from dataset.batches import QuestionCollate, collate_eeg, collate_prediction
from dataset.tasks import TASKS
from dataset.text import load_tokenizer
from model.neurolm import TEXT_ROWS, clock_mask

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
LOSSES = ("commitment", "frequency", "raw", "domain_eeg")
PADDING = {"x", "chans", "time", "valid"}


@pytest.fixture(scope="module")
def vq():
    return make_vq()


@pytest.fixture(scope="module")
def lm():
    return make_lm()


def padded(batch, extra):
    """The batch with `extra` tokens of noise at the end of each row, none of them valid."""
    size, length = batch["time"].shape
    valid = torch.ones(size, length, dtype=torch.bool) if batch["valid"] is None else batch["valid"]
    noise = {
        "x": 9 * torch.randn(size, extra, 200),
        "chans": torch.randint(90, (size, extra)),
        "time": torch.randint(64, (size, extra)),
        "valid": torch.zeros(size, extra, dtype=torch.bool),
    }
    longer = {name: torch.cat([(batch | {"valid": valid})[name], noise[name]], 1) for name in PADDING}
    for name in ("source", "target_position"):  # flat over (B, N)
        if name in batch:
            longer[name] = batch[name] + batch[name] // length * extra
    return batch | longer


def alone_and_together(collate):
    """(rows, batch) twice: the rows one by one as they are, and every other way of reading the same rows."""
    rows = samples()
    singles = [([row], collate([row])) for row in rows]
    ways = [([row], padded(collate([row]), extra)) for row in rows for extra in (1, 100)]
    return singles, [*ways, (rows, collate(rows)), (rows[::-1], padded(collate(rows[::-1]), 5))]


def test_features_codes_and_distances(vq):
    singles, others = alone_and_together(collate_eeg)
    expected = {}
    for (row,), batch in singles:
        expected[row["index"]] = vq.VQ.encode(batch["x"], batch["chans"], batch["time"], batch["valid"])
    for rows, batch in others:
        seen = vq.VQ.encode(*(batch[name] for name in ("x", "chans", "time", "valid")))
        for i, row in enumerate(rows):
            for part, reference in zip(seen, expected[row["index"]], strict=True):
                assert_close(part[i, : reference.size(1)], reference[0], **CLOSE)
    assert len({int(code) for parts in expected.values() for code in parts[1].flatten()}) > 5


def test_tokenizer_losses_and_gradients(vq):
    singles, others = alone_and_together(collate_eeg)
    text = torch.zeros(1, 0, dtype=torch.int64)

    def losses_and_gradients(batch):
        sums = vq(batch, text, 0.5)
        losses = torch.stack([sums[name] for name in LOSSES])
        names, trained = zip(*((n, p) for n, p in vq.named_parameters() if p.requires_grad), strict=True)
        return losses.detach(), dict(zip(names, torch.autograd.grad(losses.sum(), trained), strict=True))

    expected = {rows[0]["index"]: losses_and_gradients(batch) for rows, batch in singles}
    for rows, batch in others:
        losses, gradients = losses_and_gradients(batch)
        assert_close(losses, sum(expected[row["index"]][0] for row in rows), **CLOSE)
        for name, gradient in gradients.items():
            reference = sum(expected[row["index"]][1][name] for row in rows)
            assert_close(gradient, reference, rtol=1e-3, atol=1e-4 * float(1 + reference.abs().max()), msg=name)


def test_prediction_losses(vq, lm):
    singles, others = alone_and_together(collate_prediction)

    def losses(batch):
        codes, features = vq.VQ.tokenize(batch)
        target = codes.flatten()[batch["target_position"]] + TEXT_ROWS
        with torch.no_grad():
            read = lm(eeg=batch | {"features": features, "target": target})["eeg"]
        return torch.stack([read["loss"], read["correct"].float()])

    expected = {rows[0]["index"]: losses(batch) for rows, batch in singles}
    for rows, batch in others:
        assert_close(losses(batch), sum(expected[row["index"]] for row in rows), **CLOSE)


def test_the_target_is_the_same_channel_a_second_later():
    row = samples()[0]  # 3 channels, 4 s
    batch = collate_prediction([row, samples()[2]])
    chans, time = batch["chans"].flatten(), batch["time"].flatten()
    source, target = batch["source"], batch["target_position"]
    assert (chans[source] == chans[target]).all() and (time[source] + 1 == time[target]).all()
    assert len(source) == 3 * 3 + 5 * 6 and (source // batch["x"].size(1) == target // batch["x"].size(1)).all()


def test_instruction_losses(lm):
    collate = QuestionCollate(load_tokenizer())
    expected, rows = {}, samples()

    def losses(batch):
        with torch.no_grad():
            read = lm(eeg=batch)["eeg"]
        return torch.stack([read["loss"], read["correct"].float()])

    for row in rows:
        expected[row["index"]] = losses(collate([row]))
    assert len({round(float(loss), 3) for loss, _ in expected.values()}) == len(rows)
    for few in (rows, rows[::-1], rows[1:3]):
        assert_close(losses(collate(few)), sum(expected[row["index"]] for row in few), **CLOSE)


@pytest.mark.parametrize("name", ["TUAB", "TUEV"])
def test_answers(lm, name):
    tokenizer = load_tokenizer()
    prompt, options = TASKS[name].prompt(tokenizer), TASKS[name].options(tokenizer)
    singles, others = alone_and_together(collate_eeg)

    def answers(batch):
        asked = batch | {"tokens": torch.tensor(prompt).expand(len(batch["time"]), -1)}
        return lm.score_answers(asked, options), lm.score_answers(asked, options, whole=False), lm.generate(asked, 6)

    expected = {rows[0]["index"]: answers(batch) for rows, batch in singles}
    for rows, batch in others:
        for i, row in enumerate(rows):
            for part, reference in zip((seen[i] for seen in answers(batch)), expected[row["index"]], strict=True):
                assert_close(part, reference[0], **CLOSE)


def test_the_clock_mask_is_its_rule():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randint(6, (3, length), generator=generator) for length in (7, 9))
    valid = torch.rand(3, 9, generator=generator) > 0.3
    mask = clock_mask(query, key, valid)
    assert mask.shape == (3, 1, 7, 9) and mask.dtype == torch.bool
    for b in range(3):
        for q in range(7):
            for k in range(9):
                assert mask[b, 0, q, k] == (key[b, k] <= query[b, q] and valid[b, k])


def test_text_alone_is_plain_causal(lm):
    tokens = torch.randint(50257, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain, _ = lm.read({"tokens": tokens})
        masked, _ = lm.read({"tokens": tokens, "tokens_valid": torch.ones_like(tokens, dtype=torch.bool)})
        assert_close(plain, masked, **CLOSE)
        changed = tokens.clone()
        changed[:, 7] += 1
        later, _ = lm.read({"tokens": changed})
    assert_close(later[:, :7], plain[:, :7], **CLOSE)
    assert (later[:, 7:] - plain[:, 7:]).abs().amax((0, 2)).min() > 1e-3


def test_the_official_group_norm_depends_on_padding(vq):
    batch = collate_eeg(samples()[:1])
    longer = padded(batch, 20)
    longer["x"][:, -20:] = 0
    model = copy.deepcopy(vq.VQ.encoder)
    model.patch_embed.norm_over_padding = True
    parts = ("x", "chans", "time", "valid")
    with torch.no_grad():
        alone, beside = (model(*(b[name] for name in parts)) for b in (batch, longer))
    assert (beside[:, : alone.size(1)] - alone).abs().max() > 0.01
