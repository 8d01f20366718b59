"""Channels that the table does not have: who stands in for them, and which are refused."""

import warnings

import mne
import numpy as np
import pytest
import torch
from test_adapters import BOTH, NAMES, build, eeg
from torch.testing import assert_close

from dataset.channels import STANDARD_1020
from errors import UserError
from evaluation.adapters import electrodes, table_rows


@BOTH
def test_a_channel_without_a_row_takes_the_nearest_electrodes_and_says_so_once(kind):
    model, x = build(kind), eeg(3, 400)
    expected = model(x, ch_names=["C3", "CZ", "OZ"])
    place = torch.tensor(np.array([electrodes()[name] for name in ("C3", "CZ", "OZ")]), dtype=torch.float32)
    with pytest.warns(UserWarning, match="E75 -> OZ"):
        assert_close(model(x, ch_names=["C3", "CZ", "E75"], channel_positions=place.expand(2, -1, -1)), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(model(x, ch_names=["C3", "CZ", "E75"], channel_positions=1000 * place), expected)  # mm
    with pytest.warns(UserWarning, match="channel 1 -> C3, channel 2 -> CZ, channel 3 -> OZ"):
        assert_close(model(x, channel_positions=place), expected)
    info = mne.create_info(["C3", "CZ", "Oz elsewhere"], 200.0, "eeg")["chs"]
    for channel, loc in zip(info, place, strict=True):
        channel["loc"][:3] = loc
    with pytest.warns(UserWarning, match="Oz elsewhere -> OZ"):
        assert_close(build(kind, chs_info=info, n_chans=3)(x), expected)


def test_a_net_with_names_of_its_own_lands_where_its_maker_says():
    montage = mne.channels.make_standard_montage("GSN-HydroCel-128")
    info = mne.create_info(montage.ch_names, 100.0, "eeg").set_montage(montage)
    places = np.array([channel["loc"][:3] for channel in info["chs"]])
    _, found = table_rows(montage.ch_names, places, 128)
    maker = {"E22": "FP1", "E9": "FP2", "E11": "FZ", "E24": "F3", "E124": "F4", "E36": "C3", "E104": "C4", "E75": "OZ"}
    for channel, place in maker.items():
        assert np.linalg.norm(electrodes()[found[channel].upper()] - electrodes()[place]) < 0.03, channel  # metres


def test_positions_scaled_to_0_and_1_are_taken_for_a_whole_cap():
    names = [name for name in electrodes() if name in STANDARD_1020[:128]]
    places = np.array([electrodes()[name] for name in names])
    scaled = (places - places.min(0)) / np.ptp(places, axis=0)  # as NeuralBench hands positions over
    scaled[names.index("A1")] = scaled[names.index("FPZ")]
    rows, found = table_rows([f"?{name}" for name in names], scaled, 128)
    for name in ("FP1", "CZ", "O2", "C3", "P4", "FT8"):
        assert found[f"?{name}"] == name
    assert found["?A1"] == "FPZ"
    assert found["?T3"] == "T7"  # the first of two rows for one place


def test_rows_beyond_labrams_take_a_stand_in_and_positions_may_differ_within_a_batch():
    with pytest.raises(UserError, match="FP1-F3"):
        table_rows(["FP1-F3"], None, 128)
    assert table_rows(["FP1-F3"], None, len(STANDARD_1020))[1] == {}
    places = np.array([[electrodes()["C3"]], [electrodes()["O2"]]])
    rows, _ = table_rows(["X"], places, 128)
    assert [STANDARD_1020[row] for row in rows[:, 0]] == ["C3", "O2"]


@BOTH
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "ch_names"),
        ({"ch_names": ["C3", "E7", "EOG"]}, "channel E7, EOG: neither a row"),
        ({"ch_names": ["C3", "E7", "EOG"], "channel_positions": torch.full((2, 3, 3), -0.1)}, "channel E7, EOG"),
        ({"ch_names": ["C3", "E7", "EOG"], "channel_positions": torch.full((3, 3), torch.nan)}, "channel E7, EOG"),
        ({"ch_names": ["C3", "C4"]}, "3 channels with the names of 2"),
        ({"ch_names": NAMES, "channel_positions": torch.rand(2, 3, 2)}, "positions of shape"),
    ],
)
def test_channels_that_cannot_be_placed_are_refused_by_name(kind, given, words):
    with pytest.raises(UserError, match=words):
        build(kind)(eeg(3, 400), **given)
