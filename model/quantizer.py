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

    The first step of training places the codes by spherical k-means. Counts and sums are taken over all processes, so
    that every rank holds the same codebook. Every forward pass is a step; with `hold` the passes until `end_step` are
    one, so that it does not matter how a global batch is cut. Evaluation changes nothing. `revive_after` (the papers do
    not): codes that no vector chose for so many steps move onto the vectors that are coded worst; 0: never.
    """

    def __init__(self, n_codes: int = 8192, width: int = 128, decay: float = 0.99, kmeans_init: bool = True):
        super().__init__()
        self.revive_after, self.hold = 0, False
        self.n_codes, self.width, self.decay = n_codes, width, decay
        self.embedding = Codebook(n_codes, width)
        self.register_buffer("cluster_size", torch.zeros(n_codes))  # moving average of the use of each code
        self.kmeans_init = kmeans_init
        self.ready = False  # `initted`, asked of the device once
        # of the step so far, on this process: no checkpoint is written within a step
        self.register_buffer("count", torch.zeros(n_codes), persistent=False)
        self.register_buffer("total", torch.zeros(n_codes, width), persistent=False)
        self.register_buffer("worst", torch.zeros(WORST, width), persistent=False)
        self.register_buffer("worst_distance", torch.full((WORST,), -1.0), persistent=False)  # -1: no vector yet

    def forward(self, z, valid=None):
        """z (..., K); valid (...) bool, None: all -> quantized (..., K) with a straight-through gradient, indices
        (...), squared distance of each unit vector to its code, averaged over K: (...), the commitment loss."""
        with torch.autocast(z.device.type, enabled=False):
            if self.training:
                self.place_codes([(z, valid)])
            z = F.normalize(z.float(), dim=-1)
            flat = z.detach().reshape(-1, self.width)
            real = None if valid is None else valid.reshape(-1)
            indices, codes = self._nearest(flat)
            indices, codes = indices.view(z.shape[:-1]), codes.view(z.shape)
            distance = (codes - z).square().mean(-1)
            if self.training:
                _add(self.count, self.total, flat, indices.reshape(-1), real)
                if self.revive_after:
                    self._keep_worst(flat, distance.detach().reshape(-1), real)
                if not self.hold:
                    self.end_step()
            return z + (codes - z).detach(), indices, distance

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the codes by the vectors that all processes have seen since the last step; all of them must call it."""
        _sum_over_processes(self.count, self.total)
        self._follow(self.count, self.total)
        if self.revive_after:
            self._revive(self.count)
        self.count.zero_()
        self.total.zero_()
        self.worst_distance.fill_(-1)

    def lookup(self, indices):
        """indices (...) -> codes (..., K)."""
        return F.embedding(indices, self.embedding.weight)

    @torch.no_grad()
    def _nearest(self, flat):
        codebook = self.embedding.weight
        indices = torch.cat([(block @ codebook.t()).argmax(-1) for block in flat.split(BLOCK)])
        return indices, self.lookup(indices)

    @torch.no_grad()
    def _follow(self, count, total):
        self.cluster_size.lerp_(count, 1 - self.decay)
        rows = self.embedding.weight
        moved = F.normalize(torch.lerp(rows, F.normalize(total, dim=-1), 1 - self.decay), dim=-1)
        rows.copy_(torch.where((count > 0)[:, None], moved, rows))

    @torch.no_grad()
    def _keep_worst(self, flat, distance, real):
        """Keep the WORST worst-coded vectors of the step."""
        if real is not None:
            distance = distance.masked_fill(~real, -1)
        distance, place = distance.topk(min(WORST, len(flat)))
        vectors = torch.cat([self.worst, flat[place]])
        distance, place = torch.cat([self.worst_distance, distance]).topk(WORST)
        self.worst.copy_(vectors[place])
        self.worst_distance.copy_(distance)

    @torch.no_grad()
    def _revive(self, count):
        """Move codes that have been idle for long onto the worst-coded vectors of all processes, WORST a step."""
        idle = self.embedding.cluster_size
        idle.copy_(torch.where(count > 0, 0, idle + 1))
        distance, vectors = self.worst_distance, self.worst
        if dist.is_initialized():
            distance, place = gather_equal(distance).topk(WORST)
            vectors = gather_equal(vectors)[place]
        dead = idle >= self.revive_after
        place = dead.cumsum(0) - 1  # the n-th dead code takes the n-th worst vector
        dead &= place < (distance > 0).sum()
        rows = self.embedding.weight
        rows.copy_(torch.where(dead[:, None], vectors[place.clamp(0, len(vectors) - 1)], rows))
        idle.masked_fill_(dead, 0)

    @torch.no_grad()
    def place_codes(self, batches, iterations: int = 10) -> None:
        """Spherical k-means over the first step of all processes, unless it is done or not asked for.

        batches: z and valid, as `forward` takes them, of each of this process's micro-batches of that step; not
        iterated where nothing is to do. Rank 0 draws the seeds, all share the sums.
        """
        if self.ready:
            return
        if self.kmeans_init and not self.embedding.initted.item():
            parts = [z.float().reshape(-1, self.width) if valid is None else z[valid].float() for z, valid in batches]
            with torch.autocast(self.total.device.type, enabled=False):
                self._cluster([F.normalize(part, dim=-1) for part in parts], iterations)
        self.embedding.initted.fill_(1)
        self.ready = True

    def _cluster(self, parts, iterations):
        vectors, rows = torch.cat(parts), self.embedding.weight
        everyone = torch.cat([gather_rows(part) for part in parts])  # in the order of the global batch, however cut
        seeds = _draw(everyone, self.n_codes)
        rows[: len(seeds)] = seeds
        if dist.is_initialized():
            dist.broadcast(rows.data, 0)
        for _ in range(iterations):
            count, total = torch.zeros_like(self.count), torch.zeros_like(self.total)
            _add(count, total, vectors, self._nearest(vectors)[0])
            _sum_over_processes(count, total)
            rows.copy_(torch.where((count > 0)[:, None], F.normalize(total, dim=-1), rows))


@torch.no_grad()
def _add(count, total, flat, indices, real=None):
    """Add the vectors (M, K) to the count (n_codes,) and sum (n_codes, K) of their codes (M,); real (M,) bool."""
    weight = flat.new_ones(len(flat)) if real is None else real.to(flat.dtype)
    count.index_add_(0, indices, weight)  # where bincount would do: on CUDA that waits for the device
    for vectors, codes, share in zip(flat.split(BLOCK), indices.split(BLOCK), weight.split(BLOCK), strict=True):
        total.index_add_(0, codes, vectors * share[:, None])


def _sum_over_processes(*tensors):
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)


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
    """n different rows of `vectors`, or all where there are fewer, in random order. None twice: of two codes of one
    place the rounding would choose."""
    return vectors[torch.randperm(len(vectors), device=vectors.device)[:n]]


def codebook_use(counts) -> dict[str, float]:
    """How a codebook is used: counts (n_codes,) -> share of codes in use, perplexity (exp of entropy), dead codes."""
    share = counts.double() / counts.sum().clamp(min=1)
    entropy = -torch.xlogy(share, share).sum()
    used = int((counts > 0).sum())
    return {"used": used / len(counts), "perplexity": float(entropy.exp()), "dead": len(counts) - used}
