"""EEG in any form gives the same features and answers; what is not as in the training is said, no EEG is refused."""

import warnings

import mne
import numpy as np
import pandas as pd
import pytest
import torch
from test_predict import LABRAM, made  # noqa: F401 - made is a fixture

from dataset.batches import collate_eeg
from errors import UserError
from evaluation.inference import load
from evaluation.reading import stored_filters
from model.weights import read_checkpoint
from training.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def raw(made):  # noqa: F811
    return mne.io.read_raw(made / "raw" / "Subject00_2.edf", preload=True, verbose="ERROR").pick("eeg")


@pytest.fixture(scope="module")
def model(made):  # noqa: F811
    return load(made / "model.pt", device="cpu")


@pytest.fixture(autouse=True)
def quiet():
    """Warnings are for the tests that ask for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def warned(call) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(warning.filename == __file__ for warning in caught if warning.category is UserWarning)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", ["model.pt", LABRAM[1]])
def test_a_file_a_raw_and_an_array_are_the_same(made, raw, name):  # noqa: F811
    asked, before = load(made / name, device="cpu"), raw.get_data()
    features, answers = asked.features(raw), asked.answer(raw)
    array = (before * 1e3, raw.ch_names, raw.info["sfreq"], "mV")
    for eeg in ((str(made / "raw" / "Subject00_2.edf"),), array):
        np.testing.assert_allclose(asked.features(*eeg), features, rtol=1e-4, atol=1e-6)
        pd.testing.assert_frame_equal(asked.answer(*eeg), answers, rtol=1e-4)
    assert (raw.get_data() == before).all() and len(answers) == len(features) == 15
    assert list(answers)[:4] == ["task", "start", "stop", "answer"] and list(answers["start"][:3]) == [0, 4, 8]


def test_epochs_are_windows(raw, model):
    clean = model.read(raw)
    features = model.features(clean)
    windows = np.stack(np.split(clean.eeg[:, : 15 * 800], 15, axis=1))  # (E, C, T)
    info = mne.create_info(list(clean.channels), 200, "eeg")
    epochs = mne.EpochsArray(windows * 1e-6, info, verbose="ERROR")
    for eeg in ((epochs,), (windows, clean.channels, 200)):
        np.testing.assert_allclose(model.features(*eeg, clean=True), features, rtol=1e-4, atol=1e-6)
    table = model.answer(epochs, clean=True)
    assert list(table)[:3] == ["task", "epoch", "answer"] and list(table["epoch"]) == list(range(15))
    np.testing.assert_allclose(table["p_Yes"], model.answer(clean)["p_Yes"], rtol=1e-4)
    assert any("distorted" in said and "say that it is clean" in said for said in warned(lambda: model.read(epochs)))

    lazy = mne.make_fixed_length_epochs(raw, duration=2.5, preload=False, verbose="ERROR")
    said = warned(lambda: model.features(lazy))
    assert "epochs of 2.5 s are cut to 2: windows have whole seconds" in said and not lazy.preload
    assert "windows of 2 s, not of 4 s as in the training" in said


def test_levels_layers_and_pools(made, raw, model):  # noqa: F811
    clean = model.read(raw)
    windows = model._cut(clean, model.usual, None)
    batch = collate_eeg(list(windows))
    with torch.no_grad():
        expected = {"tokenizer": model.model.encode(batch), "hidden": model.model.read(batch)[0]}
    for level, tokens in expected.items():
        found = model.features(clean, level=level, pool=None)  # (W, C, S, D), tokens are by second, then channel
        np.testing.assert_allclose(found.swapaxes(1, 2).reshape(tokens.shape), tokens, rtol=1e-4, atol=1e-5)
        by_channel = model.features(clean, level=level, pool="channels")
        np.testing.assert_allclose(by_channel, found.mean(2), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(model.features(clean, level=level), found.mean((1, 2)), rtol=1e-4, atol=1e-5)
    hidden = [model.features(clean, level="hidden", layer=layer) for layer in (0, 1, -1)]
    assert np.array_equal(hidden[1], hidden[2]) and np.abs(hidden[0] - hidden[1]).max() > 0.01

    labram = load(made / LABRAM[1], device="cpu")
    with torch.no_grad():
        logits = labram.model.head(torch.from_numpy(labram.features(clean)))[:, 0]
    np.testing.assert_allclose(logits.sigmoid(), labram.answer(clean)["p_arithmetic"], rtol=1e-4)
    assert labram.features(clean, pool=None).shape == (15, 19, 4, 100)
    for asked, how, words in (
        (labram, {"level": "hidden"}, "a LaBraM has no language model"),
        (model, {"layer": 5}, "layer 5: there are 1, from 0 to 0"),
        (model, {"pool": "max"}, "pool 'max': a level is one of"),
    ):
        with pytest.raises(UserError, match=words):
            asked.features(clean, **how)


def test_questions_of_ones_own(made, raw, model):  # noqa: F811
    clean = model.read(raw)
    said = warned(lambda: model.ask(clean, "Is the subject asleep?", ["No", "Yes"]))
    assert [words for words in said if "not trained on this question" in words] == said
    table = model.ask(clean, "Is the subject asleep?", ["No", "Yes"])
    assert set(table["task"]) == {"own"} and np.allclose(table[["p_No", "p_Yes"]].sum(axis=1), 1)
    said = warned(lambda: model.ask(clean, "Asleep?", ["No", "Yes, in a very deep sleep"]))
    assert any("log-likelihood per token" in words for words in said)
    learnt = "Is this EEG segment of high workload?"
    assert not warned(lambda: model.ask(clean, learnt, ["No", "Yes"]))
    pd.testing.assert_frame_equal(model.ask(clean, learnt, ["No", "Yes"]), model.answer(clean))
    for question, answers in (("Asleep?", ["No"]), ("Asleep?", "No"), ("", ["No", "Yes"])):
        with pytest.raises(UserError, match=r"ask\(\): (answers|question): "):
            model.ask(clean, question, answers)
    with pytest.raises(UserError, match=r"labram\.pth is a classifier, it knows nothing but rest, arithmetic"):
        load(made / LABRAM[1]).ask(clean, "Asleep?", ["No", "Yes"])


def test_channels_are_named_and_never_filled(raw, model):
    some = raw.copy().drop_channels(["EEG O1"]).rename_channels({"EEG O2": "Elbow"})
    said = warned(lambda: model.features(some))
    assert "channels left out: Elbow, EEG A2-A1, ECG ECG" in said
    assert "without O1, O2, which the model was trained on" in said
    assert model.features(some, pool="channels").shape[1] == 17
    names = {name: f"E{number}" for number, name in enumerate(raw.ch_names)}
    with pytest.raises(UserError, match="the RawEDF given: without any channel of the table; its channels: E0, E1"):
        model.features(raw.copy().rename_channels(names))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x, names, rate: (x,), "says no channels and no rate: give ch_names and sfreq"),
        (lambda x, names, rate: (x.T, names, rate), "ch_names has 21 names; give its transpose"),
        (lambda x, names, rate: (x * 1e-6, names, rate), "it seems to be in V"),
        (lambda x, names, rate: (x, names, 0), "0 is not a rate in Hz above 0"),
        (lambda x, names, rate: (x, names, rate, "kV"), "'kV' is not uV, mV, V or raw:FACTOR"),
        (lambda x, names, rate: (x.astype(str), names, rate), "give a path, an MNE Raw or Epochs, or numbers"),
        (lambda x, names, rate: (x * np.nan, names, rate), "NaN or infinite values in FP1"),
        (lambda x, names, rate: (x[:, :100], names, rate), "too short: 0.2 s"),
        (lambda x, names, rate: (x[None][:0], names, rate), "an array 0x21x30000 of float64: give a path"),
        (lambda x, names, rate: ("gone.edf",), "gone.edf: cannot be read: No such file"),
    ],
)
def test_what_is_no_eeg_is_refused(raw, model, change, words):
    with pytest.raises(UserError, match=words):
        model.features(*change(raw.get_data(units="uV"), raw.ch_names, raw.info["sfreq"]))


def recipes(*texts):
    return {"datasets": {str(i): {"preprocessing": text} for i, text in enumerate(texts)}}


def test_the_training_s_filters_are_applied(made, raw, model, tmp_path):  # noqa: F811
    american = "band: [0.5, 40.0]\nnotch: 60.0\n"
    write_checkpoint(read_checkpoint(made / "model.pt") | recipes(american, american), tmp_path / "x.pt")
    trained = load(tmp_path / "x.pt", device="cpu")
    clean = trained.read(raw)
    assert (clean.low, clean.high, clean.notch) == (0.5, 40.0, 60.0) and not any("notch" in w for w in warned(
        lambda: trained.read(raw)))  # fmt: skip
    expected = mne.filter.filter_data(raw.get_data(["EEG C3"], units="uV"), 500, 0.5, 40.0, verbose="ERROR")
    expected = mne.filter.resample(expected, 200, 500, npad="auto", pad="reflect_limited", verbose="ERROR")[0]
    ours = clean.eeg[clean.channels.index("C3")]
    np.testing.assert_allclose(ours[1000:-1000], expected[1000:-1000], rtol=0, atol=0.05)
    assert trained.read(raw, notch=50).notch == 50 and trained.read(raw, clean=True).notch == 0
    assert any("does not say how its data were filtered" in said for said in warned(lambda: model.read(raw)))
    both = recipes(american, american.replace("60", "50"), "rate: 200", "band: [1, no]\nnotch: x")
    assert stored_filters(both, "x.pt")[:2] == ((0.5, 40.0), 50.0)
    assert "x.pt was trained on data with notches at 50, 60 Hz" in stored_filters(both, "x.pt")[2]


def test_models_that_do_not_say_how_they_were_trained(made, raw, tmp_path):  # noqa: F811
    checkpoint = read_checkpoint(made / "model.pt")
    write_checkpoint({name: checkpoint[name] for name in checkpoint if name != "tasks"}, tmp_path / "released.pt")
    with pytest.raises(UserError, match=r"does not say how long its windows were: load\(\.\.\., window=SECONDS\)"):
        load(tmp_path / "released.pt").features(raw)
    released = load(tmp_path / "released.pt", window=10)
    assert released.features(raw).shape[0] == 6
    with pytest.raises(UserError, match=r"does not say what it was trained on: ask\(\), or load"):
        released.answer(raw)
    asked = load(tmp_path / "released.pt", tasks=["TUAB"], window=10)
    assert any("not trained on this question" in said for said in warned(lambda: asked.answer(raw)))
