"""The channel table and the spellings that recordings use."""

import json

import numpy as np
import pytest

from dataset.channels import PAD_ROW, STANDARD_1020, canonical_name, channel_rows, load_aliases
from errors import UserError


def test_table_is_the_published_one(shared):
    golden = json.loads((shared / "golden" / "neurolm.json").read_text())
    assert list(STANDARD_1020) == golden["standard_1020"]
    assert STANDARD_1020[PAD_ROW] == "pad"


def test_every_name_finds_its_own_row_in_any_case():
    for row, name in enumerate(STANDARD_1020):
        if row != PAD_ROW:
            assert channel_rows([name, name.lower(), f"EEG {name}-REF"]).tolist() == [row] * 3


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("EEG FP1-REF", "FP1"),
        ("EEG Fp1-LE", "FP1"),
        ("eeg cz", "CZ"),
        ("Fc5.", "FC5"),
        ("C3..", "C3"),
        ("EEG T3-AVG", "T3"),
        ("T7", "T7"),
        ("F3-AR", "F3"),
        ("ftt9H", "FTT9h"),
        ("EEG FP1-F7", "FP1-F7"),
        ("A2-A1", None),
        ("EEG A2-A1", None),
        ("EEG F4-M1", None),
        ("EEG EKG1-REF", None),
        ("ECG ECG", None),
        ("pad", None),
        ("", None),
    ],
)
def test_spellings(written, name):
    assert canonical_name(written) == name


def test_unknown_channels_are_named():
    with pytest.raises(UserError, match="PHOTIC, X9"):
        channel_rows(["FP1", "PHOTIC", "X9"])


def test_rows_cannot_be_changed_by_a_caller():
    rows = channel_rows(("FP1", "O2"))
    assert rows.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 5


def test_aliases(tmp_path):
    path = tmp_path / "aliases.yaml"
    path.write_text("EEG F4-M1: f4\n22: FP1\n")
    aliases = load_aliases(path)
    assert canonical_name("eeg f4-m1", aliases) == "F4"
    assert canonical_name("22", aliases) == canonical_name("EEG 22-REF", aliases) == "FP1"
    assert canonical_name("CZ", aliases) == "CZ"


@pytest.mark.parametrize("text", ["E22: NOSE\n", "- FP1\n", "a: [b\n", ""])
def test_bad_alias_files_are_named(tmp_path, text):
    path = tmp_path / "aliases.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="aliases.yaml"):
        load_aliases(path)


def test_missing_alias_file(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml"):
        load_aliases(tmp_path / "nowhere.yaml")
