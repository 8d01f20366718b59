"""Memory of stage 2 on one GPU: a formula, checked against small models here, and what it says of B, L and XL.

python benchmarks/memory.py                     compare formula and measurement on a CPU, in bf16 autocast
python benchmarks/memory.py --windows 8         the table for 8 EEG windows of 1024 tokens a GPU, beside 1 of text
python benchmarks/memory.py --windows 8 --lm    the same for language models of transformers

P trained parameters · M those in matrix products · V rows of lm_head · D width · T tokens of a micro-batch
"""

import argparse
import sys
import weakref
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.gpt import GPTConfig
from model.linear_loss import LOGIT_ROWS
from model.lm_sizes import LM_SIZES
from model.neural_transformer import NTConfig
from model.neurolm import NeuroLM
from utils import decay_groups, make_optimizer

CHANNELS = 16
# layers, width, width of the gated MLP, parameters with two tables, rows of a table: Qwen2.5, Qwen3
LMS = {"0.5 B": (24, 896, 4864, 0.63e9, 151936), "1.5 B": (28, 1536, 8960, 1.78e9, 151936)}
LMS |= {"8 B": (36, 4096, 12288, 8.19e9, 151936)}
GIB = 2**30


class PeakMemory(TorchDispatchMode):
    """Bytes of all tensors that are alive, and the most there were."""

    def __init__(self, model):
        super().__init__()
        self.now = self.peak = 0
        self.alive = set()
        for tensor in model.state_dict().values():
            self._add(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor)
        return out

    def _add(self, tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key, size) -> None:
        self.alive.discard(key)
        self.now -= size


