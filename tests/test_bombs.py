"""Small files that claim to be large ones: each is one line, before it takes memory or time."""

import os
import zlib

import h5py
import numpy as np
import pytest

from dataset.channels import load_aliases
from dataset.descriptions import check_name
from dataset.hdf5 import open_eeg, open_file, read_segments
from dataset.recordings import describe_dataset, open_dataset, segments
from dataset.tasks import read_task
from dataset.text import TextTokens
from errors import UserError, check_file
from model.weights import read_checkpoint


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


def test_an_official_file_with_a_label_beyond_any_dataset(tmp_path):
    """Its classes would be counted up to it."""
    path = tmp_path / "T" / "train" / "x.h5"
    path.parent.mkdir(parents=True)
    write_recording(path)
    with h5py.File(path, "a") as file:
        file["x/segments"] = np.array([[0, 800, 2**40]])
    (recording,) = open_dataset(tmp_path / "T", "train")
    with pytest.raises(UserError, match=r"x\.h5: labels \[1099511627776\], but the dataset names 1000"):
        segments(recording)


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
