"""Results: written to be read back and recomputed, drawn as one table, merged beside the published rows."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import run_script
from workload import evaluate_workload, make_predictions, make_windows

from errors import UserError
from evaluation.__main__ import get_args, main
from evaluation.metrics import score_metrics
from evaluation.results import COLUMNS, PUBLISHED, compare_runs, read_run, results_table, write_results
from evaluation.scoring import Predictions, evaluate


def test_results_can_be_read_back_and_recomputed(tmp_path):
    predictions = make_predictions()
    result = evaluate_workload(predictions)
    path = write_results(tmp_path / "run", [result], method="ours", seed=3)
    written = json.loads(path.read_text())
    assert written["about"] == {"method": "ours", "seed": 3}
    (row,) = written["results"]
    assert (row["windows"], row["recordings"], row["subjects"]) == (30, 6, 3)
    assert row["confusion"] == result.confusion.tolist()
    table = pd.read_csv(tmp_path / "run" / row["predictions"], dtype={"start": int})
    assert score_metrics(table["label"], table[["p_No", "p_Yes"]], 2, list(row["metrics"])) == row["metrics"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["predictions_Workload_test.csv", "results.json"]


def test_an_undefined_metric_is_null_in_json_and_a_word_in_tables(tmp_path):
    predictions = make_predictions()
    result = evaluate_workload(Predictions(np.zeros(30, dtype=int), predictions.probabilities))
    written = json.loads(write_results(tmp_path, [result]).read_text())
    assert written["results"][0]["metrics"]["auroc"] is None
    table = results_table([result])
    assert "undefined" in table and "Workload test: all windows are of one class: auc_pr, auroc" in table


def test_one_table_holds_tasks_of_two_and_of_more_answers():
    predictions = make_predictions()
    two = evaluate_workload(predictions)
    labels = np.arange(30) % 3
    three = evaluate(
        Predictions(labels, np.eye(3)[labels]),
        make_windows(),
        name="SEED",
        split="val",
        answers=("Positive", "Neutral", "Negative"),
    )
    lines = results_table([two, three]).splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][3:9] == ["BAcc", "AUC-PR", "AUROC", "kappa", "weighted F1", "accuracy"]
    assert [row[:3] for row in cells[2:5]] == [
        ["Workload", "test", "30 windows"],
        ["Workload", "test", "6 recordings"],
        ["SEED", "val", "30 windows"],
    ]
    assert cells[2][3] == f"{two.metrics['balanced_accuracy']:.4f}" and cells[2][6] == "-"
    assert cells[4][3:9] == ["1.0000", "-", "-", "1.0000", "1.0000", "1.0000"]


def test_seeds_are_merged_beside_the_published_rows(tmp_path):
    values = []
    for seed in range(3):
        result = evaluate_workload(make_predictions(seed))
        write_results(tmp_path / f"seed{seed}", [result], method="tiny", seed=seed)
        values.append(result.metrics["balanced_accuracy"])
    done = run_script("-m", "evaluation", *(tmp_path / f"seed{seed}" for seed in range(3)))
    rows = {cells[0].strip(): cells for cells in (line.strip("|").split("|") for line in done.stdout.splitlines())}
    header = [cell.strip() for cell in rows["method"]]
    assert rows["tiny, 30 windows"][1].strip() == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
    assert rows["tiny, 30 windows"][-1].strip() == "here, 3 runs" and "tiny, 6 recordings" in rows
    neurolm = dict(zip(header, (cell.strip() for cell in rows["NeuroLM-B"]), strict=True))
    assert (neurolm["BAcc"], neurolm["AUROC"], neurolm["AUROC hard"]) == ("0.6172", "-", "0.6253")
    assert rows["LaBraM-Base"][1].strip() == "0.6609"


def test_only_what_can_be_compared_shares_a_row(tmp_path):
    """Other methods, metrics and sets of windows get rows of their own; validation has no published rows."""
    few = Predictions(np.array([0, 1, 1, 1]), np.eye(2)[[0, 1, 0, 1]])
    runs = {
        "a": (make_predictions(), None, {"method": "ours", "seed": 0}),
        "b": (few, make_windows()[:4], {"method": "ours", "seed": 1}),
        "c": (make_predictions(2), None, {"seed": 0}),
    }
    for name, (predictions, windows, about) in runs.items():
        metrics = ("accuracy",) if name == "c" else None
        write_results(tmp_path / name, [evaluate_workload(predictions, windows, metrics=metrics)], **about)
    read = [read_run(tmp_path / name) for name in runs]
    published = pd.read_csv(PUBLISHED)
    lines = compare_runs(read, published, "test").splitlines()
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")] for line in lines if "|" in line}
    assert set(rows) >= {"ours, 30 windows", "ours, 6 recordings", "ours, 4 windows", "c, 30 windows", "NeuroLM-B"}
    assert rows["ours, 4 windows"][-2] == "here, 1 run"
    assert rows["c, 30 windows"][3] == "-"  # AUC-PR was not asked for
    read = [item | {"scores": [(name, "val", *rest) for name, _, *rest in item["scores"]]} for item in read]
    assert "NeuroLM-B" not in compare_runs(read, published, "val")


def test_published_rows_are_complete():
    table = pd.read_csv(PUBLISHED)
    assert set(table["dataset"]) == {"TUAB", "TUEV", "SEED", "HMC", "Workload", "TUSL"}
    assert table["source"].notna().all() and not table.duplicated(["dataset", "method"]).any()
    numbers = table.drop(columns=["dataset", "method", "source"])
    assert set(numbers.columns) <= set(COLUMNS)
    assert numbers.notna().any(axis=1).all() and ((numbers > 0) & (numbers < 1) | numbers.isna()).all(axis=None)


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"about": {}, "results": [{"dataset": "x"}]}', '{"about": 1, "results": []}']
)
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json is no results\.json of a run .*give folders"):
        read_run(tmp_path)


def test_runs_that_cannot_be_merged(tmp_path):
    result = evaluate_workload(make_predictions())
    plain = write_results(tmp_path / "plain", [result])
    one, other = (write_results(tmp_path / name, [result], method="m", seed=1) for name in ("one", "other"))
    for flags, message in (
        ([plain.parent, plain], "give each run once"),
        (
            [one, other],
            r"one/results.json and .*other/results.json are both method .m. with seed 1: give each",
        ),
        ([one, "--split", "train"], "none of the runs has results on split 'train'"),
        ([one, "--published", tmp_path / "none.csv"], "none.csv cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            main(get_args(list(map(str, flags))))
