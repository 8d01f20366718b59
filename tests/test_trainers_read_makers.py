"""Both systems' trainers read every set that the makers make: simulated corpora, one step of each script."""

import json

import pytest
from raw_files import run_maker, write_text
from test_corpora import CORPORA, shorten_seed

import run_class_finetuning
import run_vqnsp_training
import train_instruction
import train_pretrain
import train_vq
from dataset.recordings import describe_dataset
from dataset.tasks import TASKS
from dataset_maker.simulate import simulate

pytestmark = pytest.mark.e2e

OWN_TASK = "name: {name}\nquestion: Which hand was imagined?\nanswers: [{answers}]\ndataset: {folder}\n"
SIZES = {"Workload": (4, 62), "TUAB": (12, 30), "TUSL": (10, 70), "HMC": (4, 180), "SEED": (1, 150)}  # fill splits
TRAIN_ONLY = {"HMC"}  # its published split puts the first 100 recordings there


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Every corpus with recordings in all of its splits (HMC: in train), and text."""
    folder = tmp_path_factory.mktemp("all")
    for name in CORPORA:
        maker, subjects, seconds, more, _ = CORPORA[name]
        subjects, seconds = SIZES.get(name, (max(subjects, 10), seconds))
        raw = folder / "raw" / name
        simulate(name, raw, seed=3, subjects=subjects, seconds=seconds)
        if name == "Workload":  # its published split is by number: subjects 26 and 31 are in val and test
            for path in sorted(raw.glob("Subject0[23]_*.edf")):
                path.rename(path.with_name(path.name.replace("02_", "26_").replace("03_", "31_")))
        more = [raw / word if word == "labels.csv" else word for word in more]
        with pytest.MonkeyPatch.context() as patch:
            shorten_seed(patch, seconds)
            run_maker(maker, "--raw_dir", raw, "--out_dir", folder / "data" / name, "--workers", 1, *more)
    write_text(folder / "text")
    return folder


def call(script, *flags):
    common = ["--device", "cpu", "--num_workers", "0", "--log_interval", "1", "--max_steps", "1"]
    common.append("--allow_leak")  # the simulated corpora of one hospital have the same patients
    script.main(script.get_args([*map(str, flags), *common]))


def test_neurolm(datasets):
    """Pre-training on all of them together, then one question for each labelled one."""
    out_dir, names = datasets / "neurolm", sorted(path.name for path in (datasets / "data").iterdir())
    assert len(names) == len(CORPORA)
    common = ["--size", "tiny", "--dataset_dir", datasets / "data", "--out_dir", out_dir]
    common += ["--text_dir", datasets / "text", "--text_batch_size", 1, "--block_size", 128]
    for script, size in ((train_vq, "--batch_size"), (train_pretrain, "--eeg_batch_size")):
        call(script, *common, "--datasets", *names, size, 16)
    tasks = []
    for name in sorted(set(names) - TRAIN_ONLY):
        labels = describe_dataset(datasets / "data" / name)["labels"]
        if name in TASKS:
            tasks.append(name)
        elif labels:
            tasks.append(datasets / f"{name}.yaml")
            tasks[-1].write_text(OWN_TASK.format(name=name, answers=", ".join(labels), folder=f"data/{name}"))
    call(train_instruction, *common, "--tasks", *tasks, "--eeg_batch_size", 16)
    results = json.loads((out_dir / "checkpoints/instruction-tiny/results.json").read_text())["results"]
    assert [row["dataset"] for row in results] == [getattr(task, "stem", task) for task in tasks]
    assert all(row["windows"] > 0 for row in results)


def test_labram(datasets):
    """Tokenizer training on all of them together, then a classifier for each labelled one."""
    names = sorted(path.name for path in (datasets / "data").iterdir())
    call(
        run_vqnsp_training, "--dataset_dir", datasets / "data", "--datasets", *names, "--batch_size", 4,
        "--output_dir", datasets / "vqnsp", "--model", "vqnsp_encoder_tiny_decoder_1x100x2", "--codebook_n_emd", 64,
        "--codebook_emd_dim", 16,
    )  # fmt: skip
    for name in sorted(set(names) - TRAIN_ONLY):
        if describe_dataset(datasets / "data" / name)["labels"]:
            call(
                run_class_finetuning, "--dataset_dir", datasets / "data", "--dataset", name, "--batch_size", 8,
                "--output_dir", datasets / f"labram_{name}", "--model", "labram_tiny_patch200_200",
                "--disable_qkv_bias",
            )  # fmt: skip
            results = json.loads((datasets / f"labram_{name}" / "results.json").read_text())["results"]
            assert results[0]["dataset"] == name
