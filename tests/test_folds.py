"""Folds: every subject is tested once, nobody is on both sides, and pre-training reads nobody who is tested."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import stages
import yaml
from conftest import ROOT
from refusals import write_untrained
from test_labram_scripts import CLASSIFIER, CPU
from test_manifest_truth import write_manifest
from toy_eeg import write_toy

import run_class_finetuning
from dataset.protocol import Protocol, assign_folds, held_out
from dataset.recordings import read_manifest
from dataset.windows import pretraining_windows
from errors import UserError
from model.weights import read_checkpoint

SPLITS = ("train", "val", "test")
NINE = (("train", 5), ("val", 2), ("test", 2))


@pytest.fixture
def toy(tmp_path):
    """Nine subjects of two recordings each, over all splits of the manifest."""
    folder = write_toy(tmp_path / "Toy", seconds=8, window=2, splits=(("train", 10), ("val", 4), ("test", 4)))
    write_manifest(folder, lambda row: row.update(subject=f"{row['split']}{int(row['recording'][-1]) // 2}"))
    return folder


def subjects(folder, **protocol):
    protocol = Protocol(**protocol)
    return {split: {recording.subject for recording in protocol.open(folder, split)} for split in SPLITS}


def test_every_subject_is_tested_once_and_is_on_one_side(toy):
    everybody = {recording.subject for recording in read_manifest(toy)}
    found = [subjects(toy, folds=4, fold=fold) for fold in range(4)]
    for fold, split in enumerate(found):
        assert set().union(*split.values()) == everybody and sum(map(len, split.values())) == len(everybody) == 9
        assert split["val"] == found[(fold + 1) % 4]["test"]
        read = [recording.name for name in SPLITS for recording in Protocol(4, fold).open(toy, name)]
        assert sorted(read) == sorted(recording.name for recording in read_manifest(toy))
    assert sorted(subject for split in found for subject in split["test"]) == sorted(everybody)
    assert subjects(toy, folds=4, fold=0, fold_seed=1) != found[0]


def test_folds_are_equal_on_every_machine(toy):
    assert sorted(subjects(toy, folds=4, fold=0)["test"]) == ["test0", "train0", "train3"]  # as everywhere
    code = f"from dataset.protocol import Protocol; print([r.name for r in Protocol(4, 2).open({str(toy)!r}, 'test')])"
    said = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        said.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)
    assert len(said) == 1 and said.pop().startswith(b"[")


def test_labels_are_spread_over_the_folds(tmp_path):
    """Seven of 21 children have the rare label, one in each fold."""
    folder = write_toy(tmp_path / "Toy", seconds=4, window=2, splits=(("train", 21),))
    rare = {f"train{i}" for i in range(0, 21, 3)}
    write_manifest(folder, lambda row: row.update(windows_per_label="0 2" if row["recording"] in rare else "2 0"))
    for seed in range(3):
        fold_of = assign_folds(read_manifest(folder), 7, seed, folder)
        assert sorted(fold_of[f"s{name}"] for name in rare) == list(range(7))
        assert set(Counter(fold_of.values()).values()) == {3}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"folds": 4}, "--folds K and --fold k belong together"),
        ({"fold": 4}, "--folds K and --fold k belong together"),
        ({"folds": 2, "fold": 0}, "--folds 2: at least 3 are needed"),
        ({"folds": 4, "fold": 4}, "--fold 4: 4 folds are numbered 0 to 3"),
        ({"folds": 4, "fold": -1}, "--fold -1: 4 folds are numbered 0 to 3"),
        ({"folds": 10, "fold": 0}, "--folds 10: .*Toy has 9 subjects"),
    ],
)
def test_folds_that_cannot_be(toy, flags, said):
    with pytest.raises(UserError, match=said):
        Protocol(**flags).open(toy, "test")


def test_a_split_without_a_label_and_subjects_without_a_name_are_refused(tmp_path):
    folder = write_toy(tmp_path / "Toy", seconds=4, window=2, splits=(("train", 6),))
    write_manifest(folder, lambda row: row["recording"] != "train0" and row.update(windows_per_label="2 0"))
    with pytest.raises(UserError, match=r"--folds 3 --fold 1 --fold_seed 0 no \w+ window is fast: take fewer folds"):
        Protocol(3, 1).open(folder, "train")
    write_manifest(folder, lambda row: row.update(subject=" "))
    with pytest.raises(UserError, match=r"recording train0 has no subject in manifest\.csv"):
        Protocol(3, 0).open(folder, "train")
    (folder / "manifest.csv").unlink()
    with pytest.raises(UserError, match=r"has no manifest\.csv, which says whose"):
        Protocol(3, 0).open(folder, "train")


def finetune(toy, out_dir, *more):
    argv = ["--dataset_dir", toy.parent, "--dataset", toy.name, "--output_dir", out_dir, "--max_steps", 1]
    argv += ["--batch_size", 4, *CPU, *CLASSIFIER, *more]
    run_class_finetuning.main(run_class_finetuning.get_args([*map(str, argv)]))
    (path,) = out_dir.rglob("results.json")
    return json.loads(path.read_text())


def test_a_fold_is_kept_and_another_one_is_no_way_to_go_on(toy, tmp_path):
    (toy / "dataset.yaml").write_text(yaml.safe_dump({"name": "SEED", "labels": ["slow", "fast"], "rate": 200}))
    fold = ["--folds", 4, "--fold", 2, "--fold_seed", 5]
    written = finetune(toy, tmp_path / "out", *fold)
    expected = {"folds": 4, "fold": 2, "fold_seed": 5}
    assert {name: written["about"][name] for name in expected} == expected and written["about"]["leaks"] == []
    assert written["results"][0]["subjects"] == len(subjects(toy, **expected)["test"])
    kept = read_checkpoint(tmp_path / "out" / "checkpoint.pth")
    assert {name: kept["config"][name] for name in expected} == expected == {name: kept[name] for name in expected}
    with pytest.raises(UserError, match=r"--fold is 1, was 2.*--allow_changed fold"):
        finetune(toy, tmp_path / "out", "--folds", 4, "--fold", 1, "--fold_seed", 5)
    best = ["--eval", "--finetune", tmp_path / "out" / "checkpoint-best.pth"]
    with pytest.raises(UserError, match="subjects are on both sides"):  # also of SEED, whose clips are published so
        finetune(toy, tmp_path / "again", *best, "--folds", 4, "--fold", 0, "--fold_seed", 5)
    assert finetune(toy, tmp_path / "again", *best, *fold)["about"]["fold"] == 2


def test_pretraining_reads_nobody_who_is_tested(toy):
    own = write_toy(toy.parent / "same", seconds=8, splits=(("train", 3), ("val", 2)))
    fold = subjects(toy, folds=4, fold=1)
    out = fold["test"] | fold["val"]
    planted = sorted(out)[0]
    write_manifest(own, lambda row: row["recording"] == "train1" and row.update(subject=planted))
    held = held_out([[str(toy), "4", "1"]])
    for split in ("train", "val"):
        read = {recording.subject for recording in pretraining_windows([toy, own], split, 32, held).recordings}
        assert read and not read & out
    everybody = {recording.subject for recording in pretraining_windows([toy, own], "train", 32).recordings}
    assert planted in everybody
    about = {"name": "same", "labels": None, "rate": 200, "corpus": "mine"}
    (own / "dataset.yaml").write_text(yaml.safe_dump(about))
    about |= {"name": "Toy", "labels": ["slow", "fast"], "corpus": "theirs"}
    (toy / "dataset.yaml").write_text(yaml.safe_dump(about))
    held = held_out([[str(toy), "4", "1"]])  # of two corpora: other people
    assert planted in {recording.subject for recording in pretraining_windows([own], "train", 32, held).recordings}


@pytest.mark.parametrize("words", [["D"], ["D", "4"], ["D", "4", "x"], ["D", "4", "1", "0", "9"]])
def test_a_fold_that_nobody_understands(words):
    with pytest.raises(UserError, match=f"--exclude_fold {' '.join(words)}: give DATASET_DIR K k"):
        held_out([words])


def test_a_planted_leak_is_found(tmp_path):
    """A tokenizer that has seen the fold's test subjects is refused; one that has left them out is not."""
    corpus = write_untrained(tmp_path)
    shutil.rmtree(corpus / "data" / "Toy")
    toy = write_toy(corpus / "data" / "Toy", seconds=8, window=2, splits=NINE)
    fold = ["--folds", 4, "--fold", 1, "--max_steps", 1, "--init_from", "scratch"]
    seen = ["--datasets", "Toy", "--max_steps", 1, "--init_from", "scratch", "--gradient_accumulation_steps", 1]
    for name, more in (("seen", []), ("unseen", ["--exclude_fold", toy, 4, 1])):
        stages.train("vq", corpus, tmp_path / name, *seen, *more)
    with pytest.raises(UserError, match=r"strain\d: in training of Toy and in (test|val) of Toy"):
        stages.train("instruction", corpus, tmp_path / "seen", *fold)
    folder = stages.train("instruction", corpus, tmp_path / "unseen", *fold)
    about = json.loads((folder / "results.json").read_text())["about"]
    assert about["leaks"] == about["not_compared"] == [] and about["fold"] == 1
