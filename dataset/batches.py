"""Samples to padded batches for NeuroLM: tokens ordered by second, then channel.

B batch · N = C·S EEG tokens of the longest sample · L text tokens of the longest question
"""

import numpy as np
import torch
from einops import rearrange
from torch.utils.data import ConcatDataset

from dataset.channels import PAD_ROW
from dataset.tasks import Task
from dataset.windows import RATE, Windows


def to_tokens(sample: dict):
    """A sample's eeg (C, S·200), or features (C·S, D), and rows (C,) -> its tokens (C·S, 200 or D), chans (C·S,) and
    time (C·S,), by second, then channel."""
    rows = sample["rows"]
    tokens = sample["features"] if "features" in sample else rearrange(sample["eeg"], "c (s p) -> (s c) p", p=RATE)
    seconds = len(tokens) // len(rows)
    return tokens, np.tile(rows, seconds), np.repeat(np.arange(seconds), len(rows))


def collate_eeg(samples: list[dict]) -> dict:
    """x (B, N, 200) in 100 uV, or features (B, N, D) where the samples hold these; chans and time (B, N), valid (B, N)
    bool, or None where nothing is padded; label, index (B,); tokens_eeg: number of real tokens; counts: of them in each
    sample; files: their recordings."""
    parts = [to_tokens(sample) for sample in samples]
    counts = [len(tokens) for tokens, _, _ in parts]
    shape = (len(samples), max(counts))
    x = torch.zeros(*shape, parts[0][0].shape[1])
    chans, time = torch.full(shape, PAD_ROW), torch.zeros(shape, dtype=torch.int64)
    for row, (count, values) in enumerate(zip(counts, parts, strict=True)):
        x[row, :count], chans[row, :count], time[row, :count] = map(torch.from_numpy, values)
    return {
        "features" if "features" in samples[0] else "x": x,
        "chans": chans,
        "time": time,
        "valid": padding_mask(counts),
        "label": torch.tensor([sample["label"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        "tokens_eeg": sum(counts),
        "counts": counts,
        "files": [sample["file"] for sample in samples],
    }


def collate_montage(samples: list[dict]) -> dict:
    """Samples of one shape for LaBraM: x (B, C, S, 200) in 100 uV; chans (B, C), rows of the channel table plus one;
    label, index (B,); keys: the indices again, on the host; files: their recordings."""
    eeg = torch.from_numpy(np.stack([sample["eeg"] for sample in samples]))
    return {
        "x": rearrange(eeg, "b c (s p) -> b c s p", p=RATE),
        "chans": torch.from_numpy(np.stack([sample["rows"] for sample in samples])) + 1,
        "label": torch.tensor([sample["label"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples]),
        "keys": [sample["index"] for sample in samples],
        "files": [sample["file"] for sample in samples],
    }


def padding_mask(counts: list[int]):
    """Number of real tokens of each row -> valid (B, longest) bool, or None where all rows are equally long."""
    if min(counts) == max(counts):
        return None
    return torch.arange(max(counts)) < torch.tensor(counts)[:, None]


def collate_prediction(samples: list[dict]) -> dict:
    """As `collate_eeg`, codes (B, N) where the samples hold them, and for stage 2 `source` and `target_position` (M,),
    flat over (B, N): the token of a channel predicts the code of the same channel one second later; the last second has
    no target."""
    batch = collate_eeg(samples)
    padded = batch["chans"].size(1)
    if "codes" in samples[0]:
        batch["codes"] = pad_tokens([sample["codes"] for sample in samples])[0]
    sources, shifts = [], []
    for row, (count, sample) in enumerate(zip(batch["counts"], samples, strict=True)):
        channels = len(sample["rows"])
        sources.append(torch.arange(count - channels) + row * padded)
        shifts.append(torch.full((count - channels,), channels))
    batch["source"] = torch.cat(sources)
    batch["target_position"] = batch["source"] + torch.cat(shifts)
    return batch


class QuestionWindows(ConcatDataset):
    """The labelled windows of several tasks, each with its question; a sample is that of `Windows` and `task`."""

    def __init__(self, windows: dict[Task, Windows]):
        super().__init__(windows.values())
        self.tasks = list(windows)

    def __getitem__(self, i: int) -> dict:
        task = int(np.searchsorted(self.cumulative_sizes, i, side="right"))
        return super().__getitem__(i) | {"task": self.tasks[task]}

    def by_task(self) -> list[np.ndarray]:
        """The positions of each task's windows."""
        return np.split(np.arange(len(self)), self.cumulative_sizes[:-1])

    def length_ranks(self, tokenizer) -> np.ndarray:
        """A number for each window that orders them by EEG tokens, then by the text tokens of their task."""
        eeg = np.concatenate([windows.shapes().prod(1) for windows in self.datasets])
        text = [len(task.prompt(tokenizer)) + max(map(len, task.options(tokenizer))) for task in self.tasks]
        text = np.repeat(text, [len(windows) for windows in self.datasets])
        return np.unique(np.column_stack([eeg, text]), axis=0, return_inverse=True)[1].ravel()


class QuestionCollate:
    """Samples to EEG followed by question and answer (NeuroLM, section 2.4)."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, samples: list[dict]) -> dict:
        """As `collate_eeg`, and tokens (B, L), tokens_valid (B, L) or None, tokens_counts: how many are real; source
        (M,), flat over (B, N + L), and target (M,): the supervised tokens; answer (B,): which of the M tells the
        answers apart; positions: B·(N + L); padding (): how many of them are padded."""
        batch = collate_eeg(samples)
        texts = [sample["task"].encode(self.tokenizer, sample["label"]) for sample in samples]
        prompts = [len(sample["task"].prompt(self.tokenizer)) for sample in samples]
        tokens, valid = pad_tokens([tokens for tokens, _ in texts])
        n_eeg = batch["chans"].size(1)
        length = n_eeg + tokens.size(1)
        source, target, answer = [], [], []
        for row, ((ids, supervised), prompt) in enumerate(zip(texts, prompts, strict=True)):
            answer.append(len(source) + supervised.index(prompt - 1))
            source += [row * length + n_eeg + position for position in supervised]
            target += [ids[position + 1] for position in supervised]
        named = {"source": source, "target": target, "answer": answer}
        batch |= {name: torch.tensor(value) for name, value in named.items()}
        positions, real = len(samples) * length, batch["tokens_eeg"] + sum(len(tokens) for tokens, _ in texts)
        padding = torch.tensor(float(positions - real))
        batch |= {"tokens": tokens, "tokens_valid": valid, "tokens_counts": [len(tokens) for tokens, _ in texts]}
        return batch | {"positions": positions, "padding": padding}


def pad_tokens(rows: list[list[int]]):
    """Token ids of each row -> tokens (B, longest) int64 padded with 0, and their padding mask."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.as_tensor(ids)
    return tokens, padding_mask([len(ids) for ids in rows])
