"""Our filters against MNE's own, over rates, lengths and edges."""

import mne
import numpy as np
import pytest

from dataset_maker.machinery.filters import convolve, design, resample


@pytest.mark.parametrize("rate", [128.0, 160.0, 200.0, 250.0, 256.0, 257.0, 400.0, 500.0, 512.0, 1000.0, 2048.0])
@pytest.mark.parametrize("seconds", [3.0, 40.003, 150.0])
def test_equal_to_mne(rate, seconds):
    rng = np.random.default_rng(int(rate))
    data = 50 * rng.standard_normal((2, round(seconds * rate))).cumsum(1) / np.sqrt(rate)
    data -= data.mean(1, keepdims=True)
    high, notch = min(75.0, 0.45 * rate), 50.0
    with mne.utils.use_log_level("ERROR"):
        expected = mne.filter.filter_data(data, rate, 0.1, high)
        expected = mne.filter.notch_filter(expected, rate, notch)
        if rate != 200:
            expected = mne.filter.resample(expected, 200, rate, npad="auto", pad="reflect_limited")
    for kernel in design(rate, 0.1, high, notch):
        convolve(data, kernel)
    actual = resample(data, rate) if rate != 200 else data
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-6 * np.abs(expected).max())
