"""The plain way to do what the models do, with their parameters and the same results: `bench.py` compares with it.

Fixed padding, dense masks built for each sample on the CPU, one pass of the encoder for the codes and one more for the
features, logits of every token, one-hot codes, LaBraM's attention as its formula says, the whole sequence again for
every answer and every new token, one pickle a sample.
B batch · E, L padded length of EEG and text · N = E + L · D width · M vectors · K codes
"""

import pickle

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional as F

from dataset.batches import to_tokens
from dataset.channels import PAD_ROW, channel_rows
from model.gpt import ANSWER_IDS, TEXT_ROWS
from model.labram_masked import random_mask
from model.vq import ReverseGradient, reconstruction_targets
from training.loading import to_device

WINDOW, QUESTION_EEG, QUESTION_TEXT = 1024, 276, 80  # the official padding: stages 1 and 2, then stage 3
NO_TARGET = -1


def collate(samples: list[dict], n_eeg: int, n_text: int = 0, reconstructed: bool = False) -> dict:
    """Samples as `Windows` gives them; with n_text, their `ids` (tokens of text) and maybe `target`, {place in these:
    class} -> a batch of fixed lengths with the masks of encoder and language model; reconstructed: and with what the
    decoders of stage 1 predict."""
    rows = [_pad(sample, n_eeg, n_text, reconstructed) for sample in samples]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _pad(sample, n_eeg, n_text, reconstructed):
    x, chans, seconds = map(torch.from_numpy, to_tokens(sample))
    ids = torch.tensor(sample["ids"] if n_text else [], dtype=torch.int64)
    rest, text_rest = (0, n_eeg - len(x)), (0, n_text - len(ids))
    text_time = seconds[-1] + 1 + torch.arange(len(ids))
    valid = torch.cat([F.pad(torch.ones(len(part), dtype=torch.bool), n) for part, n in ((x, rest), (ids, text_rest))])
    time = torch.cat([F.pad(seconds, rest), F.pad(text_time, text_rest)])
    row = {"x": F.pad(x, (0, 0, *rest)), "chans": F.pad(chans, rest, value=PAD_ROW), "tokens": F.pad(ids, text_rest)}
    row |= {"time": time, "valid": valid, "target": torch.full_like(time, NO_TARGET)}
    row["eeg_mask"] = valid[:n_eeg].repeat(1, n_eeg, 1)  # (1, E, E)
    row["mask"] = ((time <= time[:, None]) & valid)[None]  # (1, N, N)
    for place, wanted in sample.get("target", {}).items():
        row["target"][n_eeg + place] = wanted
    if reconstructed:
        targets = reconstruction_targets(row["x"][None], valid[None])
        row["spectrum"], row["signal"] = (target[0] for target in targets)
    return row


def collate_questions(samples, tokenizer) -> dict:
    """Samples with their `task`: EEG, question and answer."""
    asked = []
    for sample in samples:
        ids, places = sample["task"].encode(tokenizer, sample["label"])
        asked.append(sample | {"ids": ids, "target": {place: ids[place + 1] for place in places}})
    return collate(asked, QUESTION_EEG, QUESTION_TEXT)


def collate_text(words) -> dict:
    length = words["tokens"].size(1)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    return words | {"time": torch.arange(length)[None], "mask": mask[None, None]}


def load_pickles(paths) -> dict:
    """One official sample a file: EEG in uV, float64."""
    samples = []
    for path in paths:
        content = pickle.loads(path.read_bytes())
        samples.append({"eeg": np.float32(content["X"] / 100), "rows": channel_rows(content["ch_names"])})
    return collate(samples, WINDOW)


def run_blocks(blocks, x, mask):
    for block in blocks:
        heads = rearrange(block.attn.c_attn(block.ln_1(x)), "b n (three h d) -> three b h n d", three=3,
                          h=block.attn.n_head)  # fmt: skip
        y = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        x = x + block.attn.c_proj(rearrange(y, "b h n d -> b n (h d)"))
        x = x + block.mlp(block.ln_2(x))
    return x


