"""What made a run: its flags, versions, commit, and the datasets it reads; stored with every checkpoint and run."""

import hashlib
import os
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dataset.recordings import SPLITS, describe_dataset, recording_files
from dataset.storage import shown
from errors import UserError
from model.weights import hash_state

SECRETS = ("wandb_api_key",)
PACKAGES = ("torch", "numpy", "scipy", "h5py", "mne", "transformers", "scikit-learn")


def public_config(args) -> dict:
    """The flags of a run as plain values, without secrets."""
    return {name: value for name, value in vars(args).items() if name not in SECRETS}


def provenance() -> dict:
    """Versions of Python and of the packages that numbers depend on, and the commit of this code (+ when edited)."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    commit = _git("rev-parse", "HEAD") or "unknown"
    return {"versions": versions, "git_commit": commit + ("+" if _git("status", "--porcelain", "-uno") else "")}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:  # no git here
        return ""
    return done.stdout.strip()


def describe_inputs(run, folders, text=None, tasks=(), modules=None, lm=None) -> dict[str, dict]:
    """What a run reads, for its checkpoints: `datasets` of `describe_data`, and `inputs`, by which a resumed run sees
    whether it reads the same. The main process looks, for all.

    text: the training text (TextTokens); tasks: Task rows; modules: the state dicts of a `tokenizer` that is read, and
    of the `weights` that training starts from (None: new ones); lm: the language model.
    """
    found = run.on_main(lambda: _describe_inputs(list(folders), text, tasks, modules or {}))
    if lm and lm.name:  # of --lm
        found["inputs"]["lm"] = lm.about["sha256"]
    return found


def _describe_inputs(folders, text, tasks, modules) -> dict[str, dict]:
    datasets = describe_data(folders)
    hashes = {name: about.get("manifest_sha256") or about["content_sha256"] for name, about in datasets.items()}
    labels = {name: about["labels"] for name, about in datasets.items() if about["labels"]}
    inputs = {"datasets": hashes, "labels": labels}
    if text is not None:
        inputs["text"] = hash_blocks(text.path)
    inputs |= {name: state and hash_state(state) for name, state in modules.items()}
    if tasks:
        rows = {task.name: asdict(task) | {"dataset": None} for task in tasks}
        inputs["tasks"] = {f"{name} {field}": value for name, row in rows.items() for field, value in row.items()}
    return {"datasets": datasets, "inputs": inputs}


def describe_data(folders) -> dict[str, dict]:
    """For each dataset folder its path, label names (None: not named), the sha256 of its manifest, and its
    dataset.yaml: how it was preprocessed. Without a manifest, the sha256 of what `hash_folder` reads of its files."""
    described = {}
    for folder in map(Path, folders):
        name = folder.name if folder.name not in described else str(folder)
        about = described[name] = {"path": shown(folder), "labels": describe_dataset(folder)["labels"]}
        manifest, recipe = folder / "manifest.csv", folder / "dataset.yaml"
        if manifest.is_file():
            about["manifest_sha256"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
        else:
            about["content_sha256"] = hash_folder(folder)
        if recipe.is_file():
            about["preprocessing"] = recipe.read_text(encoding="utf-8")
    return described


def hash_folder(folder) -> str:
    """sha256 of the names and sizes of the recordings in a folder's splits, and of 4 blocks of 4 KiB of each: folders
    of the official projects hold hundreds of GB, and nothing that lists them."""
    digest = hashlib.sha256()
    for path in (path for split in SPLITS for path in recording_files(Path(folder) / split)):
        digest.update(f"{path.relative_to(folder).as_posix()} {hash_blocks(path, 4, 4096)}\n".encode())
    return digest.hexdigest()


def hash_blocks(path, blocks: int = 64, size: int = 1 << 16) -> str:
    """sha256 of a file's length and of so many blocks of `size` bytes, spread evenly from its start to its end; a file
    that is no larger than all of them is read whole. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(str(length).encode())
            last = max(length - size, 0)
            spread = [last * i // (blocks - 1) for i in range(blocks)]
            for start in spread if length > blocks * size else range(0, length, size):
                file.seek(start)
                digest.update(file.read(size))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()
