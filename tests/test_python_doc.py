"""docs/python.md, block by block, with a model made on the spot; README shows its three lines."""

import re
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_predict import made  # noqa: F401 - a fixture

from model.lm_sizes import LM_SIZES


def test_every_block_runs(made, tmp_path, monkeypatch):  # noqa: F811
    checkpoint = tmp_path / "runs" / "neurolm" / "checkpoints" / "instruction-B" / "ckpt-best.pt"
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(made / "model.pt", checkpoint)
    write_recording(tmp_path / "my_recording.edf")
    rows = np.random.default_rng(0).normal(130, 200, (40 * 128, 3)).round()
    pd.DataFrame(rows, columns=["Fp1", "Fz", "Pz"]).to_csv(tmp_path / "someone_elses.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    seen = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks[:-2]:
            exec(block, seen)
    assert list(seen["answers"])[:4] == ["task", "start", "stop", "answer"] and len(seen["answers"]) == 10
    assert seen["features"].shape == (12, 16)
    with pytest.warns(UserWarning, match="Is the subject asleep.* not trained on this question"):
        exec(blocks[-2], seen)
    assert len(seen["answers"]) == 10 and set(seen["answers"]["answer"]) <= {"No", "Yes"}
    exec(blocks[-1], seen)
    shapes = [seen[name].shape for name in ("by_channel", "tokens", "hidden", "overlapping")]
    assert shapes == [(10, 19, 16), (10, 19, 4, 16), (10, LM_SIZES["tiny"].n_embd), (37, 16)]


def write_recording(path):
    """40 s with two marks, as an EDF of the training's channels."""
    from edfio import Edf, EdfAnnotation, EdfSignal
    from raw_files import EEGMAT

    eeg = np.random.default_rng(0).normal(0, 20, (len(EEGMAT), 40 * 250)).clip(-199, 199)
    about = {"physical_dimension": "uV", "physical_range": (-200, 200)}
    signals = [EdfSignal(row, 250, label=f"EEG {name}", **about) for name, row in zip(EEGMAT, eeg, strict=True)]
    Edf(signals, annotations=[EdfAnnotation(4, None, "left"), EdfAnnotation(9, None, "right")]).write(path)


def test_readme_shows_the_three_lines():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[:1]
    assert lines.strip() in page and readme.index(lines) < readme.index("## Results")
