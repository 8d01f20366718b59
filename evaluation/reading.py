"""EEG in any form to windows, and windows to features.

C channels · E epochs · T samples · W windows · S seconds of a window · D width of the features
"""

import os
from collections.abc import Sequence

import mne
import numpy as np
import torch
from einops import rearrange

from dataset.batches import collate_eeg, collate_montage
from dataset.channels import OTHER_NAME, STANDARD_1020, channel_rows
from dataset.descriptions import parse_yaml
from dataset.windows import LABRAM_ROWS, MAX_SECONDS, MICROVOLTS, RATE
from dataset_maker.machinery.arrays import as_mne, describe_array
from dataset_maker.machinery.limits import forget
from dataset_maker.machinery.preprocessing import HIGH, LOW, CleanEEG, load_recording
from errors import UserError
from model.labram import Classifier
from model.vqnsp import VQNSP
from training.loading import to_device

NOTCH = 50.0  # Hz, where nobody says it
LEVELS, POOLS = ("tokenizer", "hidden"), ("mean", "channels", None)


def read_eeg(eeg, ch_names=None, sfreq=None, unit=None, **cleaning) -> CleanEEG:
    """Clean EEG of a path, an MNE Raw or Epochs, or an array (C, T) or (E, C, T) with the names of its channels, its
    rate in Hz, and its unit: uV (default), mV, V or raw:FACTOR, so many uV each; of a path: default its header's.

    cleaning: further arguments of `load_recording`. Raises UserError with the reason where it cannot be used.
    """
    known = None if sfreq is None else describe_array(sfreq, unit or "uV", ch_names)
    if isinstance(eeg, str | os.PathLike):
        factor = unit and describe_array(1, unit, None).unit
        return load_recording(eeg, array=known, unit=factor, **cleaning)
    if isinstance(eeg, mne.io.BaseRaw | mne.BaseEpochs):
        if known or ch_names is not None:
            raise UserError("ch_names and sfreq are of arrays: an MNE object has its own")
        return load_recording(eeg, **cleaning)
    data = np.asarray(eeg)
    what = f"an array {'x'.join(map(str, data.shape))} of {data.dtype}"
    if data.ndim not in (2, 3) or data.dtype.kind not in "iuf" or not data.size:
        raise UserError(f"{what}: give a path, an MNE Raw or Epochs, or numbers, (epochs x) channels x samples")
    if known is None or ch_names is None:
        raise UserError(f"{what} says no channels and no rate: give ch_names and sfreq, and unit where it is not uV")
    if data.shape[-2] != len(ch_names):
        cure = "; give its transpose" * (data.shape[-1] == len(ch_names))
        raise UserError(f"{what} has {data.shape[-2]} channels, ch_names has {len(ch_names)} names{cure}")
    return load_recording(as_mne(data, ch_names, known), **cleaning)


def stored_filters(checkpoint: dict, source) -> tuple[tuple[float, float], float, str]:
    """Band and notch (Hz) of the data that a model was trained on, as its checkpoint says; the papers' where it says
    nothing or several, and a sentence on that."""
    datasets, found = checkpoint.get("datasets"), set()
    for about in datasets.values() if isinstance(datasets, dict) else ():
        text = about.get("preprocessing") if isinstance(about, dict) else None
        recipe = parse_yaml(text.encode(), f"{source}, preprocessing") if isinstance(text, str) else None
        band, notch = (recipe.get("band"), recipe.get("notch")) if isinstance(recipe, dict) else (None, None)
        numbers = [*band, notch] if isinstance(band, list) else []
        if len(numbers) == 3 and all(isinstance(number, int | float) for number in numbers):
            found |= {(low, high, hum) for low, high, hum in [numbers] if 0 < low < high <= RATE / 2 > hum >= 0}
    bands, notches = {row[:2] for row in found}, sorted({row[2] for row in found})
    band = bands.pop() if len(bands) == 1 else (LOW, HIGH)
    notch = notches[0] if len(notches) == 1 else NOTCH
    said = f"{source} does not say how its data were filtered"
    if found:
        said = f"{source} was trained on data with notches at {', '.join(f'{hum:g}' for hum in notches)} Hz"
    said = f"{said}: here {band[0]:g}-{band[1]:g} Hz and a notch at {notch:g} Hz, which should be that of your mains"
    return band, notch, said * (len(found) != 1)


def choose_channels(clean: CleanEEG, wanted) -> tuple[tuple[str, ...], str]:
    """The `wanted` channels that a recording has, perhaps by another name, in their order (None: all of it), and a
    sentence on others.

    Raises UserError when it has none of them.
    """
    if wanted is None:
        return clean.channels, ""
    place = {channel: channel for channel in clean.channels}
    renamed = {other: channel for channel in clean.channels if (other := OTHER_NAME.get(channel)) not in place}
    place |= {channel: renamed[channel] for channel in wanted if channel in renamed and renamed[channel] not in wanted}
    common = tuple(channel for channel in wanted if channel in place)
    missing = [channel for channel in wanted if channel not in place]
    extra = [channel for channel in clean.channels if channel not in {place[name] for name in common}]
    if not common:
        raise UserError(
            f"it has none of the channels that the model was trained on ({', '.join(wanted)}), but "
            f"{', '.join(clean.channels)}: name their places in an alias file, --aliases"
        )
    said = [f"{name} is its {place[name]}, another name of the place" for name in common if place[name] != name]
    said += [f"without {', '.join(missing)}, which the model was trained on"] if missing else []
    said += [f"not used, as unknown to the model: {', '.join(extra)}"] if extra else []
    return common, "; ".join(said)


