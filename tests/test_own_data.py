"""Own recordings: annotations of real files, label tables with mistakes, splits and classes as the user gives them."""

import csv

import mne
import pytest
from raw_files import run_maker

from dataset.recordings import describe_dataset, open_dataset, segments
from dataset_maker import make_custom
from dataset_maker.simulate import simulate
from errors import UserError

SPLITS = ("train", "val", "test")


def test_own_annotations(shared, tmp_path):
    raw = shared / "data" / "eegmmidb"
    argv = ("--raw_dir", raw, "--out_dir", tmp_path / "mm", "--from_annotations", "--window", 4)
    with pytest.raises(UserError, match=r"needs --classes; S001R03.edf has \['T0', 'T1', 'T2'\]"):
        run_maker(make_custom, *argv)
    more = ("--classes", "T1=left", "T2=right", "--subject", "S001R..", "--notch", 60, "--workers", 1)
    run_maker(make_custom, *argv, *more)
    assert describe_dataset(tmp_path / "mm")["labels"] == ["left", "right"]
    (recording,) = open_dataset(tmp_path / "mm", "val")
    marks = mne.read_annotations(raw / f"{recording.name}.edf")
    expected = [
        [round(onset * 200), int(text) - 1]
        for onset, text in zip(marks.onset, (text[1] for text in marks.description), strict=True)
        if text != "0"
    ]
    assert segments(recording)[:, [0, 2]].tolist() == expected


@pytest.mark.parametrize(
    ("table_text", "reason"),
    [
        ("file,class\na.edf,x\n", "has no column label"),
        ("file,label\n../a.edf,x\n", "row 1: '../a.edf' is no recording below"),
        ("file,label\n/etc/a.edf,x\n", "row 1: '/etc/a.edf' is no recording below"),
        ("file,label,start\na.edf,x,soon\n", "row 1: start 'soon' is no time"),
        ("file,label,split\na.edf,x,tests\n", "row 1: .*split not train, val, test"),
        ("file,label,start,stop\na.edf,x,5,3\n", "row 1: stop before start"),
        ("file,label,subject\na.edf,x,s1\na.edf,y,s2\n", "row 2: a.edf has another subject"),
        ("file,label\na.edf,x\n", r"labels \['x'\]: at least two"),
        ("file,label,split\na.edf,x,train\nb.edf,y,\n", "some files have a split and others have none"),
    ],
)
def test_mistakes_in_a_label_table_are_named(tmp_path, table_text, reason):
    (tmp_path / "a.edf").touch()
    (tmp_path / "labels.csv").write_text(table_text)
    argv = ("--raw_dir", tmp_path, "--out_dir", tmp_path / "out", "--window", 4, "--labels", tmp_path / "labels.csv")
    with pytest.raises(UserError, match=reason):
        run_maker(make_custom, *argv)


def test_a_split_column_and_several_texts_for_a_class(tmp_path):
    truth = simulate("custom", tmp_path / "raw", subjects=3, seconds=20)
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "start", "stop", "label", "split"))
        for number, recording in enumerate(truth):
            writer.writerow((recording["file"], "", "", "ab"[number % 2], SPLITS[number // 2]))
            writer.writerow((recording["file"], 3, 3, "mark", SPLITS[number // 2]))
    argv = ("--raw_dir", tmp_path / "raw", "--labels", tmp_path / "labels.csv", "--window", 5, "--workers", 1)
    run_maker(make_custom, *argv, "--out_dir", tmp_path / "out", "--classes", "a=one", "mark=two", "b=one")
    assert describe_dataset(tmp_path / "out")["labels"] == ["one", "two"]
    for split, subject in zip(SPLITS, ("anna01", "anna02", "anna03"), strict=True):
        first, second = open_dataset(tmp_path / "out", split)
        assert first.subject == second.subject == subject
        for recording in (first, second):
            rows = sorted(segments(recording).tolist())
            assert rows == [[0, 1000, 0], [600, 1600, 1], [1000, 2000, 0], [2000, 3000, 0], [3000, 4000, 0]]
