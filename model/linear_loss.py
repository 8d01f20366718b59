"""Cross-entropy of a linear layer's logits, which never exist all at once.

M predictions · V classes · D width
"""

import torch
from torch.nn import functional as F

LOGIT_ROWS = 512  # predictions made at once: 114 MiB of fp32 logits


def linear_cross_entropy(hidden, weight, target):
    """hidden (M, D), weight (V, D), target (M,) int -> the sum of the cross-entropies () of hidden @ weight.T in fp32,
    and which targets have the largest logit (M,) bool."""
    if len(target) > LOGIT_ROWS:
        return _Blockwise.apply(hidden, weight, target)
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits, target, reduction="sum"), _are_largest(logits.detach(), target)


def _are_largest(logits, target):
    return logits.gather(1, target[:, None]).squeeze(1) == logits.amax(1)  # argmax is slow on a CPU


class _Blockwise(torch.autograd.Function):
    """A block's gradients are made with its logits, as all that the backward pass can do to a sum's is to scale them:
    nothing is computed twice. torch.nn.functional.linear_cross_entropy, of torch 2.13, does the same, but knows neither
    autocast nor which predictions are right."""

    @staticmethod
    def forward(ctx, hidden, weight, target):
        device, wants_hidden, wants_weight = hidden.device.type, *ctx.needs_input_grad[:2]
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        loss, hits, of_hidden = hidden.new_zeros((), dtype=torch.float32), [], []
        of_weight = torch.zeros_like(weight) if wants_weight else None
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            for given, wanted in zip(hidden.to(dtype).split(LOGIT_ROWS), target.split(LOGIT_ROWS), strict=True):
                logits = (given @ matrix.T).float()
                hits.append(_are_largest(logits, wanted))
                total = logits.logsumexp(1, keepdim=True)
                loss += (total - logits.gather(1, wanted[:, None])).sum()
                if not (wants_hidden or wants_weight):
                    continue
                errors = logits.sub_(total).exp_()  # probabilities
                errors.scatter_add_(1, wanted[:, None], errors.new_full((len(wanted), 1), -1.0))
                errors = errors.to(dtype)
                of_hidden.append(errors @ matrix)
                if wants_weight and dtype == weight.dtype:
                    of_weight.addmm_(errors.T, given)
                elif wants_weight:
                    of_weight += errors.T @ given
        ctx.gradients = torch.cat(of_hidden).to(hidden.dtype) if wants_hidden else None, of_weight
        hits = torch.cat(hits)
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale, _):
        gradients, ctx.gradients = ctx.gradients, None  # whoever gets them may keep them
        return *(None if gradient is None else gradient.mul_(scale) for gradient in gradients), None
