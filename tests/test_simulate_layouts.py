"""Every simulated layout against its truth: signals, label files, defects, and that its classes can be learnt."""

import csv
import json

import mne
import numpy as np
import pytest
from test_simulate import across_subjects, read, windows

import errors
from dataset_maker.simulate import LAYOUTS, simulate
from dataset_maker.simulation.layouts import CAP_32, EEGMAT, SEED_62
from dataset_maker.simulation.tuh import CHANNELS, EVENTS

SECONDS = {"SEED": 190, "TUEV": 60, "HMC": 210}
UNREADABLE = ("truncated", "duplicate")


@pytest.fixture(scope="module", params=[layout for layout in LAYOUTS if layout != "Workload"])
def corpus(request, tmp_path_factory):
    """(layout, folder, clean recordings, awkward recordings) of a corpus with everything in it."""
    folder = tmp_path_factory.mktemp(request.param)
    size = {"subjects": 4 if request.param != "SEED" else 1, "seconds": SECONDS.get(request.param, 60)}
    truth = simulate(request.param, folder, seed=5, **size, awkward=True)
    clean = [recording for recording in truth if recording["problem"] is None and "note" not in recording]
    return request.param, folder, clean, [recording for recording in truth if recording not in clean]


def test_every_recording_reads_back_as_the_truth_says(corpus):
    layout, folder, clean, awkward = corpus
    assert len({recording["subject"] for recording in clean}) == (4 if layout != "SEED" else 1) and awkward
    for recording in clean + awkward:
        if recording["problem"] in UNREADABLE:
            continue
        raw = read(folder / recording["file"])
        assert (raw.ch_names, raw.info["sfreq"]) == (recording["channels"], recording["rate"])
        assert raw.n_times == recording["seconds"] * recording["rate"]
        if recording["problem"] in (None, "labels", "channels", "short"):
            assert 5 < np.median(raw.get_data(picks=slice(0, 4)).std(axis=1)) * 1e6 < 60


def test_defects_are_there(corpus):
    layout, folder, _, awkward = corpus
    for recording in awkward:
        path, problem = folder / recording["file"], recording["problem"]
        if problem == "truncated" and layout == "ADHD":
            with pytest.raises(errors.UserError, match="truncated"):
                read(path)
        elif problem == "truncated":
            content = path.read_bytes()
            signals, first = int(content[252:256]), 256 + 216 * int(content[252:256])
            samples = sum(int(content[first + 8 * index : first + 8 * index + 8]) for index in range(signals))
            assert len(content) == int(content[184:192]) + int(content[236:244]) * 2 * samples - 1000
        elif problem == "duplicate":
            assert len(set(recording["channels"])) < len(recording["channels"])
        elif problem == "labels":
            assert recording["events"] == []
            assert not [other for other in path.parent.iterdir() if other.stem.startswith(path.stem) and other != path]
        elif problem == "channels":
            assert not [name for name in recording["channels"] if name.split()[-1][:2] in recording["missing_channels"]]
        elif problem:
            uv = read(path).get_data() * 1e6
            flat = {name for name, row in zip(recording["channels"], uv, strict=True) if row.std() == 0}
            assert np.isnan(uv).any() == (problem == "nan")
            assert (np.nanmedian(np.abs(uv[:4])) < 1e-3) == (problem == "unit")
            assert flat >= set(recording.get("bad_channels", ()))
            assert (recording["seconds"] < 60) == (problem == "short")


def rows_of(path, layout):
    """Events of a recording as its own label files give them: rows (start s, stop s, label)."""
    if layout == "TUEV":
        lines = [line.split(",") for line in path.with_suffix(".rec").read_text().splitlines()]
        return [[float(start), float(stop), EVENTS[int(kind) - 1]] for _, start, stop, kind in lines]
    if layout == "TUSL":
        lines = [line.split() for line in path.with_suffix(".tse_agg").read_text().splitlines()[2:]]
        return [[float(start), float(stop), label] for start, stop, label, _ in lines]
    if layout == "HMC":
        lines = path.with_name(path.stem + "_sleepscoring.txt").read_text().splitlines()
        fields = [line.split(", ") for line in lines if "Sleep stage" in line]
        rows = [[float(onset), float(onset) + float(length), text[12:]] for _, _, onset, length, text, _ in fields]
        texts = mne.read_annotations(path.with_name(path.stem + "_sleepscoring.edf")).description
        assert [row[2] for row in rows] == [text[12:] for text in texts]
        return rows
    notes = read(path).annotations
    rows = [
        [onset, onset + length, text.removeprefix("Comment/")]
        for onset, length, text in zip(notes.onset, notes.duration, notes.description, strict=True)
        if not text.startswith("New Segment")
    ]
    return [[round(start, 6), round(stop, 6), label] for start, stop, label in rows]


