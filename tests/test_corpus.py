"""Makers as jobs: shards, second runs, kills, and splits that are the same everywhere."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from raw_files import contents, run_maker, write_workload

from dataset.recordings import open_dataset
from dataset_maker import make_Workload
from dataset_maker.machinery.corpus import Recipe, Source, make, recording_names
from dataset_maker.machinery.splits import split_subjects
from dataset_maker.simulate import simulate
from errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_workload(tmp_path_factory.mktemp("raw"))


def test_shards_in_any_order_equal_one_run(raw, tmp_path, capsys):
    run_maker(make_Workload, "--raw_dir", raw, "--out_dir", tmp_path / "one", "--workers", 2)
    for shard in ("2/3", "0/3", "1/3"):
        run_maker(make_Workload, "--raw_dir", raw, "--out_dir", tmp_path / "many", "--workers", 1, "--shard", shard)
        assert (tmp_path / "many" / "manifest.csv").is_file() == (shard == "1/3")
    one, many = (contents(tmp_path / name, without="progress") for name in ("one", "many"))
    assert one == many
    assert "left to other shards" in capsys.readouterr().out


def test_a_second_run_makes_only_what_is_missing(raw, tmp_path):
    argv = ("--raw_dir", raw, "--out_dir", tmp_path / "W", "--workers", 1)
    run_maker(make_Workload, *argv)
    before = contents(tmp_path / "W")
    lost, kept = (tmp_path / "W" / "train" / f"Subject0{n}_1.h5" for n in (3, 4))
    lost.unlink()
    written = kept.stat().st_mtime_ns
    run_maker(make_Workload, *argv)
    assert contents(tmp_path / "W") == before
    assert kept.stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"notch 50.0 \(now 60.0\)"):
        run_maker(make_Workload, *argv, "--notch", 60)


@pytest.mark.e2e
def test_killed_runs_end_with_the_folder_of_one_clean_run(raw, tmp_path):
    script = [sys.executable, "dataset_maker/make_Workload.py", "--workers", "2", "--raw_dir", raw, "--out_dir"]
    subprocess.run([*script, tmp_path / "clean"], cwd=ROOT, check=True, capture_output=True)
    out, random, pipe = tmp_path / "killed", np.random.default_rng(0), subprocess.PIPE
    for killed in range(3):
        run = subprocess.Popen([*script, out], cwd=ROOT, stdout=pipe, stderr=pipe)
        while len(list(out.rglob("*.h5*"))) <= 2 * killed and run.poll() is None:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
        run.send_signal(signal.SIGKILL)
        run.communicate(timeout=60)  # its pipes close when the last worker is gone
        assert 0 < len(list(out.rglob("*.h5*"))) < 8 and not (out / "manifest.csv").exists()
    subprocess.run([*script, out], cwd=ROOT, check=True, capture_output=True)
    assert contents(out) == contents(tmp_path / "clean")


def test_splits_do_not_depend_on_order_or_hash_seed():
    subjects = [f"s{number}" for number in range(50)]
    expected = split_subjects(subjects, {"val": 0.2, "train": 0.8}, seed=1)
    assert sorted(expected.values()).count("val") == 10
    assert split_subjects(reversed(subjects), {"val": 0.2, "train": 0.8}, seed=1) == expected
    assert split_subjects(subjects, {"val": 0.2, "train": 0.8}, seed=2) != expected
    code = (
        "import json; from dataset_maker.machinery.splits import split_subjects as split;"
        "print(json.dumps(split({f's{n}' for n in range(50)}, {'val': 0.2, 'train': 0.8}, 1)))"
    )
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert json.loads(run.stdout) == expected


def test_every_split_gets_every_label_or_it_is_said():
    labels = {f"s{number}": {"rare"} if number < 4 else {"common"} for number in range(30)}
    parts = split_subjects(labels, {"val": 0.2, "test": 0.2, "train": 0.6}, seed=0, labels=labels)
    for split in ("train", "val", "test"):
        assert set().union(*(labels[s] for s, part in parts.items() if part == split)) == {"rare", "common"}
    with pytest.raises(UserError, match="all hold every label"):
        split_subjects(["a", "b"], {"val": 0.5, "train": 0.5}, 0, labels={"a": {1}, "b": {2}})
    with pytest.raises(UserError, match="train -0.5: each lies between 0 and 1"):
        split_subjects("abc", {"val": 0.5, "test": 1.0, "train": -0.5}, 0)
    with pytest.raises(UserError, match="1 subjects cannot fill"):
        split_subjects(["a"], {"val": 0.5, "train": 0.5}, 0)


def test_a_full_disk_stops_the_run_with_one_line_and_can_be_mended(raw, tmp_path, monkeypatch):
    argv = ("--raw_dir", raw, "--out_dir", tmp_path / "W", "--workers", 1)
    write_bytes, written = Path.write_bytes, []

    def write_some(path, content):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        return write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_some)
        with pytest.raises(UserError, match="W cannot be written: .*No space left"):
            run_maker(make_Workload, *argv)
    with pytest.raises(UserError, match="W is not finished: no manifest.csv"):
        open_dataset(tmp_path / "W", "train")
    run_maker(make_Workload, *argv)
    assert len(open_dataset(tmp_path / "W", "train")) == 4


def test_a_subject_in_two_splits_or_two_files_of_one_name_are_errors(raw, tmp_path):
    args = make_Workload.get_args(["--raw_dir", str(raw), "--out_dir", str(tmp_path / "W")])
    one, two = sorted(raw.glob("*.edf"))[:2]
    recipe = Recipe("W", "by hand")
    with pytest.raises(UserError, match="subject s would be in train and val"):
        make(args, recipe, [Source(one, "a", "s", "train"), Source(two, "b", "s", "val")])
    with pytest.raises(UserError, match="2 raw files would all become recording a"):
        make(args, recipe, [Source(one, "a", "s", "train"), Source(two, "a", "s", "train")])


def test_names_of_recordings_are_unique_and_without_spaces():
    paths = [Path("raw/s1/rest.edf"), Path("raw/s2.x/rest.edf"), Path("raw/s2.x/other one.v2.edf")]
    assert recording_names(paths, Path("raw")) == ["s1_rest.edf", "s2.x_rest.edf", "other_one.v2"]


@pytest.mark.parametrize("shard", ["1", "2/2", "-1/2", "a/b", "0/0"])
def test_shards_that_are_none(shard, capsys):
    with pytest.raises(SystemExit):
        make_Workload.get_args(["--raw_dir", "a", "--out_dir", "b", "--shard", shard])
    assert "--shard" in capsys.readouterr().err


@pytest.mark.e2e
def test_the_same_bytes_with_another_hash_seed_and_number_of_workers(tmp_path):
    simulate("TUSL", tmp_path / "raw", subjects=6, seconds=50)
    for number in ("1", "2"):
        command = [sys.executable, "dataset_maker/make_TUSL.py", "--raw_dir", tmp_path / "raw", "--workers", number]
        environment = os.environ | {"PYTHONHASHSEED": number}
        subprocess.run([*command, "--out_dir", tmp_path / number], cwd=ROOT, env=environment, check=True)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