def estimate(model, windows: int, tokens: int, texts: int, text_tokens: int, shards: int = 1) -> float:
    """Bytes on one GPU at most; `shards`: over how many processes FSDP spreads the states, 1: DDP."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config, lm_head = model.GPT2.config, model.GPT2.lm_head.weight
    parameters = sum(parameter.numel() for parameter in trained)
    block = sum(parameter.numel() for parameter in model.GPT2.transformer.h[0].parameters())
    matrices = config.n_layer * block + lm_head.numel()
    frozen = sum(parameter.numel() for parameter in model.parameters()) - parameters
    states = 16 * parameters / shards  # weight, gradient, and Adam's two moments, in fp32
    if shards > 1:  # whole while they are used: two blocks, and what belongs to none with its gradient
        states += 4 * 2 * block + 8 * (parameters - config.n_layer * block)
    copies = 4 * frozen + 2 * matrices  # of the matrices in bf16
    read = windows * tokens + texts * text_tokens
    activations = 39 * config.n_layer * config.n_embd * read + 2 * config.n_layer * windows * tokens**2  # and masks
    targets = (windows * (tokens - CHANNELS), texts * text_tokens)
    kept = sum(rows for rows in targets if rows <= LOGIT_ROWS)  # log-probabilities; of more rows, the weight's gradient
    large = sum(rows > LOGIT_ROWS for rows in targets)
    logits = len(lm_head) * (4 * kept + 6 * min(max(targets), LOGIT_ROWS) + 4 * config.n_embd * max(2 * large - 1, 0))
    return states + copies + activations + logits


def estimate_lm(shape, windows: int, lora: bool, again: bool, shards: int = 1) -> float:
    """Bytes on one GPU at most in stage 2 of a language model of transformers, with windows of 1024 tokens and one of
    text; lora: of rank 8; again: --checkpoint_activations."""
    n_layer, width, inner, parameters, rows = shape
    added = (rows + 8192) * width  # the head, which is put together for each micro-batch
    trained = 8192 * width + 8 * n_layer * (11 * width + 3 * inner) if lora else parameters + 8192 * width
    states = 16 * trained / shards + 2 * parameters  # frozen ones in bf16, or copies of trained ones
    if shards > 1 and not lora:
        states += 8 * parameters / n_layer + 8 * 2 * added
    read = (windows + 1) * 1024
    block = (40 * width + 12 * inner) * read
    activations = 4 * n_layer * width * read + block if again else n_layer * block
    return states + activations + 2 * windows * 1024**2 + 6 * rows * LOGIT_ROWS + 18 * added


def measure(model, windows: int, tokens: int, texts: int, text_tokens: int) -> int:
    """The most bytes alive in the second training step."""
    eeg, text = make_batch(model, windows, tokens, texts, text_tokens)
    optimizer = make_optimizer(decay_groups(model, 0.1), 1e-4, (0.9, 0.95), torch.device("cpu"))
    with PeakMemory(model) as memory:
        for _ in range(2):
            memory.peak = memory.now
            with torch.autocast("cpu", torch.bfloat16):
                sums = model(eeg=eeg, text=text)
            (sums["eeg"]["loss"] + sums["text"]["loss"]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return memory.peak


def make_batch(model, windows, tokens, texts, text_tokens):
    first = torch.arange(windows)[:, None] * tokens
    source = (first + torch.arange(tokens - CHANNELS)).flatten()
    eeg = {
        "features": torch.randn(windows, tokens, model.tokenizer.config.n_embd),
        "chans": torch.zeros(windows, tokens, dtype=torch.int64),
        "time": (torch.arange(tokens) // CHANNELS).expand(windows, -1),
        "valid": None,
        "source": source,
        "target": torch.zeros_like(source),
    }
    words = torch.zeros(texts, text_tokens, dtype=torch.int64)
    return eeg, {"tokens": words, "target": words}


def build(n_layer: int, n_head: int, n_embd: int, encoder: NTConfig, n_codes: int) -> NeuroLM:
    return NeuroLM(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd), encoder, n_codes)


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, help="EEG windows of a micro-batch; default: compare with measurements")
    parser.add_argument("--lm", action="store_true", help="language models of transformers in place of GPT-2")
    parser.add_argument("--shards", type=int, default=8, help="processes of FSDP")
    return parser.parse_args(argv)


def main(args):
    if args.windows and args.lm:
        for size, shape in LMS.items():
            for lora, again, shards in ((1, 0, 1), (1, 1, 1), (0, 1, 1), (0, 1, args.shards)):
                gib = estimate_lm(shape, args.windows, lora, again, shards) / GIB
                how = f"{'lora' if lora else 'full'}{', --checkpoint_activations' * again}, {shards} shard(s)"
                print(f"{size}  {args.windows} windows, {how}: {gib:.1f} GiB")
        return
    if args.windows:
        for size, row in LM_SIZES.items():
            if row.gpt2:
                with torch.device("meta"):
                    model = build(row.n_layer, row.n_head, row.n_embd, NTConfig(), 8192)
                ddp, fsdp = (estimate(model, args.windows, 1024, 1, 1024, shards) / GIB for shards in (1, args.shards))
                print(f"{size:2}  {args.windows} windows: DDP {ddp:.1f} GiB, FSDP over {args.shards} {fsdp:.1f} GiB")
        return
    encoder = NTConfig(n_layer=2, n_head=4, n_embd=128)
    for shape in ((4, 4, 256, 2, 480, 1), (8, 4, 256, 2, 480, 1), (4, 8, 512, 2, 480, 1), (4, 4, 256, 4, 480, 2)):
        n_layer, n_head, n_embd, windows, tokens, texts = shape
        model = build(n_layer, n_head, n_embd, encoder, 512)
        formula = estimate(model, windows, tokens, texts, 512)
        measured = measure(model, windows, tokens, texts, 512)
        print(f"{n_layer} layers, D {n_embd}, {windows} x {tokens} EEG and {texts} x 512 text tokens: measured "
              f"{measured / GIB:.3f} GiB, formula {formula / GIB:.3f} GiB, {formula / measured - 1:+.1%}")  # fmt: skip


if __name__ == "__main__":
    main(get_args())
