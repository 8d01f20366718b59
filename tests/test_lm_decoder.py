"""--lm: a decoder of transformers obeys the one clock whatever its kind and attention, or is refused in one line."""

import hf_models
import pytest
import torch
from hf_models import KINDS, byte_level, make_model, save_lm
from small_models import ENCODER, samples
from test_gpt2 import save_gpt2
from torch.testing import assert_close

from dataset.batches import QuestionCollate, collate_eeg
from dataset.text import tokenizer_of
from dataset.vocabulary import read_vocabulary
from errors import UserError
from model.gpt import GPT
from model.hf_decoder import HFDecoder
from model.neurolm import NeuroLM
from model.packing import clock_mask

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def load(folder, dropout=0.0):
    words = read_vocabulary.__wrapped__(str(folder))
    return HFDecoder.from_pretrained(str(folder), None, words.about(), words.stored, dropout)


def make_neurolm(decoder):
    torch.manual_seed(1)
    return NeuroLM(decoder, ENCODER, n_codes=64).eval()


@pytest.fixture(scope="module", params=list(KINDS))
def decoder(request, tmp_path_factory):
    return load(save_lm(tmp_path_factory.mktemp(request.param), request.param))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_nobody_sees_the_future_or_padding(decoder, attention):
    """Every single token is moved: those that may attend to it move, exactly."""
    decoder.model.set_attn_implementation(attention)
    time = torch.tensor([[2, 0, 0, 1, 1, 2, 3, 4, 0], [1, 0, 0, 0, 1, 2, 3, 4, 5]])  # of any order
    valid = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 1, 0, 1, 1, 0]]).bool()
    mask = clock_mask(time, time, valid)
    mask[1, 0, 3] = False  # padding that sees nothing stays finite, whatever it is, and nobody looks at it
    x = decoder.embed(torch.randint(300, time.shape, generator=torch.Generator().manual_seed(0))).detach()
    with torch.no_grad():
        before, _ = decoder(x, time, mask)
        assert before.isfinite().all()
        for k in range(time.size(1)):
            moved = x.clone()
            moved[:, k] *= -3
            changed = (decoder(moved, time, mask)[0] - before).abs().amax(-1) > 1e-6
            reached = mask[:, 0, :, k].clone()
            reached[:, k] = True  # its own residual stream
            for _ in range(2):  # a block's output is read by the next one
                reached |= (mask[:, 0] & reached[:, None]).any(-1)
            changed[1, 3] = reached[1, 3]
            assert not (changed & ~reached).any() and changed[:, k].all()
            assert (changed == reached)[:, [k, -2]].all()


def test_alone_padded_and_beside_others(decoder):
    """Losses, answers and words of a sample do not depend on its neighbours; scoring is teacher forcing."""
    decoder.model.set_attn_implementation("sdpa")
    model = make_neurolm(decoder)
    words, rows = tokenizer_of(model), samples()
    collate = QuestionCollate(words)
    task = rows[0]["task"]
    options = task.options(words)

    def read(rows):
        batch = collate_eeg(rows)
        asked = batch | {"tokens": torch.tensor(task.prompt(words)).expand(len(rows), -1)}
        _, memory = model.read(batch)  # of the EEG, which several questions follow
        scores = [model.score_answers(sample, options) for sample in (asked, asked | {"memory": memory})] * 2
        assert_close(scores[2], scores[1], **CLOSE)  # and the memory is as it was
        return (*scores[:2], model.generate(asked, 5))

    with torch.no_grad():
        together, loss = read(rows), model(eeg=collate(rows))["eeg"]["loss"]
        alone = [read([row]) for row in rows]
        losses = [model(eeg=collate([row]))["eeg"]["loss"] for row in rows]
        assert_close(sum(losses), loss, **CLOSE)
        for part, ours in enumerate(together):
            assert_close(ours, torch.cat([one[part] for one in alone]), **CLOSE)
        assert_close(together[0], together[1], **CLOSE)
        prompt = task.prompt(words)
        for row, scores in zip(rows, together[0], strict=True):
            for option, score in zip(options, scores, strict=True):
                tokens = torch.tensor([prompt + option])
                hidden, _ = model.read(collate_eeg([row]) | {"tokens": tokens})
                said = torch.log_softmax(hidden[0, -1 - len(option) : -1] @ decoder.text_head().T, -1)
                assert_close(said.gather(1, torch.tensor(option)[:, None]).sum(), score, **CLOSE)


