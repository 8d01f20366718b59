"""NeuroLM: a language model that reads EEG tokens and text on one clock (NeuroLM, sections 2.3 and 2.4).

B batch · N EEG tokens (padded) · L text tokens (padded) · T real tokens of a batch · D width
V rows of the head: those of text, then the codes
"""

from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate

import torch
from torch import nn
from torch.nn import functional as F

from errors import UserError
from model.decoder import Decoder
from model.gpt import GPT, TEXT_ROWS, GPTConfig
from model.hf_decoder import HFDecoder
from model.hub import HubModel
from model.inputs import BANDS, FeatureScale, log_band_power
from model.linear_loss import linear_cross_entropy
from model.lm_sizes import LM_SIZES, check_size
from model.neural_transformer import NeuralTransformer, NTConfig, init_linear
from model.packing import clock_mask, is_plain_text, known_lengths, pack
from model.weights import build, count_layers, parts, plain_names, read_checkpoint, rows, settings

MOST_SECONDS = 64  # of EEG before a text: the encoder's
LAST = (slice(None), slice(-1, None))  # index of the last token of each row, (B, 1)


class NeuroLM(nn.Module, HubModel):
    """A frozen EEG encoder (`tokenizer`), a language model, and between them an embedding of the channel."""

    def __init__(self, lm: GPTConfig | Decoder, encoder: NTConfig, n_codes: int = 8192, standardize: bool = False,
                 band_power: bool = False):  # fmt: skip
        """lm: the shape of a GPT-2, or another language model. The paper has neither option: standardize puts a
        FeatureScale between encoder and language model; band_power does, and also gives the language model the log band
        power of each token, whose amplitude GroupNorm removes."""
        super().__init__()
        self.n_codes = n_codes
        decoder = GPT(lm) if isinstance(lm, GPTConfig) else lm
        decoder.add_codes(n_codes)
        self.decoder_name = "GPT2" if isinstance(lm, GPTConfig) else "lm"  # official, and ours
        self.add_module(self.decoder_name, decoder)
        self.tokenizer = NeuralTransformer(encoder).requires_grad_(False).eval()
        self.input_width = encoder.n_embd + len(BANDS) * band_power
        self.feature_scale = FeatureScale(self.input_width) if standardize or band_power else nn.Identity()
        self.power_embed = nn.Linear(len(BANDS), decoder.width) if band_power else None
        if encoder.n_embd != decoder.width:
            self.encode_transform_layer = nn.Sequential(nn.Linear(encoder.n_embd, decoder.width), nn.GELU())
            self.encode_transform_layer.apply(init_linear)
        else:
            self.encode_transform_layer = nn.Identity()
        self.pos_embed = nn.Embedding(256, decoder.width)

    @property
    def decoder(self) -> Decoder:
        """The language model."""
        return getattr(self, self.decoder_name)

    @classmethod
    def from_size(cls, size: str, encoder: NTConfig, n_codes: int, gpt2: GPT | None = None, dropout: float = 0.0,
                  standardize: bool = False, band_power: bool = False):  # fmt: skip
        """A new model of `size`, with the weights of `gpt2` where they are given.

        Raises UserError when those are of another size.
        """
        config = LM_SIZES[size].config(dropout)
        if gpt2 is not None:
            check_size(size, gpt2.config, "the GPT-2 given")
        model = cls(config, encoder, n_codes, standardize, band_power)
        if gpt2 is not None:
            gpt2.add_codes(n_codes)
            gpt2.config.vocab_size = config.vocab_size
            model.GPT2 = gpt2
        return model

    @classmethod
    def from_checkpoint(cls, checkpoint: dict, source: str, dropout: float = 0.0, size: str | None = None) -> "NeuroLM":
        """From an official or own checkpoint of stage 2 or 3, of `size` if given; names and shapes must agree exactly.

        Official checkpoints lack `encoder_args`: then the encoder has the paper's 12 heads, and the rest of its shape
        follows from the weights.
        """
        cure = "give one written by train_pretrain.py or train_instruction.py, or a released NeuroLM-*.pt"
        state, args = parts(checkpoint, ("model", "model_args"), source, cure)
        state, about = plain_names(state), args
        if "encoder_args" in checkpoint:
            (args,) = parts(checkpoint, ["encoder_args"], source, cure)
            encoder = settings(NTConfig, args, f"{source}, encoder_args")
        else:
            n_layer = count_layers(state, "tokenizer.blocks.")
            sizes = {"n_layer": n_layer, "n_embd": rows(state, "tokenizer.fc_norm.weight")}
            encoder = settings(NTConfig, sizes, f"{source}, its encoder")
        options = {"standardize": "feature_scale.mean" in state, "band_power": "power_embed.weight" in state}
        if "config" in about:  # of transformers
            n_codes, n_stored = rows(state, "lm.codes"), rows(state, "lm.stored")
            make = partial(HFDecoder.from_args, about, n_stored, source, dropout)
            return build(lambda: cls(make(), encoder, n_codes, **options), state, source)
        n_codes = max(rows(state, "GPT2.lm_head.weight") - TEXT_ROWS, 0)
        lm = settings(GPTConfig, about, f"{source}, model_args")
        if size is not None:
            check_size(size, lm, source)
        lm = replace(lm, dropout=dropout, vocab_size=GPTConfig.vocab_size)
        return build(lambda: cls(lm, encoder, n_codes, **options), state, source)

    @classmethod
    def load(cls, path, dropout: float = 0.0, size: str | None = None) -> "NeuroLM":
        """From the file of a checkpoint, see `from_checkpoint`."""
        return cls.from_checkpoint(read_checkpoint(path), str(path), dropout, size)

    def config_args(self) -> dict[str, dict]:
        """What `from_checkpoint` needs beside the weights: the official key and `encoder_args`."""
        return {"model_args": self.decoder.config_args(), "encoder_args": asdict(self.tokenizer.config)}

    def train(self, mode: bool = True):
        super().train(mode)
        self.tokenizer.eval()  # frozen: no dropout either
        return self

    def freeze_backbone(self) -> None:
        """Leave only the last norm and the head to train: a linear probe."""
        self.requires_grad_(False)
        for parameter in self.decoder.top:
            parameter.requires_grad_(True)

    @torch.no_grad()
    def encode(self, eeg: dict, features=None):
        """What is known of EEG before anything that learns. eeg: x (B, N, 200) in 100 uV, chans, time, valid, and
        counts as in NeuralTransformer; features: the tokenizer's (B, N, D), if it has made them already -> these, with
        `band_power` followed by the log power of each token's bands (B, N, input_width)."""
        if features is None:
            features = self.tokenizer(eeg["x"], eeg["chans"], eeg["time"], eeg["valid"], eeg.get("counts"))
        return features if self.power_embed is None else torch.cat([features, log_band_power(eeg["x"])], -1)

    def embed_eeg(self, sample: dict):
        """sample: chans (B, N) and either features (B, N, input_width), as `encode` gave them, or what it needs ->
        the tokens that the language model reads (B, N, D)."""
        features, power = self.feature_scale(self._given(sample)).tensor_split([self.tokenizer.config.n_embd], -1)
        tokens = self.encode_transform_layer(features) + self.pos_embed(sample["chans"])
        return tokens if self.power_embed is None else tokens + self.power_embed(power)

    def measure_features(self, batches) -> None:
        """Standardize what the language model is given by the statistics of these batches of EEG, of all processes."""
        self.feature_scale.measure((self._given(batch), batch["valid"]) for batch in batches)

    def _given(self, sample):
        return sample["features"] if "features" in sample else self.encode(sample)

    def _lay_out(self, sample: dict):
        """What the language model is to read: the embeddings of all tokens (B, N + L, D), their time and valid."""
        parts, clocks, valids = [], [], []
        start = 0
        if "chans" in sample:
            time, valid = sample["time"], sample["valid"]
            parts.append(self.embed_eeg(sample))
            clocks.append(time)
            valids.append(torch.ones_like(time, dtype=torch.bool) if valid is None else valid)
            start = (time if valid is None else time.masked_fill(~valid, -1)).amax(1, keepdim=True) + 1  # seconds
        if "tokens" in sample:
            tokens, valid = sample["tokens"], sample.get("tokens_valid")
            self.check_length(tokens.size(1), "chans" in sample)
            parts.append(self.decoder.embed(tokens))
            clocks.append((start + torch.arange(tokens.size(1), device=tokens.device)).expand_as(tokens))
            valids.append(torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid)
        return torch.cat(parts, 1), torch.cat(clocks, 1), torch.cat(valids, 1)

    def check_length(self, tokens: int, after_eeg: bool) -> None:
        """Raise UserError for a text of so many tokens, if its times can be beyond what the language model knows."""
        seconds = MOST_SECONDS * after_eeg
        if seconds + tokens > self.decoder.context:
            after = f" after EEG of up to {seconds} s" * after_eeg
            raise UserError(
                f"{tokens} tokens of text{after} are too long for the language model, which reads "
                f"{self.decoder.context}: take a smaller --block_size, shorter questions, or another one"
            )

    def read(self, sample: dict, wanted=None):
        """Run the language model over EEG, text, or EEG followed by text.

        sample: EEG as in `embed_eeg`, with time (B, N) and valid (B, N) or None, or the `memory` of having read it;
        and/or text: tokens (B, L), with tokens_valid (B, L) or None; wanted: see `GPT` -> hidden states (B, N + L, D),
        or (B, L, D) after a memory, and a `Memory` for tokens to come.
        """
        if "memory" in sample:
            return self.read_on(sample["tokens"], sample["memory"], wanted=wanted)
        x, time, valid = self._lay_out(sample)
        plain = is_plain_text(sample)
        mask = None if plain else clock_mask(time, time, valid)
        hidden, cache = self.decoder(x, time, mask, causal=plain, wanted=wanted)
        return hidden, Memory(cache, time, valid)

    def read_on(self, tokens, memory: "Memory", branches: int = 1, wanted=None):
        """Text tokens (B, L) that follow what `memory` holds -> hidden states (B, L, D), and the longer memory.

        branches: into how many texts of one length they fall, each of which follows the memory and not the others."""
        length = tokens.size(1) // branches
        first = memory.time.masked_fill(~memory.valid, -1).amax(1, keepdim=True) + 1
        time = first + torch.arange(length, device=tokens.device).repeat(branches)
        all_time = torch.cat([memory.time, time], 1)
        all_valid = torch.cat([memory.valid, torch.ones_like(tokens, dtype=torch.bool)], 1)
        mask = clock_mask(time, all_time, all_valid)
        if branches > 1:
            branch = torch.arange(branches, device=tokens.device).repeat_interleave(length)
            mask[..., memory.time.size(1) :] &= branch[:, None] == branch
        hidden, cache = self.decoder(self.decoder.embed(tokens), time, mask, past=memory.cache, wanted=wanted)
        return hidden, Memory(cache, all_time, all_valid)

    def forward(self, **samples: dict):
        """The next-token loss of each named sample, all from one pass over their real tokens.

        Each sample is as in `read`, with target (M,): the class that token number `source` (M,), counted over the
        flattened (B, N + L), must predict. Text alone may leave `source` out: then every token has a target. `answer`:
        which of the M predictions count as answers; default all. Rows with padding are packed where the host knows the
        numbers of their real tokens: `counts` of EEG and `tokens_counts` of text; else the padding is computed too.
        -> {name: {"loss": sum of cross-entropies (), "correct": number of right predictions ()}}.
        """
        x, clocks, groups, wanted = zip(*map(self._pack, samples.values()), strict=True)
        starts = accumulate(map(len, clocks), initial=0)
        wanted = [places + start for places, start in zip(wanted, starts, strict=False)]
        hidden, _ = self.decoder(torch.cat(x), torch.cat(clocks), sum(groups, []), wanted=torch.cat(wanted))
        head, parts = self.decoder.head(), hidden.split([len(places) for places in wanted])
        parts = zip(samples.items(), parts, strict=True)
        return {name: self._predict(sample, read, head) for (name, sample), read in parts}

    def _pack(self, sample: dict):
        lengths = known_lengths(sample) if self.decoder.packs else None
        about = (lengths, sample.get("source"), is_plain_text(sample), not self.decoder.takes_blocks)
        return pack(*self._lay_out(sample), *about)

    def _predict(self, sample: dict, hidden, head):
        loss, correct = linear_cross_entropy(hidden, head, sample["target"].flatten())
        if "answer" in sample:
            correct = correct[sample["answer"]]
        return {"loss": loss, "correct": correct.sum()}

    @torch.inference_mode()
    def score_answers(self, sample: dict, options: list[list[int]], whole: bool = True):
        """Log-likelihood of each allowed answer after EEG and prompt.

        sample: EEG and the prompt's tokens as in `read`; options: the token ids of each answer; whole: score all its
        tokens, else only the first ones, which must differ -> (B, A) float32. The prefix is computed once, and read by
        all answers side by side.
        """
        longest = max(map(len, options))
        self.check_length(sample["tokens"].size(1) + longest, "chans" in sample)
        hidden, memory = self.read(sample, LAST)
        first = self._text_log_probabilities(hidden[:, -1])[:, [option[0] for option in options]]  # (B, A)
        if not whole or longest == 1:
            return first
        padded = torch.tensor([option + [0] * (longest - len(option)) for option in options], device=first.device)
        hidden, _ = self.read_on(padded[:, :-1].flatten().expand(len(first), -1), memory, len(options))
        rest = self._text_log_probabilities(hidden.unflatten(1, (len(options), longest - 1)))  # (B, A, longest - 1, V)
        rest = rest.gather(3, padded[:, 1:, None].expand(len(first), -1, -1, -1)).squeeze(3)
        lengths = torch.tensor([len(option) for option in options], device=first.device)
        real = torch.arange(1, longest, device=first.device) < lengths[:, None]  # (A, longest - 1)
        return first + (rest * real).sum(2)

    @torch.inference_mode()
    def generate(self, sample: dict, new_tokens: int, end_token: int | None = None):
        """Greedy continuation (B, new_tokens) of EEG and text; after `end_token` a row repeats it. A row of -1: the
        model's probabilities were not finite."""
        self.check_length(sample["tokens"].size(1) + new_tokens, "chans" in sample)
        hidden, memory = self.read(sample, LAST)
        hidden, written = hidden[:, -1], []
        ended, broken = torch.zeros(2, len(hidden), dtype=torch.bool, device=hidden.device)
        while True:
            likelihoods = self._text_log_probabilities(hidden)
            broken |= likelihoods[:, 0].isnan()  # one makes all of them so
            token = likelihoods.argmax(-1)
            if end_token is not None:
                token = token.masked_fill(ended, end_token)
                ended |= token == end_token
            written.append(token)
            if len(written) == new_tokens or (end_token is not None and bool(ended.all())):
                break
            hidden, memory = self.read_on(token[:, None], memory)
            hidden = hidden[:, -1]
        answer = torch.stack(written, 1).masked_fill(broken[:, None], -1)
        return F.pad(answer, (0, new_tokens - answer.size(1)), value=end_token or 0)

    def _text_log_probabilities(self, hidden):
        return F.log_softmax(F.linear(hidden, self.decoder.text_head()).float(), dim=-1)


@dataclass
class Memory:
    """What the language model has read: keys and values of every block, time and valid (B, M) of the tokens."""

    cache: list
    time: torch.Tensor
    valid: torch.Tensor
