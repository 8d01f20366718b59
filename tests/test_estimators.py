"""scikit-learn's view: pipelines, cross-validation by subject, clone, pickle; fit is the scripts' own training."""

import pickle
import random

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_models import make_lm, make_vq, samples

from dataset.batches import collate_eeg
from errors import UserError
from evaluation.estimators import EEGFeatures, LaBraMClassifier, NeuroLMClassifier
from model.labram import BACKBONES, Classifier
from training.checkpoints import write_checkpoint

CHANNELS, RATE = ["C3", "EEG Cz-REF", "c4"], 128
LABELS = {"text": np.array(["slow", "fast"]), "numbers": np.array([7, -1]), "truth": np.array([True, False])}


def eeg(n=24, rate=RATE, seconds=2):
    """Windows in uV whose rhythm says their label 0 or 1, and the subject of each."""
    rng, labels = np.random.default_rng(0), np.arange(n) % 2
    time = np.arange(rate * seconds) / rate
    rhythm = np.sin(2 * np.pi * np.array([6, 20])[labels][:, None, None] * time)
    return 30 * rhythm + 5 * rng.standard_normal((n, 3, len(time))), labels, np.arange(n) // 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Checkpoints of small models that nobody trained."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    labram = {f"student.{name}": value for name, value in Classifier(BACKBONES["tiny"], 1).state_dict().items()
              if not name.startswith(("head.", "fc_norm."))}  # fmt: skip
    lm, vq = make_lm(band_power=True), make_vq()  # a random encoder tells little
    lm.measure_features([collate_eeg(samples())])
    write_checkpoint({"model": labram}, folder / "labram.pth")
    write_checkpoint({"model": lm.state_dict(), **lm.config_args()}, folder / "lm.pt")
    write_checkpoint({"model": vq.state_dict(), **vq.config_args()}, folder / "vq.pt")
    return folder


def make(kind, weights, **more):
    name, lr, epochs = ("labram.pth", 3e-3, 6) if kind is LaBraMClassifier else ("lm.pt", 1e-2, 15)
    shared = {"epochs": epochs, "batch_size": 8, "lr": lr, "device": "cpu"}
    return kind(weights / name, CHANNELS, RATE, **shared | more)


BOTH = pytest.mark.parametrize("kind", [LaBraMClassifier, NeuroLMClassifier])


