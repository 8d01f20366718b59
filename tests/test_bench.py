"""`make bench` compares ways that give the same results, and says what it measured."""

import json
from math import isfinite

import pytest
import torch

from benchmarks import bench, paths, plain
from utils import start_run


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "page.md").write_text(f"# Performance\n\n{bench.MARK}old tables\n")
    names = [name for name in bench.ROWS if name != "predict.py --help"]  # whose start takes seconds
    flags = ["--size", "tiny", "--repeats", "1", "--rows", *names, "--json", str(folder / "bench.json")]
    bench.main(bench.get_args([*flags, "--markdown", str(folder / "page.md")]))
    return json.loads((folder / "bench.json").read_text()), (folder / "page.md").read_text()


def test_both_ways_give_the_same_results(report):
    for row in report[0]["rows"]:
        for measured in (part for shape in row["shapes"] for part in shape["rounds"]):
            expected = torch.tensor(measured["plain"]["results"])
            assert expected.isfinite().all() and (expected.abs() > 0).any()
            for way in bench.ROWS[row["row"]][1]:
                torch.testing.assert_close(torch.tensor(measured[way]["results"]), expected, rtol=1e-4, atol=1e-5)


def test_every_row_has_its_numbers(report):
    rows, page = report[0]["rows"], report[1]
    for row in rows:
        for way, about in row["about"].items():
            assert about["peak_gib"] > 0.05, (row["row"], way)
            products = row["row"] != "loading"
            assert (about["flops"] > 0) == products and (about["rate"] is not None) == products
            assert all(isfinite(part[way][clock]) and part[way][clock] > 0 for part in row["shapes"][-1]["rounds"]
                       for clock in ("processor", "wall"))  # fmt: skip
        assert f"| {row['row']}: " in page
    assert page.startswith("# Performance\n") and "old tables" not in page


def test_the_plain_way_pads_masks_and_repeats():
    """Else the comparison would say nothing: its FLOPs grow with the padding and with each new token."""
    run, counted = start_run("cpu", "float32"), {}
    for way in ("plain", "here"):
        _, read, work = paths.generation(way, "tiny", run)
        for tokens in (1, 3):
            with torch.inference_mode(), bench.Flops() as flops:
                work(read(tokens))
            counted[way, tokens] = flops.get_total_flops()
    assert counted["plain", 3] == 3 * counted["plain", 1]
    assert counted["here", 3] < 1.5 * counted["here", 1]
    batch = plain.collate(paths.make_windows((2, 3)), plain.WINDOW)
    assert batch["mask"].shape == batch["eeg_mask"].shape == (1, 1, plain.WINDOW, plain.WINDOW)
    assert batch["mask"][0, 0, 0].sum() == 2 and batch["mask"][0, 0, 4].sum() == 6  # a second sees itself and the past


def test_results_that_differ_end_the_run(monkeypatch):
    monkeypatch.setitem(bench.ROWS, "wrong", (wrong, bench.BOTH, [{}], [{}]))
    with pytest.raises(bench.errors.UserError, match="wrong, {}: here gives"):
        bench.main(bench.get_args(["--size", "tiny", "--dtype", "float32", "--rows", "wrong"]))


def wrong(way, size, run):
    return None, dict, lambda _: [torch.tensor(1.0 if way == "plain" else 1.01)]
