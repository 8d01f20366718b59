"""The adapters of evaluation/adapters.py in the benchmarks that they are made for: `make adapters` runs this.

python tests/adapters_in_packages.py                      minutes on one core
python tests/adapters_in_packages.py --published_sizes    NeuralBench's check with LaBraM-Base and NeuroLM-B: long

OpenEEGBench builds its experiments, and four of them run on a local dataset; braindecode's EEGClassifier (skorch) fits;
NeuralBench checks every task, channel count and window. No network: weights are random, and the EEG is simulated.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import mne
import numpy as np
import torch
from braindecode import EEGClassifier
from braindecode.datasets import BaseConcatDataset, create_from_X_y
from neuralbench import check_model
from open_eeg_bench import benchmark
from open_eeg_bench.dataset import Dataset, PredefinedSplitter
from skorch.dataset import ValidSplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError, run
from evaluation.adapters import LaBraMAdapter, NeuroLMAdapter

CHANNELS, SFREQ, SECONDS = ("Fz", "C3", "C4", "Pz", "O1", "O2"), 128.0, 3
PUBLISHED = {LaBraMAdapter: "base", NeuroLMAdapter: "B"}
LORA = {LaBraMAdapter: ["qkv", "proj", "fc1", "fc2"], NeuroLMAdapter: ["c_attn", "c_proj", "c_fc"]}


class Simulated(Dataset):
    """Windows of three subjects: noise, with an alpha rhythm in the second class."""

    def load(self):
        recordings = []
        for subject in range(3):
            x, y = simulate(24, seed=subject)
            windows = create_from_X_y(x, y, drop_last_window=False, sfreq=SFREQ, ch_names=list(CHANNELS))
            windows.set_description({"subject": [subject] * len(windows.datasets)}, overwrite=True)
            recordings += windows.datasets
        return BaseConcatDataset(recordings)


def simulate(windows: int, seed: int):
    """EEG (windows, channels, samples) in uV, float32, and its classes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((windows, len(CHANNELS), round(SECONDS * SFREQ))).astype(np.float32) * 10
    y = np.arange(windows) % 2
    x[y == 1] += 30 * np.sin(2 * np.pi * 10 * np.arange(x.shape[2]) / SFREQ).astype(np.float32)
    return x, y


def check_open_eeg_bench(kind, folder: Path) -> None:
    weights = folder / f"{kind.__name__}.pt"  # OpenEEGBench reads a state dict with the adapter's own names
    torch.save(kind(sfreq=SFREQ, size="tiny").state_dict(), weights)
    experiments = benchmark(
        kind,
        checkpoint_path=str(weights),
        model_kwargs={"size": "tiny"},
        finetuning_strategies=["frozen", "ridge_probe", "full_finetune", "lora"],
        peft_target_modules=LORA[kind],
        infra={"folder": str(folder)},
        only_return_configs=True,
    )
    print(f"{kind.__name__} tiny: OpenEEGBench builds {len(experiments)} experiments")
    splitter = PredefinedSplitter(metadata_key="subject", train_values=[0], val_values=[1], test_values=[2])
    local = Simulated(hf_id="local", revision="local", n_classes=2, splitter=splitter, montage_name="standard_1005")
    for experiment in {(each.finetuning.kind, each.training.kind): each for each in experiments}.values():
        epochs = {"training": {"max_epochs": 8, "batch_size": 8}} if experiment.training.kind == "sgd" else {}
        results = experiment.infra.clone_obj({"dataset": local, "verbose": 0, **epochs}).run()
        method = f"{results['adapter_stats']['method']} + {experiment.training.kind}"
        score = results["test_balanced_accuracy"]
        print(f"{kind.__name__} tiny: OpenEEGBench, {method}: balanced accuracy {score:.2f}", flush=True)


def check_skorch(kind) -> None:
    """With a class, as braindecode recommends, and with an instance. Raises UserError where it does not learn."""
    x, y = simulate(64, seed=0)
    settings = {"sfreq": SFREQ, "size": "tiny", "chs_info": [{"ch_name": name} for name in CHANNELS]}
    torch.manual_seed(0)
    shared = {"max_epochs": 8, "lr": 3e-3, "batch_size": 16, "optimizer": torch.optim.AdamW, "verbose": 0}
    shared |= {"classes": [0, 1], "train_split": ValidSplit(4, stratified=True)}
    for net in (
        EEGClassifier(kind, **{f"module__{name}": value for name, value in settings.items()}, **shared),
        EEGClassifier(kind(len(CHANNELS), 2, x.shape[2], **settings), **shared),
    ):
        score = net.fit(x, y).score(*simulate(40, seed=1))
        print(f"{kind.__name__} tiny: EEGClassifier, accuracy on new windows {score:.2f}", flush=True)
        if score < 0.8:
            raise UserError(f"EEGClassifier does not learn to tell an alpha rhythm from noise: accuracy {score:.2f}")


def check_neuralbench(kind, size: str) -> None:
    """Raises UserError for a row that fails."""
    rows = check_model(kind(n_outputs=2, sfreq=120, size=size), "eeg", "all")
    failed, tasks = rows[rows["status"] != "ok"], rows["task"].nunique()
    print(f"{kind.__name__} {size}: NeuralBench, {len(rows)} rows of {tasks} tasks, {len(failed)} failing", flush=True)
    if len(failed):
        raise UserError(f"NeuralBench: {failed.iloc[0].to_dict()}")


def get_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published_sizes", action=argparse.BooleanOptionalAction, default=False)
    return parser.parse_args(argv)


def main(args):
    mne.set_log_level("warning")
    with tempfile.TemporaryDirectory() as folder:
        for kind, size in PUBLISHED.items():
            check_open_eeg_bench(kind, Path(folder))
            check_skorch(kind)
            check_neuralbench(kind, size if args.published_sizes else "tiny")


if __name__ == "__main__":
    run(main, get_args)
