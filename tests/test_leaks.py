"""Subjects that one corpus holds out and another would train on."""

import os

import pytest
from raw_files import run_maker, table

from dataset.leaks import read_roster
from dataset_maker import check_leaks, make_TUAB, prepare_TUH_pretrain
from dataset_maker.machinery import tuh
from dataset_maker.simulate import simulate
from errors import UserError


def test_tuh_pretraining_leaves_out_what_downstream_sets_hold_out(tmp_path, capsys):
    for name in ("TUEG", "TUAB"):
        simulate(name, tmp_path / name, seed=1, subjects=6, seconds=30)
    common = ("--workers", 1)
    run_maker(make_TUAB, "--raw_dir", tmp_path / "TUAB", "--out_dir", tmp_path / "ab", *common)
    argv = ("--raw_dir", tmp_path / "TUEG", *common, "--val_fraction", 0.2)
    run_maker(prepare_TUH_pretrain, *argv, "--out_dir", tmp_path / "leaky")
    run_maker(prepare_TUH_pretrain, *argv, "--out_dir", tmp_path / "clean", "--exclude", tmp_path / "ab")
    held = {row["subject"] for row in table(tmp_path / "ab" / "manifest.csv") if row["split"] != "train"}
    assert held and not held & {row["subject"] for row in table(tmp_path / "clean" / "manifest.csv")}
    notes = {row["notes"] for row in table(tmp_path / "clean" / "report.csv") if row["status"] == "excluded"}
    assert notes == {"its subject is in val of ab", "its subject is in test of ab"}
    check_leaks.main(check_leaks.get_args(["--train", str(tmp_path / "clean"), "--against", str(tmp_path / "ab")]))
    assert capsys.readouterr().out.endswith("no subject leaks\n")
    with pytest.raises(UserError, match=f"{len(held)} subjects leak"):
        check_leaks.main(check_leaks.get_args(["--train", str(tmp_path / "leaky"), "--against", str(tmp_path / "ab")]))


def test_a_subject_on_both_sides_of_the_official_split_is_an_error():
    with pytest.raises(UserError, match="subject b is both in train and in eval"):
        tuh.split_official({"a": {"train"}, "b": {"train", "eval"}}, 0)


def test_a_pipe_in_place_of_a_manifest_is_refused(tmp_path):
    os.mkfifo(tmp_path / "manifest.csv")
    with pytest.raises(UserError, match="manifest.csv is a named pipe"):
        read_roster(tmp_path / "manifest.csv")
