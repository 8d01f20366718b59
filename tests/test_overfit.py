"""Every stage of NeuroLM can learn one batch by heart, beside the real checkpoints."""

import pytest
from stages import FOLDERS, SCRIPTS, flags, read_metrics, train, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("overfit"))
    for stage in ("vq", "pretrain"):
        train(stage, folder, folder / "reference", "--max_steps", 2)
    return folder


# What must vanish. The domain losses of stage 1 do not: encoder and classifier play against one another.
CASES = {
    "vq": (
        ("commitment", "frequency", "raw"), 200, 0.05, 1e-3,
        ["--datasets", "pair", "--block_size", 4, "--batch_size", 1],
    ),  # fmt: skip
    "pretrain": (("eeg", "text"), 50, 0.02, 1.2e-2, ["--dropout", 0]),
    "instruction": (("answer", "text"), 50, 0.02, 1.2e-2, ["--dropout", 0, "--warmup_ratio", 0.1]),
}


@pytest.mark.e2e
@pytest.mark.parametrize("stage", CASES)
def test_a_stage_learns_one_batch_by_heart(corpus, tmp_path, stage):
    losses, steps, share, rate, more = CASES[stage]
    more = ["--overfit_batches", 1, "--learning_rate", rate, "--no-decay_lr", "--warmup_epochs", 1, *more]
    more += ["--epochs", 999, "--max_steps", steps, "--log_interval", 5]
    more += ["--gradient_accumulation_steps", 1, "--save_ckpt_freq", 0]
    SCRIPTS[stage].main(SCRIPTS[stage].get_args(flags(stage, corpus, tmp_path, *more)))
    rows = [row for row in read_metrics(tmp_path / "overfit" / FOLDERS[stage]) if "train/loss" in row]
    first, last = (sum(row[f"train/{name}"] for name in losses) for row in (rows[0], rows[-1]))
    assert rows[-1]["step"] == steps and last < share * first
    assert not (tmp_path / "checkpoints").exists()
