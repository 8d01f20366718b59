"""The encoders of both systems under the contract of the field's benchmarks (braindecode, NeuralBench, OpenEEGBench):
EEG of any montage, length and rate in, (B, n_outputs) out, and a head called `final_layer`.

B batch · C channels · T samples at the data's rate · S seconds · D width
"""

import functools
import math
import warnings
from dataclasses import replace
from fractions import Fraction

import mne
import numpy as np
import torch
from einops import rearrange, repeat
from torch import nn
from torch.nn import functional as F

from dataset.amplitudes import PLAUSIBLE
from dataset.channels import PAD_ROW, STANDARD_1020, canonical_name
from dataset.windows import LABRAM_ROWS, LABRAM_SECONDS, MAX_SECONDS, MICROVOLTS, RATE
from errors import UserError
from model.labram import BACKBONES, Classifier, load_pretrained, model_state
from model.neural_transformer import NeuralTransformer
from model.neurolm import NeuroLM
from model.vq import VQ_SIZES, VQ_Align
from model.weights import read_checkpoint

ZERO_CROSSINGS = 16  # of the low-pass filter, on each side
ABSENT = -0.1  # NeuralBench's coordinates of a channel without a position
NOWHERE = np.full(3, np.nan)


class Adapter(nn.Module):
    """Resampling, patches, rows of the channel table, pieces and the head; a subclass adds the encoder.

    n_chans, n_times: of the benchmark's windows; calls may have others. n_outputs: 0: the features (B, D). sfreq: of
    the input, in Hz. chs_info: dictionaries with "ch_name" and optionally "loc" (MNE's, it begins with x, y, z), for
    calls without `ch_names`. weights: a checkpoint, official or own, loaded strictly; it also tells the size, which
    `size` does for random weights. scale: what makes units of 100 uV of the input: 0.01 for uV, 1e4 for V, 1 for what
    was divided by 100 already; standardized input has no unit: 0.1 takes one deviation for 10 uV.
    Raises UserError for settings that contradict one another and for weights that do not fit."""

    max_seconds: int  # that the encoder reads at once
    max_tokens: int  # channels times seconds of the windows that it was pre-trained on
    max_rows: int  # of the channel table that it embeds

    def __init__(self, encoder, width: int, n_chans, n_outputs, n_times, sfreq, chs_info, scale):
        super().__init__()
        if not sfreq or sfreq <= 0:
            raise UserError(f"sfreq = {sfreq}: give the sampling rate of the input in Hz")
        if chs_info is not None and n_chans not in (None, len(chs_info)):
            raise UserError(f"chs_info describes {len(chs_info)} channels, n_chans is {n_chans}")
        self.n_chans, self.n_outputs, self.n_times = n_chans, n_outputs, n_times
        self.sfreq, self.scale = float(sfreq), scale
        self.ch_names = chs_info and [channel["ch_name"] for channel in chs_info]
        self.positions = chs_info and np.array([channel.get("loc", NOWHERE)[:3] for channel in chs_info], dtype=float)
        self.encoder = encoder
        self.final_layer = nn.Linear(width, n_outputs) if n_outputs else nn.Identity()
        self.said, self.looked = set(), False  # channels whose stand-ins were announced; whether the unit was checked

    def forward(self, x, ch_names=None, channel_positions=None, **_):
        """x (B, C, T) at `sfreq`; ch_names: C names, default: those of chs_info; channel_positions (B, C, 3) or (C, 3)
        in MNE's head frame, in any unit, or scaled to 0..1 along each axis (NeuralBench's default)
        -> (B, n_outputs), or features (B, D).
        Raises UserError for channels that have neither a row in the table nor a position."""
        if x.dim() != 3:
            raise UserError(f"EEG of shape {tuple(x.shape)}: expected (batch, channels, samples)")
        rows = self.rows(x.size(1), ch_names, channel_positions).to(x.device).expand(len(x), -1)
        x = x.float() * self.scale
        if not self.looked:
            self.looked, median = True, MICROVOLTS * x.detach().abs().median().item()
            if not PLAUSIBLE[0] <= median <= PLAUSIBLE[1]:
                warnings.warn(f"with scale {self.scale:g} this EEG has a median of {median:.2g} uV", stacklevel=2)
        return self.final_layer(self.pool(to_patches(resample(x, self.sfreq)), rows))

    def pool(self, patches, rows):
        """patches (B, C, S, 200) in 100 uV, rows (B, C) of the channel table -> features (B, D): the mean of the tokens
        of the window, or of its pieces, equally long or nearly so, where the encoder does not read it at once."""
        seconds = min(self.max_seconds, max(1, self.max_tokens // patches.size(1)))
        pieces = patches.tensor_split(math.ceil(patches.size(2) / seconds), dim=2)
        return torch.cat([self.tokens(piece, rows) for piece in pieces], dim=1).mean(1)

    def rows(self, n_chans: int, ch_names, channel_positions):
        """Rows of the channel table (B, C), or (1, C) where they are those of all samples."""
        names, positions = (self.ch_names, self.positions) if ch_names is None else (list(ch_names), None)
        if channel_positions is not None:
            positions = torch.as_tensor(channel_positions).double().cpu().numpy()
        if names is None and positions is None:
            raise UserError("which channels are these? Give ch_names, channel_positions, or chs_info when building")
        names = [f"channel {i + 1}" for i in range(n_chans)] if names is None else names
        if len(names) != n_chans:
            raise UserError(f"EEG of {n_chans} channels with the names of {len(names)}: {', '.join(map(str, names))}")
        if positions is not None and positions.shape[-2:] != (n_chans, 3):
            raise UserError(f"channel positions of shape {positions.shape}: expected (batch, {n_chans} channels, 3)")
        rows, substitutes = table_rows(names, positions, self.max_rows)
        if new := [f"{name} -> {row}" for name, row in substitutes.items() if name not in self.said]:
            said = f"channels without a row of their own take the nearest electrode's: {', '.join(new)}"
            warnings.warn(said, stacklevel=3)
            self.said.update(substitutes)
        return torch.from_numpy(rows)


class LaBraMAdapter(Adapter):
    """LaBraM's backbone, pooled as in its fine-tuning.

    weights: of masked pre-training or of fine-tuning, without its head; size: tiny, base, large, huge.
    """

    max_seconds, max_tokens, max_rows = LABRAM_SECONDS, 256, LABRAM_ROWS

    def __init__(self, n_chans=None, n_outputs=0, n_times=None, sfreq=None, chs_info=None, weights=None, size="base",
                 scale=1 / MICROVOLTS):  # fmt: skip
        encoder = read_labram(weights) if weights else Classifier(_size(BACKBONES, size), 1)
        encoder.head = nn.Identity()
        super().__init__(encoder, encoder.config.n_embd, n_chans, n_outputs, n_times, sfreq, chs_info, scale)

    def tokens(self, patches, rows):
        """patches (B, C, S, 200) in 100 uV, rows (B, C) -> (B, C·S, D)."""
        return self.encoder.features(patches.flatten(1, 2), rows + 1)  # row 0 of LaBraM's is the class token's

    def pool(self, patches, rows):
        return self.encoder.fc_norm(super().pool(patches, rows))


class NeuroLMAdapter(Adapter):
    """The encoder of NeuroLM's tokenizer, which its language model reads.

    weights: of the tokenizer, or of a NeuroLM of stage 2 or 3; size: tiny, B (which L and XL share).
    """

    max_seconds, max_tokens, max_rows = MAX_SECONDS, 1024, len(STANDARD_1020)

    def __init__(self, n_chans=None, n_outputs=0, n_times=None, sfreq=None, chs_info=None, weights=None, size="B",
                 scale=1 / MICROVOLTS):  # fmt: skip
        encoder = _read_neurolm(weights) if weights else NeuralTransformer(_size(VQ_SIZES, size).encoder)
        super().__init__(encoder, encoder.config.n_embd, n_chans, n_outputs, n_times, sfreq, chs_info, scale)

    def tokens(self, patches, rows):
        """patches (B, C, S, 200) in 100 uV, rows (B, C) -> (B, S·C, D)."""
        chans = repeat(rows, "b c -> b (s c)", s=patches.size(2))
        time = torch.arange(patches.size(2), device=rows.device).repeat_interleave(patches.size(1)).expand_as(chans)
        return self.encoder(rearrange(patches, "b c s p -> b (s c) p"), chans, time)


def _size(sizes: dict, name: str):
    if name not in sizes:
        raise UserError(f"size {name}: choose one of {', '.join(sizes)}")
    return sizes[name]


def read_labram(path, num_classes: int = 1, drop_path: float = 0.0) -> Classifier:
    """The backbone of a masked model or a classifier, of its size and options, under a new head."""
    state = model_state(read_checkpoint(path))
    shapes = {name.removeprefix("student."): getattr(value, "shape", (0,)) for name, value in state.items()}
    config = {config.n_embd: config for config in BACKBONES.values()}.get(shapes.get("cls_token", (0,))[-1])
    if config is None:
        raise UserError(f"{path} is no masked model or classifier of LaBraM: it lacks a cls_token of a known width")
    layer_scale = config.layer_scale if "blocks.0.gamma_1" in shapes else 0.0
    config = replace(config, qkv_bias="blocks.0.attn.q_bias" in shapes, layer_scale=layer_scale, drop_path=drop_path)
    model = Classifier(config, num_classes)
    load_pretrained(model, state, str(path), keep_head=False)
    return model


def _read_neurolm(path) -> NeuralTransformer:
    checkpoint = read_checkpoint(path)
    if "model_args" in checkpoint:  # stages 2 and 3 carry the tokenizer's encoder, frozen
        return NeuroLM.from_checkpoint(checkpoint, str(path)).tokenizer.requires_grad_(True)
    return VQ_Align.from_checkpoint(checkpoint, str(path)).VQ.encoder


@functools.cache
def electrodes() -> dict[str, np.ndarray]:
    """{name in upper case: where a 10-05 electrode lies, x, y, z in metres in MNE's head frame}."""
    montage = mne.channels.make_standard_montage("colin27_1005")  # standard_1005 before MNE 1.13
    info = mne.create_info(montage.ch_names, RATE, "eeg").set_montage(montage)
    return {channel["ch_name"].upper(): channel["loc"][:3] for channel in info["chs"]}


def table_rows(names, positions, max_rows: int):
    """Rows of the channel table below `max_rows` for C names -> (1, C) or (B, C) int64, and {name: its stand-in}.

    A channel without such a row takes that of the nearest electrode: by its place in the 10-05 system when the name is
    of it, else by `positions` (C, 3) or (B, C, 3). Raises UserError for channels with neither.
    """
    found = [STANDARD_1020.index(canonical_name(name) or "pad") for name in names]
    rows = np.array([found]) if positions is None or positions.ndim == 2 else np.array([found] * len(positions))
    missing = [i for i, row in enumerate(found) if row == PAD_ROW or row >= max_rows]
    if not missing:
        return rows[:1], {}
    candidates = np.array([row for row, name in enumerate(STANDARD_1020[:max_rows]) if name.upper() in electrodes()])
    targets = np.array([electrodes()[STANDARD_1020[row].upper()] for row in candidates])
    positions = np.tile(NOWHERE, (*rows.shape, 1)) if positions is None else positions
    places = in_metres(positions, targets).reshape(*rows.shape, 3)
    for i in missing:
        places[:, i] = electrodes().get(str(names[i]).strip(". ").upper(), places[:, i])
    lost = [str(names[i]) for i in missing if np.isnan(places[:, i]).any()]
    if lost:
        raise UserError(
            f"channel {', '.join(lost)}: neither a row in the table of dataset/channels.py, nor a 10-05 name, nor a "
            "position: drop it, rename it, or give positions (channel_positions, or loc in chs_info)"
        )
    # by the directions as seen from between the ears: the unit does not matter
    cosine = places[:, missing] @ (targets / np.linalg.norm(targets, axis=1, keepdims=True)).T
    rows[:, missing] = candidates[cosine.argmax(-1)]
    return rows, {str(names[i]): STANDARD_1020[rows[0, i]] for i in missing}


def in_metres(positions, table):
    """Positions (..., 3) -> (K, 3), NaN where there is none; those from 0 to 1 are stretched over the table (R, 3)."""
    places = positions.reshape(-1, 3).copy()
    places[(places == 0).all(-1) | np.isclose(places, ABSENT).all(-1)] = np.nan
    given = places[~np.isnan(places).any(-1)]
    scaled = len(given) and np.allclose(given.min(0), 0, atol=1e-3) and np.allclose(given.max(0), 1, atol=1e-3)
    return table.min(0) + places * np.ptp(table, axis=0) if scaled else places


def to_patches(x):
    """x (B, C, T) at 200 Hz -> its seconds (B, C, S, 200). A rest of half a second or more makes one more patch of the
    last 200 samples; a shorter one is cut off. A window below one second goes on with its last value."""
    x = F.pad(x, (0, max(0, RATE - x.size(-1))), mode="replicate")
    starts = torch.arange(0, x.size(-1) - RATE // 2 + 1, RATE, device=x.device).clamp(max=x.size(-1) - RATE)
    return x[..., starts[:, None] + torch.arange(RATE, device=x.device)]


def resample(x, sfreq: float):
    """x (B, C, T) at sfreq Hz -> (B, C, about T·200/sfreq) at 200 Hz: a Hann-windowed sinc low-pass at the lower of the
    two Nyquist frequencies, evaluated at the new times; beyond the edges the first and last values go on."""
    up, down = Fraction(RATE / sfreq).limit_denominator(1000).as_integer_ratio()
    if up == down:
        return x
    filters, before = _sinc_filters(up, down)
    length = max(1, round(x.size(-1) * up / down))
    steps = math.ceil(length / up)
    after = (steps - 1) * down + filters.shape[-1] - before - x.size(-1)
    padded = F.pad(x.flatten(0, 1)[:, None], (before, max(0, after)), mode="replicate")  # (B·C, 1, T + ...)
    y = F.conv1d(padded, torch.from_numpy(filters).to(x), stride=down)[..., :steps]  # (B·C, up, steps)
    return rearrange(y, "(b c) up steps -> b c (steps up)", b=len(x))[..., :length]


@functools.lru_cache(maxsize=16)
def _sinc_filters(up: int, down: int):
    """One filter for each of the `up` places between input samples (up, 1, taps) float32, and the samples before."""
    cutoff = 0.99 * min(1.0, up / down)  # of the input's Nyquist frequency
    before = math.ceil(ZERO_CROSSINGS / cutoff)
    taps = np.arange(-before, before + down + 1)
    at = cutoff * (taps - np.arange(up)[:, None] * down / up)
    filters = np.sinc(at) * np.where(np.abs(at) < ZERO_CROSSINGS, np.cos(np.pi * at / 2 / ZERO_CROSSINGS) ** 2, 0.0)
    return (filters / filters.sum(-1, keepdims=True)).astype(np.float32)[:, None], before
