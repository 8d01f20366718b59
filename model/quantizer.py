"""Vector quantizer of unit-norm codes, learnt by exponential moving averages (LaBraM, section 2.2; van den Oord 2017).

M vectors · K width of a code. All arithmetic is fp32, also under autocast.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

WORST = 1024  # vectors considered for reviving codes in a step
BLOCK = 8192  # vectors compared with the codebook at once: 256 MiB of similarities for 8192 codes


class Codebook(nn.Module):
    """The rows and their running state; the attribute names are those of the released checkpoints."""

    def __init__(self, n_codes: int, width: int):
        super().__init__()
        rows = F.normalize(torch.randn(n_codes, width), dim=-1)
        self.weight = nn.Parameter(rows, requires_grad=False)
        # the official code has these two and reads neither; here the first counts the steps since a code was last used
        self.cluster_size = nn.Parameter(torch.zeros(n_codes), requires_grad=False)
        self.embed_avg = nn.Parameter(rows.clone(), requires_grad=False)
        self.register_buffer("initted", torch.zeros(1))


class Quantizer(nn.Module):
    """Nearest code by cosine; in training mode the codes follow the vectors that chose them.

    The first batch of training places the codes by spherical k-means. Counts and sums are taken over all processes, so
    that every rank holds the same codebook. Evaluation changes nothing. `revive_after` (the papers do not): codes that
    no vector chose for so many steps move onto the vectors that are coded worst; 0: never.
    """

    def __init__(self, n_codes: int = 8192, width: int = 128, decay: float = 0.99, kmeans_init: bool = True):
        super().__init__()
        self.revive_after = 0
        self.n_codes, self.width, self.decay = n_codes, width, decay
        self.embedding = Codebook(n_codes, width)
        self.register_buffer("cluster_size", torch.zeros(n_codes))  # moving average of the use of each code
        self.kmeans_init = kmeans_init
        self.ready = False  # `initted`, asked of the device once

    def forward(self, z, valid=None):
        """z (..., K); valid (...) bool, None: all -> quantized (..., K) with a straight-through gradient, indices
        (...), squared distance of each unit vector to its code, averaged over K: (...), the commitment loss."""
        with torch.autocast(z.device.type, enabled=False):
            z = F.normalize(z.float(), dim=-1)
            flat = z.detach().reshape(-1, self.width)
            real = None if valid is None else valid.reshape(-1)
            if self.training and not self.ready:
                self._place_codes(flat if real is None else flat[real])
            indices, codes = self._nearest(flat)
            indices, codes = indices.view(z.shape[:-1]), codes.view(z.shape)
            distance = (codes - z).square().mean(-1)
            if self.training:
                count = self._follow(flat, indices.reshape(-1), real)
                if self.revive_after:
                    self._revive(flat, distance.detach().reshape(-1), real, count)
            return z + (codes - z).detach(), indices, distance

    def lookup(self, indices):
        """indices (...) -> codes (..., K)."""
        return F.embedding(indices, self.embedding.weight)

    @torch.no_grad()
    def _nearest(self, flat):
        codebook = self.embedding.weight
        indices = torch.cat([(block @ codebook.t()).argmax(-1) for block in flat.split(BLOCK)])
        return indices, self.lookup(indices)

    @torch.no_grad()
    def _sums(self, flat, indices, real=None):
        """Count (n_codes,) and sum (n_codes, K) of the vectors of each code, over all processes."""
        weight = flat.new_ones(len(flat)) if real is None else real.to(flat.dtype)
        # index_add_ where bincount would do: on CUDA bincount waits for the device
        count = flat.new_zeros(self.n_codes).index_add_(0, indices, weight)
        total = flat.new_zeros(self.n_codes, self.width)
        for vectors, codes, share in zip(flat.split(BLOCK), indices.split(BLOCK), weight.split(BLOCK), strict=True):
            total.index_add_(0, codes, vectors * share[:, None])
        if dist.is_initialized():
            dist.all_reduce(count)
            dist.all_reduce(total)
        return count, total

    @torch.no_grad()
    def _follow(self, flat, indices, real):
        count, total = self._sums(flat, indices, real)
        self.cluster_size.lerp_(count, 1 - self.decay)
        rows = self.embedding.weight
        moved = F.normalize(torch.lerp(rows, F.normalize(total, dim=-1), 1 - self.decay), dim=-1)
        rows.copy_(torch.where((count > 0)[:, None], moved, rows))
        return count

    @torch.no_grad()
    def _revive(self, flat, distance, real, count):
        """Move codes that have been idle for long onto the worst-coded vectors of all processes, WORST a step."""
        idle = self.embedding.cluster_size
        idle.copy_(torch.where(count > 0, 0, idle + 1))
        if real is not None:
            distance = distance.masked_fill(~real, -1)
        distance, worst = distance.topk(min(WORST, len(flat)))
        vectors = flat[worst]
        if dist.is_initialized():  # as many rows of each process, so that nobody has to ask how many there are
            short = WORST - len(vectors)
            distance = gather_equal(F.pad(distance, (0, short), value=-1))
            vectors = gather_equal(F.pad(vectors, (0, 0, 0, short)))
            distance, worst = distance.topk(WORST)
            vectors = vectors[worst]
        dead = idle >= self.revive_after
        place = dead.cumsum(0) - 1  # the n-th dead code takes the n-th worst vector
        dead &= place < (distance > 0).sum()
        rows = self.embedding.weight
        rows.copy_(torch.where(dead[:, None], vectors[place.clamp(0, len(vectors) - 1)], rows))
        idle.masked_fill_(dead, 0)

    @torch.no_grad()
    def _place_codes(self, vectors, iterations: int = 10):
        """Spherical k-means over the first batch of all processes: rank 0 draws the seeds, all share the sums."""
        if self.kmeans_init and not self.embedding.initted.item():
            self.embedding.weight.copy_(_draw(gather_rows(vectors), self.n_codes))
            if dist.is_initialized():
                dist.broadcast(self.embedding.weight.data, 0)
            for _ in range(iterations):
                count, total = self._sums(vectors, self._nearest(vectors)[0])
                means = F.normalize(total, dim=-1)
                rows = self.embedding.weight
                rows.copy_(torch.where((count > 0)[:, None], means, rows))
        self.embedding.initted.fill_(1)
        self.ready = True


def gather_rows(vectors):
    """The rows (M, K) of every process, in rank order; M may differ between processes."""
    if not dist.is_initialized():
        return vectors
    count = torch.tensor([len(vectors)], device=vectors.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    longest = int(max(counts))
    everyone = gather_equal(F.pad(vectors, (0, 0, 0, longest - len(vectors)))).view(len(counts), longest, -1)
    return torch.cat([rows[: int(n)] for rows, n in zip(everyone, counts, strict=True)])


def gather_equal(rows):
    """The rows (M, ...) of every process, in rank order: (W·M, ...); M is equal on all of them."""
    everyone = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(everyone, rows.contiguous())
    return everyone


def _draw(vectors, n):
    """n rows of `vectors`: different ones while they last, then again."""
    if len(vectors) >= n:
        return vectors[torch.randperm(len(vectors), device=vectors.device)[:n]]
    return vectors[torch.randint(len(vectors), (n,), device=vectors.device)]


def codebook_use(counts) -> dict[str, float]:
    """How a codebook is used: counts (n_codes,) -> share of codes in use, perplexity (exp of entropy), dead codes."""
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = -torch.xlogy(share, share).sum()
    used = int((counts > 0).sum())
    return {"used": used / len(counts), "perplexity": float(entropy.exp()), "dead": len(counts) - used}
