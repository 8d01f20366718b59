"""Stage 3 as a user runs it: mixed tasks, cached features, and answers that do not depend on batches and processes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from processes import run_processes
from stages import FOLDERS, TASK, flags, read_metrics, train, write_corpus
from toy_eeg import write_toy

import train_instruction

STAGE = "instruction"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, full_tiny):
    """The toy corpus with a second task, whose windows are longer, and a model that has learnt the first one."""
    folder = write_corpus(tmp_path_factory.mktemp("instruction"))
    write_toy(folder / "data" / "Long", 3, 48, (("train", 1), ("val", 1), ("test", 1)), window=6)
    (folder / "long.yaml").write_text(TASK.replace("Toy", "Long").replace("Which rhythm", "Of these two, which"))
    for stage in ("vq", "pretrain"):
        train(stage, folder, folder / "reference", "--max_steps", 2)
    learning = ["--learning_rate", 3e-3, "--epochs", 5, "--save_ckpt_freq", 0, "--dropout", 0, "--eeg_batch_size", 2]
    train(STAGE, folder, folder / "reference", *learning, "--gradient_accumulation_steps", 1)
    return folder


def losses(folder):
    return [row["train/loss"] for row in read_metrics(folder) if "train/loss" in row]


def test_cached_features_give_the_same_losses(corpus, tmp_path):
    few = ["--max_steps", 3, "--log_interval", 1, "--dropout", 0]
    plain = train(STAGE, corpus, tmp_path / "plain", *few)
    for name in ("first", "again"):
        cached = train(STAGE, corpus, tmp_path / name, *few, "--cache_features", tmp_path / "cache")
        np.testing.assert_allclose(losses(cached), losses(plain), rtol=1e-5)
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.fixture(scope="module")
def bare(corpus, tmp_path_factory):
    """What --eval_only needs: a checkpoint, a task and its test recordings; no text, no training data."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copytree(corpus / "data" / "Toy", folder / "data" / "Toy")
    for split in ("train", "val"):
        shutil.rmtree(folder / "data" / "Toy" / split)
    shutil.copy(corpus / "task.yaml", folder)
    shutil.copy(corpus / "reference" / "checkpoints" / FOLDERS[STAGE] / "ckpt-best.pt", folder / "model.pt")
    return folder


def instruct(nproc, *words):
    """Stage 3 in this process, or in several."""

    def work():
        train_instruction.main(train_instruction.get_args([*map(str, words)]))

    run_processes(nproc, work) if nproc > 1 else work()


def evaluate(bare, name, batch_size=64, nproc=1, **more):
    """Results and each window's probabilities of an evaluation."""
    arguments = {"tasks": bare / "task.yaml", "NeuroLM_path": bare / "model.pt", "out_dir": bare / name}
    arguments |= {"size": "tiny", "device": "cpu", "num_workers": 0, "eeg_batch_size": batch_size} | more
    words = [word for key, value in arguments.items() for word in (f"--{key}", value)]
    instruct(nproc, "--eval_only", *words)
    (path,) = (bare / name).rglob("results.json")
    (result,) = json.loads(path.read_text())["results"]
    windows = pd.read_csv(path.parent / result.pop("predictions"))
    return result, windows[["p_slow", "p_fast"]].to_numpy()


@pytest.mark.e2e
def test_answers_do_not_depend_on_batches_and_processes(bare):
    result, probabilities = evaluate(bare, "one")
    assert result["windows"] == 20 and result["metrics"]["balanced_accuracy"] == 1.0
    for batch_size, nproc in ((1, 1), (7, 1), (7, 2), (64, 3)):
        other, seen = evaluate(bare, f"{batch_size}x{nproc}", batch_size, nproc)
        assert other == result
        np.testing.assert_allclose(seen, probabilities, rtol=1e-4, atol=1e-7)


@pytest.mark.e2e
def test_scored_and_written_answers_agree(bare):
    scored, likely = evaluate(bare, "scored")
    written, chosen = evaluate(bare, "written", answer_by="generate")
    assert (likely.argmax(1) == chosen.argmax(1)).all() and (chosen.max(1) == 1).all()
    assert written["unanswered"] == 0 and written["confusion"] == scored["confusion"]


@pytest.mark.e2e
def test_mixed_tasks_train_alike_on_one_process_and_two(corpus, tmp_path):
    more = ["--tasks", corpus / "task.yaml", corpus / "long.yaml", "--mixing", "balanced", "--max_steps", 3]
    more += ["--log_interval", 1, "--dropout", 0, "--gradient_accumulation_steps", 1]
    alone = train(STAGE, corpus, tmp_path / "one", *more, "--eeg_batch_size", 4, "--text_batch_size", 2)
    instruct(2, *flags(STAGE, corpus, tmp_path / "two", *more))
    together = tmp_path / "two" / "checkpoints" / FOLDERS[STAGE]
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-4)
    shares = [row["train/padded_share"] for row in read_metrics(alone) if "train/loss" in row]
    assert all(0 <= share < 0.5 for share in shares)
    results = json.loads((alone / "results.json").read_text())["results"]
    assert {row["dataset"]: row["windows"] for row in results} == {"Toy": 20, "Long": 8}
