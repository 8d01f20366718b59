"""LaBraM's tokenizer: codes from which amplitude and phase of every patch can be predicted (LaBraM, section 2.2).

B batch · C channels · S seconds · N = C·S tokens, by channel, then second · D width · K width of a code
"""

from dataclasses import asdict, replace

import torch
from torch import nn
from torch.nn import functional as F

from model.hub import HubModel
from model.labram import Encoder, model_state
from model.labram_sizes import BACKBONES, LaBraMConfig, backbone_config
from model.neural_transformer import PATCH_SIZE
from model.quantizer import Quantizer
from model.vq import task_head, zscore
from model.weights import build, count_layers, read_checkpoint, rows


def _encoder(size: str, layers: int) -> LaBraMConfig:
    return replace(BACKBONES[size], n_layer=layers, qkv_bias=True, qk_norm=False, layer_scale=0.0)


TOKENIZERS = {  # encoder, and layers of the decoder
    "vqnsp_encoder_tiny_decoder_1x100x2": (_encoder("tiny", 2), 1),
    "vqnsp_encoder_base_decoder_3x200x12": (_encoder("base", 12), 3),
    "vqnsp_encoder_large_decoder_3x200x24": (_encoder("base", 24), 3),
}


class VQNSP(nn.Module, HubModel):
    """Vector-quantized neural spectrum prediction: from codes back to amplitude and phase (LaBraM, section 2.2)."""

    def __init__(self, encoder: LaBraMConfig, decoder_layers: int, n_codes: int = 8192, code_dim: int = 64,
                 decay: float = 0.99, kmeans_init: bool = True):  # fmt: skip
        super().__init__()
        width = encoder.n_embd
        self.encoder = Encoder(encoder)
        self.decoder = Encoder(replace(encoder, n_layer=decoder_layers, in_chans=code_dim))
        self.quantize = Quantizer(n_codes, code_dim, decay, kmeans_init)
        self.encode_task_layer = task_head(width, code_dim)
        self.decode_task_layer = task_head(width, PATCH_SIZE)
        self.decode_task_layer_angle = task_head(width, PATCH_SIZE)

    @classmethod
    def load(cls, name: str, path, n_codes: int, code_dim: int) -> "VQNSP":
        """The tokenizer called `name` in TOKENIZERS with the weights of a released or own checkpoint, strictly."""
        state = model_state(read_checkpoint(path))
        return build(lambda: cls(*TOKENIZERS[name], n_codes=n_codes, code_dim=code_dim), state, str(path))

    @classmethod
    def from_checkpoint(cls, checkpoint: dict, source: str) -> "VQNSP":
        """From an official or own checkpoint, of any size; names and shapes must agree exactly."""
        state = model_state(checkpoint)
        config = backbone_config(checkpoint, state, source, "encoder.")
        sizes = rows(state, "quantize.cluster_size"), rows(state, "encode_task_layer.2.bias")
        return build(lambda: cls(config, count_layers(state, "decoder.blocks."), *sizes), state, source)

    def config_args(self) -> dict[str, dict]:
        """What `from_checkpoint` needs beside the weights, or takes from them."""
        return {"backbone": asdict(self.encoder.config)}

    def encode(self, x, chans):
        """x (B, C, S, 200) in 100 uV; chans (B, C) -> codes (B, N, K), indices (B, N), squared distances (B, N)."""
        return self.quantize(self._project(x, chans))

    def _project(self, x, chans):
        features = self.encoder(x.flatten(1, 2), chans)
        with torch.autocast(x.device.type, enabled=False):
            return self.encode_task_layer(features.float())

    @torch.no_grad()
    def place_codes(self, batches) -> None:
        """Start the codebook at the first step of training; batches: its micro-batches, with x and chans."""
        self.quantize.place_codes((self._project(batch["x"], batch["chans"]), None) for batch in batches)

    def decode(self, codes, chans):
        """codes (B, N, K); chans (B, C) -> z-scored amplitude and phase of every patch, (B, N, 200) each."""
        features = self.decoder(codes, chans)
        return self.decode_task_layer(features), self.decode_task_layer_angle(features)

    def forward(self, x, chans):
        """x (B, C, S, 200) in 100 uV; chans (B, C) -> {"commitment", "amplitude", "phase": losses, means over all
        tokens; "indices": (B, N)}."""
        amplitude_target, phase_target = spectrum_targets(x)
        codes, indices, distance = self.encode(x, chans)
        amplitude, phase = self.decode(codes, chans)
        return {
            "commitment": distance.mean(),
            "amplitude": F.mse_loss(amplitude.float(), amplitude_target),
            "phase": F.mse_loss(phase.float(), phase_target),
            "indices": indices,
        }


@torch.no_grad()
def spectrum_targets(x):
    """What the decoder predicts: x (B, C, S, 200) in 100 uV -> amplitude and phase of the Fourier transform of every
    patch, (B, N, 200) each, z-scored over the sample."""
    spectrum = torch.fft.fft(x.float().flatten(1, 2))
    return zscore(spectrum.abs()), zscore(spectrum.angle())
