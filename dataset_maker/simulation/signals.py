"""Simulated scalp EEG: 1/f background, rhythms of a mental state, epileptic and artefact transients. Everything in uV.

C channels, T samples. A recording passes through mental states (STATES), with transients (TRANSIENTS) added; a channel
sees a source in proportion to its nearness on the scalp, which its 10-20 name gives. All randomness comes from the
generator passed in, and all arithmetic is float64, so that the samples rounded to a file's resolution do not depend on
the machine.
"""

import re
from dataclasses import dataclass

import numpy as np

# Front (+1) to back (-1) of the letters, right (+1) to left (-1) of the digit of a 10-20 name.
ROW = {"FP": 1.0, "AF": 0.75, "F": 0.5, "FT": 0.25, "FC": 0.25, "C": 0.0, "T": 0.0, "A": -0.1, "M": -0.2, "TP": -0.25,
       "CP": -0.25, "P": -0.5, "PO": -0.75, "O": -1.0, "CB": -1.1, "I": -1.15}  # fmt: skip
OLD_NAMES = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8", "T1": "FT9", "T2": "FT10", "A1": "A9", "A2": "A10",
             "M1": "M9", "M2": "M10", "CB1": "CB5", "CB2": "CB6"}  # fmt: skip

# name: (Hz, None = the subject's own alpha; where it is strongest (right, front); how far it reaches)
RHYTHMS = {
    "alpha": (None, (0.0, -0.9), 0.6),
    "theta": (6.0, (0.0, 0.6), 0.5),
    "temporal theta": (5.0, (0.0, 0.0), 1.0),
    "mu": (11.5, (0.0, 0.0), 0.4),
    "beta": (20.0, (0.0, 0.3), 0.7),
    "left beta": (24.0, (-0.7, 0.1), 0.5),
    "right beta": (24.0, (0.7, 0.1), 0.5),
    "gamma": (35.0, (0.0, 0.0), 0.9),
    "delta": (1.4, (0.0, 0.5), 1.2),
    "left delta": (2.2, (-0.8, 0.0), 0.6),
    "spindles": (13.0, (0.0, 0.0), 0.7),
}

# rms of each rhythm in uV where it is strongest; alpha, theta are further scaled by the subject.
STATES = {
    "rest": {"alpha": 14.0, "theta": 1.5, "beta": 1.0},
    "arithmetic": {"alpha": 4.0, "theta": 9.0, "beta": 2.5},
    "normal": {"alpha": 12.0, "theta": 1.5, "beta": 1.0},
    "abnormal": {"alpha": 4.0, "left delta": 18.0, "temporal theta": 6.0},
    "bckg": {"alpha": 8.0, "theta": 1.5, "beta": 1.0},
    "slow": {"alpha": 2.0, "delta": 26.0},
    "W": {"alpha": 12.0, "beta": 2.0},
    "N1": {"alpha": 2.0, "temporal theta": 9.0},
    "N2": {"temporal theta": 4.0, "spindles": 9.0, "delta": 9.0},
    "N3": {"delta": 45.0, "spindles": 2.0},
    "R": {"temporal theta": 5.0, "beta": 3.5, "gamma": 1.5},
    "positive": {"alpha": 4.0, "left beta": 7.0, "gamma": 5.0},
    "neutral": {"alpha": 12.0},
    "negative": {"alpha": 5.0, "right beta": 7.0, "theta": 6.0},
    "left hand": {"alpha": 5.0, "mu": 2.0, "left beta": 7.0},
    "right hand": {"alpha": 5.0, "mu": 9.0, "right beta": 7.0},
}


def bell(time, centre: float, width: float):
    """A wave of height 1 about `centre` s."""
    return np.exp(-(((time - centre) / width) ** 2))


def spike_and_wave(time):
    """A spike of 40 ms and the slow wave of a quarter of a second after it, from time 0 -> height 1."""
    return bell(time, 0.05, 0.018) - 0.6 * bell(time, 0.2, 0.07)


