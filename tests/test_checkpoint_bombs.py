"""Checkpoints that claim more than they hold: each is one line, before anything is built."""

import zipfile

import pytest
import torch
from conftest import run_script
from small_models import make_lm, make_vq

from errors import UserError
from model.labram import CLASSIFIERS, Classifier
from model.neurolm import NeuroLM
from model.vq import VQ_Align
from model.weights import read_checkpoint
from training.checkpoints import write_checkpoint

READ = """
import resource, sys
from importlib import import_module
from errors import UserError
module, name, path = sys.argv[1:]
read = getattr(import_module(module), name)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
try:
    (read.load if isinstance(read, type) else read)(path)
except UserError as error:
    print(f"refused {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before} {error}")
"""


def refusal(module, name, path, *words) -> None:
    """A process of its own reads the file: one line that says `words`, less than 1 GiB and a minute of computing."""
    said = run_script("-c", READ, module, name, path).stdout
    status, kib, line = said.strip().split(" ", 2)
    assert status == "refused" and int(kib) < 2**20, said
    for word in (path.name, *words):
        assert word in line, line


SIZES = [
    ("model_args", "n_layer", 100_000, "n_layer = 100000"),
    ("model_args", "n_layer", 400, "missing"),
    ("model_args", "n_embd", 48_000, "of another size"),
    ("model_args", "n_embd", 48 * 10**12, "no model has such sizes"),
    ("model_args", "block_size", 10**9, "of another size"),
    ("model_args", "n_head", 7, "cannot be shared"),
    ("encoder_args", "out_chans", 10**6, "of another size"),
    ("encoder_args", "in_chans", 10**9, "missing"),
    ("decoder_args", "n_layer", 500, "missing"),
    ("decoder_args", "in_chans", 10**9, "of another size"),
]


@pytest.mark.parametrize(("part", "field", "value", "words"), SIZES)
def test_sizes_beyond_the_tensors(tmp_path, part, field, value, words):
    kind, model = (VQ_Align, make_vq()) if part == "decoder_args" else (NeuroLM, make_lm())
    args = model.config_args()
    args[part] |= {field: value}
    made = []
    hook = torch.nn.modules.module.register_module_parameter_registration_hook(
        lambda _, name, parameter: made.append(parameter.numel() if parameter.device.type == "cpu" else 0)
    )
    try:
        with pytest.raises(UserError, match=f"the file.*{words}"):
            kind.from_checkpoint({"model": model.state_dict(), **args}, "the file")
    finally:
        hook.remove()
    assert not sum(made)  # nothing was built


def test_a_model_in_a_process_of_its_own(tmp_path):
    model = make_lm()
    args = model.config_args()
    args["model_args"] |= {"n_embd": 4800, "n_layer": 500}
    write_checkpoint({"model": model.state_dict(), **args}, tmp_path / "ckpt.pt")
    refusal("model.neurolm", "NeuroLM", tmp_path / "ckpt.pt", "does not fit")


def test_tensors_that_are_not_stored(tmp_path):
    """One number as a matrix of any size, in a file of a few KiB."""
    model = make_vq()
    wide = torch.zeros(1).expand(10**8, 32)
    write_checkpoint({"model": model.state_dict() | {"wte.weight": wide}, **model.config_args()}, tmp_path / "a.pt")
    refusal("model.vq", "VQ_Align", tmp_path / "a.pt", "bytes, but")
    meta = torch.empty(10**8, 32, device="meta")
    checkpoint = {"model": model.state_dict() | {"wte.weight": meta}, **model.config_args()}
    with pytest.raises(UserError, match="x holds tensors without values"):
        VQ_Align.from_checkpoint(checkpoint, "x")


def test_classifiers():
    model = Classifier(CLASSIFIERS["labram_tiny_patch200_200"], 1)
    flags = {"model": "labram_tiny_patch200_200", "qkv_bias": False, "layer_scale_init_value": None}
    checkpoint = {"model": model.state_dict(), "args": flags, "classes": ["a", "b"]}
    assert Classifier.from_checkpoint(checkpoint, "x").head.out_features == 1
    for changes in (
        {"classes": [str(i) for i in range(10**5)]},
        {"classes": "ab"},
        {"classes": [1, 2]},
        {"args": flags | {"layer_scale_init_value": "much"}},
        {"args": flags | {"model": ["tiny"]}},
        {"model": [1]},
        {"model": {7: torch.ones(1)}},
    ):
        with pytest.raises(UserError, match="x "):
            Classifier.from_checkpoint(checkpoint | changes, "x")


def test_an_archive_that_unpacks_to_more_than_itself(tmp_path):
    write_checkpoint({"model": {"a": torch.zeros(10**6)}}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"bomb\.pt .*unpacks to more than its own size"):
        read_checkpoint(tmp_path / "bomb.pt")
