"""Every maker on its simulated corpus, with everything awkward in it: what is stored equals what was written."""

import mne
import numpy as np
import pytest
from raw_files import run_maker, table

from dataset.channels import TUH_CHANNELS, canonical_name
from dataset.recordings import RecordingReader, describe_dataset, open_dataset, segments
from dataset_maker import (
    make_ADHD,
    make_custom,
    make_h5dataset_for_pretrain,
    make_HMC,
    make_MotorImagery,
    make_SEED,
    make_TUAB,
    make_TUEV,
    make_TUSL,
    make_Workload,
    prepare_TUH_pretrain,
)
from dataset_maker.simulate import simulate
from dataset_maker.simulation.layouts import SEED_SECONDS

CUSTOM = ("--window", 4, "--classes", "left hand", "right hand")
# maker, subjects and seconds of the corpus, more arguments, mains
CORPORA = {
    "Workload": (make_Workload, 4, 62, (), 50),
    "TUEG": (prepare_TUH_pretrain, 5, 40, ("--val_fraction", 0.2), 60),
    "TUAB": (make_TUAB, 6, 30, (), 60),
    "TUEV": (make_TUEV, 6, 60, (), 60),
    "TUSL": (make_TUSL, 6, 70, (), 60),
    "HMC": (make_HMC, 4, 180, (), 50),
    "SEED": (make_SEED, 1, 150, (), 50),
    "MotorImagery": (make_MotorImagery, 3, 20, (), 60),
    "ADHD": (make_ADHD, 8, 10, (), 50),
    "pretrain": (make_h5dataset_for_pretrain, 4, 20, ("--val_fraction", 0.2), 50),
    "custom": (make_custom, 5, 30, ("--labels", "labels.csv", *CUSTOM), 50),
    "BIDS": (make_custom, 5, 30, ("--bids", *CUSTOM), 50),
}

WORDS = {  # in the report, for each problem of the simulator
    "channels": "without ",
    "duplicate": "two of its channels are FP1",
    "flat": "flat",
    "labels": "without labels",
    "nan": "NaN",
    "short": "too short",
    "truncated": "truncated",
    "unit": "seems to be in V",
}


def shorten_seed(monkeypatch, seconds):
    """The published clips, in proportion, for a short simulated recording."""
    for name in ("STARTS", "STOPS"):
        times = tuple(round(time * seconds / SEED_SECONDS, 3) for time in getattr(make_SEED, name))
        monkeypatch.setattr(make_SEED, name, times)
    monkeypatch.setattr(make_SEED, "WINDOW", 2)


@pytest.fixture(scope="module", params=CORPORA)
def made(request, tmp_path_factory):
    """(name, truth by file, raw folder, dataset folder) of a corpus, simulated and made once."""
    name = request.param
    maker, subjects, seconds, more, _ = CORPORA[name]
    folder = tmp_path_factory.mktemp(name)
    truth = simulate(name, folder / "raw", seed=3, subjects=subjects, seconds=seconds, awkward=True)
    more = [folder / "raw" / word if word == "labels.csv" else word for word in more]
    refused = any(recording["problem"] not in (None, "flat") for recording in truth) or name == "TUAB"
    with pytest.MonkeyPatch.context() as patch:
        shorten_seed(patch, seconds)
        run_maker(
            maker, "--raw_dir", folder / "raw", "--out_dir", folder / "out", "--workers", 1, *more, status=3 * refused
        )
    return name, {recording["file"]: recording for recording in truth}, folder / "raw", folder / "out"


def recordings_of(out):
    splits = {row["split"] for row in table(out / "manifest.csv")}
    return [recording for split in sorted(splits) for recording in open_dataset(out, split)]


def source_of(out):
    """{recording: raw file}, from the report."""
    return {name: row["file"] for row in table(out / "report.csv") for name in row["recordings"].split()}


def test_the_report_names_every_file_and_refuses_what_must_be(made):
    name, truth, _, out = made
    report = {row["file"]: row for row in table(out / "report.csv")}
    assert set(truth) <= set(report)
    free = name in ("TUEG", "pretrain", "custom", "BIDS")  # any channels: a flat one is dropped
    for file, recording in truth.items():
        problem, row = recording["problem"], report[file]
        if problem is None or (problem == "flat" and free):
            excluded = recording.get("excluded") or ("/02_tcp_le/" in file and name == "TUEG")
            assert row["status"] == ("excluded" if excluded else "used"), row
        else:
            assert row["status"] == "refused"
        if problem:
            assert WORDS[problem] in row["notes"]


