"""Is it EEG in uV? What makers, checks and trainers refuse. C channels, T samples"""

import numpy as np

PLAUSIBLE = (0.5, 500.0)  # uV: where the median absolute amplitude of filtered EEG lies
LOUDEST = 5000.0  # uV: of a single channel; where amplifiers saturate, or where its unit is another
QUIETEST = 0.05  # uV: of a single channel; below is no brain
FLAT = 0.1  # uV: a stretch in which no channel moves by this much holds no EEG
SPARSE = 7  # every so many samples are enough for a median


def find_problem(eeg: np.ndarray, channels) -> str | None:
    """What is wrong with eeg (C, T) in uV: values that are not finite, no signal, or no uV; None: nothing."""
    broken = [name for name, row in zip(channels, eeg, strict=True) if not np.isfinite(row).all()]
    if broken:
        return f"NaN or infinite values in {', '.join(broken)}"
    if np.ptp(eeg, axis=1).max() < FLAT:
        return f"no channel moves by {FLAT:g} uV: is it flat, or in V?"
    loud = find_loud(channel_medians(eeg), channels)
    return describe_loud(loud) if loud else describe_median(float(np.median(np.abs(eeg[:, ::SPARSE]))))


def channel_medians(eeg: np.ndarray) -> np.ndarray:
    """Median absolute amplitude of each channel (C,) of eeg (C, T)."""
    return np.median(np.abs(eeg[:, ::SPARSE]), axis=1)


def find_loud(medians: np.ndarray, channels) -> dict[str, float]:
    """{name: median absolute amplitude in uV} of the channels that hold no EEG in uV, {} where that is so for all: then
    the unit is that of the whole recording."""
    loud = {name: float(median) for name, median in zip(channels, medians, strict=True) if median > LOUDEST}
    return loud if len(loud) < len(medians) else {}


def describe_loud(loud: dict[str, float]) -> str:
    said = ", ".join(f"{name} ({median:.3g} uV)" for name, median in loud.items())
    return f"median absolute amplitude above {LOUDEST:g} uV in {said}"


def describe_median(median: float, what: str = "it") -> str | None:
    """What is wrong with a median absolute amplitude in uV."""
    if PLAUSIBLE[0] <= median <= PLAUSIBLE[1]:
        return None
    return (
        f"the median absolute amplitude of {what} is {median:.3g} uV, EEG has {PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g}: is "
        "it in V, mV or raw counts? Make the dataset again from files that state their unit"
    )
