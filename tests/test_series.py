"""A series runs each command once, goes on where it was stopped, and shows the repeats that are complete."""

import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT
from test_pooling import few_draws, write_fold  # noqa: F401 - a fixture

import series
from errors import UserError


def write_plan(folder, **fields):
    plan = {"out_dir": str(folder / "out"), "folds": 3, **fields}
    (folder / "series.yaml").write_text(yaml.safe_dump(plan))
    return folder / "series.yaml"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Stands for the scripts: notes its command, and writes results unless told to fail."""
    script = tmp_path / "fake.py"
    script.write_text(
        "import pathlib, sys\n"
        f"with open({str(tmp_path / 'calls')!r}, 'a') as calls: print(*sys.argv[1:], file=calls)\n"
        f"if pathlib.Path({str(tmp_path / 'fail')!r}).exists() and '2' in sys.argv: sys.exit(3)\n"
        "out = pathlib.Path(sys.argv[-1]); out.mkdir(parents=True, exist_ok=True)\n"
        "(out / 'results.json').touch()\n"
    )
    monkeypatch.setattr(series, "print_table", lambda plan: None)

    def run(**fields):
        plan = write_plan(tmp_path, **fields)
        (tmp_path / "calls").write_text("")
        try:
            series.main(series.get_args([str(plan)]))
        finally:
            calls = (tmp_path / "calls").read_text().splitlines()
        return [line.replace(str(tmp_path / "out"), "") for line in calls]

    run.script, run.folder = script, tmp_path
    return run


def test_each_command_runs_once(fake):
    steps = [f"{fake.script} before {{seed}} {{shared}}", f"{fake.script} {{protocol}} {{seed}} {{out}}"]
    plain = f"{fake.script} {{protocol}} {{out}}"
    fields = {"variants": {"plain": plain, "tuned": steps}, "seeds": [0, 1], "fold_seeds": [4]}
    calls = fake(**fields)
    assert len(calls) == 3 + 2 * (1 + 3)
    assert calls[0] == "--folds 3 --fold 0 --fold_seed 4 /plain/folds4-0"
    assert calls[3] == "before 0 /shared" and calls[4] == "--folds 3 --fold 0 --fold_seed 4 0 /tuned/folds4-0-seed0"
    assert fake(**fields) == []
    (fake.folder / "out" / "plain" / "folds4-1" / "results.json").unlink()
    assert fake(**fields) == ["--folds 3 --fold 1 --fold_seed 4 /plain/folds4-1"]
    fields["variants"]["plain"] += " more"
    assert len(fake(**fields)) == 3  # other commands have not been run


def test_what_fails_is_said_and_tried_again(fake, capsys):
    (fake.folder / "fail").touch()
    fields = {"variants": {"plain": f"{fake.script} {{protocol}} {{out}}"}}
    with pytest.raises(UserError, match=r"1 commands failed, see .*fake-.*\.log"):
        fake(**fields)
    assert "failed with 3" in capsys.readouterr().out
    (fake.folder / "fail").unlink()
    assert fake(**fields) == ["--folds 3 --fold 2 --fold_seed 0 /plain/folds0-2"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "variants missing"),
        ({"variants": {"a": "x"}, "seed": 3}, "seed missing, unknown"),
        ({"variants": {"a": "x"}, "folds": "7"}, "folds missing, unknown or of another type"),
        ({"variants": {"a": "x {fould}"}}, "variant a: 'fould' is no placeholder; known are folds, fold, fold_seed"),
        ({"variants": {"a": "x"}, "against": "b"}, "against: b is no variant"),
    ],
)
def test_a_plan_that_nobody_can_follow(tmp_path, fields, said):
    with pytest.raises(UserError, match=said):
        series.main(series.get_args([str(write_plan(tmp_path, **fields)), "--table"]))


def test_a_table_stands_at_any_moment(tmp_path, capsys):
    """Of repeats that are complete; the others are counted."""
    plan = write_plan(tmp_path, variants={"plain": "x {protocol} {seed}", "tuned": "y {protocol} {seed}"}, seeds=[0, 1],
                      against="plain")  # fmt: skip
    for variant, lean in (("plain", 0.0), ("tuned", 0.3)):
        for fold in range(3):
            write_fold(tmp_path / "out" / variant / f"folds0-{fold}-seed0", fold, "plain", lean=lean)
    write_fold(tmp_path / "out" / "plain" / "folds0-1-seed1", 1, "plain", seed=1)
    series.main(series.get_args([str(plan), "--table"]))
    said = capsys.readouterr().out
    assert "plain, seed 1, fold seed 0: 1 of 3 cells are there" in said
    assert "tuned, seed 1, fold seed 0: 0 of 3 cells are there" in said
    rows = [line for line in said.splitlines() if "plain: plain, 3 folds" in line]
    assert "192 windows" in rows[0] and "here, 1 run" in rows[0]
    assert len([row for row in rows if "tuned: plain, 3 folds" in row and " p " in row]) == 1


WAITS = """
import pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
def stop(number, frame):
    (here / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
(here / "started").touch()
time.sleep(0 if (here / "saved").exists() else 300)
pathlib.Path(sys.argv[1]).mkdir(parents=True)
pathlib.Path(sys.argv[1], "results.json").touch()
"""


def test_a_series_that_is_stopped_stops_its_run_and_goes_on(tmp_path, monkeypatch):
    (tmp_path / "waits.py").write_text(WAITS)
    plan = write_plan(tmp_path, variants={"plain": f"{tmp_path / 'waits.py'} {{out}}"})
    child = subprocess.Popen([sys.executable, ROOT / "series.py", plan])
    until = time.monotonic() + 300
    while not (tmp_path / "started").exists() and time.monotonic() < until:
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    assert child.wait() != 0 and (tmp_path / "saved").exists()
    assert not list(tmp_path.rglob("results.json"))
    monkeypatch.setattr(series, "print_table", lambda plan: None)
    series.main(series.get_args([str(plan)]))
    assert list(tmp_path.rglob("results.json")) == [tmp_path / "out" / "plain" / "whole" / "results.json"]
