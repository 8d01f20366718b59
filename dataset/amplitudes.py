"""Is it EEG in uV? What makers, checks and trainers refuse. C channels, T samples"""

import numpy as np

PLAUSIBLE = (0.5, 500.0)  # uV: where the median absolute amplitude of filtered EEG lies
LOUDEST = 5000.0  # uV: of a single channel; a loose electrode is loud, but amplifiers saturate about here
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
    return find_loud(channel_medians(eeg), channels) or describe_median(float(np.median(np.abs(eeg[:, ::SPARSE]))))


def channel_medians(eeg: np.ndarray) -> np.ndarray:
    """Median absolute amplitude of each channel (C,) of eeg (C, T)."""
    return np.median(np.abs(eeg[:, ::SPARSE]), axis=1)


def find_loud(medians: np.ndarray, channels) -> str | None:
    """The channels that no amplifier can have recorded in uV, by their median absolute amplitudes (C,), unless all are:
    then the unit is that of the whole recording."""
    loud = [f"{name} ({median:.3g} uV)" for name, median in zip(channels, medians, strict=True) if median > LOUDEST]
    if not loud or len(loud) == len(medians) > 1:
        return None
    return f"median absolute amplitude above {LOUDEST:g} uV in {', '.join(loud)}"


def describe_median(median: float, what: str = "it") -> str | None:
    """What is wrong with a median absolute amplitude in uV."""
    if PLAUSIBLE[0] <= median <= PLAUSIBLE[1]:
        return None
    return (
        f"the median absolute amplitude of {what} is {median:.3g} uV, EEG has {PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g}: is "
        "it in V, mV or raw counts? Make the dataset again from files that state their unit"
    )
