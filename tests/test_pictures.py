"""Pictures: the numbers that are drawn, on results and models whose truth is known, and all from the command."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_predict import LABRAM, made  # noqa: F401 - a fixture
from torch.nn import functional as F
from workload import evaluate_workload, make_predictions

from dataset.batches import collate_eeg, collate_montage
from dataset.recordings import open_dataset
from dataset.text import load_tokenizer
from dataset.windows import Windows
from errors import UserError
from evaluation import figures, maps, pictures
from evaluation.__main__ import get_args, main
from evaluation.inference import load
from evaluation.results import write_results
from model.vq import VQ_Align
from model.vqnsp import TOKENIZERS, VQNSP
from training.checkpoints import write_checkpoint
from utils import Run

RUN = Run(0, 1, torch.device("cpu"), torch.float32, 0)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved."""
    kept = []
    for module in (figures, pictures, maps):
        monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
    return kept


@pytest.fixture(scope="module")
def samples(made):  # noqa: F811
    windows = Windows.labelled(open_dataset(made / "data", "train"))
    return [windows[i] for i in (0, 1, 30)]


def lines_of(axis):
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines}


def write_metrics(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_train_and_validation_are_the_same_quantity(tmp_path, drawn):
    train = {"train/loss": 9, "train/commitment": 0.5, "train/raw": 2, "train/frequency": 1, "train/domain_eeg": 5.5}
    val = {"val/loss": 3, "val/commitment": 0.5, "val/raw": 1.5, "val/frequency": 1, "val/codebook_used": 0.4}
    tokenizer = write_metrics(tmp_path / "vq.jsonl", {"step": 1, **train}, {"step": 2, **val})
    tuned = write_metrics(tmp_path / "tuned.jsonl", {"step": 1, "train/loss": 2.0},
                          *({"step": step, f"val_{task}/auroc": value, f"val_{task}/loss_of_other": 1,
                             f"val_{task}/accuracy": 0.5, f"val_{task}/balanced_accuracy": 0.5}
                            for step, value in ((5, 0.5), (9, 0.7)) for task in ("A", "B")))  # fmt: skip
    figures.plot_losses({"tokenizer": tokenizer, "tuned": tuned}, tmp_path / "x.png")
    first, second, lower, metrics = drawn[0].axes
    assert lines_of(first) == {"train": [[1, 3.5]], "val": [[2, 3]]}
    assert first.get_ylabel() == "commitment + frequency + raw"
    assert lines_of(second) == {"train": [[1, 2]]}
    below = lines_of(lower)
    assert below["val/raw"] == [[2, 1.5]] and below["predicting the mean"] == [[0, 1], [1, 1]]
    expected = {"auroc": [[1, 0.5], [2, 0.7]], "balanced_accuracy": [[1, 0.5], [2, 0.5]]}
    assert lines_of(metrics) == {f"val_{task}/{name}": expected[name] for name in expected for task in ("A", "B")}


def test_calibration_and_subjects(tmp_path, drawn):
    n = 100
    table = pd.DataFrame({"subject": np.repeat(["a", "b"], n), "label": np.tile(np.arange(n) < 80, 2).astype(int)})
    table.loc[n:, "label"] = 1
    table["p_No"], table["p_Yes"] = 0.18, 0.82
    pictures.plot_calibration(table, ("No", "Yes"), tmp_path / "x.png")
    pictures.plot_subjects(table, ("No", "Yes"), tmp_path / "x.png")
    curve = lines_of(drawn[0].axes[0])
    np.testing.assert_allclose(curve["calibration error 0.080"], [[0.82, 0.9]])
    assert sum(bar.get_height() for bar in drawn[0].axes[1].patches) == 2 * n
    axis = drawn[1].axes[0]
    assert lines_of(axis)["one subject"] == [[0, 0.8], [1, 1.0]]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["a", "b"]
    table["p_No"] = table["p_Yes"] = 0.0  # none of the answers: wrong, whatever the label
    pictures.plot_subjects(table, ("No", "Yes"), tmp_path / "x.png")
    assert lines_of(drawn[2].axes[0])["one subject"] == [[0, 0], [1, 0]]
    (low, high), _ = (line[:, 1] for line in axis.collections[0].get_segments())
    np.testing.assert_allclose((low, high), (0.7112, 0.8666), atol=1e-3)  # Wilson's interval of 80 of 100


@pytest.mark.parametrize("name", ["model.pt", LABRAM[1]])
def test_attention_is_what_the_blocks_attend_to(made, samples, monkeypatch, name):  # noqa: F811
    asked, weights, attend = load(made / name, device="cpu"), [], F.scaled_dot_product_attention

    def record(q, k, v, attn_mask=None, **more):
        eye = torch.eye(k.size(2)).expand(*k.shape[:2], -1, -1)
        weights.append(attend(q, k, eye, attn_mask=attn_mask, **more).mean(1))  # (B, queries, keys)
        return attend(q, k, v, attn_mask=attn_mask, **more)

    found = maps.attention(asked, samples)
    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    with torch.no_grad():
        if name == "model.pt":
            batch = collate_eeg(samples)
            batch |= {"features": asked.model.encode(batch)}
            weights.clear()  # of the tokenizer
            prompt = torch.tensor(asked.questions[0].task.prompt(load_tokenizer()))
            asked.model.read(batch | {"tokens": prompt.expand(3, -1)})
            shares = torch.stack(weights).mean(0)[:, -1, : 4 * 19].unflatten(1, (4, 19)).sum(1)
        else:
            batch = collate_montage(samples)
            asked.model.pool(batch["x"], batch["chans"])
            shares = torch.stack(weights).mean(0)[:, 1:, 1:].mean(1).unflatten(1, (19, 4)).sum(2)
    np.testing.assert_allclose(found, shares / shares.mean(1, keepdim=True), rtol=1e-4)
    np.testing.assert_allclose(found.mean(1), 1, rtol=1e-5)


def test_codes_lie_where_their_patches_are(samples, tmp_path, drawn):
    torch.manual_seed(0)
    for tokenizer in (VQ_Align.from_size("tiny"), VQNSP(*TOKENIZERS["vqnsp_encoder_tiny_decoder_1x100x2"], n_codes=32)):
        tokenizer.eval()
        patches, codes = maps.read_codes(tokenizer, samples, RUN, batch_size=2)
        assert patches.shape == (3, 19, 4, 200) and codes.shape == (3, 19, 4)
        np.testing.assert_allclose(patches[2, 5].ravel(), 100 * samples[2]["eeg"][5], rtol=1e-6)
    batch = collate_montage(samples)
    expected = tokenizer.encode(batch["x"], batch["chans"])[1].unflatten(1, (19, 4))
    np.testing.assert_array_equal(codes, expected)
    codes = np.zeros((3, 19, 4), dtype=int)
    codes[:, 4] = 1  # a code of one channel
    codes[2] = 1  # and of the last window
    names = [f"c{i}" for i in range(19)]
    maps.plot_codebook(patches, codes, names, np.array([0, 0, 1]), ["rest", "task"], tmp_path / "x.png")
    _, _, by_channel, by_label = drawn[0].axes[4:8]
    share = (codes == 1).mean()
    heights = [bar.get_height() for bar in by_channel.patches]
    np.testing.assert_allclose(heights, np.where(np.arange(19) == 4, 1, 1 / 3) / share)
    np.testing.assert_allclose([bar.get_height() for bar in by_label.patches], [1 / 19 / share, 1 / share])


def test_band_power_finds_a_rhythm():
    time = np.arange(800) / 200
    eeg = np.stack([0.2 * np.sin(2 * np.pi * hz * time) for hz in (2, 6, 10, 15, 25, 40)]).astype("f4")  # of 20 uV
    power = maps.band_power([{"eeg": eeg}])[0]  # (bands, C)
    assert power.argmax(0).tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(power.max(0), np.log10(20**2 / 2), rtol=1e-3)


def test_the_command_draws_what_a_run_has(made, tmp_path, capsys):  # noqa: F811
    result = evaluate_workload(make_predictions())
    write_results(tmp_path / "run", [result], method="ours", seed=0)
    write_metrics(tmp_path / "run" / "metrics.jsonl", {"step": 1, "train/loss": 1.0})
    (tmp_path / "run" / "ckpt.pt").write_bytes((made / "model.pt").read_bytes())
    argv = [tmp_path / "run", "--figure", tmp_path / "figures"]
    main(get_args(list(map(str, argv))))
    plain = {"curves.png", "calibration_Workload.png", "subjects_Workload.png", "bars_Workload.png"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == plain
    torch.manual_seed(0)
    tokenizer = VQ_Align.from_size("tiny")
    (tmp_path / "VQ").mkdir()
    write_checkpoint({"model": tokenizer.state_dict(), **tokenizer.config_args()}, tmp_path / "VQ" / "ckpt.pt")
    for run, more in (("run", {"topographies.png", "attention.png", "features.png"}), ("VQ", {"codebook.png"})):
        argv = [tmp_path / run, "--figure", tmp_path / run / "all", "--dataset", made / "data", "--split", "train"]
        if run == "run":
            with pytest.raises(UserError, match="none of the runs has results on split 'train'"):
                main(get_args(list(map(str, argv))))
            (tmp_path / "run" / "results.json").unlink()
        main(get_args(list(map(str, argv))))
        found = {path.name: path for path in (tmp_path / run / "all").iterdir()}
        assert more <= found.keys()
        for path in found.values():
            assert np.asarray(Image.open(path)).std() > 5
    for argv, words in (
        ([tmp_path / "VQ", "--dataset", made / "data"], "give both"),
        ([tmp_path / "VQ", tmp_path / "run", "--figure", "x", "--dataset", made / "data"], "give one RUN"),
        ([made / "data", "--figure", tmp_path / "x"], "nothing to draw in"),
        ([made / "data", "--figure", tmp_path / "x", "--dataset", made / "data"], "holds no checkpoint"),
    ):
        with pytest.raises(UserError, match=words):
            main(get_args(list(map(str, argv))))
