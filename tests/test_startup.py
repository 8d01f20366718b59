"""Nobody waits for a library that he does not use: what scripts import before they have something to do."""

import subprocess
import sys

import torch
from conftest import ROOT

from model.neural_transformer import NTConfig
from model.neurolm import NeuroLM
from training.checkpoints import write_checkpoint

SIX = "train_vq train_pretrain train_instruction run_vqnsp_training run_labram_pretraining run_class_finetuning"
SLOW = "matplotlib mne transformers wandb tensorboard sklearn scipy torch.distributed.fsdp torch.distributed.tensor"
SLOW += " torch._dynamo"


def imported(code: str, names: str) -> list[str]:
    """Which of the modules a new process has imported after `code`."""
    code += f"\nimport sys\nprint(*[name for name in {names.split()} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return said.splitlines()[-1].split()


def test_the_help_of_predict_needs_no_pytorch():
    code = "import predict\ntry: predict.get_args(['--help'])\nexcept SystemExit: pass"
    assert not imported(code, f"{SLOW} torch pandas")


def test_the_six_scripts_import_what_every_run_needs():
    assert not imported(f"import {SIX.replace(' ', ', ')}", SLOW)


def test_loading_a_model_needs_no_compiler(tmp_path):
    torch.manual_seed(0)
    model = NeuroLM.from_size("tiny", NTConfig(n_layer=1, n_head=2, n_embd=16), 8)
    write_checkpoint({"model": model.state_dict(), **model.config_args()}, tmp_path / "model.pt")
    code = f"from model.neurolm import NeuroLM\nNeuroLM.load('{tmp_path / 'model.pt'}')"
    assert not imported(code, f"{SLOW} sympy")
