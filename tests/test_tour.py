"""docs/tour.ipynb runs top to bottom as it stands, and its stored outputs are small."""

import json

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

PAGE = ROOT / "docs" / "tour.ipynb"
LARGEST = 200_000  # bytes of an output


@pytest.mark.slow
def test_the_tour_leads_from_an_edf_to_answers(tmp_path, monkeypatch):
    for name, value in {"TOUR_DIR": tmp_path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(PAGE, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": ROOT}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert max(len(json.dumps(output)) for output in outputs) < LARGEST
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    about = json.loads((tmp_path / "checkpoints" / "instruction-tiny" / "results.json").read_text())
    (test,) = about["results"]
    assert test["subjects"] == 2 and test["metrics"]["balanced_accuracy"] > 0.7  # chance is 0.5


def test_stored_outputs_are_small():
    notebook = nbformat.read(PAGE, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert all(len(json.dumps(output)) < LARGEST for output in outputs)
    assert not any(str(ROOT) in json.dumps(output) for output in outputs)
