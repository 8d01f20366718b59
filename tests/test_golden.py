"""Every array of the reference results, computed again: `pytest tests/test_golden.py --golden DIR`.

All settings come from the folder: other channels, seconds, suffixes, sizes and layer counts run unchanged.
"""

import importlib.util
import json
from functools import cache

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dataset.batches import collate_eeg
from dataset.channels import PAD_ROW, STANDARD_1020, channel_rows
from dataset.tasks import TASKS
from dataset.text import load_tokenizer
from dataset_maker.machinery.preprocessing import load_recording
from dataset_maker.make_Workload import CHANNELS, LAST, STRIDE, WINDOW
from model.gpt import GPTConfig
from model.neural_transformer import NTConfig
from model.neurolm import TEXT_ROWS, NeuroLM, clock_mask
from model.vq import VQ_Align, reconstruction_targets
from utils import learning_rates

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
EVERY = 37  # the references keep every 37th class of the logits


class Reference:
    """The reference results: settings, arrays, and the functions that rebuild parameters and inputs."""

    def __init__(self, folder):
        if not (folder / "neurolm.npz").is_file():
            pytest.skip(f"no neurolm.npz in {folder}")
        spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
        self.fill = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.fill)
        self.shapes = json.loads((folder / "neurolm.json").read_text())
        self.table, self.cases = self.shapes.pop("standard_1020"), self.shapes.pop("cases")
        self.arrays = dict(np.load(folder / "neurolm.npz"))
        self.suffix, self.batch = self.cases["suffix"], self.cases["batch"]
        self.rows = channel_rows(self.cases["channels"])
        self.n = len(self.rows) * self.cases["seconds"]
        vq = next(shapes for key, shapes in self.shapes.items() if key.startswith("VQ_Align"))
        self.n_codes, self.code_dim = vq["VQ.quantize.embedding.weight"]

    def fill_in(self, model):
        """The model with the reference's parameters, whose names and shapes must be as listed."""
        own = {name: list(value.shape) for name, value in model.state_dict().items()}
        if self.cases["lm"].keys() <= {"B"} or isinstance(model, VQ_Align):  # other sizes are not listed
            assert own in list(self.shapes.values())
        self.fill.load_into(model)
        return model.eval()

    def vq(self, norm_over_padding=True):
        encoder = NTConfig(**self.cases["encoder"], norm_over_padding=norm_over_padding)
        decoder = NTConfig(**self.cases["decoder"], in_chans=self.code_dim)
        return self.fill_in(VQ_Align(encoder, decoder, self.n_codes))

    def lm(self, size, norm_over_padding=True):
        """The language model of a size; one for all tests, that leave nothing in it but gradients."""
        model = self._lm(size)
        model.tokenizer.patch_embed.norm_over_padding = norm_over_padding
        model.zero_grad(set_to_none=True)
        return model.eval()

    @cache  # noqa: B019 - as long as the module's fixture
    def _lm(self, size):
        case = self.cases["lm"][size]
        encoder = self.cases["encoder"] | {"n_layer": case["tokenizer_n_layer"]}
        config = GPTConfig(**{name: case[name] for name in ("n_layer", "n_head", "n_embd")})
        return self.fill_in(NeuroLM(config, NTConfig(**encoder), self.n_codes))

    def eeg(self, tag):
        """The input as a batch: `full` has n tokens, `padded` is padded with zeros to `padded_length`."""
        length = self.n if tag == "full" else self.cases["padded_length"]
        x = torch.zeros(self.batch, length, 200)
        x[:, : self.n] = torch.from_numpy(self.fill.signal("x/eeg" + self.suffix, (self.batch, self.n, 200)))
        chans, time = torch.full((length,), PAD_ROW), torch.zeros(length, dtype=torch.int64)
        chans[: self.n] = torch.from_numpy(np.tile(self.rows, self.cases["seconds"]))
        time[: self.n] = torch.arange(self.cases["seconds"]).repeat_interleave(len(self.rows))
        valid = torch.arange(length) < self.n
        rows = {"chans": chans, "time": time, "valid": valid}
        return {"x": x} | {name: row.expand(self.batch, length) for name, row in rows.items()}

    def integers(self, name, shape, high=50257):
        return torch.from_numpy(self.fill.integers(name + self.suffix, shape, high))

    def uniform(self, name, shape):
        return torch.from_numpy(self.fill.uniform(name + self.suffix, shape)).float()

    def question(self):
        question = self.integers("question", (self.batch, self.cases["question_length"]))
        question[:, 0] = 50257
        return question

    def check(self, name, value):
        reference = torch.from_numpy(np.asarray(self.arrays[name]))
        value = torch.as_tensor(value).detach()
        if reference.dtype.is_floating_point:
            assert_close(value.double(), reference.double(), **CLOSE)
        else:
            assert value.tolist() == reference.tolist()

    def check_gradients(self, name, model):
        reference = json.loads(str(self.arrays[name]))
        # in double: the float32 norm of a million numbers is off by 1e-4
        norms = {key: p.grad.double().norm().item() for key, p in model.named_parameters() if p.grad is not None}
        assert norms.keys() == reference.keys()
        for key, norm in reference.items():
            assert norms[key] == pytest.approx(norm, rel=1e-4, abs=1e-7), key