def encode(transformer, batch, codes=None):
    """Features (B, E, D) of the EEG, or of codes (B, E, width) in a decoder."""
    n = batch["chans"].size(1)
    valid = None if batch["valid"][:, :n].all() else batch["valid"][:, :n]
    x = transformer.patch_embed(batch["x"], valid) if codes is None else transformer.patch_embed(codes)
    x = x + transformer.pos_embed(batch["chans"]) + transformer.time_embed(batch["time"][:, :n])
    return transformer.fc_norm(run_blocks(transformer.blocks, x, batch["eeg_mask"]))


def quantize(quantizer, z, valid=None):
    """z (..., width) -> codes with a straight-through gradient, indices, squared distances; moves the codes in training
    mode. In fp32, as ours."""
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z.float(), dim=-1)
        flat, rows = z.detach().flatten(0, -2), quantizer.embedding.weight
        distances = flat.square().sum(1, keepdim=True) + rows.square().sum(1) - 2 * flat @ rows.T  # (M, K)
        chosen = distances.argmin(1)
        one_hot = F.one_hot(chosen, len(rows)).float()
        codes = (one_hot @ rows).view_as(z)
        if quantizer.training:
            one_hot = one_hot if valid is None else one_hot * valid.flatten()[:, None]
            count, total = one_hot.sum(0), one_hot.T @ flat
            quantizer.cluster_size.lerp_(count, 1 - quantizer.decay)
            moved = F.normalize(torch.lerp(rows, F.normalize(total, dim=-1), 1 - quantizer.decay), dim=-1)
            rows.data.copy_(torch.where((count > 0)[:, None], moved, rows))
        return z + (codes - z).detach(), chosen.view(z.shape[:-1]), (codes - z).square().mean(-1)


def tokenizer_losses(model, batch, text, reversal):
    """The sums of `VQ_Align.forward`, in its order."""
    vq, valid = model.VQ, batch["valid"]
    features = encode(vq.encoder, batch)
    codes, _, distance = quantize(vq.quantize, vq.encode_task_layer(features), valid)
    spectrum = vq.decode_task_layer_freq(encode(vq.decoder_freq, batch, codes))
    signal = vq.decode_task_layer_raw(encode(vq.decoder_raw, batch, codes))
    domain = model.domain_classifier(ReverseGradient.apply(features, reversal))
    domain_text = model.domain_classifier(model.wte(text)).flatten(0, 1)
    return [
        (distance * valid).sum(),
        ((spectrum - batch["spectrum"]).square().mean(-1) * valid).sum(),
        ((signal - batch["signal"]).square().mean(-1) * valid).sum(),
        (F.cross_entropy(domain.mT, torch.zeros_like(batch["chans"]), reduction="none") * valid).sum(),
        F.cross_entropy(domain_text, torch.ones_like(text.flatten()), reduction="sum"),
    ]


@torch.no_grad()
def add_codes(vq, batch, channels: int) -> None:
    """What stage 2 predicts: of each token the code of its channel (one of `channels`) a second later."""
    codes = quantize(vq.quantize, vq.encode_task_layer(encode(vq.encoder, batch)))[1] + TEXT_ROWS
    wanted = torch.where(batch["valid"], codes, NO_TARGET)
    batch["target"][:, :-channels] = wanted[:, channels:]


def logits(model, batch):
    """Of every token, (B, N, V) float32."""
    parts = [model.GPT2.transformer.wte(batch["tokens"])]
    if "x" in batch:
        with torch.no_grad():
            features = encode(model.tokenizer, batch)
        parts.insert(0, model.encode_transform_layer(features) + model.pos_embed(batch["chans"]))
    x = torch.cat(parts, 1) + model.GPT2.transformer.wpe(batch["time"])
    x = run_blocks(model.GPT2.transformer.h, x, batch["mask"])
    return model.GPT2.lm_head(model.GPT2.transformer.ln_f(x)).float()


