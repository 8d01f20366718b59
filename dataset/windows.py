"""Windows of recordings: what a sample is, for both systems and all stages.

C channels · T = S·200 samples of a window · W windows
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from dataset import storage
from dataset.channels import channel_rows
from dataset.leaks import shorten
from dataset.protocol import PUBLISHED, Protocol, without
from dataset.recordings import (
    Recording,
    RecordingReader,
    describe_dataset,
    find_datasets,
    open_dataset,
    places,
    segments,
)
from dataset.tasks import Task
from errors import UserError

RATE = 200  # Hz
MAX_SECONDS = 64  # of a window: the rows of NeuroLM's time embedding
MICROVOLTS = 100.0  # the models take EEG in units of 100 uV
LABRAM_SECONDS = 16  # the rows of LaBraM's time embedding
LABRAM_ROWS = 128  # of the channel table: its position embedding has no more
SHORTEST = 2  # seconds: a window with a next second to predict


class Windows(Dataset):
    """A list of windows over recordings; sample i is read from disk when asked for.

    A sample is a dict: eeg (C, T) float32 in 100 uV, rows (C,) of the channel table, label (-1: none), index (its
    position here), file (its recording, for messages).
    """

    def __init__(self, recordings: list[Recording], index: np.ndarray):
        """index (W, 4) int64: number of the recording, start sample, stop sample, label."""
        self.recordings, self.index = recordings, index
        self.reader = RecordingReader()

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i: int) -> dict:
        number, start, stop, _ = self.index[i].tolist()
        recording = self.recordings[number]
        eeg = self.reader.read(recording, start, stop)
        if recording.scale:
            eeg = (eeg - np.array(recording.center, "f4")[:, None]) * np.array(recording.scale, "f4")[:, None]
        return self.about(i) | {"eeg": eeg / np.float32(MICROVOLTS)}

    def about(self, i: int) -> dict:
        """A sample without its eeg."""
        recording, label = self.recordings[self.index[i, 0]], int(self.index[i, 3])
        rows = channel_rows(recording.known_as or recording.channels)
        return {"rows": rows, "label": label, "index": i, "file": recording.name}

    def describe(self) -> dict[str, list]:
        """Where each window comes from: recording, subject, and its start in seconds."""
        recordings = [self.recordings[number] for number in self.index[:, 0]]
        return {
            "recording": [recording.name for recording in recordings],
            "subject": [recording.subject for recording in recordings],
            "start": (self.index[:, 1] / RATE).tolist(),
        }

    def shapes(self) -> np.ndarray:
        """Channels and seconds of each window, (W, 2)."""
        channels = np.array([len(recording.channels) for recording in self.recordings])[self.index[:, 0]]
        return np.column_stack([channels, (self.index[:, 2] - self.index[:, 1]) // RATE])

    def same_shape(self) -> list[np.ndarray]:
        """Positions of the windows of each shape (channels, seconds): those that share a batch without padding."""
        _, group = np.unique(self.shapes(), axis=0, return_inverse=True)
        return [np.flatnonzero(group == number) for number in range(group.max(initial=-1) + 1)]

    def within(self, folder: Path) -> "Windows":
        """The windows of the recordings below a folder."""
        inside = np.array([folder in recording.path.parents for recording in self.recordings])
        return Windows(self.recordings, self.index[inside[self.index[:, 0]]])

    def relabelled(self, places) -> "Windows":
        """The same windows, their label `n` now places[n]."""
        index = self.index.copy()
        index[:, 3] = np.asarray(places)[index[:, 3]]
        return Windows(self.recordings, index)

    @classmethod
    def continuous(cls, recordings: list[Recording], seconds, stride=None) -> "Windows":
        """Windows cut one after another, of seconds(number of channels).

        The rest of a recording makes a shorter window of at least two seconds. Windows with a `stride` of their own
        (seconds) all have the same length; shorter rests are left out.
        """
        parts = []
        for number, recording in enumerate(recordings):
            length, whole = seconds(len(recording.channels)), recording.samples // RATE
            shortest = SHORTEST if stride is None else length
            starts = np.arange(0, max(whole - shortest + 1, 0), stride or length)
            stops = np.minimum(starts + length, whole)
            columns = (np.full_like(starts, number), starts * RATE, stops * RATE, np.full_like(starts, -1))
            parts.append(np.stack(columns, axis=1))
        return cls(recordings, np.concatenate(parts).astype(np.int64))

    @classmethod
    def labelled(cls, recordings: list[Recording]) -> "Windows":
        """The labelled windows of the recordings. Raises UserError for one that is not of whole seconds or too long."""
        parts = [np.empty((0, 4), dtype=np.int64)]
        for number, recording in enumerate(recordings):
            rows = segments(recording)
            lengths = rows[:, 1] - rows[:, 0]
            bad = lengths[(lengths % RATE != 0) | (lengths > MAX_SECONDS * RATE)]
            if len(bad):
                raise UserError(
                    f"{recording.path}: a window of {bad[0] / RATE:g} s; windows have whole seconds, {MAX_SECONDS} at "
                    "most: make the dataset with another --window"
                )
            parts.append(np.column_stack([np.full(len(rows), number), rows]))
        return cls(recordings, np.concatenate(parts))


def window_seconds(channels: int, max_tokens: int) -> int:
    """Seconds of a pre-training window of NeuroLM: as many as fit into `max_tokens` tokens, 64 at most."""
    seconds = min(MAX_SECONDS, max_tokens // channels)
    if seconds < SHORTEST:
        raise UserError(
            f"{channels} channels leave room for {seconds} s in --block_size {max_tokens}; at least {SHORTEST} s are "
            f"needed: raise --block_size to {SHORTEST * channels}"
        )
    return seconds


def pretraining_folders(dataset_dir, names: list[str] | None = None):
    """Which dataset folders under `dataset_dir` (one, or a list) to pre-train on: those named, else all unlabelled.

    A `dataset_dir` that is itself a dataset is taken as it is. Raises UserError when nothing is left, or a name is not
    there.
    """
    folders = {folder.name: folder for folder in find_datasets(dataset_dir)}
    where = " and ".join(map(str, places(dataset_dir)))
    if names:
        for name in names:
            if name not in folders:
                raise UserError(f"--datasets {name}: not under {where}, which holds {', '.join(folders)}")
        return [folders[name] for name in names]
    if len(folders) == 1:
        return list(folders.values())
    unlabelled = [folder for folder in folders.values() if not describe_dataset(folder)["labels"]]
    if not unlabelled:
        raise UserError(
            f"{where} holds labelled datasets only ({', '.join(folders)}); name those whose training recordings "
            f"to pre-train on: --datasets {' '.join(folders)}"
        )
    return unlabelled


def pretraining_windows(folders, split: str, max_tokens: int, held=(), hours=None) -> Windows:
    """Continuous windows of a split of all folders, each as long as fits into `max_tokens` tokens, without the subjects
    of the rosters `held`, and of so many `hours` of EEG. Raises UserError where no recording gives one."""
    recordings = _pretraining_recordings(folders, split, held, hours)
    windows = Windows.continuous(recordings, lambda channels: window_seconds(channels, max_tokens))
    if not len(windows):
        raise UserError(f"{', '.join(map(str, folders))}: no {split} recording is as long as {SHORTEST} s")
    return windows


def _pretraining_recordings(folders, split: str, held, hours) -> list[Recording]:
    """The recordings of a split of all folders. A small corpus may be for training only, but one must have a `val`.
    Fewer `hours` are some of more: in the order of a hash of their names."""
    if split == "val":
        folders = [folder for folder in folders if (folder / split).is_dir()] or folders
    recordings = [recording for folder in folders for recording in without(open_dataset(folder, split), folder, held)]
    if not recordings:
        raise UserError(f"--exclude_fold leaves no {split} recording of {', '.join(map(str, folders))}: add a dataset")
    if hours:
        mixed = sorted(recordings, key=lambda recording: shorten(recording.name))
        before = np.cumsum([0] + [recording.samples for recording in mixed[:-1]])
        recordings = [recording for recording, read in zip(mixed, before, strict=True) if read < hours * 3600 * RATE]
    return recordings


def open_tasks(tasks: dict[Task, Path], split: str, protocol: Protocol = PUBLISHED) -> dict[Task, Windows]:
    """The labelled windows of a split of each task's dataset folder, their labels in the order of its answers. Raises
    UserError where a task has none, or a label without an answer."""
    sets = {task: Windows.labelled(protocol.open(folder, split)) for task, folder in tasks.items()}
    for task, windows in sets.items():
        if not len(windows):
            raise UserError(
                f"task {task.name}: {tasks[task]} has no labelled windows in split '{split}'; was it made for "
                "pre-training? Make it with labels, see docs/own_data.md"
            )
        check_classes(windows, f"task {task.name}: {tasks[task]}, split '{split}'")
        largest = windows.index[:, 3].max()
        if largest >= task.n_classes:
            raise UserError(
                f"task {task.name}: {tasks[task]} has label {largest} in split '{split}', but the task has "
                f"{task.n_classes} answers, for labels from 0: {', '.join(task.answers)}"
            )
        names = describe_dataset(tasks[task])["labels"]
        if names:
            sets[task] = windows.relabelled(task.check_labels(names, tasks[task]))
    return sets


def check_classes(windows: Windows, where) -> None:
    """Raise UserError where all windows are of one label, which teaches nothing and judges nobody."""
    if len(np.unique(windows.index[:, 3])) < 2:
        raise UserError(
            f"{where}: all {len(windows)} windows are of one class: nothing can be learnt or judged there; make the "
            "dataset with another --seed, or with more subjects"
        )


def describe_tasks(sets: dict[Task, Windows]) -> list[dict]:
    """What a checkpoint keeps of its tasks, so that they can be asked of other recordings: their fields, the seconds of
    their longest window, and the channels that all their recordings have."""
    rows = []
    for task, windows in sets.items():
        montages = [recording.known_as or recording.channels for recording in windows.recordings]
        common = [channel for channel in montages[0] if all(channel in montage for montage in montages)]
        seconds = int(windows.shapes()[:, 1].max())
        rows.append(asdict(task) | {"dataset": None, "seconds": seconds, "channels": common})
    return rows


def labram_pretraining_windows(folders, split: str, stride: int, held=(), hours=None) -> Windows:
    """Windows of 256 // C seconds, 16 at most, every `stride` seconds (LaBraM, appendix on pre-training), without the
    subjects of the rosters `held`, and of so many `hours` of EEG.

    Raises UserError for channels that LaBraM cannot embed, and when no recording is long enough.
    """
    recordings = _pretraining_recordings(folders, split, held, hours)
    windows = Windows.continuous(recordings, lambda channels: min(LABRAM_SECONDS, 256 // channels), stride)
    if not len(windows):
        raise UserError(f"{', '.join(map(str, folders))}: no {split} recording is as long as one window of 256 tokens")
    return _fit_labram(windows)


def labelled_folder(name, dataset_dir) -> Path:
    """The dataset folder called `name` under `dataset_dir` (one, or a list), or at this path or address. Raises
    UserError when none is one, or several are."""
    tried = [storage.local(place) / storage.local(name) for place in (*places(dataset_dir), ".")]
    for folder in tried:
        storage.bring(folder)
    there = [folder for folder in dict.fromkeys(tried) if folder.is_dir()]
    if not there:
        where = " and ".join(map(storage.shown, dict.fromkeys(tried)))
        raise UserError(f"--dataset {name}: no such dataset folder, tried {where}")
    if there[1:] and there[1] in tried[:-1]:
        both = " and ".join(map(storage.shown, there[:2]))
        raise UserError(f"--dataset {name}: there are two, {both}; give the path of one")
    found = find_datasets(there[0])
    if found != there[:1]:
        names = ", ".join(map(storage.shown, found))
        raise UserError(f"--dataset {name}: {storage.shown(there[0])} is a folder of datasets, name one of {names}")
    return there[0]


def class_names(folder, sets) -> tuple[str, ...]:
    """The label names of a dataset, in order; where it names none, the numbers up to the largest label in `sets`."""
    names = describe_dataset(folder)["labels"]
    largest = max(int(windows.index[:, 3].max()) for windows in sets)
    names = tuple(names or map(str, range(largest + 1)))
    if len(names) < 2:
        raise UserError(f"{folder} has {len(names)} label(s) ({', '.join(names)}); at least two are needed")
    return names


def labram_labelled_windows(folder, split: str, protocol: Protocol = PUBLISHED) -> Windows:
    """The labelled windows of a split. Raises UserError for windows or channels that LaBraM cannot embed."""
    windows = Windows.labelled(protocol.open(folder, split))
    if not len(windows):
        raise UserError(f"{folder} has no labelled windows in split '{split}': name a dataset made with labels")
    check_classes(windows, f"{folder}, split '{split}'")
    return _fit_labram(windows)


def _fit_labram(windows: Windows) -> Windows:
    for recording in windows.recordings:
        beyond = np.flatnonzero(channel_rows(recording.known_as or recording.channels) >= LABRAM_ROWS)
        if len(beyond):
            names = ", ".join(recording.channels[i] for i in beyond)
            raise UserError(
                f"{recording.path}: LaBraM has no position for channel {names}, only for the first "
                f"{LABRAM_ROWS} rows of the channel table; make the dataset without these channels"
            )
    longest = int((windows.index[:, 2] - windows.index[:, 1]).max(initial=0)) // RATE
    if longest > LABRAM_SECONDS:
        raise UserError(
            f"{windows.recordings[0].path.parent}: windows of {longest} s; LaBraM reads {LABRAM_SECONDS} s at most: "
            "make the dataset with another --window"
        )
    return windows
