"""Makers on real recordings and on damaged ones: what is stored, what is refused and why."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import h5py
import mne
import numpy as np
import pytest
import yaml
from raw_files import EEGMAT, run_maker, table, write_edf, write_workload

from dataset.hdf5 import RATE
from dataset.recordings import RecordingReader, describe_dataset, open_dataset, segments
from dataset_maker import make_h5dataset_for_pretrain, make_SEED, make_Workload
from dataset_maker.machinery.preprocessing import load_recording
from errors import UserError


def test_golden_windows(shared):
    golden = np.load(shared / "golden" / "preprocessing.npz")
    for name in sorted({key.split("/")[1] for key in golden.files}):
        clean = load_recording(shared / "data" / "eegmat" / f"{name}.edf", EEGMAT)
        source = make_Workload.Source(None, name, "s", "train", 0)
        rows = make_Workload.last_minute(source, clean)[0].rows
        for key in (key for key in golden.files if key.split("/")[1] == name):
            start, stop, _ = rows[int(key.split("/")[2])]
            np.testing.assert_allclose(clean.eeg[:, start:stop], golden[key], rtol=0, atol=1e-3)


@pytest.mark.e2e
def test_workload_on_the_real_recordings(shared, tmp_path):
    out = tmp_path / "Workload"
    run_maker(make_Workload, "--raw_dir", shared / "data" / "eegmat", "--out_dir", out, "--workers", 2)
    sizes = {split: open_dataset(out, split) for split in ("train", "val", "test")}
    assert {split: len(recordings) for split, recordings in sizes.items()} == {"train": 52, "val": 10, "test": 10}
    assert sum(recording.windows for recordings in sizes.values() for recording in recordings) == 2088
    golden = np.load(shared / "golden" / "preprocessing.npz")
    recordings = {recording.name: recording for recording in sizes["train"] + sizes["test"]}
    for key in golden.files:
        recording, window = recordings[key.split("/")[1]], int(key.split("/")[2])
        start, stop, label = segments(recording)[window]
        assert label == int(recording.name[-1]) - 1
        np.testing.assert_allclose(RecordingReader().read(recording, start, stop), golden[key], rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_workload(tmp_path_factory.mktemp("raw"))


def test_what_is_stored(raw, tmp_path):
    run_maker(make_Workload, "--raw_dir", raw, "--out_dir", tmp_path / "W", "--dtype", "float16", "--workers", 1)
    assert describe_dataset(tmp_path / "W")["labels"] == ["rest", "arithmetic"]
    (recording, _) = open_dataset(tmp_path / "W", "val")
    assert (recording.name, recording.subject, recording.channels) == ("Subject26_1", "Subject26", EEGMAT)
    row = next(row for row in table(tmp_path / "W" / "manifest.csv") if row["recording"] == "Subject26_1")
    assert (row["seconds"], row["windows"], row["windows_per_label"]) == ("62.0", "29", "29 0")
    assert row["sha256"] == hashlib.sha256(recording.path.read_bytes()).hexdigest()
    with h5py.File(recording.path) as file:
        eeg = file["Subject26_1"]["eeg"]
        assert (eeg.dtype, eeg.shape, eeg.chunks) == (np.float16, (19, 12400), (19, 2000))
        about = {key: eeg.attrs[key] for key in ("rsFreq", "lFreq", "hFreq", "notch", "unit", "source", "subject")}
        assert [name.decode() for name in eeg.attrs["chOrder"]] == list(EEGMAT)
    assert list(about.values()) == [200, 0.1, 75.0, 50.0, b"uV", b"Subject26_1.edf", b"Subject26"]
    clean = load_recording(raw / "Subject26_1.edf")
    np.testing.assert_allclose(RecordingReader().read(recording, 0, 12400), clean.eeg, rtol=1e-3, atol=1e-4)


def damage(kind, path):
    def nothing(data):
        data[2] = 7.0

    if kind == "truncated":
        write_edf(path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "flat":
        write_edf(path, change=nothing)
    elif kind == "volts":
        write_edf(path, scale=20e-6)
    elif kind == "counts":
        write_edf(path, scale=200_000.0)
    elif kind == "short":
        write_edf(path, seconds=40)
    elif kind == "channels":
        write_edf(path, channels=EEGMAT[:-1])
    elif kind == "twice":
        write_edf(path, channels=(*EEGMAT, "fp1-LE"))
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(20_000))
    elif kind == "empty":
        path.touch()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "truncated: its header promises 62 data records, 61"),
        ("flat", "flat: F3 never changes"),
        ("volts", r"seems to be in V \(factor 1e\+06 suspected"),
        ("counts", "raw counts .factor 1e-03 suspected"),
        ("short", "too short: 40.0 s, at least 60 s"),
        ("channels", "without PZ"),
        ("twice", "two of its channels are FP1"),
        ("noise", "header is damaged"),
        ("empty", "header is damaged"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason_and_the_run_goes_on(raw, tmp_path, capsys, kind, reason):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "Subject03_1.edf").symlink_to(raw / "Subject03_1.edf")
    damage(kind, folder / "Subject03_2.edf")
    run_maker(make_Workload, "--raw_dir", folder, "--out_dir", tmp_path / "W", "--workers", 1, status=3)
    good, bad = table(tmp_path / "W" / "report.csv")
    assert (good["file"], good["status"], good["recordings"]) == ("Subject03_1.edf", "used", "Subject03_1")
    assert (bad["file"], bad["status"], bad["recordings"]) == ("Subject03_2.edf", "refused", "")
    assert re.search(reason, bad["notes"]), bad["notes"]
    assert capsys.readouterr().out.rstrip().endswith("1 files used, 1 refused")


def test_nan_in_a_format_that_can_hold_it(tmp_path):
    data = 1e-5 * np.random.default_rng(0).standard_normal((2, 4000))
    data[1, 7] = np.nan
    path = tmp_path / "x_raw.fif"
    mne.io.RawArray(data, mne.create_info(["Cz", "Pz"], 200, "eeg"), verbose="ERROR").save(path, verbose="ERROR")
    with pytest.raises(UserError, match=r"x_raw\.fif: NaN or infinite values in PZ"):
        load_recording(path)


def test_any_folder_for_pretraining(shared, tmp_path):
    folder = tmp_path / "raw.v1"
    (folder / "s1").mkdir(parents=True)
    for number, file in enumerate(("formats/test.vhdr", "formats/test.bdf", "eegmmidb/S001R03.edf"), start=1):
        (folder / f"s{number}").mkdir(exist_ok=True)
        for part in (shared / "data" / file).parent.glob(Path(file).stem + ".*"):
            if part.suffix != ".edf" or file.endswith("edf"):
                (folder / f"s{number}" / part.name).symlink_to(part)
    (folder / "s1" / "test.bdf").unlink()
    (folder / "s2" / "test.vhdr").unlink()
    out = tmp_path / "Mixed"
    run_maker(make_h5dataset_for_pretrain, "--raw_dir", folder, "--out_dir", out, "--val_fraction", 0.3, "--workers", 1)
    recordings = open_dataset(out, "train") + open_dataset(out, "val")
    found = {r.name: (r.subject, len(r.channels), r.samples) for r in recordings}
    assert found == {"S001R03": ("s3", 64, 25000), "s1_test.vhdr": ("s1", 26, 1580), "s2_test.bdf": ("s2", 66, 200)}
    assert len(open_dataset(out, "val")) == 1
    assert yaml.safe_load((out / "dataset.yaml").read_text())["labels"] is None
    assert segments(recordings[0]).shape == (0, 3)


def test_windows_of_seed_end_with_their_clips():
    """853 a recording; the official code counts a second more for each clip, and so two more windows of training."""
    clean = SimpleNamespace(eeg=np.broadcast_to(np.float32(0), (62, 4000 * RATE)))
    pieces = make_SEED.clips(SimpleNamespace(name="1_1"), clean)
    assert [len(piece.rows) for piece in pieces] == [505, 177, 171]
    windows = [(piece.start + start, piece.start + stop) for piece in pieces for start, stop, _ in piece.rows]
    clips = [(start * RATE, stop * RATE) for start, stop in zip(make_SEED.STARTS, make_SEED.STOPS, strict=True)]
    assert all(any(first <= start and stop <= last for first, last in clips) for start, stop in windows)
