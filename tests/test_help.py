"""--help of every script: defaults, groups, both systems' spellings, and where the paper differs from the default."""

import argparse
import importlib
import os

import pytest
from conftest import ROOT
from test_flags import REQUIRED

from training import flags

SIX = [name for name in REQUIRED if not name.startswith("evaluation")]
PARSED = ("def get_args(", "= arguments(")  # what a script with flags holds
OTHERS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("", "dataset_maker", "text_dataset_maker", "evaluation")
    for path in sorted((ROOT / folder).glob("*.py"))
    if any(word in path.read_text(encoding="utf-8") for word in PARSED) and path.stem not in SIX
]
PAIRS = [
    ("train_vq", "out_dir", "output_dir", "O"), ("train_vq", "learning_rate", "lr", "0.5"),
    ("train_vq", "batch_size", "eeg_batch_size", "3"), ("train_vq", "gradient_accumulation_steps", "update_freq", "3"),
    ("train_pretrain", "eeg_batch_size", "batch_size", "3"), ("train_pretrain", "grad_clip", "clip_grad", "0.5"),
    ("train_pretrain", "tokenizer_path", "tokenizer_weight", "T"), ("train_instruction", "eval_only", "eval", None),
    ("run_vqnsp_training", "output_dir", "out_dir", "O"), ("run_vqnsp_training", "lr", "learning_rate", "0.5"),
    ("run_vqnsp_training", "codebook_emd_dim", "codebook_dim", "64"),
    ("run_vqnsp_training", "codebook_n_emd", "codebook_size", "64"),
    ("run_labram_pretraining", "codebook_dim", "codebook_emd_dim", "64"),
    ("run_labram_pretraining", "tokenizer_weight", "tokenizer_path", "T"),
    ("run_labram_pretraining", "clip_grad", "grad_clip", "0.5"), ("run_class_finetuning", "eval", "eval_only", None),
    ("run_class_finetuning", "update_freq", "gradient_accumulation_steps", "3"),
]  # fmt: skip


class Parsing(Exception):
    """Ends a script where it would parse its flags."""


@pytest.fixture
def parser_of(monkeypatch):
    """The parser of a script, without parsing."""

    def stop(parser, argv=None):
        raise Parsing(parser)

    def parser_of(script):
        with pytest.raises(Parsing) as caught:
            importlib.import_module(script).get_args()
        return caught.value.args[0]

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    return parser_of


@pytest.mark.parametrize("script", SIX + OTHERS)
def test_every_flag_is_explained_with_its_default(script, parser_of):
    assert len(OTHERS) > 16
    parser = parser_of(script)
    for action in parser._actions:
        said = parser._get_formatter()._expand_help(action)
        assert said, action.option_strings
        if action.default not in (None, argparse.SUPPRESS, []) and not action.required and action.nargs != 0:
            assert "default" in said, action.option_strings


@pytest.mark.parametrize("script", [*SIX, "predict"])
def test_flags_are_in_groups(script, parser_of):
    (loose,) = [group for group in parser_of(script)._action_groups if group.title == "options"]
    assert [action.dest for action in loose._group_actions] == ["help"]


@pytest.mark.parametrize("script", SIX)
def test_both_loggers_in_every_trainer(script):
    args = importlib.import_module(script).get_args([*REQUIRED[script], "--wandb_log", "--log_dir", "board"])
    assert args.wandb_log is True and args.log_dir == "board"


@pytest.mark.parametrize("script, name, other, value", PAIRS)
def test_the_other_system_s_spelling(script, name, other, value):
    get_args = importlib.import_module(script).get_args
    words = ([f"--{spelling}"] + [value] * (value is not None) for spelling in (name, other))
    ours, theirs = (vars(get_args([*REQUIRED[script], *spelled])) for spelled in words)
    assert ours == theirs and str(ours[name]) == (value or "True")


@pytest.mark.parametrize(
    "script, flag, words",
    [
        ("run_vqnsp_training", "codebook_emd_dim", "64 in the paper"),
        ("run_labram_pretraining", "codebook_dim", "64 in the paper"),
        ("run_class_finetuning", "drop_path", "0.2 for huge in the paper"),
        ("run_class_finetuning", "layer_decay", "0.8 for large and huge"),
        ("train_instruction", "learning_rate", "5e-5 for L"),
    ],
)
def test_what_the_paper_has_instead_is_said(script, flag, words, parser_of):
    (action,) = [action for action in parser_of(script)._actions if action.dest == flag]
    assert words in action.help


@pytest.mark.parametrize("cores, ranks, workers", [(1, 1, 0), (2, 1, 1), (16, 8, 1), (64, 8, 7), (64, 1, 8), (2, 4, 0)])
def test_data_workers_follow_the_machine(cores, ranks, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert importlib.import_module("train_vq").get_args(REQUIRED["train_vq"]).num_workers == workers
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS, Windows
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert flags.data_workers() == workers
