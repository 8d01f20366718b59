"""What braindecode's Labram answers with the weights of LaBraM-Base.

`.venv-adapters/bin/python tests/braindecode_labram.py` writes tests/data/braindecode_labram.npz: the logits of each
case, from braindecode 1.8.1, float32, CPU. Weights and EEG follow from names and shapes, so that nothing else is
stored, and tests/test_braindecode.py needs no braindecode.
"""

import zlib
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "data" / "braindecode_labram.npz"
CLASSES, WINDOWS = 5, 3
CASES = {  # channels, seconds
    "three": (("C3", "CZ", "C4"), 4),
    "mixed": (("FP1", "T3", "T7", "O2", "A1", "FTT9H", "P8-O2", "AF9"), 11),
    "longest": (("PZ",), 16),
}


def value(name: str, shape) -> np.ndarray:
    """Uniform values of deviation 1 that follow from a name, float32: Philox's raw stream is the same everywhere."""
    raw = np.random.Philox(key=zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return ((2.0 * (raw >> np.uint64(11)) * 2.0**-53 - 1.0) * np.sqrt(3.0)).reshape(shape).astype(np.float32)


def parameter(name: str, shape) -> np.ndarray:
    """A parameter of LaBraM by its official name, of a size that keeps activations near 1."""
    if name.endswith(("_embed", "cls_token")):
        return 0.3 * value(name, shape)
    if len(shape) >= 2:
        return value(name, shape) * np.float32(0.7 / np.sqrt(np.prod(shape[1:])))
    return 0.1 * value(name, shape) + np.float32(name.endswith("norm.weight") or ".norm" in name and "weight" in name)


def eeg(case: str) -> np.ndarray:
    """(windows, channels, seconds·200) in 100 uV."""
    channels, seconds = CASES[case]
    return 0.3 * value(f"eeg/{case}", (WINDOWS, len(channels), seconds * 200))


OFFICIAL = {  # parts of braindecode's names: the official ones
    "position_embedding": "pos_embed",
    "temporal_embedding": "time_embed",
    "patch_embed.temporal_conv.": "patch_embed.",
    "mlp.0.": "mlp.fc1.",
    "mlp.2.": "mlp.fc2.",
    "final_layer.": "head.",
}


def main():
    import torch
    from braindecode.models import Labram

    answers = {}
    for case, (channels, seconds) in CASES.items():
        model = Labram(n_times=seconds * 200, n_chans=len(channels), n_outputs=CLASSES, use_mean_pooling=True).eval()
        for name, tensor in model.state_dict().items():
            official = name
            for theirs, ours in OFFICIAL.items():
                official = official.replace(theirs, ours)
            shape = (1, 16, 200) if official == "time_embed" else tuple(tensor.shape)
            filled = torch.from_numpy(parameter(official, shape))
            if official == "time_embed":  # braindecode's has a row for each second, and one more that nothing reads
                filled = torch.cat([filled, filled[:, :1]], dim=1)[:, : tensor.shape[1]]
            tensor.copy_(filled)
        with torch.no_grad():
            answers[case] = model(torch.from_numpy(eeg(case)), ch_names=list(channels)).numpy()
    np.savez(FILE, **answers)
    print({case: logits.round(4).tolist()[0] for case, logits in answers.items()})


if __name__ == "__main__":
    main()