def test_our_gpt_and_that_of_transformers(tmp_path):
    """The same weights through both: losses, logits and greedy tokens, with padding and mixed lengths."""
    save_gpt2(tmp_path, vocab_size=340, n_positions=512)
    save_lm(tmp_path / "words", "GPT2")
    for path in (tmp_path / "words").glob("tokenizer*"):
        path.rename(tmp_path / path.name)
    theirs, ours = make_neurolm(load(tmp_path)), make_neurolm(load(tmp_path))
    gpt = GPT.from_pretrained(str(tmp_path)).eval()
    decoder = theirs.decoder
    gpt.enlarge(340, 340 + 64)
    for name in ("text_rows", "answer_ids", "vocabulary", "name"):
        setattr(gpt, name, getattr(decoder, name))
    gpt.text_head = lambda: gpt.lm_head.weight[: gpt.answer_ids]
    with torch.no_grad():
        gpt.lm_head.weight[340:] = decoder.codes
        gpt.transformer.wte.weight[gpt.answer_ids] = decoder.separator
    ours.lm = gpt
    rows, words = samples(), tokenizer_of(theirs)
    batch, text = QuestionCollate(words)(rows), torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(0))
    given = {"eeg": batch, "text": {"tokens": text, "target": text.roll(-1)}}
    task = rows[0]["task"]
    asked = collate_eeg(rows) | {"tokens": torch.tensor(task.prompt(words)).expand(len(rows), -1)}
    found = []
    for model in (ours, theirs):
        with torch.no_grad():
            logits = model.read(batch)[0] @ model.decoder.head().T
            losses = model(**given)
            scores = model.score_answers(asked, task.options(words))
        real = torch.cat([batch["valid"], batch["tokens_valid"]], 1)
        found.append((logits[real], losses, scores, model.generate(asked, 8)))
    assert_close(found[0], found[1], **CLOSE)
    assert found[0][0].abs().max() > 0.5


def test_what_it_is_given_stands_beside_its_tables(tmp_path):
    """Tied embeddings are two, codes are rows of the head alone, the separator starts as the end."""
    decoder = load(save_lm(tmp_path, "Qwen3", tie_word_embeddings=True))
    decoder.add_codes(5)
    rows, end = decoder.text_rows, decoder.about["tokenizer"]["end"]
    table = decoder.model.get_input_embeddings().weight
    assert torch.equal(decoder.words, table) and decoder.words.data_ptr() != table.data_ptr()
    assert decoder.head().shape == (rows + 5, 32) and len(table) == rows == decoder.answer_ids + 11
    assert torch.equal(decoder.head()[rows:], decoder.codes)
    tokens = torch.tensor([[decoder.answer_ids, end, 7]])
    assert_close(decoder.embed(tokens)[0, 0], decoder.embed(tokens)[0, 1])
    decoder.embed(tokens).sum().backward()
    assert (decoder.separator.grad == 1).all() and not table.grad[decoder.answer_ids].any()
    assert not table.grad[0].any()


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("Bloom", {"n_layer": 2, "hidden_size": 32, "n_head": 4}, "cannot be taken as a language model"),
        ("Falcon", {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "alibi": True}, "cannot be"),
        ("Mamba", {"num_hidden_layers": 2, "hidden_size": 32}, "cannot be taken as a language model"),
        ("Gemma2", hf_models.SHAPE | hf_models.FEW_HEADS, "its logits are not its head's alone"),
        ("Granite", hf_models.SHAPE | {"logits_scaling": 4.0}, "its logits are not its head's alone"),
    ],
)
def test_models_of_another_build_are_refused_in_one_line(kind, values, said, tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, kind, values)
    with pytest.raises(UserError, match=said) as caught:
        load(save_lm(tmp_path, kind))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_masks_of_its_own_and_positions_that_it_counts_are_found(tmp_path, monkeypatch):
    decoder = load(save_lm(tmp_path))
    lm, forward = make_model("Qwen3", decoder.text_rows), type(decoder.model).forward
    for name, change, said in (
        ("attention_mask", lambda mask: None, "it looks into the future, or at padding"),
        ("attention_mask", lambda mask: None if mask is None else torch.zeros_like(mask), "it looks into the future"),
        ("position_ids", lambda time: None, "it counts positions by itself"),
    ):

        def other(model, name=name, change=change, **given):
            return forward(model, **given | {name: change(given[name])})

        with monkeypatch.context() as patched, pytest.raises(UserError, match=said):
            patched.setattr(type(decoder.model), "forward", other)
            decoder.check(lm)


def test_a_short_context_is_one_clear_line(tmp_path):
    model = make_neurolm(load(save_lm(tmp_path, "Gemma3Text", byte_level, sliding_window=70)))
    rows = samples()[:1]
    with pytest.raises(UserError, match=r"tokens of text after EEG of up to 64 s are too long.* reads 70: take a smal"):
        model.read(QuestionCollate(tokenizer_of(model))(rows))
    with pytest.raises(UserError, match="71 tokens of text are too long for the language model, which reads 70"):
        model.read({"tokens": torch.zeros(1, 71, dtype=torch.int64)})
    model.read({"tokens": torch.zeros(1, 70, dtype=torch.int64)})