@pytest.fixture(scope="module")
def reference(golden):
    return Reference(golden)


# (the reference's tag, the input's tag, norm_over_padding): without the official GroupNorm, padding changes nothing
PADDINGS = [("full", "full", True), ("padded", "padded", True), ("full", "full", False), ("full", "padded", False)]


def lm_sizes(reference):
    return reference.cases["lm"]


def test_channel_table(reference):
    assert reference.table == list(STANDARD_1020)


@pytest.mark.parametrize(("expected", "tag", "norm_over_padding"), PADDINGS)
def test_tokenizer_features_and_codes(reference, expected, tag, norm_over_padding):
    with torch.no_grad():
        _, indices, _, features = reference.vq(norm_over_padding).VQ.encode(**reference.eeg(tag))
    reference.check(f"vq/{expected}/encoder_features", features[:, : reference.n])
    reference.check(f"vq/{expected}/codebook_indices", indices[:, : reference.n])


@pytest.mark.parametrize("tag", ["full", "padded"])
def test_tokenizer_training_step(reference, tag):
    model = reference.vq(norm_over_padding=False).train()
    targets = {"spectrum": 100, "signal": 200}
    length = reference.eeg(tag)["x"].size(1)
    eeg = reference.eeg(tag)
    for (name, width), source in zip(targets.items(), ("yf", "yr"), strict=True):
        eeg[name] = torch.zeros(reference.batch, length, width)
        eeg[name][:, : reference.n] = reference.uniform(source, (reference.batch, reference.n, width))
    text = reference.integers("text", (2, 16))
    sums = model(eeg, text, reference.cases["alpha"])
    tokens = reference.batch * reference.n
    losses = [sums[name] / tokens for name in ("commitment", "frequency", "raw")]
    domains = [sums["domain_eeg"] / tokens, sums["domain_text"] / text.numel()]
    reference.check("vq/train/losses", torch.stack([*losses, sum(losses), *domains]))
    (sum(losses) + sum(domains)).backward()
    reference.check_gradients("vq/train/grad_norms", model)
    reference.check("vq/train/codebook_after", model.VQ.quantize.embedding.weight[::64])
    reference.check("vq/train/cluster_size_nonzero", model.VQ.quantize.cluster_size.nonzero().squeeze(1))


