"""What the language model can be given of EEG beyond the paper: standardized features, and the power of rhythms.

B batch · N EEG tokens · D width
"""

from math import ceil

import torch
import torch.distributed as dist
from torch import nn

RATE = 200  # Hz
BANDS = {
    "delta": (1, 4),
    "theta": (4, 8),
    "alpha": (8, 13),
    "low beta": (13, 20),
    "high beta": (20, 30),
    "gamma": (30, 45),
}
SMALLEST = 1e-8  # (100 uV)²: keeps the logarithm of a flat token finite, 10 nV are far below any amplifier's noise


def log_band_power(x):
    """x (..., T) in 100 uV, of any length from one second -> the natural logarithm of the power in each of the six
    BANDS (Hz, the upper edge excluded), in (100 uV)² (..., 6) float32."""
    samples = x.size(-1)
    spectrum = torch.fft.rfft(x.float()).abs().square() * (2 / samples**2)
    edges = [(ceil(low * samples / RATE), ceil(high * samples / RATE)) for low, high in BANDS.values()]
    sums = [spectrum[..., first:stop].sum(-1) for first, stop in edges]
    return (torch.stack(sums, -1) + SMALLEST).log()


class FeatureScale(nn.Module):
    """Gives each dimension of features mean 0 and standard deviation 1 over EEG tokens.

    Features of an encoder share a constant part; after a short training it is so large (0.96 of their norm) that a
    language model needs many steps to hear anything else.
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, features):
        return (features - self.mean) / self.std

    @torch.no_grad()
    def measure(self, batches) -> None:
        """Take the statistics of `batches` of all processes: features (B, N, D) and valid (B, N) or None of each."""
        count, total, squares = 0, torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for features, valid in batches:
            rows = (features.flatten(0, 1) if valid is None else features[valid]).float()
            count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)
        sums = torch.cat([total.new_tensor([count]), total, squares]).double()
        if dist.is_initialized():
            dist.all_reduce(sums)
        mean, square = sums[1:].div(sums[0]).chunk(2)
        self.mean.copy_(mean)
        self.std.copy_((square - mean.square()).clamp(min=1e-8).sqrt())
