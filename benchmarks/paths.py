"""The hot paths that `bench.py` measures, as the scripts call them (way "here") and the plain way of `plain.py`.

Each takes (way, size, run) -> the model to train, or None, and work(shape...) -> what both ways must agree on: losses,
where there is a model to train.
"""

import pickle
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import plain
from dataset.batches import QuestionCollate, collate_eeg, collate_montage, collate_prediction
from dataset.channels import TUH_CHANNELS
from dataset.recordings import Recording
from dataset.tasks import TASKS
from dataset.text import load_tokenizer
from dataset.windows import RATE, Windows
from dataset_maker.machinery.corpus import write_h5
from evaluation.inference import ask_all
from model.labram import CLASSIFIERS, Classifier, class_loss
from model.labram_masked import MASKED_MODELS, MaskedModel, masked_prediction
from model.neurolm import TEXT_ROWS, NeuroLM
from model.quantizer import Quantizer
from model.vq import VQ_SIZES, VQ_Align
from model.vqnsp import TOKENIZERS, VQNSP
from training.feature_cache import read_codes
from training.loading import to_device

ROOT = Path(__file__).resolve().parents[1]
MONTAGE = 32  # channels of the windows of stages 1 and 2
TOKENS, FEW = (256, 512, 1024), (64,)  # of these windows, and at size tiny
MIX = {"TUAB": (23, 10), "TUEV": (23, 5), "SEED": (62, 4), "HMC": (4, 30), "Workload": (19, 4), "TUSL": (23, 10)}
LABRAM = {"tiny": ("tiny", "tiny_decoder_1x100x2"), "B": ("base", "base_decoder_3x200x12"),
          "L": ("large", "large_decoder_3x200x24"), "XL": ("huge", "large_decoder_3x200x24")}  # fmt: skip
EAGER = "import matplotlib.pyplot, mne, pandas, transformers.models.gpt2.modeling_gpt2, wandb; "
HELP = "import runpy, sys; sys.argv = ['predict.py', '--help']; runpy.run_path('predict.py', run_name='__main__')"


def make_windows(*shapes) -> list[dict]:
    """Random EEG of (channels, seconds) each, as `Windows` gives it."""
    rng = np.random.default_rng(0)
    return [
        {"eeg": rng.standard_normal((channels, seconds * RATE), dtype=np.float32), "rows": np.arange(channels),
         "label": 0, "index": i, "file": "noise"}
        for i, (channels, seconds) in enumerate(shapes)
    ]  # fmt: skip


def make_words(tokens: int) -> dict:
    ids = torch.from_numpy(np.random.default_rng(1).integers(50257, size=(1, tokens)))
    return {"tokens": ids, "target": ids.roll(-1, 1)}


def make_neurolm(size: str, run):
    """A tokenizer, and the language model that shares its encoder."""
    vq = VQ_Align.from_size(size).VQ.to(run.device).eval().requires_grad_(False)
    model = NeuroLM.from_size(size, vq.encoder.config, vq.quantize.n_codes).to(run.device)
    model.tokenizer = vq.encoder
    return vq, model