class Cut(Sequence):
    """Windows of clean EEG as samples, see `dataset.windows.Windows`; each is made when it is asked for."""

    def __init__(self, clean: CleanEEG, channels, starts, seconds: int):
        """channels: names, in their order, perhaps other ones of a place; starts: a window's first sample."""
        self.eeg, self.channels, self.starts, self.seconds = clean.eeg, tuple(channels), starts, seconds
        named = (name if name in clean.channels else OTHER_NAME[name] for name in channels)
        self.places = [clean.channels.index(name) for name in named]
        self.about = {"rows": channel_rows(channels), "label": -1, "file": ""}

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, i: int) -> dict:
        start = self.starts[i]
        eeg = self.eeg[:, start : start + self.seconds * RATE][self.places] / np.float32(MICROVOLTS)
        forget(self.eeg)
        return self.about | {"eeg": eeg, "index": i}


def cut(clean: CleanEEG, seconds: int, stride: float | None = None, channels=None) -> Cut:
    """Windows of a recording every `stride` seconds (default: end to end); of epochs, one each, as many whole seconds
    as they have. channels: names, default: all.

    Raises UserError when nothing is as long as a window.
    """
    samples = clean.eeg.shape[1]
    if clean.epoch:
        seconds, stride = clean.epoch // RATE, clean.epoch / RATE
        if seconds > MAX_SECONDS:
            raise UserError(f"epochs of {seconds} s, a window has {MAX_SECONDS} s at most: cut them into shorter ones")
    step = round((seconds if stride is None else stride) * RATE)
    if step < 1:
        raise UserError(f"--stride {stride:g}: must be above 0 seconds")
    starts = range(0, samples - seconds * RATE + 1, step)
    if not starts:
        raise UserError(f"too short: {samples / RATE:.1f} s, a window has {seconds} s")
    return Cut(clean, clean.channels if channels is None else channels, starts, seconds)


def batches(model, windows: Sequence, batch_size: int, run, progress=iter):
    """Yield windows, samples of the same channels, as the model, which is put into evaluation, reads them; progress:
    around the batches. Raises UserError for channels that LaBraM cannot embed."""
    labram = isinstance(model, Classifier | VQNSP)
    beyond = [STANDARD_1020[row] for row in windows[0]["rows"] if labram and row >= LABRAM_ROWS]
    if beyond:
        raise UserError(f"LaBraM has no position for channel {', '.join(beyond)}: choose others with --channels")
    model.eval()
    for start in progress(range(0, len(windows), batch_size)):
        samples = [windows[i] for i in range(start, min(start + batch_size, len(windows)))]
        yield to_device((collate_montage if labram else collate_eeg)(samples), run.device)


def fill(batches_of_parts, n: int) -> list[np.ndarray]:
    """Arrays (B, ...) of each batch, one after another -> one array (n, ...) of each kind. They are made once, whole:
    small arrays kept between the large ones of the batches would break up the memory, by GiB in a long recording."""
    kept, done = [], 0
    for parts in batches_of_parts:
        if not kept:
            kept = [np.empty((n, *part.shape[1:]), part.dtype) for part in parts]
        for values, part in zip(kept, parts, strict=True):
            values[done : done + len(part)] = part
        done += len(parts[0])
    return kept


@torch.no_grad()
def extract(model, windows: Cut, batch_size: int, run, level="tokenizer", layer=-1, pool="mean") -> np.ndarray:
    """Features of windows -> (W, D) float32 with pool "mean", (W, C, D) with "channels", means over the seconds, or
    (W, C, S, D) with None: every token.

    level: "tokenizer", NeuroLM's encoder or LaBraM's backbone, or "hidden", NeuroLM's language model, which reads EEG
    and no text; layer: a block of it, from 0, the last one after the last norm. Raises UserError for what there is not.
    """
    if level not in LEVELS or pool not in POOLS:
        raise UserError(f"level {level!r}, pool {pool!r}: a level is one of {LEVELS}, a pool one of {POOLS}")
    labram = isinstance(model, Classifier)
    if labram and level == "hidden":
        raise UserError("a LaBraM has no language model, so no hidden states: its backbone is level='tokenizer'")
    if level == "hidden":
        blocks, norm, read = model.decoder.blocks, model.decoder.norm, model.read
    else:
        encoder = model if labram else model.tokenizer
        blocks, norm, read = encoder.blocks, encoder.fc_norm, model.pool if labram else model.encode
    if not -len(blocks) <= layer < len(blocks):
        raise UserError(f"layer {layer}: there are {len(blocks)}, from 0 to {len(blocks) - 1}; -1 is the last")
    if layer not in (-1, len(blocks) - 1):
        norm = torch.nn.Identity()
    made = []
    order = "b (c s) d -> b c s d" if labram else "b (s c) d -> b c s d"

    def features(batch):
        with run.autocast():
            read(batch["x"], batch["chans"]) if labram else read(batch)
            tokens = made.pop()
            tokens = tokens if isinstance(tokens, torch.Tensor) else tokens[0]  # beside its keys and values
            tokens = tokens[:, 1:] if labram else norm(tokens)  # without the class token
            tokens = rearrange(tokens, order, c=len(windows.channels))
            pooled = tokens if pool is None else tokens.mean(2) if pool == "channels" else tokens.mean((1, 2))
            pooled = norm(pooled) if labram else pooled  # as LaBraM's head has it
        return [pooled.float().cpu().numpy()]

    hook = blocks[layer].register_forward_hook(lambda block, given, output: made.append(output))
    try:
        (found,) = fill(map(features, batches(model, windows, batch_size, run)), len(windows))
    finally:
        hook.remove()
    return found