# What an event adds from its start on: uV at its centre (right, front), reach, waveform (None: the noise of a muscle).
TRANSIENTS = {
    "seiz": (110.0, (0.0, 0.4), 1.2, lambda time: spike_and_wave(time % (1 / 3))),
    "spsw": (130.0, (-0.5, 0.3), 0.6, lambda time: spike_and_wave(time - 0.35)),
    # triphasic; a negative wave of a tenth of a second; a slow deflection, as an eye movement makes
    "gped": (100.0, (0.0, 0.3), 1.6, lambda time: bell(time, 0.5, 0.05) - 0.6 * bell(np.abs(time - 0.5), 0.17, 0.06)),
    "pled": (110.0, (0.9, 0.0), 0.45, lambda time: -bell(time, 0.5, 0.035)),
    "eyem": (170.0, (0.0, 1.1), 0.5, lambda time: bell(time, 0.5, 0.15)),
    "artf": (45.0, (-0.9, 0.1), 0.6, None),
}


@dataclass(frozen=True)
class Subject:
    """What does not change between the recordings of a subject: alpha frequency (Hz), scales, slope of 1/f power."""

    DRAWN = ((9.0, 11.5), (0.75, 1.3), (0.75, 1.3), (6.0, 9.0), (0.9, 1.3))  # ranges of the fields
    alpha_hz: float
    alpha_scale: float
    theta_scale: float
    background_uv: float
    slope: float


def scalp_position(name: str) -> tuple[float, float]:
    """Where a channel lies, (right, front) in head radii; the name may carry 'EEG ', '-REF' or trailing dots.

    Raises ValueError on a name that is not of the 10-20 family.
    """
    electrode = re.sub(r"^EEG ", "", name.upper()).split("-")[0].strip(". ")
    match = re.fullmatch(r"([A-Z]+?)(Z|\d+)", OLD_NAMES.get(electrode, electrode))
    if match is None or match[1] not in ROW:
        raise ValueError(f"{name}: not a 10-20 channel name")
    digit = 0 if match[2] == "Z" else int(match[2])
    side = (digit + 1) // 2 / 4 * (1 if digit % 2 == 0 else -1)
    front = ROW[match[1]]
    return side * np.sqrt(max(1 - front**2, 0.4)), front


def reach(names, centre, width: float) -> np.ndarray:
    """How strongly each channel sees a source at `centre` (right, front) -> (C,) in 0..1."""
    distance = np.array([*map(scalp_position, names)]) - centre
    return np.exp(-(distance**2).sum(1) / (2 * width**2))


def noise(rng, channels: int, samples: int, rate: float, slope: float, low: float = 0.5, high: float = np.inf):
    """Noise with power f^-slope above `low` Hz, flat below, none above `high` -> (C, T), rms 1 per channel."""
    hz = np.fft.rfftfreq(samples, 1 / rate)
    gain = np.maximum(hz, low) ** (-slope / 2) * (hz > 0) * (hz <= high)
    spectrum = rng.standard_normal((channels, 2, hz.size))
    uv = np.fft.irfft((spectrum[:, 0] + 1j * spectrum[:, 1]) * gain, samples)
    return uv / uv.std(axis=1, keepdims=True)


def oscillation(rng, samples: int, rate: float, hz: float) -> np.ndarray:
    """A waxing and waning oscillation whose phase drifts -> (T,), rms near 1."""
    swell, drift = noise(rng, 2, samples, rate, slope=1.0, low=0.1, high=0.6)
    phase = 2 * np.pi * hz * np.arange(samples) / rate + 0.8 * drift + rng.uniform(0, 2 * np.pi)
    return np.sqrt(2) * np.clip(1 + 0.35 * swell, 0.4, 2) * np.sin(phase)


def bursts(rng, samples: int, rate: float, every: float = 4.0, length: float = 1.0) -> np.ndarray:
    """Envelope of bursts (sleep spindles), one in each `every` seconds -> (T,), rms near 1."""
    time = np.arange(samples) / rate
    starts = np.arange(0, samples / rate, every) + rng.uniform(0, every - length, int(np.ceil(samples / rate / every)))
    envelope = np.zeros(samples)
    for start in starts:
        inside = (time >= start) & (time < start + length)
        envelope[inside] = np.sin(np.pi * (time[inside] - start) / length) ** 2
    return envelope * np.sqrt(every / length * 8 / 3)


