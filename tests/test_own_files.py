"""Own files that lie, or say it otherwise: units, labels in a file of their own, other names of channels."""

import datetime

import mne
import numpy as np
import pytest
from edfio import Edf, EdfAnnotation, EdfSignal
from raw_files import run_maker, table, write_edf
from test_predict import made  # noqa: F401 - a fixture

from dataset.recordings import RecordingReader, open_dataset, segments
from dataset_maker import make_custom, make_h5dataset_for_pretrain
from dataset_maker.machinery.arrays import _unit
from dataset_maker.machinery.edf import part_annotations
from dataset_maker.machinery.preprocessing import load_recording
from errors import UserError
from evaluation.inference import load
from evaluation.reading import read_eeg

NIGHT = [("Sleep stage W", 0, 30), ("Sleep stage 2", 30, 60), ("Sleep stage ?", 90, 30)]


def write_night(folder, name, hypnogram=None, stages=NIGHT, starttime=None):
    """A recording of two minutes and, named as Sleep-EDF does, an EDF+ of annotations only."""
    folder.mkdir(parents=True, exist_ok=True)
    time = starttime or datetime.time(16, 13)
    eeg = 20 * np.random.default_rng(len(name)).standard_normal((2, 120 * 100)).clip(-4, 4)
    signals = [
        EdfSignal(row, 100, label=label, physical_dimension="uV", physical_range=(-100, 100))
        for row, label in zip(eeg, ("EEG C3", "EEG C4"), strict=True)
    ]
    Edf(signals, starttime=time).write(folder / f"{name}0-PSG.edf")
    marks = [EdfAnnotation(onset, length, text) for text, onset, length in stages]
    Edf([], starttime=time, annotations=marks).write(folder / (hypnogram or f"{name}C-Hypnogram.edf"))


def make(maker, raw, out, *more, status=0):
    run_maker(maker, "--raw_dir", raw, "--out_dir", out, "--workers", 1, "--notch", 0, *more, status=status)


STAGES = ("--from_annotations", "--window", 30, "--classes", "Sleep stage W=W", "Sleep stage 2=N2")


def test_a_hypnogram_gives_the_labels_of_its_night(tmp_path):
    for number in range(1, 4):
        write_night(tmp_path / "raw" / f"p{number}", f"SC400{number}E")
    make(make_custom, tmp_path / "raw", tmp_path / "out", *STAGES)
    for split in ("train", "val", "test"):
        (recording,) = open_dataset(tmp_path / "out", split)
        assert segments(recording).tolist() == [[0, 6000, 0], [6000, 12000, 1], [12000, 18000, 1]]
    reasons = {row["file"]: (row["status"], row["notes"]) for row in table(tmp_path / "out" / "report.csv")}
    left_out = ("excluded", "holds annotations only, labels of SC4001E0-PSG.edf")
    assert reasons["p1/SC4001EC-Hypnogram.edf"] == left_out and len(reasons) == 6
    make(make_h5dataset_for_pretrain, tmp_path / "raw", tmp_path / "free", "--val_fraction", 0.3)
    assert {row["status"] for row in table(tmp_path / "free" / "report.csv")} == {"used", "excluded"}
    argv = ("--from_annotations", "--window", 30)
    with pytest.raises(UserError, match=r"SC4001E0-PSG.edf has \['Sleep stage 2', 'Sleep stage \?', 'Sleep stage W'\]"):
        make(make_custom, tmp_path / "raw", tmp_path / "named", *argv)


def test_labels_of_another_night_are_not_taken(tmp_path):
    write_night(tmp_path, "SC4001E")
    write_night(tmp_path, "SC4002E", starttime=datetime.time(22, 0))
    (tmp_path / "SC4002E0-PSG.edf").unlink()
    recordings, marks = part_annotations(sorted(tmp_path.glob("*.edf")))
    assert [path.name for path in recordings] == ["SC4001E0-PSG.edf"]
    known = {path.name: (recording and recording.name, said) for path, (recording, said) in marks.items()}
    assert known["SC4001EC-Hypnogram.edf"][0] == "SC4001E0-PSG.edf"
    assert known["SC4002EC-Hypnogram.edf"] == (
        None, "holds annotations only, and no recording beside it is called alike and begins then",
    )  # fmt: skip
    with pytest.raises(UserError, match="annotations and no signal: labels of a recording"):
        load_recording(tmp_path / "SC4001EC-Hypnogram.edf")
    write_night(tmp_path, "SC4001E", hypnogram="SC4001ED-Hypnogram.edf")
    with pytest.raises(UserError, match="no file of .* was usable"):
        make(make_custom, tmp_path, tmp_path / "out", *STAGES, "--val_fraction", 0, "--test_fraction", 0)
    (row,) = [row for row in table(tmp_path / "out" / "report.csv") if row["status"] == "refused"]
    assert "two files of annotations are its labels" in row["notes"]


