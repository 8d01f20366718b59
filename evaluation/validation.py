"""What a validation shows beside its losses: the health of a codebook, a window and its reconstruction, confusions.

C channels · S seconds · P = 200 samples a second · F frequency bins
"""

import numpy as np
import torch
from einops import rearrange

from dataset.batches import collate_eeg, collate_montage
from dataset.channels import STANDARD_1020
from evaluation.figures import plot_codebook_use, plot_confusion, plot_reconstruction
from model.quantizer import codebook_use
from model.vq import reconstruction_targets, zscore
from training.loading import to_device

COLLAPSE = 0.01  # a perplexity below this share of the codes


def log_codebook(trainer, counts) -> dict[str, float]:
    """Draw how often each code was used; warn of a collapse once the warm-up is over.

    counts (n_codes,): of this process -> {"used": share of codes, "perplexity", "dead": codes}, over all processes.
    """
    counts = trainer.run.sum(counts)
    use = codebook_use(counts)
    trainer.logger.figure(trainer.step, "val/codebook_use", plot_codebook_use, counts.cpu())
    if use["perplexity"] < COLLAPSE * len(counts) and trainer.step > np.argmax(trainer.rates) + 1:
        trainer.logger.say(
            f"warning: the codebook has collapsed: perplexity {use['perplexity']:.0f} of {len(counts)} codes. Re-seed "
            "idle codes (--revive_dead_codes 100), take larger batches, or lower the learning rate"
        )
    return use


@torch.no_grad()
def draw_neurolm_window(trainer, tokenizer, windows) -> None:
    """The first of `windows` (Windows), and what NeuroLM's tokenizer (VQ) decodes from its codes."""
    if not trainer.run.main:
        return
    sample = windows[0]
    eeg = to_device(collate_eeg([sample]), trainer.run.device)
    where = eeg["chans"], eeg["time"], eeg["valid"]
    spectrum, signal = reconstruction_targets(eeg["x"])
    decoded_spectrum, decoded_signal = tokenizer.decode(tokenizer.encode(eeg["x"], *where)[0], *where)
    tokens = (signal, decoded_signal, spectrum, decoded_spectrum)
    parts = [rearrange(part[0].float().cpu(), "(s c) f -> c s f", c=len(sample["rows"])) for part in tokens]
    _draw(trainer, parts, sample)


@torch.no_grad()
def draw_labram_window(trainer, model, windows) -> None:
    """The first of `windows` (Windows), and what VQ-NSP decodes: from amplitude and phase back to the signal."""
    if not trainer.run.main:
        return
    sample = windows[0]
    batch = to_device(collate_montage([sample]), trainer.run.device)
    x = batch["x"].flatten(1, 2)  # (1, C·S, P)
    spectrum = torch.fft.fft(x)
    decoded = model.decode(model.encode(batch["x"], batch["chans"])[0], batch["chans"])
    # the decoder's outputs are z-scored over the sample; here its own mean and deviation undo that
    amplitude, phase = (
        part.float() * whole.std() + whole.mean()
        for part, whole in zip(decoded, (spectrum.abs(), spectrum.angle()), strict=True)
    )
    decoded_signal = torch.fft.ifft(torch.polar(amplitude.clamp(min=0), phase)).real
    tokens = (zscore(x), zscore(decoded_signal), zscore(spectrum.abs()), decoded[0].float())
    parts = [rearrange(part[0].cpu(), "(c s) f -> c s f", c=len(sample["rows"])) for part in tokens]
    _draw(trainer, [*parts[:2], *(part[..., :100] for part in parts[2:])], sample)


def _draw(trainer, parts, sample) -> None:
    channels = [STANDARD_1020[row] for row in sample["rows"]]
    trainer.logger.figure(trainer.step, "val/reconstruction", plot_reconstruction, *parts, channels)


def log_answers(trainer, result, group: str) -> None:
    """The metrics of an Evaluation as `group`/name, and its confusion matrix."""
    trainer.logger.write(trainer.step, {f"{group}/{name}": value for name, value in result.metrics.items()})
    trainer.logger.figure(trainer.step, f"{group}/confusion", plot_confusion, result.confusion, result.answers)
