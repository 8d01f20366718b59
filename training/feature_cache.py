"""What a frozen tokenizer makes of windows, computed once and read by every later epoch, process and run.

--cache_features DIR holds a folder for each set of windows, named after what its features depend on: the encoder's
weights, the content of the recordings' files (every run reads them again, as sizes and dates can lie), the manifest,
the windows and the precision. Files of CHUNK windows, each written under a temporary name and renamed: a run that was
killed goes on with those that are missing. A row of a file is a token: its features, and for stage 2 its code.
W windows · N tokens · D width
"""

import functools
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset.batches import collate_eeg
from dataset.checks import check_eeg, check_finite
from dataset.verify import file_sums
from dataset.windows import Windows
from errors import UserError, ignore_signals
from training.loading import to_device
from training.provenance import hash_state
from utils import Run

CHUNK = 256  # windows of a file
MAPPED = 64  # files that a process keeps mapped


class CachedWindows(Windows):
    """Windows whose samples hold features (N, D) float32, and codes (N,) where they were asked for, of a memory-mapped
    file in place of eeg."""

    def __init__(self, windows: Windows, folder: Path, row: np.dtype):
        super().__init__(windows.recordings, windows.index)
        self.folder, self.row = folder, row
        self.ends = np.concatenate([[0], windows.shapes().prod(1).cumsum()])  # of each window's tokens in the set

    def __getitem__(self, i: int) -> dict:
        first, _ = self.span(i // CHUNK)
        start, stop = self.ends[[i, i + 1]] - self.ends[first]
        rows = _open_chunk(self.chunk_path(i // CHUNK))[start:stop]
        kinds = {"features": np.float32, "codes": np.int64}
        return self.about(i) | {name: rows[name].astype(kinds[name]) for name in self.row.names}

    def span(self, chunk: int) -> tuple[int, int]:
        """The windows of a chunk: its first, and the one after its last."""
        return chunk * CHUNK, min((chunk + 1) * CHUNK, len(self))

    def chunk_path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06d}.npy"

    def missing(self) -> list[int]:
        """The chunks still to compute."""
        return [chunk for chunk in range(-(-len(self) // CHUNK)) if not self.chunk_path(chunk).is_file()]

    def n_bytes(self, chunks) -> int:
        tokens = sum(self.ends[stop] - self.ends[first] for first, stop in map(self.span, chunks))
        return int(tokens) * self.row.itemsize

    def write(self, chunk: int, values: dict[str, list[np.ndarray]]) -> None:
        """Write the features (N, D) and codes (N,) of a chunk's windows, in whole or not at all."""
        path = self.chunk_path(chunk)
        rows = np.empty(sum(map(len, values["features"])), self.row)
        with np.errstate(over="ignore"):  # refused below
            for name in self.row.names:
                rows[name] = np.concatenate(values[name])
        if not np.isfinite(rows["features"]).all():
            raise UserError(f"--cache_half: features of {self.folder.name} are beyond float16's 65504: leave it out")
        temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                np.save(file, rows)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"--cache_features: {path} cannot be written ({error}); the others stay usable") from None
        finally:
            temporary.unlink(missing_ok=True)  # after the renaming there is none


@functools.lru_cache(maxsize=MAPPED)
def _open_chunk(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"features {path} cannot be read ({error}): delete this file and run again") from None


def cache_features(directory, sets, folders, model, batch_size: int, run: Run, num_workers: int = 0, half: bool = False,
                   tokenizer=None):  # fmt: skip
    """The sets of windows {split: {task: Windows}} with their features in `directory`; what is missing is computed.

    folders: {task: dataset folder}; model: the NeuroLM that will read the features; half: keep them in float16, which
    moves a value by 2^-11 of itself at most; tokenizer: the VQ that shares the model's encoder, for its codes too.
    Announces the size first. Raises UserError where it does not fit on the disk.
    """
    fields = [("features", "<f2" if half else "<f4", (model.input_width,)), ("codes", "<i4")]
    row = np.dtype(fields if tokenizer else fields[:1])
    encoder = {"encoder": hash_module(model.tokenizer), "row": str(row)}
    encoder["codes"] = tokenizer and hash_state(tokenizer.state_dict())
    cached = {}
    for split, windows_of in sets.items():
        cached[split] = {}
        for task, windows in windows_of.items():
            about = describe_features(windows, folders[task], run) | encoder | {"split": split}
            key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
            folder = Path(directory) / f"{folders[task].name}-{split}-{key}"
            cached[split][task] = CachedWindows(windows, folder, row)
            if run.main:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    everything = {windows.folder: windows for windows_of in cached.values() for windows in windows_of.values()}.values()
    run.barrier()  # the folders are there
    _announce(directory, everything, run)
    for windows in everything:
        _compute(windows, model, tokenizer, batch_size, run, num_workers)
    run.barrier()
    for windows in everything:
        if windows.missing():
            raise UserError(f"--cache_features {directory} is not shared: {windows.folder} lacks what others wrote")
    return cached


def _announce(directory, everything, run: Run) -> None:
    """Say how large the features are. Raises UserError where those still to compute do not fit."""
    whole = sum(windows.n_bytes(range(-(-len(windows) // CHUNK))) for windows in everything)
    needed = sum(windows.n_bytes(windows.missing()) for windows in everything)
    free = shutil.disk_usage(directory).free
    half = any(windows.row["features"].base == np.float16 for windows in everything)
    run.say(
        f"features: {whole / 2**30:.3g} GiB in {directory}, {needed / 2**30:.3g} GiB of them still to compute"
        f"{', in float16: each is off by 0.05 % at most' * half}"
    )
    if needed > free:
        raise UserError(
            f"--cache_features {directory} needs {needed / 2**30:.3g} GiB more, {free / 2**30:.3g} GiB are free there: "
            "give a folder on a larger disk, halve them with --cache_half, or train without it"
        )


@torch.no_grad()
def _compute(windows: CachedWindows, model, tokenizer, batch_size: int, run: Run, num_workers: int) -> None:
    """Compute and write the missing chunks whose number is this process's."""
    chunks = [chunk for chunk in windows.missing() if chunk % run.world_size == run.rank]
    blocks = []
    for first, stop in map(windows.span, chunks):
        blocks += [range(i, min(i + batch_size, stop)) for i in range(first, stop, batch_size)]
    raw = Windows(windows.recordings, windows.index)
    loading = {"num_workers": num_workers, "worker_init_fn": ignore_signals}
    batches = iter(DataLoader(raw, batch_sampler=blocks, collate_fn=collate_eeg, **loading))
    for chunk in tqdm(chunks, desc=windows.folder.name, unit="file", disable=not run.main or not chunks):
        values = {name: [] for name in windows.row.names}
        first, stop = windows.span(chunk)
        while len(values["features"]) < stop - first:
            batch = next(batches)
            (check_eeg if chunk == chunks[0] else check_finite)(batch)
            batch = to_device(batch, run.device)
            with run.autocast():
                made = read_codes(batch, tokenizer, model) if tokenizer else {"features": model.encode(batch)}
            for name, kept in values.items():
                rows = made[name].to(torch.float32 if name == "features" else torch.int32).cpu().numpy()
                kept += [row[:count] for row, count in zip(rows, batch["counts"], strict=True)]
        windows.write(chunk, values)


def read_codes(batch: dict, tokenizer, model) -> dict:
    """The batch with the features that a NeuroLM reads and the codes (B, N) that it predicts, from one pass of the
    encoder that it shares with the tokenizer; as it is where it was read from files."""
    if "codes" in batch:
        return batch
    codes, features = tokenizer.tokenize(batch)
    return batch | {"features": model.encode(batch, features), "codes": codes}


def hash_module(module: torch.nn.Module) -> str:
    """sha256 of a module's configuration and weights."""
    return hashlib.sha256(f"{module.config!r} {hash_state(module.state_dict())}".encode()).hexdigest()


def describe_features(windows: Windows, folder: Path, run: Run) -> dict:
    """What the features of windows depend on, beside the encoder: the files, the windows, the precision."""
    manifest = folder / "manifest.csv"
    numbers, places = np.unique(windows.index[:, 0], return_inverse=True)
    used = [windows.recordings[number] for number in numbers]
    sums = file_sums(used, run)
    content = json.dumps([[recording.name, sums[str(recording.path)]] for recording in used])
    dataset = {
        "manifest": hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None,
        "files": hashlib.sha256(content.encode()).hexdigest(),
    }
    index = hashlib.sha256(np.column_stack([places, windows.index[:, 1:3]])).hexdigest()
    about = {"dataset": dataset, "windows": index, "precision": str(run.dtype)}
    scales = [[recording.center, recording.scale] for recording in used if recording.scale]
    about |= {"known_as": names} if any(names := [recording.known_as for recording in used]) else {}
    return about | ({"calibration": hashlib.sha256(repr(scales).encode()).hexdigest()} if scales else {})