@pytest.mark.parametrize(
    "header, factor, unit",
    [("uV", 1e-3, "mV"), ("V", 1, "uV"), ("uV", 1e-6, "V"), ("uV", 40, "raw:0.025"), ("", 1, "uV")],
)
def test_a_unit_given_outranks_the_header(tmp_path, header, factor, unit):
    eeg = 20 * np.random.default_rng(0).standard_normal((1, 6000)).clip(-4, 4)
    for name, kind, scale in (("lies", header, factor), ("true", "uV", 1)):
        limits = {"physical_dimension": kind, "physical_range": (-100 * scale, 100 * scale)}
        Edf([EdfSignal(scale * eeg[0], 200, label="EEG C3", **limits)]).write(tmp_path / f"{name}.edf")
    if factor < 1 or header != "uV":
        with pytest.raises(UserError, match="or say it where there is a --unit"):
            load_recording(tmp_path / "lies.edf")
    ours = load_recording(tmp_path / "lies.edf", unit=_unit(unit))
    np.testing.assert_allclose(ours.eeg, load_recording(tmp_path / "true.edf").eeg, atol=0.02)
    np.testing.assert_array_equal(read_eeg(str(tmp_path / "lies.edf"), unit=unit).eeg, ours.eeg)
    assert any("numbers taken as" in note and "uV each, its header has" in note for note in ours.notes)


def test_makers_take_the_unit(tmp_path, shared):
    gdf = shared / "data" / "formats_odd" / "ssvep_exo_subject.gdf"  # MNE reads it 1000 times too small
    (tmp_path / "raw" / "s1").mkdir(parents=True)
    (tmp_path / "raw" / "s1" / "x.gdf").symlink_to(gdf)
    argv = ("--val_fraction", 0)
    make(make_h5dataset_for_pretrain, tmp_path / "raw", tmp_path / "out", *argv, "--unit", "mV")
    (recording,) = open_dataset(tmp_path / "out", "train")
    assert 1 < np.median(np.abs(RecordingReader().read(recording, 0, 4000))) < 100


def test_old_and_new_names_of_a_place_are_matched(tmp_path, made):  # noqa: F811
    write_edf(tmp_path / "old.edf", 40, channels=("T3", "C3", "T6"))
    clean = load_recording(tmp_path / "old.edf", ("T7", "C3", "P8"))
    assert clean.channels == ("T7", "C3", "P8") and "T7 is its EEG T3, another name of the place" in clean.notes
    with pytest.raises(UserError, match="without T7"):
        load_recording(tmp_path / "old.edf", ("T3", "T7"))
    raw = mne.io.read_raw(made / "raw" / "Subject00_2.edf", preload=True, verbose="ERROR").pick("eeg")
    new = raw.copy().rename_channels({"EEG T3": "T7", "EEG T4": "T8", "EEG T5": "P7", "EEG T6": "P8"})
    model = load(made / "model.pt", device="cpu")
    with pytest.warns(UserWarning, match="T3 is its T7, another name of the place; "):
        features = model.features(new)
    np.testing.assert_array_equal(features, model.features(raw))  # the model's own rows, which it has learnt


def test_names_without_a_place_lead_to_aliases(tmp_path):
    write_edf(tmp_path / "numbers.edf", 10, channels=("001", "002"))
    with pytest.raises(UserError, match="its channels: EEG 001, EEG 002; .*--aliases, a line each: 'EEG 001': FP1"):
        load_recording(tmp_path / "numbers.edf")