def test_sample(reference):
    """A recording becomes the tokens, targets and mask of the official dataset class."""
    padded, n = reference.cases["padded_length"], reference.n
    about = {"label": -1, "index": 0, "file": "recording"}
    sample = {"eeg": reference.arrays["sample/uv"] / np.float32(100), "rows": reference.rows} | about
    longer = {"eeg": np.zeros((padded, 200), np.float32), "rows": np.arange(padded)} | about
    batch = collate_eeg([sample, longer])
    spectrum, signal = reconstruction_targets(batch["x"], batch["valid"])
    reference.check("sample/X", batch["x"][0])
    reference.check("sample/Y_freq", spectrum[0])
    reference.check("sample/Y_raw", signal[0])
    reference.check("sample/input_chans", batch["chans"][0])
    reference.check("sample/input_time", batch["time"][0])
    reference.check("sample/input_mask", batch["valid"][0])
    mask = clock_mask(batch["time"], batch["time"], batch["valid"])[0, 0]
    assert mask[:n].tolist() == reference.arrays["sample/gpt_mask"][0, :n].tolist()  # nobody reads a padded query


@pytest.mark.parametrize(("expected", "tag", "norm_over_padding"), PADDINGS)
def test_pretraining(reference, expected, tag, norm_over_padding):
    n, channels, length = reference.n, len(reference.rows), reference.eeg(tag)["x"].size(1)
    codes = reference.integers("codes", (reference.batch, n), reference.n_codes)
    source = torch.cat([torch.arange(n - channels) + row * length for row in range(reference.batch)])
    for size in lm_sizes(reference):
        model = reference.lm(size, norm_over_padding).train()
        eeg = reference.eeg(tag)
        sums = model(eeg=eeg | {"source": source, "target": codes[:, channels:].flatten() + TEXT_ROWS})["eeg"]
        name = f"lm{size}/{expected}/pretrain"
        reference.check(f"{name}/loss_accuracy", torch.stack([sums["loss"], sums["correct"]]) / len(source))
        sums["loss"].div(len(source)).backward()
        reference.check_gradients(f"{name}/grad_norms", model)
        with torch.no_grad():
            hidden, _ = model.read(eeg)
            reference.check(f"{name}/logits", model.GPT2.lm_head(hidden[:, [0, n - channels - 1]])[..., ::EVERY])


@pytest.mark.parametrize(("expected", "tag", "norm_over_padding"), PADDINGS)
def test_instruction(reference, expected, tag, norm_over_padding):
    question, (first, last) = reference.question(), reference.cases["supervised"]
    length = reference.eeg(tag)["x"].size(1)
    row = length + question.size(1)
    source = torch.cat([torch.arange(first, last) + length + i * row for i in range(reference.batch)])
    target = question[:, first + 1 : last + 1].flatten()
    for size in lm_sizes(reference):
        model = reference.lm(size, norm_over_padding).train()
        sums = model(eeg=reference.eeg(tag) | {"tokens": question, "source": source, "target": target})["eeg"]
        name = f"lm{size}/{expected}/instruct"
        reference.check(f"{name}/loss_accuracy", torch.stack([sums["loss"], sums["correct"]]) / len(source))
        sums["loss"].div(len(source)).backward()
        reference.check_gradients(f"{name}/grad_norms", model)


def test_text(reference):
    shape = (2, reference.cases["text_length"])
    text, target = reference.integers("text", shape), reference.integers("texty", shape)
    for size in lm_sizes(reference):
        model = reference.lm(size)
        with torch.no_grad():
            loss = model(text={"tokens": text, "target": target})["text"]["loss"] / text.numel()
            reference.check(f"lm{size}/text/loss", loss)
            hidden, _ = model.read({"tokens": text})
            reference.check(f"lm{size}/text/logits", model.GPT2.lm_head(hidden[:, -1])[:, ::EVERY])


@torch.no_grad()
def continue_greedily(model, eeg, tokens, new_tokens, grow_mask):
    """The official way: the whole sequence again for each new token, under a mask that `grow_mask` extends."""
    embedded, seconds = model.embed_eeg(eeg), int(eeg["time"].max()) + 1
    mask = None
    for _ in range(new_tokens):
        text_time = seconds + torch.arange(tokens.size(1)).expand_as(tokens)
        time = torch.cat([eeg["time"], text_time], 1)
        first = mask is None
        mask = clock_mask(time, time, torch.ones_like(time, dtype=torch.bool)) if first else grow_mask(mask, time)
        hidden, _ = model.GPT2(torch.cat([embedded, model.GPT2.transformer.wte(tokens)], 1), time, mask)
        new = model.GPT2.lm_head(hidden[:, -1])[:, :50257].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, new], 1)
    return tokens