@BOTH
def test_fit_learns_and_leaves_no_trace(kind, weights, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    X, y, _ = eeg()
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    before = random.random(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    random.seed(before[0])
    state = random.getstate()
    model = make(kind, weights)
    assert model.fit(X, LABELS["text"][y]) is model
    assert random.getstate() == state and (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert list(model.classes_) == ["fast", "slow"]
    probabilities = model.predict_proba(X)
    assert probabilities.shape == (24, 2) and probabilities.sum(1) == pytest.approx(1)
    assert (model.predict(X) == model.classes_[probabilities.argmax(1)]).all()
    assert model.score(X, LABELS["text"][y]) > 0.9
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")
    again = clone(model).fit(X, LABELS["text"][y])  # the seed is all that decides
    assert (again.predict_proba(X) == probabilities).all()
    assert (pickle.loads(pickle.dumps(model)).predict_proba(X) == probabilities).all()


@BOTH
@pytest.mark.parametrize("strategy", ["probe", "lora"])
def test_strategies_train_their_part(kind, strategy, weights):
    X, y, _ = eeg(8)
    model = make(kind, weights, strategy=strategy, lora_rank=2, epochs=1).fit(X, y)
    trained = {name for name, value in model.model_.named_parameters() if value.requires_grad}
    start, after = kind._start(model, model._run()).state_dict(), model.model_.state_dict()
    for name, value in after.items():
        before = start.get(name.replace(".base_layer", ""))
        assert name in trained or torch.equal(value, before), name
    assert any("lora_B" in name and after[name].any() for name in trained) == (strategy == "lora")
    if strategy == "lora":
        assert (pickle.loads(pickle.dumps(model)).predict_proba(X) == model.predict_proba(X)).all()


@BOTH
def test_parameters_are_scikit_learns(kind, weights):
    model = make(kind, weights, strategy="probe", seed=4)
    copy = clone(model)
    assert copy is not model and copy.get_params() == model.get_params()
    assert copy.set_params(epochs=2).epochs == 2 and model.epochs != 2
    assert {"weights", "ch_names", "sfreq", "unit", "strategy", "lora_rank", "seed"} <= model.get_params().keys()
    with pytest.raises(ValueError, match="not fitted"):
        model.predict(eeg(2)[0])


@pytest.mark.parametrize("labels", LABELS)
def test_labels_of_any_type(labels, weights):
    X, y, _ = eeg(8)
    given = LABELS[labels][y]
    model = make(LaBraMClassifier, weights, epochs=1).fit(X, given)
    assert model.predict(X).dtype == given.dtype and list(model.classes_) == sorted(LABELS[labels].tolist())
    three = make(NeuroLMClassifier, weights, epochs=1).fit(X, np.arange(8) % 3)
    assert three.predict_proba(X).shape == (8, 3) and set(three.predict(X)) <= {0, 1, 2}


@pytest.mark.parametrize("name", ["labram.pth", "lm.pt", "vq.pt"])
def test_features_in_a_pipeline(name, weights):
    X, y, subjects = eeg()
    features = EEGFeatures(weights / name, CHANNELS, RATE, device="cpu")
    pipeline = make_pipeline(features, StandardScaler(), LogisticRegression())
    scores = cross_val_score(pipeline, X, y, groups=subjects, cv=GroupKFold(3), error_score="raise")
    assert scores.shape == (3,) and scores.mean() > 0.9
    found = clone(features).fit_transform(X[:5])
    assert found.shape == (5, 100 if name == "labram.pth" else 32) and found.dtype == np.float32
    in_volts = EEGFeatures(weights / name, CHANNELS, RATE, unit="V", device="cpu").fit_transform(1e-6 * X[:5])
    np.testing.assert_allclose(in_volts, found, rtol=1e-4, atol=1e-5)
    assert (pickle.loads(pickle.dumps(features.fit(X))).transform(X[:5]) == found).all()


def test_classifiers_in_cross_validation(weights):
    X, y, subjects = eeg()
    for kind in (LaBraMClassifier, NeuroLMClassifier):
        pipeline = make_pipeline(make(kind, weights, epochs=2))
        scores = cross_val_score(pipeline, X, y, groups=subjects, cv=GroupKFold(2), error_score="raise")
        assert scores.shape == (2,)


def test_bad_input_is_named(weights):
    X, y, _ = eeg(8)
    for bad, said in (
        (X[:, :2], r"shape \(8, 2, 256\)"), (X[:, 0], "shape"), (np.where(np.arange(8)[:, None, None] == 5, np.nan, X),
         "1 of 8 windows are not finite, the first is number 5"), (1e-6 * X, "uV"),
        (np.tile(X, (1, 1, 9)), "windows of 18 s: the model reads 16 s"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            make(LaBraMClassifier, weights).fit(bad, y)
    for more, said in (
        ({"unit": "nV"}, "in nV"), ({"ch_names": ["C3", "E17", "C4"]}, "unknown channel E17"),
        ({"ch_names": ["C3", "FP2-F4", "C4"]}, "without FP2-F4"), ({"strategy": "half"}, "half"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            make(LaBraMClassifier, weights).set_params(**more).fit(X, y)
    with pytest.raises(UserError, match="two classes"):
        make(NeuroLMClassifier, weights).fit(X, np.zeros(8))
    with pytest.raises(ValueError, match="inconsistent"):
        make(NeuroLMClassifier, weights).fit(X, y[:5])
