"""Is it EEG? A look at the first batches of a run, whoever made the dataset."""

import torch

from errors import UserError

PLAUSIBLE = (0.005, 5.0)  # 100 uV: where the median absolute amplitude of filtered EEG lies, 0.5 to 500 uV


def check_eeg(batch: dict) -> None:
    """batch: x (B, ..., 200) in 100 uV, padded with zeros, and files (B). Raises UserError where values are not finite,
    or too small or large to be uV."""
    for x, file in zip(batch["x"], batch["files"], strict=True):
        if not torch.isfinite(x).all():
            raise UserError(f"recording {file} holds NaN or infinite values; its maker refuses such, run it again")
    amplitudes = batch["x"][batch["x"] != 0].abs()
    median = amplitudes.median().item() if len(amplitudes) else 0.0
    if not PLAUSIBLE[0] <= median <= PLAUSIBLE[1]:
        files = ", ".join(dict.fromkeys(batch["files"]))
        raise UserError(
            f"the median absolute amplitude of a batch is {100 * median:.3g} uV, EEG has {100 * PLAUSIBLE[0]:g} to "
            f"{100 * PLAUSIBLE[1]:g}: is it in V, mV or raw counts? Recordings: {files}; make the dataset again from "
            "files that state their unit"
        )
