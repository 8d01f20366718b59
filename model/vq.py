"""NeuroLM's tokenizer: vector-quantized reconstruction of EEG, aligned with text (NeuroLM, section 2.2).

B batch · N = C·S EEG tokens (padded) · L text tokens · D width · K width of a code
"""

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from errors import UserError
from model.hub import HubModel
from model.neural_transformer import PATCH_SIZE, NeuralTransformer, NTConfig, init_linear
from model.quantizer import Quantizer
from model.weights import build, parts, plain_names, read_checkpoint, rows, settings

N_BINS = 100  # amplitude bins that the frequency decoder predicts: 0 to 99 Hz


@dataclass(frozen=True)
class VQSize:
    """The tokenizer of one `--size`; NeuroLM-B, L and XL share one."""

    encoder: NTConfig
    decoder_layers: int
    n_codes: int = 8192
    code_dim: int = 128
    text_rows: int = 50257


VQ_SIZES = {
    "tiny": VQSize(NTConfig(n_layer=2, n_head=4, n_embd=128, embed_std=0.02), 1, n_codes=512, code_dim=32),
    "mini": VQSize(NTConfig(n_layer=4, n_head=4, n_embd=256, embed_std=0.02), 2, n_codes=1024, code_dim=64),
    "small": VQSize(NTConfig(n_layer=6, n_head=8, n_embd=512, embed_std=0.02), 2, n_codes=2048, code_dim=64),
    **dict.fromkeys(("B", "L", "XL"), VQSize(NTConfig(), decoder_layers=4)),
}


class VQ(nn.Module):
    """Encoder, quantizer, and one decoder each for amplitude spectrum and signal."""

    def __init__(self, encoder: NTConfig, decoder: NTConfig, n_codes: int = 8192):
        super().__init__()
        width, code_dim = encoder.n_embd, decoder.in_chans
        self.encoder = NeuralTransformer(encoder)
        self.decoder_freq = NeuralTransformer(decoder)
        self.decoder_raw = NeuralTransformer(decoder)
        self.quantize = Quantizer(n_codes, code_dim)
        self.encode_task_layer = task_head(width, code_dim)
        self.decode_task_layer_freq = task_head(decoder.n_embd, N_BINS)
        self.decode_task_layer_raw = task_head(decoder.n_embd, PATCH_SIZE)

    def encode(self, x, chans, time, valid=None, counts=None):
        """x (B, N, 200) in 100 uV; chans, time (B, N) int; valid (B, N) bool or None; counts as in NeuralTransformer
        -> codes (B, N, K), indices (B, N), squared distances to the codes (B, N), features (B, N, D)."""
        vectors, features = self._project(x, chans, time, valid, counts)
        codes, indices, distance = self.quantize(vectors, valid)
        return codes, indices, distance, features

    def _project(self, x, chans, time, valid, counts=None):
        """What is quantized (B, N, K), and the features (B, N, D)."""
        features = self.encoder(x, chans, time, valid, counts)
        with torch.autocast(x.device.type, enabled=False):
            return self.encode_task_layer(features.float()), features

    @torch.no_grad()
    def place_codes(self, batches) -> None:
        """Start the codebook at the first step of training; batches: its micro-batches, as `tokenize` takes them."""
        names = ("x", "chans", "time", "valid")
        self.quantize.place_codes((self._project(*(eeg[name] for name in names))[0], eeg["valid"]) for eeg in batches)

    @torch.no_grad()
    def tokenize(self, eeg: dict):
        """eeg: x (B, N, 200) in 100 uV, chans, time (B, N), valid (B, N) or None -> what stage 2 predicts, the code
        indices (B, N), and what it reads, the features (B, N, D), from one pass of the encoder."""
        _, indices, _, features = self.encode(eeg["x"], eeg["chans"], eeg["time"], eeg["valid"], eeg.get("counts"))
        return indices, features

    def decode(self, codes, chans, time, valid=None, counts=None):
        """codes (B, N, K) -> z-scored amplitude spectrum (B, N, 100) and z-scored signal (B, N, 200)."""
        spectrum = self.decode_task_layer_freq(self.decoder_freq(codes, chans, time, valid, counts))
        return spectrum, self.decode_task_layer_raw(self.decoder_raw(codes, chans, time, valid, counts))