def test_label_files_agree_with_the_truth(corpus):
    layout, folder, clean, _ = corpus
    if layout in ("TUEV", "TUSL", "HMC", "MotorImagery", "custom", "BIDS"):
        for recording in clean:
            assert recording["events"] and rows_of(folder / recording["file"], layout) == recording["events"]
    elif layout == "TUAB":
        for recording in clean:
            split, state = recording["file"].split("/")[1:3]
            assert (recording["split"], recording["events"][0][2]) == (split, state)
    elif layout == "SEED":
        labels = {"H": "positive", "N": "neutral", "S": "negative"}
        assert [label for _, _, label in clean[0]["events"]] == [labels[letter] for letter in "HNSSNHSNHHNSNHS"]
        assert clean[0]["events"][0][:2] == pytest.approx([24 * 190 / 3810, 264 * 190 / 3810], abs=1e-3)
    else:  # unlabelled: the events are the states that follow one another
        for recording in clean:
            times = [time for event in recording["events"] for time in event[:2]]
            assert times[1:-1:2] == times[2::2] and (times[0], times[-1]) == (0, recording["seconds"])


def test_tables_of_own_data_agree_with_the_truth(tmp_path):
    truth = simulate("custom", tmp_path / "custom", subjects=4, seconds=20)
    with (tmp_path / "custom/labels.csv").open() as file:
        rows = [(row["file"], float(row["start"]), float(row["stop"]), row["label"]) for row in csv.DictReader(file)]
    assert rows == [(recording["file"], *event) for recording in truth for event in recording["events"]]
    for recording in simulate("BIDS", tmp_path / "BIDS", subjects=2, seconds=20):
        stem = str(tmp_path / "BIDS" / recording["file"]).rsplit("_eeg", 1)[0]
        with open(stem + "_events.tsv") as file:
            rows = [[float(row["onset"]), row["trial_type"]] for row in csv.DictReader(file, delimiter="\t")]
        assert rows == [[start, label] for start, _, label in recording["events"]]
        with open(stem + "_channels.tsv") as file:
            assert [row["name"] for row in csv.DictReader(file, delimiter="\t")] == list(CAP_32)
        with open(stem + "_eeg.json") as file:
            assert json.load(file)["SamplingFrequency"] == recording["rate"]


def test_edges_and_rows_of_the_awkward_events(tmp_path):
    truth = simulate("TUEV", tmp_path, subjects=1, seconds=60, awkward=True)
    wide = next(recording for recording in truth if recording.get("note") == "edges, several rows")
    assert wide["events"][0][0] == 0 and wide["events"][-1][1] == wide["seconds"]
    assert wide["events"].count([20.0, 21.0, "gped"]) == 5


@pytest.mark.parametrize(
    ("layout", "window", "names", "least"),
    [
        ("TUAB", 10, CHANNELS, 0.95),
        ("TUEV", 1, CHANNELS, 0.9),
        ("TUSL", 10, CHANNELS, 0.95),
        ("HMC", 30, ("F4", "C4", "O2", "C3"), 0.9),
        ("SEED", 4, SEED_62[::4], 0.85),
        ("ADHD", 4, EEGMAT[:6], 0.9),
        ("custom", 4, EEGMAT[8:10], 0.9),
    ],
)
def test_classes_are_learnt_across_subjects(tmp_path, layout, window, names, least):
    size = {"subjects": 3, "seconds": 300} if layout == "SEED" else {"subjects": 9, "seconds": SECONDS.get(layout, 60)}
    inputs, _, labels, subjects = windows(tmp_path, simulate(layout, tmp_path, **size), window, names)
    assert across_subjects(inputs, labels, subjects) > least
