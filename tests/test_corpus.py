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

from dataset_maker import make_Workload
from dataset_maker.splits import split_subjects
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
        "import json; from dataset_maker.splits import split_subjects as split;"
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
    with pytest.raises(UserError, match="1 subjects cannot fill"):
        split_subjects(["a"], {"val": 0.5, "train": 0.5}, 0)
