"""One bad file stops only itself: in a maker it is its line in report.csv, elsewhere one line of error."""

import os

import numpy as np
import pytest
from edfio import Edf, EdfAnnotation, EdfSignal
from raw_files import EEGMAT, run_maker, table, write_edf, write_workload

from dataset_maker import make_custom, make_TUSL, make_Workload
from dataset_maker.machinery import preprocessing
from dataset_maker.machinery.preprocessing import load_recording
from errors import UserError

NAMES = ("FP1", "FP2", "CZ", "PZ")
FIXED = {"records": (236, 8), "seconds": (244, 8), "signals": (252, 4), "start": (184, 8)}
OF_EACH = {"physical_min": 104, "physical_max": 112, "digital_min": 120, "digital_max": 128, "samples": 216}
NASTY = ("NaN", "inf", "1e308", "1e6", "-1", "", "é", "99999999", "1e-9")


def with_field(content: bytes, name, value) -> bytes:
    """An EDF file whose field (of its first signal) says `value`."""
    signals = int(content[252:256])
    place, width = FIXED.get(name) or (256 + OF_EACH[name] * signals, 8)
    return content[:place] + value.encode("latin1")[:width].ljust(width) + content[place + width :]


@pytest.fixture(scope="module")
def edf(tmp_path_factory):
    path = tmp_path_factory.mktemp("edf") / "x.edf"
    write_edf(path, seconds=6, channels=NAMES)
    return path.read_bytes()


@pytest.mark.parametrize("field", [*FIXED, *OF_EACH])
def test_fields_of_a_header(tmp_path, edf, field):
    refused = 0
    for value in NASTY:
        (tmp_path / "x.edf").write_bytes(with_field(edf, field, value))
        try:
            assert load_recording(tmp_path / "x.edf").eeg.nbytes < 2**20
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{tmp_path}/x.edf: ") and "\n" not in str(error)
    assert refused >= 5


def test_rates_of_no_amplifier(tmp_path, edf):
    for seconds, words in (("0.000001", "sampled at 2e+08 Hz"), ("999999", "sampled at 0.0002 Hz")):
        (tmp_path / "x.edf").write_bytes(with_field(edf, "seconds", seconds))
        with pytest.raises(UserError, match=f"{words[:18].replace('+', '.')}.*EEG is at 20 to 50000"):
            load_recording(tmp_path / "x.edf")


def test_reading_is_bounded(tmp_path, edf, monkeypatch):
    """Memory beyond what a file of this size needs is an error of this file; afterwards there is no bound."""
    (tmp_path / "x.edf").write_bytes(edf)
    monkeypatch.setattr(preprocessing, "_check_amplitude", lambda eeg: np.ones(2**29))  # 4 GiB
    with pytest.raises(UserError, match=r"x\.edf: cannot be used: MemoryError: Unable to allocate 4\.00 GiB"):
        load_recording(tmp_path / "x.edf")
    assert np.ones(2**29, dtype="i1").all()


def write_stamped(path, kind, stamps, extra=b""):
    """An EDF+ file with records of 1 s that begin at `stamps`."""
    rng = np.random.default_rng(0)
    signals = [
        EdfSignal(rng.normal(0, 20, 200 * len(stamps)), 200, label=f"EEG {name}", physical_dimension="uV",
                  physical_range=(-200, 200)) for name in NAMES
    ]  # fmt: skip
    Edf(signals, annotations=[EdfAnnotation(0, None, "T0")], data_record_duration=1).write(path)
    content = path.read_bytes().replace(b"EDF+C", kind)
    for i in reversed(range(len(stamps))):
        content = content.replace(b"+%d\x14\x14" % i, b"+%d\x14\x14" % stamps[i])
    path.write_bytes(content)


def test_gaps_between_records(tmp_path):
    path = tmp_path / "x.edf"
    for kind in (b"EDF+C", b"EDF+D"):
        write_stamped(path, kind, range(9))
        assert load_recording(path).eeg.shape == (4, 1800)
        for stamps in ([0, 1, 2, 3, 4, 5, 6, 7, 9], [0, 1, 2, 3, 4, 6, 7, 8, 9], [0, 1, 1, 2, 3, 4, 5, 6, 7]):
            write_stamped(path, kind, stamps)
            with pytest.raises(UserError, match=r"x\.edf: discontinuous: its data record \d begins at \d s.*cut it"):
                load_recording(path)
    write_stamped(path, b"EDF+D", range(9))
    path.write_bytes(path.read_bytes().replace(b"+5\x14\x14", b"\0\0\0\0"))
    with pytest.raises(UserError, match="its data record 6 does not say when it begins"):
        load_recording(path)


