"""Small language models of transformers with random weights, and small tokenizers, in folders: no download."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from text_dataset_maker import prepare

WORDS = "Question: Which rhythm is this? Answer: slow fast Yes No Is this EEG segment abnormal? Options: (A) (B) (C) of"
SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
SHAPE |= {"max_position_embeddings": 512}
FEW_HEADS = {"num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 512, "activation_function": "gelu"}
KINDS = {  # name of the configuration's class, and its values
    "Qwen3": SHAPE | FEW_HEADS | {"tie_word_embeddings": True},
    "Llama": SHAPE | FEW_HEADS,
    "GPTNeoX": SHAPE,
    "GPT2": GPT2,
    "Gemma": SHAPE | FEW_HEADS,
    "Gemma3Text": SHAPE | FEW_HEADS | {"sliding_window": 400},
}


def byte_level():
    """As GPT-2's and Qwen's: of bytes, without a token for padding."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|endoftext|>"]
    made.train_from_iterator(
        [WORDS], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return made, {"eos_token": "<|endoftext|>"}


def word_pieces():
    """As BERT's: not of bytes, knows a few characters only, forgets where spaces are, and pads."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[END]"]
    made.train_from_iterator([WORDS], trainers.WordPieceTrainer(special_tokens=special, show_progress=False))
    return made, {"eos_token": "[END]", "pad_token": "[PAD]", "unk_token": "[UNK]"}


def unigrams():
    """As Llama's and Gemma's: of pieces with their space, and without a token for padding."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    made.train_from_iterator(
        [WORDS] * 9, trainers.UnigramTrainer(special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    return made, {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}


def many_words():
    """More than 65,536 of them, and words that it does not know."""
    known = ["[UNK]", "[END]", *(f"w{i}" for i in range(70_000)), *WORDS.split()]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(known))}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made, {"eos_token": "[END]", "unk_token": "[UNK]"}


def make_model(kind: str, vocab_size: int = 300, **changes):
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(3)
    ids = {"bos_token_id": 1, "eos_token_id": 1}
    config = getattr(transformers, f"{kind}Config")(vocab_size=vocab_size, **ids, **KINDS[kind] | changes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # louder than new ones, so that attention and positions matter
            parameter.mul_(3 if parameter.dim() > 1 and parameter.size(0) < vocab_size else 1)
    return model


def save_lm(folder, kind: str = "Qwen3", tokenizer=byte_level, spare: int = 11, **changes):
    """A folder as `save_pretrained` leaves it; spare: rows of the embedding without a token -> the folder."""
    from transformers import PreTrainedTokenizerFast

    made, special = tokenizer()
    make_model(kind, made.get_vocab_size() + spare, **changes).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    return folder


def prepare_text(folder, lm, out):
    """The token files of a language model."""
    book = "\n\n".join(f"Paragraph {i} is slow or fast, is this abnormal? Yes, No. " * 20 for i in range(60))
    (folder / "book.md").write_text(book)
    words = ["--source", "files", "--files", folder / "book.md", "--out_dir", out, "--lm", lm, "--num_proc", 1]
    prepare.main(prepare.get_args([*map(str, words)]))
