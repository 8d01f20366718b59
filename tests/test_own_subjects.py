"""Whose recording is it? One rule for own data, said and held: nobody is on two sides of a split unless it is asked."""

import json

import h5py
import pytest
import yaml
from raw_files import run_maker, table, write_edf
from toy_eeg import write_toy

import baselines
import run_class_finetuning
import train_instruction
from dataset.recordings import describe_dataset
from dataset_maker import check_dataset, make_custom, make_h5dataset_for_pretrain
from dataset_maker.machinery.splits import find_subject, unit_of
from errors import UserError

PLACES = {
    "P00/rec.edf": "P00",
    "patients/P00/rec.edf": "P00",
    "P00/session_2/run1/rec.edf": "P00",
    "patients/P00/eeg/rec.edf": "P00",
    "P00/v1.0/rec.edf": "P00",
    "dayana/rec.edf": "dayana",
    "sub-07/ses-1/eeg/sub-07_ses-1_task-x_eeg.edf": "sub-07",
    "flat/sub-07_task-x.edf": "sub-07",
    "run1.edf": "raw",
}


@pytest.mark.parametrize("place", PLACES)
def test_the_subject_is_the_folder_that_holds_the_file(tmp_path, place):
    assert find_subject(tmp_path / "raw" / place, tmp_path / "raw") == PLACES[place]


def write_runs(folder, places, seconds=12):
    """Runs of noise and labels.csv: the first half of each is `rest`, the second `task`."""
    for number, place in enumerate(places):
        write_edf(folder / place, seconds, channels=("C3", "C4"), seed=number)
    halves = [f"0,{seconds // 2},rest", f"{seconds // 2},{seconds},task"]
    rows = [f"{place},{half}" for place in places for half in halves]
    (folder / "labels.csv").write_text("\n".join(["file,start,stop,label", *rows]) + "\n")
    return folder


def make(maker, raw, out, *more, status=0):
    own = ("--labels", raw / "labels.csv", "--window", 2) if maker is make_custom else ()
    run_maker(maker, "--raw_dir", raw, "--out_dir", out, "--workers", 1, *own, *more, status=status)


@pytest.mark.parametrize("maker", [make_custom, make_h5dataset_for_pretrain])
def test_runs_of_one_person_are_not_torn_apart(tmp_path, capsys, maker):
    raw = write_runs(tmp_path / "anna", [f"run{i}.edf" for i in range(5)])
    with pytest.raises(UserError, match="1 subjects cannot fill the splits .*--subject REGEX.*--split_by session"):
        make(maker, raw, tmp_path / "out")
    assert "1 subjects (their files): anna (5)" in capsys.readouterr().out
    with pytest.raises(UserError, match="--split_by session finds none in its path"):
        make(maker, raw, tmp_path / "out", "--split_by", "session")


def test_folders_above_a_person_are_no_subjects(tmp_path, capsys):
    raw = write_runs(tmp_path / "raw", [f"patients/P0{i}/rec{j}.edf" for i in range(3) for j in range(2)])
    make(make_custom, raw, tmp_path / "out")
    assert "3 subjects (their files): P00 (2), P01 (2), P02 (2)" in capsys.readouterr().out
    rows = table(tmp_path / "out" / "manifest.csv")
    assert {row["subject"]: row["split"] for row in rows}.keys() == {"P00", "P01", "P02"}
    assert len({(row["subject"], row["split"]) for row in rows}) == 3


def test_a_split_column_may_not_tear_a_person_apart(tmp_path):
    raw = write_runs(tmp_path / "anna", [f"run{i}.edf" for i in range(3)])
    rows = (raw / "labels.csv").read_text().splitlines()
    splits = ("train", "train", "val", "val", "test", "test")
    lines = [f"{rows[0]},split", *(f"{row},{split}" for row, split in zip(rows[1:], splits, strict=True))]
    (raw / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match="subject anna would be in train and val"):
        make(make_custom, raw, tmp_path / "out")
    make(make_custom, raw, tmp_path / "out", "--split_by", "run")
    assert {row["split"] for row in table(tmp_path / "out" / "manifest.csv")} == {"train", "val", "test"}


def test_a_session_stays_whole(tmp_path):
    raw = write_runs(tmp_path / "anna", [f"ses-{i}/run{j}.edf" for i in range(3) for j in range(2)])
    make(make_custom, raw, tmp_path / "out", "--split_by", "session")
    rows = table(tmp_path / "out" / "manifest.csv")
    assert {row["subject"] for row in rows} == {"anna"} and {row["split"] for row in rows} == {"train", "val", "test"}
    assert len({(row["recording"].split("_")[0], row["split"]) for row in rows}) == 3
    assert unit_of("session", "anna", raw / "session_b.edf", raw) == "anna session_b"


def test_a_split_within_a_person_is_said_in_the_results(tmp_path, capsys):
    raw = write_runs(tmp_path / "anna", [f"run{i}.edf" for i in range(5)])
    data = tmp_path / "data"
    make(make_custom, raw, data / "anna", "--split_by", "run")
    assert describe_dataset(data / "anna")["split_by"] == "run"
    check_dataset.main(check_dataset.get_args([str(data / "anna"), "--workers", "1"]))
    assert "remark: anna: in training of anna" in capsys.readouterr().out
    argv = ["--dataset_dir", data, "--dataset", "anna", "--output_dir", tmp_path / "run", "--disable_qkv_bias"]
    argv += ["--model", "labram_tiny_patch200_200", "--batch_size", 4, "--max_steps", 1, "--num_workers", 0]
    run_class_finetuning.main(run_class_finetuning.get_args([*map(str, argv), "--device", "cpu"]))
    said = "anna is split by runs, within subjects: results say nothing about other people"
    about = json.loads((tmp_path / "run" / "results.json").read_text())["about"]
    assert about["within_subjects"] == [said] and said in capsys.readouterr().out


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_of_one_class_is_refused_by_every_trainer(tmp_path, split):
    folder = write_toy(tmp_path / "Toy", seconds=8, window=2, splits=(("train", 2), ("val", 1), ("test", 1)))
    counts = {}
    for path in (folder / split).glob("*.h5"):
        with h5py.File(path, "r+") as file:
            file[path.stem]["segments"][:, 2] = 0
        counts[path.stem] = "4 0"
    rows = [row | {"windows_per_label": counts.get(row["recording"], row["windows_per_label"])}
            for row in table(folder / "manifest.csv")]  # fmt: skip
    text = [",".join(rows[0])] + [",".join(row.values()) for row in rows]
    (folder / "manifest.csv").write_text("\n".join(text) + "\n")
    task = {"name": "Toy", "question": "Which?", "answers": ["slow", "fast"], "dataset": str(folder)}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(task))
    tasks, count = ["--tasks", str(tmp_path / "toy.yaml"), "--out_dir", str(tmp_path)], 8 if split == "train" else 4
    runs = [
        (run_class_finetuning, ["--dataset", str(folder), "--output_dir", str(tmp_path), "--device", "cpu"]),
        (train_instruction, ["--size", "tiny", *tasks, "--device", "cpu"]),
        (baselines, tasks),
    ]
    for script, argv in runs:
        with pytest.raises(UserError, match=f"split '{split}': all {count} windows are of one class"):
            script.main(script.get_args(argv))