def language_loss(model, batch):
    scores, target = logits(model, batch).flatten(0, 1), batch["target"].flatten()
    scores.detach().argmax(-1).eq(target).sum()  # the accuracy, as training logs it
    return F.cross_entropy(scores, target, ignore_index=NO_TARGET, reduction="sum")


def likelihoods(model, samples, ids, device):
    """Of the next token after each of `ids`, which follow the EEG: (B, len(ids), ANSWER_IDS)."""
    batch = collate([sample | {"ids": ids} for sample in samples], QUESTION_EEG, QUESTION_TEXT)
    scores = logits(model, to_device(batch, device))
    return scores[:, QUESTION_EEG : QUESTION_EEG + len(ids), :ANSWER_IDS].log_softmax(-1)


def answer(model, samples, task, tokenizer, device):
    """Probability of each answer by its log-likelihood per token: (B, number of answers)."""
    prompt, scores = task.prompt(tokenizer), []
    for option in task.options(tokenizer):
        rows = likelihoods(model, samples, prompt + option, device)[:, len(prompt) - 1 : -1]
        scores.append(rows[:, range(len(option)), option].mean(1))
    return torch.stack(scores, 1).softmax(1)


def generate(model, samples, prompt, new_tokens, device):
    """As `NeuroLM.generate`, of one sample: (1, new_tokens)."""
    written = []
    for _ in range(new_tokens):
        written.append(int(likelihoods(model, samples, prompt + written, device)[0, -1].argmax()))
    return torch.tensor([written])


def labram(backbone, tokens, chans, cls_chan):
    """As `Backbone.transform`, without the class token: (B, N, D)."""
    seconds = tokens.size(1) // chans.size(1)
    place = backbone.pos_embed[0, chans].repeat_interleave(seconds, 1)
    tokens = tokens + place + backbone.time_embed[0, :seconds].repeat(chans.size(1), 1)
    x = torch.cat([(backbone.cls_token[:, 0] + backbone.pos_embed[0, cls_chan])[:, None], tokens], 1)
    for block in backbone.blocks:
        attn, scales = block.attn, [1.0 if gamma is None else gamma for gamma in (block.gamma_1, block.gamma_2)]
        qkv = attn.qkv(block.norm1(x))
        if attn.q_bias is not None:
            qkv = qkv + torch.cat([attn.q_bias, torch.zeros_like(attn.v_bias), attn.v_bias])
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=attn.n_head)
        shares = (attn.q_norm(q) * q.size(-1) ** -0.5 @ attn.k_norm(k).mT).softmax(-1).to(v.dtype)
        x = x + scales[0] * attn.proj(rearrange(shares @ v, "b h n d -> b n (h d)"))
        x = x + scales[1] * block.mlp(block.norm2(x))
    return x[:, 1:]


def masked_losses(model, tokenizer, x, chans, keys):
    """The losses of `masked_prediction`: the patches embedded for each of the two passes."""
    student, patches = model.student, x.flatten(1, 2)
    masked = torch.cat([random_mask([key], patches.size(1)) for key in keys]).to(x.device)
    with torch.no_grad():
        encoder = tokenizer.encoder
        features = encoder.fc_norm(labram(encoder, encoder.patch_embed(patches), chans, torch.zeros_like(chans[:, 0])))
        codes = quantize(tokenizer.quantize, tokenizer.encode_task_layer(features.float()))[1]
    losses = []
    for mask in (masked, ~masked):
        tokens = student.patch_embed(patches)
        tokens = torch.where(mask[..., None], student.mask_token.to(tokens.dtype), tokens)
        scores = model.lm_head(student.norm(labram(student, tokens, chans, chans[:, 0]))).float()
        losses.append(F.cross_entropy(scores[mask], codes[mask]))
    return losses


def classify(model, x, chans):
    """The logits of `Classifier.forward`."""
    tokens = labram(model, model.patch_embed(x.flatten(1, 2)), chans, torch.zeros_like(chans[:, 0]))
    return model.head(model.fc_norm(tokens.mean(1)))
