"""Official pickles that run code or are damaged: refused, named, and nothing in them runs."""

import os
import pickle

import numpy as np
import pytest

from dataset.pickles import load_pickle, load_sample
from errors import UserError


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_a_pickle_that_runs_code_is_refused_and_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in range(6):
        (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"X": Attack()}, protocol=protocol))
        with pytest.raises(UserError, match=r"evil\.pkl.*(posix|nt)\.mkdir"):
            load_sample(tmp_path / "evil.pkl")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps([1, 2]), "expected a dict"),
        (pickle.dumps({"X": {1, 2}}), "more than plain data"),
        (pickle.dumps({"X": np.array([None])}), "arrays of type 'O8'"),
        (pickle.dumps({(1, 2): 3}), "dict key of type tuple"),
        (pickle.dumps({"X": np.ones((2, 3))})[:-40], "damaged"),
        (b"\x80\x04r\xff\xff\xff\xffj\xff\xff\xff\xff.", "damaged"),
        (b"", "damaged"),
    ],
)
def test_pickles_that_are_not_samples(tmp_path, content, reason):
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.pkl.*{reason}"):
        load_pickle(tmp_path / "bad.pkl")


@pytest.mark.parametrize("label", [1e30, np.inf, np.nan, 2**40, np.float64(-1e300), 0.5])
def test_labels_beyond_any_dataset(tmp_path, label):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"X": np.ones((2, 400)), "ch_names": ["C3", "C4"], "y": label}))
    with pytest.raises(UserError, match=r"x\.pkl: expected one whole number as label"):
        load_sample(path)
