"""Any causal decoder of transformers as the language model of NeuroLM: fed embeddings, the one clock as positions, and
the clock's mask. transformers is imported when such a model is made.

B batch · N query tokens · M key tokens (cached ones included) · D width · V rows of text in the head
"""

import json

import torch
from torch import nn

from errors import UserError, described
from model.packing import clock_mask, split

MOST_LAYERS, MOST_POSITIONS = 512, 1 << 24  # of a model that a checkpoint describes
NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f")  # what comes after the last block
WINDOWS = ("max_position_embeddings", "sliding_window", "attention_chunk_size")


class HFDecoder(nn.Module):
    """See `model.decoder.Decoder`. Its tables keep their rows: those that NeuroLM adds, of EEG codes in the head and of
    the token that opens a question, are parameters beside them, which also train where the tables are frozen."""

    packs = False  # batches only: under FSDP all processes must call the blocks equally often
    takes_blocks = False

    def __init__(self, lm, about: dict, vocabulary: bytes):
        """lm: a causal language model of transformers; about: what `config_args` gives; vocabulary: its tokenizer, see
        `dataset.text`. Raises UserError for a model of another build than NeuroLM can feed."""
        super().__init__()
        self.about, self.name, config = about, about["name"], lm.config
        if config is not config.get_text_config():
            raise UserError(f"--lm {self.name} reads more than text ({config.model_type}): take a plain text decoder")
        self.model, head = lm.base_model, lm.get_output_embeddings()
        self.context = min(value for name in WINDOWS if (value := getattr(config, name, None)))
        modules = dict(self.model.named_modules())
        lists = [name for name, part in modules.items() if isinstance(part, nn.ModuleList)]
        self.blocks_name = next(name for name in lists if len(modules[name]) == config.num_hidden_layers)
        norms = [self.blocks_name.rpartition(".")[0] + "." * ("." in self.blocks_name) + name for name in NORMS]
        self.norm_name = next(name for name in norms if name in modules)
        (self.text_rows, self.width), self.answer_ids = head.weight.shape, about["tokenizer"]["separator"]
        if self.answer_ids > self.text_rows:
            raise UserError(
                f"--lm {self.name}: its tokenizer has {self.answer_ids} tokens, its embedding {self.text_rows} rows"
            )
        self.words = nn.Parameter(head.weight.detach().clone())  # the head, untied from the embedding
        end = torch.tensor(about["tokenizer"]["end"], device=head.weight.device)
        self.separator = nn.Parameter(self.model.get_input_embeddings()(end).detach().float())  # starts as the end's
        self.register_buffer("stored", torch.frombuffer(bytearray(vocabulary), dtype=torch.uint8))

    @classmethod
    def from_pretrained(cls, name: str, revision, tokenizer: dict, vocabulary: bytes, dropout: float = 0.0):
        """The model in a folder or on the hub, in the precision in which it is stored, tried by `check`. Raises
        UserError when it cannot be had, and when it is none that NeuroLM can feed."""
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            where = {"revision": revision, "trust_remote_code": False}
            config = with_dropout(AutoConfig.from_pretrained(name, **where), dropout)
            lm, found = AutoModelForCausalLM.from_pretrained(
                name, config=config, dtype="auto", output_loading_info=True, **where
            )
            if found["missing_keys"]:  # transformers would go on with random ones
                raise ValueError(f"{len(found['missing_keys'])} of its weights are missing")
            revision = getattr(config, "_commit_hash", None) or revision
            about = {"name": name, "revision": revision, "config": json.loads(config.to_json_string(use_diff=False))}
            decoder = cls(lm.eval(), about | {"tokenizer": tokenizer}, vocabulary)
            decoder.check(lm)
        except UserError:
            raise
        except Exception as error:  # the hub, damaged files and models of other builds fail in many ways
            raise UserError(f"--lm {name} cannot be taken as a language model ({described(error)})") from None
        return decoder

    @classmethod
    def from_args(cls, args: dict, n_stored: int, source: str, dropout: float = 0.0):
        """The model that `config_args` of a checkpoint describes, without its weights; n_stored: bytes of its
        vocabulary. Raises UserError for what describes none."""
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.for_model(**args["config"])
            if config.num_hidden_layers > MOST_LAYERS or config.max_position_embeddings > MOST_POSITIONS:
                raise ValueError(f"{config.num_hidden_layers} layers, {config.max_position_embeddings} positions")
            lm = AutoModelForCausalLM.from_config(with_dropout(config, dropout), dtype=torch.float32)
            return cls(lm, args, bytes(max(n_stored, 1)))
        except UserError:
            raise
        except Exception as error:  # transformers checks in its own ways
            raise UserError(f"{source}: no language model is as its model_args say ({described(error)})") from None

    @property
    def vocabulary(self) -> bytes:
        return self.stored.cpu().numpy().tobytes()

    @property
    def blocks(self):
        return self.model.get_submodule(self.blocks_name)

    @property
    def norm(self):
        return self.model.get_submodule(self.norm_name)

    @property
    def top(self):
        return *self.norm.parameters(), self.words, self.codes

    def config_args(self) -> dict:
        return self.about

    def add_codes(self, n_codes: int) -> None:
        self.codes = nn.Parameter(self.separator.new_empty(n_codes, self.width))
        nn.init.normal_(self.codes, std=0.02)

    def embed(self, tokens):
        opens = tokens == self.answer_ids
        found = self.model.get_input_embeddings()(tokens.masked_fill(opens, 0))
        return torch.where(opens[..., None], self.separator, found)

    def head(self):
        return torch.cat([self.words, self.codes])  # of bfloat16 and float32: float32

    def text_head(self):
        return self.words[: self.answer_ids]

    def recompute(self) -> None:
        self.model.activation_checkpointing_enable({"use_reentrant": False})

    def forward(self, x, time, mask=None, causal=False, past=None, wanted=None):
        if isinstance(mask, list):
            rows = zip(split(x, mask), split(time, mask), mask, strict=True)
            parts = [self._read(part, clock, group.mask)[0].flatten(0, 1) for part, clock, group in rows]
            hidden, cache = torch.cat(parts), None
        else:
            hidden, cache = self._read(x, time, mask, past or [], keep=True)
        return hidden if wanted is None else hidden[wanted], cache

    def _read(self, x, time, mask, past=(), keep: bool = False):
        """mask: None for plain text; keep: whether keys and values are asked for."""
        from transformers import DynamicCache

        if mask is not None:  # added to the scores: of a boolean one some kinds of attention make ones and zeros
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            hidden_at = torch.finfo(dtype).min  # not -inf: a row that sees nothing must stay finite
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, hidden_at)
        cache = DynamicCache(past) if keep else None
        states = self.model(
            inputs_embeds=x, position_ids=time, attention_mask=mask, past_key_values=cache, use_cache=keep
        ).last_hidden_state
        return states, [(layer.keys, layer.values) for layer in cache.layers] if keep else None

    @torch.no_grad()
    def check(self, lm) -> None:
        """Raise UserError where the model gives other logits than `lm`, which it was made of, or disobeys the clock:
        masks of its own, positions that it counts by itself, a state in place of keys and values."""
        ids = ((torch.arange(8) * 7 + 1) % self.answer_ids)[None]
        x, plain = self.embed(ids).to(self.words.dtype), torch.arange(8)[None]
        clock, valid = torch.tensor([[0, 0, 1, 1, 2, 3, 4, 5]]), torch.arange(8)[None] != 5
        later, padded = x.clone(), x.clone()
        later[:, 3] *= -3  # of second 1, like token 2
        padded[:, 5] *= -3

        def read(x, time=clock, seen=valid):
            return self(x, time, clock_mask(time, time, seen))[0][0].float()

        states = read(x)
        loud = 1e-4 * states.abs().max()
        moved, moved_by_padding = ((read(other) - states).abs().amax(-1) > loud for other in (later, padded))
        head, cached = self(x[:, :4], clock[:, :4], clock_mask(clock[:, :4], clock[:, :4], valid[:, :4]))
        rest, _ = self(x[:, 4:], clock[:, 4:], clock_mask(clock[:, 4:], clock, valid), past=cached)
        logits = read(x, plain, valid | True) @ self.words.float().T
        capped = bool(getattr(lm.config, "final_logit_softcapping", None))  # small logits do not show it
        problems = {
            "its logits are not its head's alone (a bias, a cap or a scale)": capped
            or not alike(logits, lm(ids).logits[0]),
            "it looks into the future, or at padding": bool(moved[:2].any() or moved_by_padding[valid[0]].any()),
            "it does not look at all of a second": not bool(moved[2:5].all()),
            "it counts positions by itself": torch.equal(states, read(x, clock + clock // 5 * 4)),
            "it goes on otherwise than it reads at once": not alike(torch.cat([head, rest], 1)[0], states),
        }
        said = [problem for problem, is_there in problems.items() if is_there]
        if said:
            raise UserError(f"--lm {self.name} cannot be NeuroLM's language model: {'; '.join(said)}")


def alike(a, b, tolerance: float = 0.02) -> bool:
    """Whether two readings are the same but for the rounding of bfloat16."""
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def with_dropout(config, dropout: float):
    """The configuration with every dropout that it has set to one value."""
    for name, value in vars(config).items():
        if name.endswith(("dropout", "pdrop")) and isinstance(value, float | int):
            setattr(config, name, dropout)
    return config
