"""The hot paths that `bench.py` measures, as the scripts call them (way "here") and the plain way of `plain.py`.

Each takes (way, size, run) -> the model to train, or None; read(shape...): what data workers give; work(that) -> what
all ways must agree on: losses, where there is a model to train. Way "compiled" is "here" with --compile.
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
from model.gpt import TEXT_ROWS
from model.labram import CLASSIFIERS, Classifier, class_loss
from model.labram_masked import MASKED_MODELS, MaskedModel, masked_prediction
from model.neurolm import NeuroLM
from model.quantizer import Quantizer
from model.vq import VQ_SIZES, VQ_Align
from model.vqnsp import TOKENIZERS, VQNSP
from training.feature_cache import read_codes
from training.loading import to_device
from utils import wrap

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
    with run.device:  # weights are drawn where they stay
        vq = VQ_Align.from_size(size).VQ.eval().requires_grad_(False)
        model = NeuroLM.from_size(size, vq.encoder.config, vq.quantize.n_codes)
    model.tokenizer = vq.encoder
    return vq, model


def stage_1(way, size, run):
    model, window = VQ_Align.from_size(size).to(run.device), 128 if size == "tiny" else plain.WINDOW
    model.VQ.quantize.embedding.initted.fill_(1)  # k-means is no part of a step
    trained = wrap(model, run, way == "compiled")

    def read(tokens, windows=1):
        samples = make_windows(*[(MONTAGE, tokens // MONTAGE)] * windows)
        eeg = plain.collate(samples, window, reconstructed=True) if way == "plain" else collate_eeg(samples)
        return {"eeg": eeg, "words": make_words(tokens)["tokens"]}

    def work(given):
        eeg, words = to_device(given, run.device).values()
        if way == "plain":
            return plain.tokenizer_losses(model, eeg, words, 0.5)
        sums = trained(eeg, words, 0.5)
        return [sums[name] for name in ("commitment", "frequency", "raw", "domain_eeg", "domain_text")]

    return model, read, work


def stage_2(way, size, run):
    vq, model = make_neurolm(size, run)
    window = 128 if size == "tiny" else plain.WINDOW
    samples = {tokens: make_windows((MONTAGE, tokens // MONTAGE)) for tokens in (FEW if size == "tiny" else TOKENS)}
    folder, trained = tempfile.TemporaryDirectory(), wrap(model, run, way == "compiled")
    for tokens, (sample,) in samples.items() if way == "cached" else ():  # as --cache_features does once
        made = read_codes(to_device(collate_prediction([sample]), run.device), vq, model)
        np.savez(Path(folder.name, f"{tokens}.npz"), **{name: made[name][0].cpu() for name in ("features", "codes")})

    def read(tokens, windows=1):
        chosen, words = samples[tokens] * windows, make_words(tokens)
        if way == "plain":
            return {"eeg": plain.collate(chosen, window), "words": plain.collate_text(words)}
        if way == "cached":
            chosen = [sample | dict(np.load(Path(folder.name, f"{tokens}.npz"))) for sample in chosen]
        return {"eeg": collate_prediction(chosen), "words": words}

    def work(given):
        eeg, words = to_device(given, run.device).values()
        if way == "plain":
            plain.add_codes(vq, eeg, MONTAGE)
            return [plain.language_loss(model, eeg), plain.language_loss(model, words)]
        eeg = read_codes(eeg, vq, model)
        eeg["target"] = eeg["codes"].flatten()[eeg["target_position"]] + TEXT_ROWS
        return [sums["loss"] for sums in trained(eeg=eeg, text=words).values()]

    return model, read, work


def stage_3(way, size, run):
    model, tokenizer = make_neurolm(size, run)[1], load_tokenizer()

    def read(montages, windows, text=0):
        names = [list(MIX)[i % montages] for i in range(windows)]
        samples = make_windows(*(MIX[name] for name in names))
        for name, sample in zip(names, samples, strict=True):
            sample["task"] = TASKS[name]
        words = [make_words(text)] if text else []
        if way == "plain":
            parts = [plain.collate_questions(samples, tokenizer), *map(plain.collate_text, words)]
        else:
            parts = [QuestionCollate(tokenizer)(samples), *words]
        return dict(zip(("eeg", "text"), parts, strict=False))

    def work(parts):
        parts = to_device(parts, run.device)
        if way == "plain":
            return [plain.language_loss(model, batch) for batch in parts.values()]
        return [sums["loss"] for sums in model(**parts).values()]

    return model, read, work


def answering(way, size, run):
    from evaluation.inference import ask_all  # here, not at the top: training needs no mne

    model, tokenizer = make_neurolm(size, run)[1].eval(), load_tokenizer()
    model.GPT2.lm_head.weight.data.mul_(10)  # else any answer of random weights is as likely as any other

    def read(windows, questions, answers):
        task = replace(TASKS["TUEV"], answers=TASKS["TUEV"].answers[:answers])
        return make_windows(*[MIX["TUEV"]] * windows), [task] * questions

    def work(given):
        samples, tasks = given
        if way == "plain":
            return [plain.answer(model, samples, task, tokenizer, run.device) for task in tasks]
        return ask_all(model, [(task, "score_per_token") for task in tasks], samples, len(samples), run)[0]

    return None, read, work


def generation(way, size, run):
    model, prompt = make_neurolm(size, run)[1].eval(), TASKS["TUAB"].prompt(load_tokenizer())

    def work(given):
        samples, tokens = given
        if way == "plain":
            return plain.generate(model, samples, prompt, tokens, run.device)
        batch = collate_eeg(samples) | {"tokens": torch.tensor([prompt])}
        return model.generate(to_device(batch, run.device), tokens)

    return None, lambda tokens: (make_windows(MIX["TUAB"]), tokens), work


def read_montage(windows):
    return collate_montage(make_windows(*[MIX["TUAB"]] * windows))


def labram_masked(way, size, run):
    student, tokenizer = LABRAM[size]
    tokenizer = VQNSP(*TOKENIZERS[f"vqnsp_encoder_{tokenizer}"]).to(run.device).eval().requires_grad_(False)
    model = MaskedModel(MASKED_MODELS[f"labram_{student}_patch200_1600_8k_vocab"]).to(run.device)

    def work(batch):
        batch = to_device(batch, run.device)
        given = (model, tokenizer, batch["x"], batch["chans"], batch["keys"])
        return plain.masked_losses(*given) if way == "plain" else [*masked_prediction(*given)[0].values()]

    return model, read_montage, work


def labram_tuning(way, size, run):
    model = Classifier(CLASSIFIERS[f"labram_{LABRAM[size][0]}_patch200_200"], 6).to(run.device)

    def work(batch):
        batch = to_device(batch, run.device)
        logits = (plain.classify if way == "plain" else Classifier.forward)(model, batch["x"], batch["chans"])
        return [class_loss(logits, batch["label"], 0.1)]

    return model, read_montage, work


def quantizing(way, size, run):
    quantizer = Quantizer(VQ_SIZES[size].n_codes, VQ_SIZES[size].code_dim, kmeans_init=False).to(run.device)
    quantize = plain.quantize if way == "plain" else Quantizer.forward

    def read(vectors):
        return torch.from_numpy(np.random.default_rng(0).standard_normal((vectors, quantizer.width), dtype=np.float32))

    def work(z):
        distance = quantize(quantizer, z.to(run.device))[2]
        return [distance.sum(), quantizer.embedding.weight.abs().sum(), quantizer.cluster_size.square().sum()]

    return None, read, work


def loading(way, size, run):
    """Windows of 10 s, of eight recordings in turn."""
    from dataset_maker.machinery.corpus import write_h5

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

    def work(chosen):
        if way == "plain":
            batch = plain.load_pickles([Path(folder.name, f"{i}.pkl") for i in chosen])
        else:
            batch = collate_eeg([windows[i] for i in chosen])
        return [batch["x"][..., ::50].abs().sum(), batch["time"][:, ::50].sum()]  # costs nothing beside them

    return None, lambda windows_of_10_s: order[:windows_of_10_s], work


def start_up(way, size, run):
    code = (EAGER if way == "plain" else "") + HELP
    return None, dict, lambda _: [len(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT))]