def test_awkward_real_files(shared):
    odd = shared / "data" / "formats_odd"
    for name, words in (
        ("edfPlusD.edf", "discontinuous: its data record"),
        ("edfPlusC.edf", "without any channel of the table"),
        ("bdfPlusC.bdf", "without any channel of the table"),
        ("ssvep_exo_subject.gdf", "it seems to be in mV"),
    ):
        with pytest.raises(UserError, match=f"{name}: .*{words}"):
            load_recording(odd / name)


def test_every_bad_file_is_its_line(tmp_path, capsys, monkeypatch):
    raw = write_workload(tmp_path / "raw")
    good = (raw / "Subject03_1.edf").read_bytes()
    for number, name in enumerate(("seconds", "records", "physical_max", "digital_min", "samples"), start=10):
        (raw / f"Subject{number}_1.edf").write_bytes(with_field(good, name, ("NaN", "inf", "1e308", "1e6")[number % 4]))
    os.mkfifo(raw / "Subject20_1.edf")
    (raw / "Subject21_1.edf").symlink_to("/dev/zero")
    cut = make_Workload.last_minute

    def stumble(source, clean):
        if source.name == "Subject04_1":
            raise ZeroDivisionError("a bug")
        return cut(source, clean)

    monkeypatch.setattr(make_Workload, "last_minute", stumble)
    run_maker(make_Workload, "--raw_dir", raw, "--out_dir", tmp_path / "W", "--workers", 1, status=3)
    report = {row["file"]: (row["status"], row["notes"]) for row in table(tmp_path / "W" / "report.csv")}
    assert report["Subject04_1.edf"] == ("refused", "ZeroDivisionError: a bug")
    assert "a named pipe" in report["Subject20_1.edf"][1] and "a device" in report["Subject21_1.edf"][1]
    refused = {name for name, (status, _) in report.items() if status == "refused"}
    assert len(report) == 15 and len(refused) == 8 and f"{len(refused)} refused" in capsys.readouterr().out


def test_label_files(tmp_path):
    """Unreadable scorings refuse their recording and nothing else, also those that are read before the first file."""
    raw = tmp_path / "raw"
    for i in range(1, 7):
        write_edf(raw / f"p{i}_s1_t0.edf", seconds=40, channels=make_TUSL.TUH_CHANNELS, seed=i)
        lines = "".join(f"{10 * k} {10 * k + 10} {label} 1\n" for k, label in enumerate(make_TUSL.LABELS))
        (raw / f"p{i}_s1_t0.tse_agg").write_text(lines)
    for i, content in ((7, b"\xff\xfe\0"), (8, b"nan inf bckg 1\n"), (9, b"1e400 2 bckg 1\n"), (10, None)):
        write_edf(raw / f"p{i}_s1_t0.edf", seconds=40, channels=make_TUSL.TUH_CHANNELS, seed=i)
        path = raw / f"p{i}_s1_t0.tse_agg"
        path.write_bytes(content) if content else os.mkfifo(path)
    run_maker(make_TUSL, "--raw_dir", raw, "--out_dir", tmp_path / "T", "--workers", 1, status=3)
    refused = {row["file"][:3] for row in table(tmp_path / "T" / "report.csv") if row["status"] == "refused"}
    assert refused == {"p7_", "p8_", "p9_", "p10"}


def test_bids_events(tmp_path):
    raw = tmp_path / "raw"
    for i in range(5):
        write_edf(raw / f"sub-{i}" / f"sub-{i}_eeg.edf", seconds=20, channels=EEGMAT, seed=i)
        events = "onset\tduration\ttrial_type\n0\t8\tleft\n10\t8\tright\n"
        (raw / f"sub-{i}" / f"sub-{i}_events.tsv").write_text(events.replace("10", "inf" if i == 2 else "10"))
    argv = ("--raw_dir", raw, "--out_dir", tmp_path / "B", "--bids", "--window", 4, "--workers", 1)
    run_maker(make_custom, *argv, "--val_fraction", 0, "--test_fraction", 0, "--subject", r"sub-\d", status=3)
    (row,) = (row for row in table(tmp_path / "B" / "report.csv") if row["status"] == "refused")
    assert row["file"] == "sub-2/sub-2_eeg.edf" and "onset 'inf' is no time" in row["notes"]