def level(states, rhythm: str, samples: int, rate: float) -> np.ndarray:
    """rms of a rhythm over time, from rows (start s, stop s, state), eased over a quarter of a second -> (T,) uV."""
    uv = np.zeros(samples)
    for start, stop, state in states:
        uv[round(start * rate) : round(stop * rate)] = STATES[state].get(rhythm, 0.0)
    ease = max(int(rate / 4), 1)
    padded = np.pad(uv, (ease // 2, ease - 1 - ease // 2), mode="edge")
    total = np.concatenate([[0.0], np.cumsum(padded)])
    return (total[ease:] - total[:-ease]) / ease


def make_eeg(rng, subject: Subject, names, rate: float, samples: int, states, mains: float = 50.0) -> np.ndarray:
    """EEG of a subject who passes through `states`, rows (start s, stop s, name of STATES) -> (C, T) uV.

    Background (neighbours share most of it), rhythms of the states, mains hum below Nyquist.
    """
    where = np.array([scalp_position(name) for name in names])
    near = np.exp(-((where[:, None] - where[None]) ** 2).sum(-1) / (2 * 0.35**2)) + 0.5 * np.eye(len(names))
    near /= np.sqrt((near**2).sum(1, keepdims=True))
    uv = subject.background_uv * near @ noise(rng, len(names), samples, rate, subject.slope)
    scale = {"alpha": subject.alpha_scale, "theta": subject.theta_scale}
    for rhythm, (hz, centre, width) in RHYTHMS.items():
        wave = level(states, rhythm, samples, rate)
        if not wave.any():
            continue
        wave *= scale.get(rhythm, 1.0) * oscillation(rng, samples, rate, hz or subject.alpha_hz)
        if rhythm == "spindles":
            wave *= bursts(rng, samples, rate)
        uv += reach(names, centre, width)[:, None] * wave
    if mains < rate / 2:
        hum = np.sin(2 * np.pi * mains * np.arange(samples) / rate + rng.uniform(0, 2 * np.pi))
        uv += rng.uniform(0.5, 4.0, (len(names), 1)) * hum
    return uv


def add_transient(rng, uv: np.ndarray, names, rate: float, start: float, stop: float, label: str) -> None:
    """Add the event `label` of TRANSIENTS, `start` to `stop` s, to the EEG (C, T) in place; its size varies by 25 %."""
    height, centre, width, waveform = TRANSIENTS[label]
    first, last = round(start * rate), min(round(stop * rate), uv.shape[1])
    time = np.arange(last - first) / rate
    wave = rng.standard_normal(time.size) * np.hanning(time.size) if waveform is None else waveform(time)
    uv[:, first:last] += reach(names, centre, width)[:, None] * (rng.uniform(0.8, 1.25) * height * wave)


def flatten(uv: np.ndarray) -> None:
    """An electrode recorded nothing, in place."""
    uv[FLAT] = 0


def blank(uv: np.ndarray) -> None:
    """Samples in the middle are not numbers, as some exports mark a pause, in place."""
    uv[:, uv.shape[1] // 2 :][:, :50] = np.nan


FLAT = 2  # the electrode that `flatten` takes
SPOILT = {"flat": flatten, "nan": blank}  # by the problem of a recording


def make_noise(rms: float, slope: float):
    """A channel of the body: noise of `rms` uV, as muscles (slope 0), eyes (1.5) and ears (1) give."""
    return lambda rng, rate, samples: rms * noise(rng, 1, samples, rate, slope)[0]


def make_nothing(rng, rate: float, samples: int) -> np.ndarray:
    """A channel that is not used -> (T,)."""
    return np.zeros(samples)


def make_ecg(rng, rate: float, samples: int, uv: float = 600.0) -> np.ndarray:
    """An electrocardiogram: narrow positive peaks about once a second -> (T,) uV."""
    beats = np.cumsum(rng.normal(0.9, 0.04, int(samples / rate / 0.7) + 2))
    time = np.arange(samples) / rate
    nearest = np.abs(time[:, None] - beats[np.clip(np.searchsorted(beats, time), 1, beats.size - 1)[:, None] - [0, 1]])
    return uv * np.exp(-((nearest.min(1) / 0.02) ** 2)) + 5 * noise(rng, 1, samples, rate, 1.0)[0]