class VQ_Align(nn.Module, HubModel):
    """VQ, and a domain classifier behind a gradient reversal that makes EEG features look like text embeddings."""

    def __init__(self, encoder: NTConfig, decoder: NTConfig, n_codes: int = 8192, text_rows: int = 50257,
                 text_width: int | None = None):  # fmt: skip
        """text_rows, text_width: of the language model's token embedding; None: as wide as the encoder."""
        super().__init__()
        self.VQ = VQ(encoder, decoder, n_codes)
        self.domain_classifier = nn.Sequential(nn.Linear(encoder.n_embd, 256), nn.GELU(), nn.Linear(256, 2))
        self.domain_classifier.apply(init_linear)
        text_width = text_width or encoder.n_embd
        self.wte = nn.Embedding(text_rows, text_width)  # GPT-2's token embedding, or that of --lm, frozen
        nn.init.normal_(self.wte.weight, std=0.14)  # the spread of GPT-2's rows
        self.wte.weight.requires_grad_(False)
        self.text_transform_layer = nn.Identity()
        if text_width != encoder.n_embd:
            self.text_transform_layer = nn.Linear(text_width, encoder.n_embd).apply(init_linear)

    @classmethod
    def from_size(cls, size: str, table=None) -> "VQ_Align":
        """table: the token embedding (V, D) of the language model to align with; None: there will be GPT-2's."""
        row = VQ_SIZES[size]
        decoder = replace(row.encoder, n_layer=row.decoder_layers, in_chans=row.code_dim)
        model = cls(row.encoder, decoder, row.n_codes, *([row.text_rows] if table is None else table.shape))
        if table is not None:
            model.set_text_embedding(table)
        return model

    @classmethod
    def from_checkpoint(cls, checkpoint: dict, source: str) -> "VQ_Align":
        """From an official or own checkpoint of stage 1; names and shapes must agree exactly."""
        cure = "give one written by train_vq.py or the released VQ.pt"
        names = ("encoder_args", "decoder_args")
        state, *args = parts(checkpoint, ("model", *names), source, cure)
        state = plain_names(state)
        encoder, decoder = (
            settings(NTConfig, values, f"{source}, {name}") for values, name in zip(args, names, strict=True)
        )
        sizes = rows(state, "VQ.quantize.cluster_size"), rows(state, "wte.weight")
        projection = state.get("text_transform_layer.weight")
        width = projection.shape[-1] if isinstance(projection, torch.Tensor) and projection.dim() else None
        return build(lambda: cls(encoder, decoder, *sizes, width), state, source)

    @classmethod
    def load(cls, path) -> "VQ_Align":
        """From the file of a checkpoint, see `from_checkpoint`."""
        return cls.from_checkpoint(read_checkpoint(path), str(path))

    def config_args(self) -> dict[str, dict]:
        """What `from_checkpoint` needs beside the weights, under the official keys."""
        return {
            "encoder_args": asdict(self.VQ.encoder.config),
            "decoder_args": asdict(self.VQ.decoder_raw.config),
        }

    def set_text_embedding(self, weight) -> None:
        """Take GPT-2's `wte.weight` (V, D), a table of another width is refused."""
        if weight.shape != self.wte.weight.shape:
            raise UserError(
                f"the tokenizer aligns with a text embedding of shape {tuple(self.wte.weight.shape)}, this GPT-2's is "
                f"{tuple(weight.shape)}: sizes B, L and XL take 'gpt2' (124 M), size tiny takes --init_from scratch"
            )
        with torch.no_grad():
            self.wte.weight.copy_(weight)

    def forward(self, eeg: dict, text, reversal: float):
        """Sums over valid tokens of the five losses.

        eeg: x (B, N, 200) in 100 uV, chans, time (B, N), valid (B, N) or None, optionally counts (as in
        NeuralTransformer) and the targets spectrum (B, N, 100) and signal (B, N, 200) (else they are computed from x);
        text (B', L) token ids; reversal: weight of the reversed gradient -> {"commitment", "frequency", "raw",
        "domain_eeg", "domain_text": scalar sums over tokens of each token's mean loss; "indices": (B, N)}.
        """
        x, chans, time, valid, counts = map(eeg.get, ("x", "chans", "time", "valid", "counts"))
        if "spectrum" in eeg:
            target_spectrum, target_signal = eeg["spectrum"], eeg["signal"]
        else:
            target_spectrum, target_signal = reconstruction_targets(x, valid)
        codes, indices, distance, features = self.VQ.encode(x, chans, time, valid, counts)
        spectrum, signal = self.VQ.decode(codes, chans, time, valid, counts)
        reversed_features = ReverseGradient.apply(features, reversal)
        token_losses = {
            "commitment": distance,
            "frequency": (spectrum.float() - target_spectrum).square().mean(-1),
            "raw": (signal.float() - target_signal).square().mean(-1),
            "domain_eeg": self._domain_loss(reversed_features, 0),
        }
        losses = {name: (loss if valid is None else loss * valid).sum() for name, loss in token_losses.items()}
        losses["domain_text"] = self._domain_loss(self.text_transform_layer(self.wte(text)), 1).sum()
        return losses | {"indices": indices}

    def _domain_loss(self, features, domain: int):
        logits = self.domain_classifier(features).float()
        return -F.log_softmax(logits, dim=-1)[..., domain]


class ReverseGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by -weight (Ganin & Lempitsky 2015)."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.weight * gradient, None


def reversal_weight(progress: float) -> float:
    """Weight of the reversed gradient: 0 at the start of training (progress 0), 0.9999 at its end (progress 1)."""
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0


@torch.no_grad()
def reconstruction_targets(x, valid=None):
    """What the decoders predict: x (B, N, 200) in 100 uV -> the first 100 bins of the amplitude spectrum of every patch
    (B, N, 100) and the signal (B, N, 200), each z-scored over the valid tokens of its sample."""
    x = x.float()
    spectrum = torch.fft.fft(x).abs()  # z-scored over all 200 bins, of which the second half mirrors the first
    return zscore(spectrum, valid)[..., :N_BINS], zscore(x, valid)


def zscore(x, valid=None):
    """x (B, N, F) with mean 0 and deviation 1 over the valid tokens and features of each sample; valid (B, N) bool."""
    weight = x.new_ones(x.shape[:2]) if valid is None else valid.to(x.dtype)
    weight = weight[..., None]  # (B, N, 1)
    count = weight.sum(dim=(1, 2), keepdim=True) * x.size(-1)
    mean = (x * weight).sum(dim=(1, 2), keepdim=True) / count
    variance = ((x - mean).square() * weight).sum(dim=(1, 2), keepdim=True) / (count - 1)
    return (x - mean) / variance.sqrt().clamp(min=1e-8) * weight  # a flat sample has targets of 0, not NaN


def task_head(width: int, out: int) -> nn.Sequential:
    """Linear, tanh, linear: from features to codes, and from features to what a decoder predicts."""
    head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))
    return head.apply(init_linear)
