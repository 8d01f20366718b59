"""docs/own_data.md, command by command: from a folder of recordings and a CSV to answers about a recording."""

import importlib
import json
import re
import shlex

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

PAGE = ROOT / "docs" / "own_data.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.e2e
@pytest.mark.parametrize("size", ["smaller", pytest.param("full_tiny", marks=pytest.mark.slow)])  # as the page has it
def test_the_page_leads_from_recordings_to_answers(size, tmp_path, monkeypatch, request):
    request.getfixturevalue(size)
    monkeypatch.chdir(tmp_path)
    (task,) = blocks("yaml")
    (tmp_path / "hands.yaml").write_text(task)
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    assert [command[0] for command in commands] == ["python"] * 8
    for _, path, *arguments in commands:
        script = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        script.main(script.get_args(arguments))

    folder = tmp_path / "runs" / "hands" / "checkpoints" / "instruction-tiny"
    (trained,) = json.loads((folder / "results.json").read_text())["results"]
    (again,) = json.loads((folder / "eval_score" / "results.json").read_text())["results"]
    assert trained == again and trained["windows"] == 136 and trained["recordings"] == 4 and trained["subjects"] == 2
    assert trained["answers"] == ["left hand", "right hand"]
    metric, least = {"smaller": ("auroc", 0.7), "full_tiny": ("balanced_accuracy", 0.8)}[size]
    assert trained["metrics"][metric] > least  # chance is 0.5

    answers = pd.read_csv(tmp_path / "answers" / "session_a_hands.csv")
    assert list(answers.columns) == ["start", "stop", "answer", "p_left hand", "p_right hand"]
    assert answers["start"].tolist() == [2.0 * i for i in range(60)]
    np.testing.assert_allclose(answers[["p_left hand", "p_right hand"]].sum(axis=1), 1, atol=1e-4)
    assert set(answers["answer"]) <= {"left hand", "right hand"}
    with np.load(tmp_path / "answers" / "session_a_hands_features.npz") as features:
        assert features["features"].shape == (60, 128) and len(features["channels"]) == 32