def test_generation(reference):
    """The reference was made with the official mask (DIFFERENCES 3): from the second new token on it is a float mask of
    ones and zeros, which is added to the scores and hides nothing. With that line our model writes the same tokens;
    ours keeps the boolean mask, and agrees with the reference up to the first token."""
    prompt = reference.question()[:, : reference.cases["prompt_length"]]
    eeg, new_tokens = reference.eeg("full"), reference.cases["new_tokens"]

    def official(mask, time):
        mask = torch.cat([mask, torch.zeros(*mask.shape[:3], 1)], 3)
        return torch.cat([mask, torch.ones(len(mask), 1, 1, mask.size(3))], 2)

    def boolean(mask, time):
        return clock_mask(time, time, torch.ones_like(time, dtype=torch.bool))

    for size in lm_sizes(reference):
        model = reference.lm(size)
        reference.check(f"lm{size}/generate/tokens", continue_greedily(model, eeg, prompt, new_tokens, official))
        ours = model.generate(eeg | {"tokens": prompt}, new_tokens)
        assert ours.tolist() == continue_greedily(model, eeg, prompt, new_tokens, boolean)[:, -new_tokens:].tolist()
        assert ours[:, 0].tolist() == reference.arrays[f"lm{size}/generate/tokens"][:, prompt.size(1)].tolist()


def test_schedules(reference):
    names = [name for name in reference.arrays if name.startswith("schedule/") and name.endswith("/args")]
    assert names
    for name in names:
        base, final, epochs, steps_per_epoch, warmup_epochs, warmup_steps = reference.arrays[name]
        warmup_steps = warmup_epochs * steps_per_epoch if warmup_steps < 0 else warmup_steps
        values = learning_rates(base, final, int(epochs * steps_per_epoch), int(warmup_steps))
        np.testing.assert_allclose(values, reference.arrays[name.replace("args", "values")], rtol=1e-12, atol=1e-12)


def test_every_array_is_checked(reference):
    """A new kind of array in the folder must not pass unseen."""
    known = ["vq/full/", "vq/padded/", "vq/train/", "sample/", "schedule/"]
    known = tuple(known + [f"lm{size}/" for size in lm_sizes(reference)])
    assert [name for name in reference.arrays if not name.startswith(known)] == []


def test_tasks(golden):
    if not (golden / "tasks.json").is_file():
        pytest.skip(f"no tasks.json in {golden}")
    tokenizer = load_tokenizer()
    for name, labels in json.loads((golden / "tasks.json").read_text()).items():
        for label, row in (labels if isinstance(labels, dict) else dict(enumerate(labels))).items():
            tokens, supervised = TASKS[name].encode(tokenizer, int(label))
            assert tokens == row["tokens"]
            assert supervised == row["supervised_positions"]
            assert [tokens[position + 1] for position in supervised] == row["supervised_tokens"]
            assert TASKS[name].prompt(tokenizer) == row["prompt"]
            assert tokenizer.decode(tokens[1:]) == row["text"]


def test_preprocessing(golden, shared):
    if not (golden / "preprocessing.npz").is_file():
        pytest.skip(f"no preprocessing.npz in {golden}")
    windows = dict(np.load(golden / "preprocessing.npz"))
    for recording in dict.fromkeys(name.split("/")[1] for name in windows):
        eeg = load_recording(shared / "data" / "eegmat" / f"{recording}.edf", CHANNELS, notch=50.0).eeg
        for name in (name for name in windows if name.split("/")[1] == recording):
            start = eeg.shape[1] - LAST * 200 + int(name.split("/")[2]) * STRIDE * 200
            difference = np.abs(eeg[:, start : start + WINDOW * 200] - windows[name]).max()
            assert difference < 1e-3, f"{name} differs by {difference} uV"
