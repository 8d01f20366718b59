"""Small files that claim to be large ones: each is one line, before it takes memory or time."""

import os
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import torch
from conftest import run_script
from small_models import make_lm, make_vq

from dataset.channels import load_aliases
from dataset.descriptions import check_name
from dataset.hdf5 import open_eeg, open_file, read_segments
from dataset.recordings import describe_dataset, open_dataset
from dataset.tasks import read_task
from dataset.text import TextTokens
from errors import UserError, check_file
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


def write_recording(path, **storage):
    """A file with group x, whose eeg is made with the arguments given."""
    with h5py.File(path, "w") as file:
        eeg = file.create_group("x").create_dataset("eeg", (2, 2000), "f4", **storage)
        eeg.attrs.update({"chOrder": ["C3", "C4"], "rsFreq": 200})
        return eeg.id.get_offset() if not eeg.chunks else None


def test_a_chunk_that_inflates_to_more_than_its_size(tmp_path):
    path = tmp_path / "x.h5"
    write_recording(path, chunks=(2, 2000), compression="gzip")
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(2**24)) for _ in range(70)) + packer.flush()  # 1.1 GiB in 1.1 MiB
    with h5py.File(path, "a") as file:
        file["x/eeg"].id.write_direct_chunk((0, 0), bomb)
    with open_file(path) as file, pytest.raises(UserError, match=r"x\.h5.*compressed twice, or in chunks of more"):
        open_eeg(file, "x")
    write_recording(path, chunks=(2, 2000), compression="gzip", shuffle=True)  # honest ones are read
    with open_file(path) as file:
        assert open_eeg(file, "x")[0][:, :5].shape == (2, 5)


def virtual(file):
    layout = h5py.VirtualLayout((10, 3), "i8")
    layout[:] = h5py.VirtualSource("other.h5", "rows", (10, 3))
    file["x"].create_virtual_dataset("segments", layout)


SEGMENTS = {
    "soft": lambda file: file["x"].__setitem__("segments", h5py.SoftLink("/x/eeg")),
    "external": lambda file: file["x"].__setitem__("segments", h5py.ExternalLink("other.h5", "/rows")),
    "virtual": virtual,
    "elsewhere": lambda file: file["x"].create_dataset("segments", (9, 3), "i8", external=[("other.raw", 0, 216)]),
    "chunk": lambda file: file["x"].create_dataset("segments", (9, 3), "i8", maxshape=(None, 3), chunks=(2**27, 3)),
    "group": lambda file: file["x"].create_group("segments"),
    "trials": lambda file: file["x"].attrs.update({"trialStart": [0], "trialEnd": [1e15], "label": [0]}),
    "endless": lambda file: file["x"].attrs.update({"trialStart": [0], "trialEnd": [np.inf], "label": [0]}),
}


@pytest.mark.parametrize("kind", SEGMENTS)
def test_segments_that_lie_elsewhere_or_are_too_large(tmp_path, kind):
    write_recording(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        SEGMENTS[kind](file)
    with open_file(tmp_path / "x.h5") as file, pytest.raises(UserError, match=r"x\.h5, group x: labelled windows"):
        read_segments(file, "x")


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
YAMLS = {
    "laughs": LAUGHS,
    "itself": "name: &a [*a]\n",
    "merged": "a: &a {b: 1}\nc:\n  <<: *a\n",
    "deep": "name: " + "[" * 10**5,
    "deeper": "".join(f"{' ' * i}a:\n" for i in range(900)),
    "key": "? [a, b]\n: c\n",
    "large": "name: x\n" + "# comment\n" * 200_000,
    "number": "rate: 1" + ":1" * 6000,
    "binary": "name: \x00\n",
    "date": "name: 2020-99-99\n",
}


@pytest.mark.parametrize("kind", YAMLS)
def test_yaml(tmp_path, kind):
    path = tmp_path / "dataset.yaml"
    path.write_text(YAMLS[kind])
    for read in (load_aliases, read_task, lambda path: describe_dataset(path.parent)):
        with pytest.raises(UserError, match=r"dataset\.yaml") as caught:
            read(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("line", ["name: [1]", "name: {a: b}", "labels: {a: 1}", "labels: [[a]]", "name: a\nname: b"])
def test_dataset_yaml_of_other_types(tmp_path, line):
    (tmp_path / "dataset.yaml").write_text(line)
    with pytest.raises(UserError, match=r"dataset\.yaml"):
        describe_dataset(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/", "a\0b", "x" * 300, "..", "", "a\nb", 5])
def test_names_that_become_paths(tmp_path, name):
    with pytest.raises(UserError, match="the row: .*cannot be part of a file's name"):
        check_name(name, "the row")


@pytest.mark.parametrize("row", ["../../x,train,s", "x,../..,s", "x,train,s,,1e300", "x,train,s,,-5", "x,train,s,,nan"])
def test_manifests_that_lead_elsewhere_or_last_for_ever(tmp_path, row):
    (tmp_path / "dataset.yaml").write_text("name: x\nlabels: null\nrate: 200\n")
    columns = "recording,split,subject,channels,seconds,windows,windows_per_label\n"
    cells = row.split(",") + ["", "10"][len(row.split(",")) - 3 :]
    (tmp_path / "manifest.csv").write_text(columns + ",".join([*cells[:3], "C3", cells[4], "0", ""]) + "\n")
    with pytest.raises(UserError, match=r"manifest\.csv, row 1: "):
        open_dataset(tmp_path, "train")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file(tmp_path, make):
    path = tmp_path / "train.bin"
    make(path)
    for read in (check_file, read_checkpoint, open_file, load_aliases, read_task, lambda path: TextTokens(path, 8)):
        with pytest.raises(UserError, match=r"train\.bin is a (named pipe|folder|device), expected a regular file"):
            read(path)
