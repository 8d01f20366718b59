"""The open labelled sets on their real recordings: windows, labels, what is left out and said, the split."""

from collections import Counter

import mne
import numpy as np
import pytest
from raw_files import run_maker, table

from dataset.recordings import RecordingReader, describe_dataset, open_dataset, segments
from dataset.tasks import TASKS, find_tasks
from dataset_maker import make_ADHD, make_MotorImagery
from dataset_maker.machinery.preprocessing import PLAUSIBLE
from dataset_maker.simulate import simulate
from errors import UserError

SPLITS = ("train", "val", "test")


@pytest.fixture
def link(shared, tmp_path):
    """A raw folder of links to some files of a shared set."""

    def make(name, pattern):
        raw = tmp_path / "raw" / name
        raw.mkdir(parents=True)
        for path in (shared / "data" / name).glob(pattern):
            (raw / path.name).symlink_to(path)
        return raw

    return make


def everything(out):
    return [recording for split in SPLITS for recording in open_dataset(out, split)]


def test_motor_imagery(link, tmp_path):
    raw, out = link("motor_imagery", "S00[5-9]R0?.edf"), tmp_path / "MotorImagery"
    (raw / "S088R04.edf").symlink_to(raw / "S005R04.edf")
    (raw / "S005R03.edf").symlink_to(raw / "S005R04.edf")
    run_maker(make_MotorImagery, "--raw_dir", raw, "--out_dir", out, "--workers", 1)
    about = describe_dataset(out)
    assert (about["labels"], about["notch"]) == (["left", "right"], 60.0)
    assert find_tasks(tmp_path, ["MotorImagery"]) == {TASKS["MotorImagery"]: out}
    report = {row["file"]: row for row in table(out / "report.csv")}
    assert [row["status"] for row in report.values()].count("used") == 10
    assert "subject S088 was recorded at another rate" in report["S088R04.edf"]["notes"]
    assert "run 03 is not of imagined" in report["S005R03.edf"]["notes"]
    for recording in everything(out):
        assert len(recording.channels) == 64 and {"FC5", "T10", "IZ"} <= set(recording.channels)
        marks = mne.read_annotations(raw / f"{recording.name}.edf")
        cues = [(onset, text) for onset, text in zip(marks.onset, marks.description, strict=True) if text != "T0"]
        expected = [[round(onset * 200), round(onset * 200) + 800, int(text[1]) - 1] for onset, text in cues]
        assert segments(recording).tolist() == expected and len(expected) == 15
    assert [len({r.subject for r in open_dataset(out, split)}) for split in SPLITS] == [3, 1, 1]


def test_adhd(link, tmp_path):
    raw, out = link("adhd", "?1*.csv.gz"), tmp_path / "ADHD"
    run_maker(make_ADHD, "--raw_dir", raw, "--out_dir", out, "--workers", 1)
    assert describe_dataset(out)["labels"] == ["control", "ADHD"]
    assert find_tasks(tmp_path, ["ADHD"]) == {TASKS["ADHD"]: out}
    labels = {split: Counter(r.name[0] for r in open_dataset(out, split)) for split in SPLITS}
    assert all(counts["A"] and counts["C"] for counts in labels.values())
    for row in table(out / "report.csv"):
        assert row["status"] == "used" and "raw numbers, taken as 0.167 uV each" in row["notes"]
        assert "upper edge moved to 63.36 Hz" in row["notes"]
    medians = []
    for recording in everything(out):
        start, stop, label = segments(recording).T
        assert set(label) == {int(recording.name[0] == "A")} and set(stop - start) == {800}
        assert len(start) == min(20, recording.samples // 800)
        assert (start[0], stop[-1]) == (0, recording.samples)
        assert np.diff(start).min() >= 800 and np.ptp(np.diff(start)) <= 1
        eeg = RecordingReader().read(recording, 0, recording.samples)
        assert abs(np.median(eeg)) < 2  # its direct current was 140 raw numbers, 23 uV
        medians.append(np.median(np.abs(eeg)))
    assert 10 < np.median(medians) < 20 and PLAUSIBLE[0] < min(medians)


@pytest.mark.parametrize(
    ("maker", "name", "reason"),
    [
        (make_MotorImagery, "S001R04_clean.edf", "S001R04_clean.edf is not called S001R04"),
        (make_MotorImagery, "S092R04.edf", "holds no usable run; expected S001R04"),
        (make_ADHD, "subjects.csv", "subjects.csv is not called A1.csv.gz"),
        (make_ADHD, "A1.csv.gz", "1 subjects cannot fill the splits val, test, train"),
    ],
)
def test_other_files_are_named(tmp_path, maker, name, reason):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=reason):
        run_maker(maker, "--raw_dir", tmp_path, "--out_dir", tmp_path / "out")


def test_the_split_depends_on_the_seed_and_the_names_alone(tmp_path):
    simulate("ADHD", tmp_path / "raw", subjects=10, seconds=10)
    held = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        argv = ("--raw_dir", tmp_path / "raw", "--out_dir", tmp_path / out, "--seed", seed, "--workers", 1)
        run_maker(make_ADHD, *argv)
        held.append({row["recording"]: row["split"] for row in table(tmp_path / out / "manifest.csv")})
    assert held[0] == held[1] != held[2]
    assert Counter(held[0].values()) == {"train": 6, "val": 2, "test": 2}
