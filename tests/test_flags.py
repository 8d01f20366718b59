"""Flags tell the truth: what is declared is read and what is read declared, with the official names and defaults."""

import ast
import importlib

import pytest
from conftest import ROOT

NEUROLM = ("train_vq", "train_pretrain", "train_instruction")
REQUIRED = {
    "run_vqnsp_training": ["--dataset_dir", "D"],
    "run_labram_pretraining": ["--dataset_dir", "D", "--tokenizer_weight", "vqnsp.pth"],
    "run_class_finetuning": ["--dataset", "TUAB"],
    "evaluation.__main__": ["run"],
    **{script: ["--dataset_dir", "D"] for script in NEUROLM},
}

COMMON = {
    "gradient_accumulation_steps": 1, "block_size": 1024, "log_interval": 10, "decay_lr": True, "seed": 1337,
    "out_dir": "./", "wandb_log": False, "wandb_project": "NeuroLM", "wandb_api_key": None, "compile": False,
}  # fmt: skip
OFFICIAL = {
    "train_vq": {
        "batch_size": 64, "text_batch_size": 16, "epochs": 50, "warmup_epochs": 5, "learning_rate": 5e-5,
        "min_lr": 1e-5, "weight_decay": 1e-4, "beta1": 0.9, "beta2": 0.999, "grad_clip": 0.0, "save_ckpt_freq": 10,
    },
    "train_pretrain": {
        "eeg_batch_size": 60, "text_batch_size": 4, "epochs": 20, "warmup_epochs": 2, "learning_rate": 6e-4,
        "min_lr": 6e-5, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0, "save_ckpt_freq": 5,
    },
    "train_instruction": {
        "eeg_batch_size": 64, "text_batch_size": 16, "epochs": 5, "warmup_epochs": 1, "warmup_ratio": 0.1,
        "learning_rate": 5e-4, "min_lr": 5e-5, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "grad_clip": 1.0,
        "save_ckpt_freq": 5, "eval_only": False,
    },
}  # fmt: skip
WANDB = "--out_dir O --wandb_log --wandb_project P --wandb_runname R --wandb_api_key K"
PUBLISHED = [
    ("train_vq", WANDB),
    ("train_pretrain", f"{WANDB} --tokenizer_path checkpoints/VQ.pt"),
    ("train_instruction", f"{WANDB} --NeuroLM_path checkpoints/NeuroLM-B.pt"),
]


def parse(script, *argv):
    module = importlib.import_module(script)
    return module.get_args([*REQUIRED[script], *argv])


def source(module):
    return ROOT / f"{module.replace('.', '/')}.py"


def functions(module):
    """The functions of a module of this repository that take `args`, by name."""
    tree = ast.parse(source(module).read_text())
    nodes = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return tree, {node.name: node for node in nodes if "args" in [argument.arg for argument in node.args.args]}


def is_args(node):
    return isinstance(node, ast.Name) and node.id == "args"


def reads(module, function, seen=()):
    """Attributes of `args` that a function reads, or a function of ours to which it gives `args`."""
    tree, known = functions(module)
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and source(node.module).is_file()
        for alias in node.names
    }
    found = set()
    for node in ast.walk(known[function]):
        if isinstance(node, ast.Attribute) and is_args(node.value):
            found.add(node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and any(map(is_args, node.args)):
            place = (module, node.func.id) if node.func.id in known else imported.get(node.func.id)
            if place and place not in seen and place[1] in functions(place[0])[1]:
                found |= reads(*place, (*seen, place))
    return found


@pytest.mark.parametrize("script", REQUIRED)
def test_declared_and_read_flags_are_the_same(script):
    declared = set(vars(parse(script)))
    read = reads(script, "main")
    assert read == declared, f"never read: {sorted(declared - read)}; never declared: {sorted(read - declared)}"


@pytest.mark.parametrize("script", REQUIRED)
def test_help_explains_itself(script, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).get_args(["--help"])
    assert stop.value.code == 0 and "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("script", NEUROLM)
def test_official_names_and_defaults(script):
    flags = vars(parse(script))
    expected = COMMON | OFFICIAL[script]
    assert {name: flags[name] for name in expected} == expected
    assert "wandb_runname" in flags and "dataset_dir" in flags


@pytest.mark.parametrize("script", NEUROLM)
def test_switches_have_both_spellings(script):
    switches = ["wandb_log", "decay_lr", "compile", "resume"] + ["eval_only"] * (script == "train_instruction")
    for name in switches:
        assert getattr(parse(script, f"--{name}"), name) is True
        assert getattr(parse(script, f"--no-{name}"), name) is False


@pytest.mark.parametrize("script, command", PUBLISHED)
def test_published_commands(script, command):
    args = parse(script, *command.split())
    assert (args.wandb_log, args.wandb_project, args.wandb_runname, args.wandb_api_key) == (True, "P", "R", "K")


@pytest.mark.parametrize("script", NEUROLM)
@pytest.mark.parametrize(
    "flag, value",
    [
        ("epochs", "0"), ("max_steps", "0"), ("gradient_accumulation_steps", "0"), ("text_batch_size", "-1"),
        ("block_size", "0"), ("learning_rate", "-1"), ("learning_rate", "nan"), ("grad_clip", "-1"),
        ("log_interval", "0"), ("num_workers", "-1"), ("warmup_epochs", "-1"), ("weight_decay", "x"),
        ("seed", "-1"), ("save_every_steps", "-3"), ("beta1", "1"), ("batch_size", "0"), ("batch_size", "1.5"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_when_parsed(script, flag, value, capsys):
    flag = f"eeg_{flag}" if flag == "batch_size" and script != "train_vq" else flag
    with pytest.raises(SystemExit) as stop:
        parse(script, f"--{flag}={value}")
    said = capsys.readouterr().err
    assert stop.value.code == 2 and f"--{flag}" in said and value in said
