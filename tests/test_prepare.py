"""Preparing text: every passage once, validation apart from training, nothing half-written."""

import numpy as np
import pytest
from conftest import run_script

from dataset.text import END_TOKEN, load_tokenizer, open_text
from errors import UserError
from text_dataset_maker import prepare


def documents_of(path):
    tokens = np.fromfile(path, dtype="<u2")
    assert tokens[-1] == END_TOKEN
    ends = np.flatnonzero(tokens == END_TOKEN)
    return [load_tokenizer().decode(part[part != END_TOKEN]) for part in np.split(tokens, ends[:-1] + 1)]


def prepare_text(*flags):
    prepare.main(prepare.get_args([*map(str, flags), "--num_proc", "2"]))


def test_python_help_becomes_text_in_a_process_of_its_own(tmp_path):
    done = run_script("text_dataset_maker/prepare.py", "--source", "stdlib", "--out_dir", tmp_path)
    assert "train.bin: " in done.stdout and "val.bin: " in done.stdout
    train, val = documents_of(tmp_path / "train.bin"), documents_of(tmp_path / "val.bin")
    assert not set(train) & set(val)
    wanted = {passage for topic in prepare.pydoc_data.topics.topics.values() for passage in prepare.cut_passages(topic)}
    assert set(train) | set(val) == wanted
    assert open_text(tmp_path, "val", 1024).n_windows >= 1
    again = run_script("text_dataset_maker/prepare.py", "--source", "stdlib", "--out_dir", tmp_path, check=False)
    assert again.returncode == 2 and again.stderr.startswith("error: ") and "--overwrite" in again.stderr


def test_files_and_folders_give_each_passage_once_and_the_same_split(tmp_path):
    books = tmp_path / "books" / "deep"
    books.mkdir(parents=True)
    paragraphs = [f"Paragraph {i} says {'word ' * 100}end." for i in range(100)]
    (books / "a.txt").write_text("\n\n".join(paragraphs[:60]))
    (books / "b.md").write_text("\n\n".join(paragraphs[60:]))
    (books / "c.html").write_text("not text")
    for out in ("one", "two"):
        prepare_text("--source", "files", "--files", books.parent, books / "a.txt", "--out_dir", tmp_path / out)
    for split in ("train", "val"):
        assert (tmp_path / "one" / f"{split}.bin").read_bytes() == (tmp_path / "two" / f"{split}.bin").read_bytes()
    train, val = (documents_of(tmp_path / "one" / f"{split}.bin") for split in ("train", "val"))
    assert len(train) > len(val) >= 1
    kept = [paragraph for document in train + val for paragraph in document.split("\n\n")]
    assert sorted(kept) == sorted(paragraphs)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["train.bin", "val.bin"]


def test_real_books(tmp_path, shared):
    prepare_text("--source", "files", "--files", shared / "text", "--out_dir", tmp_path)
    train, val = (open_text(tmp_path, split, 1024) for split in ("train", "val"))
    assert len(train) > 1_800_000 and 10_000 < len(val) < 0.02 * len(train)


def test_openwebtext_is_split_by_the_library_with_the_published_seed(tmp_path, monkeypatch):
    import datasets

    hub = datasets.Dataset.from_dict({"text": [f"document number {i}" for i in range(400)]})
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **kwargs: asked.append((name, kwargs["split"])) or hub)
    prepare_text("--source", "openwebtext", "--val_fraction", 0.01, "--out_dir", tmp_path)
    assert asked == [("Skylion007/openwebtext", "train")]
    parts = hub.train_test_split(test_size=0.01, seed=2357, shuffle=True)
    assert documents_of(tmp_path / "val.bin") == list(parts["test"]["text"])
    assert documents_of(tmp_path / "train.bin") == list(parts["train"]["text"])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--source", "files"], "--files PATH... goes with --source files"),
        (["--source", "stdlib", "--files", "x"], "--files PATH... goes with --source files"),
        (["--source", "stdlib", "--val_fraction", "0"], "--val_fraction is 0.0"),
        (["--source", "files", "--files", "nowhere.txt"], "nowhere.txt: no readable UTF-8 text"),
        (["--source", "files", "--files", "empty_folder"], "holds no .txt or .md file"),
        (["--source", "files", "--files", "latin.txt"], "latin.txt: no readable UTF-8 text"),
        (["--source", "files", "--files", "short.txt"], "gives 1 passages"),
    ],
)
def test_bad_flags_and_files_write_nothing(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty_folder").mkdir()
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin1"))
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(UserError) as caught:
        prepare_text(*flags, "--out_dir", "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_failed_write_keeps_the_old_text(tmp_path, monkeypatch):
    prepare_text("--source", "stdlib", "--out_dir", tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare.os, "fsync", full_disk)
    with pytest.raises(UserError, match="No space left"):
        prepare_text("--source", "stdlib", "--seed", 1, "--out_dir", tmp_path, "--overwrite")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
