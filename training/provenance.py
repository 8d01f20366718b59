"""What made a run: its flags, versions, commit, and the datasets it reads; stored with every checkpoint and run."""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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


def describe_data(folders) -> dict[str, dict[str, str]]:
    """For each dataset folder its path, the sha256 of its manifest, and its dataset.yaml: how it was preprocessed."""
    described = {}
    for folder in map(Path, folders):
        about = described[folder.name] = {"path": str(folder)}
        manifest, recipe = folder / "manifest.csv", folder / "dataset.yaml"
        if manifest.is_file():
            about["manifest_sha256"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
        if recipe.is_file():
            about["preprocessing"] = recipe.read_text(encoding="utf-8")
    return described
