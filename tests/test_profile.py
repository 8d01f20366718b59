"""Where time goes: --profile writes a trace and a table, the progress line has ETA and MFU, a wait for data is said."""

import json
import time

import pytest
import stages
import torch
from test_trainer import fit, make_trainer

from training import throughput
from training.logger import Logger
from utils import Run


def test_a_profile_holds_its_steps_and_no_more(tmp_path):
    fit(make_trainer(tmp_path, profile=4))
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    steps = {event["name"] for event in events if str(event.get("name", "")).startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{step}" for step in (3, 4, 5, 6)}
    assert any(event.get("name") == "aten::addmm" for event in events)
    assert "aten::addmm" in (tmp_path / "profile" / "operators.txt").read_text()


def test_a_run_that_ends_before_gives_what_it_saw(tmp_path):
    fit(make_trainer(tmp_path, profile=1000))  # of 12 steps
    assert "aten::addmm" in (tmp_path / "profile" / "operators.txt").read_text()


def test_without_the_flag_there_is_none(tmp_path):
    fit(make_trainer(tmp_path))
    assert not (tmp_path / "profile").exists()


def test_a_script_profiles_into_its_folder(tmp_path):
    folder = stages.train("vq", stages.write_corpus(tmp_path), tmp_path, "--profile", 2, "--max_steps", 6)
    assert {path.name for path in (folder / "profile").iterdir()} == {"trace.json", "operators.txt"}


def test_the_progress_line_has_eta_and_mfu(tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: 1e12)
    trainer = make_trainer(tmp_path)
    fit(trainer, stop_after=6)  # its line comes with the next
    line = trainer.logger.bar.format_dict | {"elapsed": 10.0, "rate": None, "ncols": 120}
    said = trainer.logger.bar.format_meter(**line)
    assert "5/12 [00:10<00:14" in said and "mfu=" in said and "loss=" in said


@pytest.mark.parametrize(("most", "lines"), [(1.0, 0), (0.0, 1)])
def test_waiting_for_data_is_said_once(most, lines, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Logger, "say", lambda logger, message: said.append(message))
    monkeypatch.setattr(throughput, "MOST_WAIT", most)
    fit(make_trainer(tmp_path))
    assert sum("waiting for data: take more --num_workers than 0" in line for line in said) == lines


def test_the_first_lines_of_workers_that_start_say_nothing():
    counted = throughput.Throughput(Run(0, 1, torch.device("cpu"), torch.float32, seed=0))
    for waited, waits in ((1.0, 1), (0.0, 0), (1.0, 1), (1.0, 2)):
        counted.restart()
        counted.add({"samples": 1})
        counted.waited, counted.started = waited, time.monotonic() - 2.0
        counted.values()
        assert counted.waits == waits