def stage_1(way, size, run):
    model, window = VQ_Align.from_size(size).to(run.device), 128 if size == "tiny" else plain.WINDOW
    model.VQ.quantize.embedding.initted.fill_(1)  # k-means is no part of a step

    def work(tokens):
        samples, words = make_windows((MONTAGE, tokens // MONTAGE)), make_words(tokens)["tokens"].to(run.device)
        if way == "plain":
            batch = to_device(plain.collate(samples, window, reconstructed=True), run.device)
            return plain.tokenizer_losses(model, batch, words, 0.5)
        sums = model(to_device(collate_eeg(samples), run.device), words, 0.5)
        return [sums[name] for name in ("commitment", "frequency", "raw", "domain_eeg", "domain_text")]

    return model, work


def stage_2(way, size, run):
    vq, model = make_neurolm(size, run)
    window = 128 if size == "tiny" else plain.WINDOW
    samples = {tokens: make_windows((MONTAGE, tokens // MONTAGE)) for tokens in (FEW if size == "tiny" else TOKENS)}
    folder = tempfile.TemporaryDirectory()
    for tokens, (sample,) in samples.items() if way == "cached" else ():  # as --cache_features does once
        made = read_codes(to_device(collate_prediction([sample]), run.device), vq, model)
        np.savez(Path(folder.name, f"{tokens}.npz"), **{name: made[name][0].cpu() for name in ("features", "codes")})

    def work(tokens):
        chosen, words = samples[tokens], make_words(tokens)
        if way == "plain":
            batch = to_device(plain.collate(chosen, window), run.device)
            plain.add_codes(vq, batch, MONTAGE)
            text = to_device(plain.collate_text(words), run.device)
            return [plain.language_loss(model, batch), plain.language_loss(model, text)]
        if way == "cached":
            chosen = [sample | dict(np.load(Path(folder.name, f"{tokens}.npz"))) for sample in chosen]
        batch = read_codes(to_device(collate_prediction(chosen), run.device), vq, model)
        batch["target"] = batch["codes"].flatten()[batch["target_position"]] + TEXT_ROWS
        sums = model(eeg=batch, text=to_device(words, run.device))
        return [sums["eeg"]["loss"], sums["text"]["loss"]]

    return model, work


def stage_3(way, size, run):
    model, tokenizer = make_neurolm(size, run)[1], load_tokenizer()

    def work(montages, windows, text=0):
        names = [list(MIX)[i % montages] for i in range(windows)]
        samples = make_windows(*(MIX[name] for name in names))
        for name, sample in zip(names, samples, strict=True):
            sample["task"] = TASKS[name]
        words = [make_words(text)] if text else []
        if way == "plain":
            batches = [plain.collate_questions(samples, tokenizer), *map(plain.collate_text, words)]
            return [plain.language_loss(model, to_device(batch, run.device)) for batch in batches]
        parts = dict(zip(("eeg", "text"), [QuestionCollate(tokenizer)(samples), *words], strict=False))
        return [sums["loss"] for sums in model(**to_device(parts, run.device)).values()]

    return model, work


def answering(way, size, run):
    model, tokenizer = make_neurolm(size, run)[1].eval(), load_tokenizer()
    model.GPT2.lm_head.weight.data.mul_(10)  # else any answer of random weights is as likely as any other

    def work(windows, questions, answers):
        tasks = [replace(TASKS["TUEV"], answers=TASKS["TUEV"].answers[:answers])] * questions
        samples = make_windows(*[MIX["TUEV"]] * windows)
        if way == "plain":
            return [plain.answer(model, samples, task, tokenizer, run.device) for task in tasks]
        return ask_all(model, [(task, "score_per_token") for task in tasks], samples, windows, run)[0]

    return None, work


def generation(way, size, run):
    model, prompt = make_neurolm(size, run)[1].eval(), TASKS["TUAB"].prompt(load_tokenizer())

    def work(tokens):
        samples = make_windows(MIX["TUAB"])
        if way == "plain":
            return plain.generate(model, samples, prompt, tokens, run.device)
        batch = collate_eeg(samples) | {"tokens": torch.tensor([prompt])}
        return model.generate(to_device(batch, run.device), tokens)

    return None, work


def labram_masked(way, size, run):
    student, tokenizer = LABRAM[size]
    tokenizer = VQNSP(*TOKENIZERS[f"vqnsp_encoder_{tokenizer}"]).to(run.device).eval().requires_grad_(False)
    model = MaskedModel(MASKED_MODELS[f"labram_{student}_patch200_1600_8k_vocab"]).to(run.device)

    def work(windows):
        batch = to_device(collate_montage(make_windows(*[MIX["TUAB"]] * windows)), run.device)
        given = (model, tokenizer, batch["x"], batch["chans"], batch["keys"])
        return plain.masked_losses(*given) if way == "plain" else [*masked_prediction(*given)[0].values()]

    return model, work


def labram_tuning(way, size, run):
    model = Classifier(CLASSIFIERS[f"labram_{LABRAM[size][0]}_patch200_200"], 6).to(run.device)

    def work(windows):
        batch = to_device(collate_montage(make_windows(*[MIX["TUAB"]] * windows)), run.device)
        logits = (plain.classify if way == "plain" else Classifier.forward)(model, batch["x"], batch["chans"])
        return [class_loss(logits, batch["label"], 0.1)]

    return model, work


def quantizing(way, size, run):
    quantizer = Quantizer(VQ_SIZES[size].n_codes, VQ_SIZES[size].code_dim, kmeans_init=False).to(run.device)
    quantize = plain.quantize if way == "plain" else Quantizer.forward

    def work(vectors):
        z = torch.from_numpy(np.random.default_rng(0).standard_normal((vectors, quantizer.width), dtype=np.float32))
        distance = quantize(quantizer, z.to(run.device))[2]
        return [distance.sum(), quantizer.embedding.weight.abs().sum(), quantizer.cluster_size.square().sum()]

    return None, work


def loading(way, size, run):
    """Windows of 10 s, of eight recordings in turn."""
    folder, length = tempfile.TemporaryDirectory(), 10 * RATE
    path, rng, recordings, index = Path(folder.name), np.random.default_rng(0), [], []
    for i in range(8):
        eeg = (20 * rng.standard_normal((len(TUH_CHANNELS), 6 * length))).astype(np.float32)
        write_h5(path / f"{i}.h5", str(i), eeg, TUH_CHANNELS)
        recordings.append(Recording(path / f"{i}.h5", str(i), str(i), "train", str(i), TUH_CHANNELS, eeg.shape[1]))
        for start in range(0, eeg.shape[1], length):
            sample = {"X": eeg[:, start : start + length].astype(np.float64), "ch_names": TUH_CHANNELS}
            (path / f"{len(index)}.pkl").write_bytes(pickle.dumps(sample))
            index.append((i, start, start + length, -1))
    windows = Windows(recordings, np.array(index))
    order = rng.permutation(len(index))

    def work(windows_of_10_s):
        chosen = order[:windows_of_10_s]
        if way == "plain":
            batch = plain.load_pickles([Path(folder.name, f"{i}.pkl") for i in chosen])
        else:
            batch = collate_eeg([windows[i] for i in chosen])
        return [batch["x"][..., ::50].abs().sum(), batch["time"][:, ::50].sum()]  # costs nothing beside them

    return None, work


def start_up(way, size, run):
    code = (EAGER if way == "plain" else "") + HELP
    return None, lambda: [len(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT))]