def expected_windows(name, recording):
    """Rows (start s, label) that a maker should find in a recording, from what the simulator wrote."""
    labels = describe_labels(name)
    events = [(start, stop, labels.index(label)) for start, stop, label in recording["events"] if label in labels]
    seconds = recording["seconds"]
    if name == "Workload":
        return [(seconds - 60 + start, events[0][2]) for start in range(0, 57, 2)]
    if name == "TUAB":
        return [(start, events[0][2]) for start in range(0, int(seconds) - 9, 10)]
    if name == "TUEV":
        return [(min(max(start - 2, 0), seconds - 5), label) for start, _, label in events]
    if name in ("TUSL", "MotorImagery", "custom", "BIDS"):
        return [(start, label) for start, _, label in events if name != "MotorImagery" or start + 4 <= seconds]
    if name == "ADHD":
        count = min(int(seconds) // 4, 20)
        return [(int(place) / 200, events[0][2]) for place in np.linspace(0, seconds * 200 - 800, count)]
    return [(start, label) for start, stop, label in events if stop <= seconds]


def describe_labels(name):
    labels = {"Workload": ("rest", "arithmetic"), "TUAB": make_TUAB.LABELS, "TUEV": make_TUEV.LABELS}
    labels |= {"TUSL": make_TUSL.LABELS, "HMC": make_HMC.LABELS, "ADHD": make_ADHD.LABELS, "MotorImagery": ("T1", "T2")}
    return list(labels.get(name, ("left hand", "right hand")))


@pytest.mark.parametrize("made", sorted(set(CORPORA) - {"TUEG", "SEED", "pretrain"}), indirect=True)
def test_windows_and_labels_are_those_written(made):
    name, truth, _, out = made
    assert len(describe_dataset(out)["labels"]) == len(describe_labels(name))
    files = source_of(out)
    for recording in recordings_of(out):
        rows = segments(recording)
        expected = expected_windows(name, truth[files[recording.name]])
        assert rows[:, [0, 2]].tolist() == [[round(start * 200), label] for start, label in expected]
        assert len(expected) == recording.windows


def test_content_is_what_plain_mne_calls_give(made):
    name, truth, raw_dir, out = made
    files, mains = source_of(out), CORPORA[name][4]
    chosen = [r for r in recordings_of(out) if truth[files[r.name]]["rate"] > 150][:2]
    for recording in chosen:
        options = {"data_format": "int32"} if name == "SEED" else {}
        raw = mne.io.read_raw(raw_dir / files[recording.name], preload=True, verbose="ERROR", **options)
        if name == "TUEG":
            raw.crop(tmax=raw.duration - 10, include_tmax=False)
        aliases = {key.upper(): value for key, value in make_HMC.ALIASES.items()}
        found = {canonical_name(written, aliases): written for written in raw.ch_names}
        raw.pick([found[channel] for channel in recording.channels])
        raw.apply_function(lambda x: x - x.mean(), channel_wise=True)
        raw.filter(0.1, 75, verbose="ERROR").notch_filter(mains, verbose="ERROR").resample(200, verbose="ERROR")
        expected = raw.get_data(units="uV")
        if name == "SEED":
            first = {"train": 0, "val": 9, "test": 12}[recording.split]
            expected = expected[:, round(make_seed_time(first) * 200) :][:, : recording.samples]
        actual = RecordingReader().read(recording, 0, recording.samples)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)


def make_seed_time(clip):
    return round(make_SEED.STARTS[clip] * CORPORA["SEED"][2] / SEED_SECONDS, 3)


def test_channels_and_splits(made):
    name, truth, _, out = made
    recordings = recordings_of(out)
    fixed = {"TUAB": TUH_CHANNELS, "TUEV": TUH_CHANNELS, "TUSL": TUH_CHANNELS, "Workload": make_Workload.CHANNELS}
    fixed |= {"HMC": make_HMC.CHANNELS, "SEED": make_SEED.CHANNELS, "ADHD": make_ADHD.CHANNELS}
    files, splits = source_of(out), {}
    for recording in recordings:
        if name in fixed:
            assert recording.channels == fixed[name]
        written = truth[files[recording.name]]
        assert recording.subject == written["subject"] or name == "SEED"
        if written.get("split") == "eval":
            assert recording.split == "test"
        splits.setdefault(recording.subject, set()).add(recording.split)
    assert all(len(held) == 1 for held in splits.values()) or name == "SEED"


@pytest.mark.parametrize("made", ["SEED"], indirect=True)
def test_seed_trials(made):
    _, truth, _, out = made
    labels = {"positive": 0, "neutral": 1, "negative": 2}
    files = source_of(out)
    for recording in recordings_of(out):
        part = make_SEED.SPLITS[recording.split]
        written = truth[files[recording.name]]
        begin = round(written["events"][part][0][0] * 200)
        expected = [
            [start - begin, labels[label]]
            for first, stop, label in written["events"][part]
            for start in range(round(first * 200), min(round(stop * 200), round(written["seconds"] * 200)) - 399, 400)
        ]
        assert segments(recording)[:, [0, 2]].tolist() == expected
