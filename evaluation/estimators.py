"""Both systems in scikit-learn: features of EEG as a transformer, and classifiers whose `fit` is the scripts' training.

n windows · C channels · T samples at any rate, resampled to 200 Hz · D width of the features
Windows are taken as they are: filter them first. Parameters that all share: weights: a checkpoint, official or own;
ch_names: C names of the channel table; sfreq: Hz; unit: uV, mV or V; device, dtype: as the scripts' flags.
"""

import contextlib
import random
from functools import partial

import numpy as np
import torch
from einops import rearrange
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from dataset.batches import QuestionCollate, collate_montage
from dataset.channels import channel_rows
from dataset.checks import check_eeg
from dataset.tasks import Task
from dataset.text import tokenizer_of
from dataset.windows import MICROVOLTS, RATE
from dataset_maker.machinery.preprocessing import CleanEEG
from errors import UserError
from evaluation.adapters import LaBraMAdapter, NeuroLMAdapter, read_labram, resample, to_patches
from evaluation.inference import ask
from evaluation.metrics import most_likely
from evaluation.reading import Cut
from model.labram import Classifier, class_loss, model_state, parameter_groups
from model.neurolm import NeuroLM
from model.weights import read_checkpoint
from training.checkpoints import Checkpoints
from training.loading import Loader
from training.logger import Logger
from training.padding import QUESTION_TOKENS, choose_padding
from training.trainer import Trainer
from training.tuning import tune
from utils import Run, choose_device, choose_dtype, decay_groups, learning_rates, make_optimizer, seed_everything

UNITS = {"uV": 1.0, "mV": 1e3, "V": 1e6}


class _Quiet(Run):
    """A run of one process that says and writes nothing."""

    main = False


class _Estimator(BaseEstimator):
    def _microvolts(self, X) -> torch.Tensor:
        """X (n, C, T) in uV, float32. Raises UserError where it has another shape or unit, or is not finite."""
        X, channels = np.asarray(X), len(self.ch_names)
        if X.ndim != 3 or X.shape[1] != channels or self.unit not in UNITS:
            expected = f"(windows, {channels} channels, samples) in {', '.join(UNITS)}"
            raise UserError(f"EEG of shape {X.shape} in {self.unit}: expected {expected}")
        broken = np.flatnonzero(~np.isfinite(X).all((1, 2)))
        if len(broken):
            raise UserError(f"{len(broken)} of {len(X)} windows are not finite, the first is number {broken[0]}")
        return torch.from_numpy((X * UNITS[self.unit]).astype(np.float32))

    def _run(self, seed: int = 0) -> _Quiet:
        device = choose_device(self.device, 0)
        return _Quiet(0, 1, device, choose_dtype(self.dtype, device), seed)


class EEGFeatures(TransformerMixin, _Estimator):
    """The mean over the tokens of LaBraM's backbone, or of the encoder of NeuroLM's tokenizer; `fit` learns nothing.

    weights: of any stage of NeuroLM, or of stages 2 and 3 of LaBraM. See `evaluation.adapters` for long windows, and
    channels without a row in the table.
    """

    def __init__(self, weights, ch_names, sfreq, unit="uV", batch_size=64, device="auto", dtype="auto"):
        self.weights, self.ch_names, self.sfreq, self.unit = weights, ch_names, sfreq, unit
        self.batch_size, self.device, self.dtype = batch_size, device, dtype

    def fit(self, X, y=None):
        names = {name.removeprefix("student.") for name in model_state(read_checkpoint(self.weights))}
        kind = LaBraMAdapter if "cls_token" in names else NeuroLMAdapter
        channels = [{"ch_name": name} for name in self.ch_names]
        self.adapter_ = kind(sfreq=self.sfreq, chs_info=channels, weights=self.weights, scale=1 / MICROVOLTS).eval()
        return self

    @torch.no_grad()
    def transform(self, X):
        """X (n, C, T) -> (n, D) float32."""
        check_is_fitted(self)
        run, parts = self._run(), self._microvolts(X).split(self.batch_size)
        model = self.adapter_.to(run.device)
        with run.autocast():
            features = torch.cat([model(part.to(run.device)).float().cpu() for part in parts])
        model.cpu()  # what is pickled must load anywhere
        return features.numpy()


class _Classifier(ClassifierMixin, _Estimator):
    def __init__(self, weights, ch_names, sfreq, unit="uV", strategy="full", lora_rank=8, epochs=10, batch_size=32,
                 lr=5e-4, seed=0, device="auto", dtype="auto"):  # fmt: skip
        """strategy, lora_rank: see `training.tuning.tune`; the others are the scripts' flags."""
        self.weights, self.ch_names, self.sfreq, self.unit = weights, ch_names, sfreq, unit
        self.strategy, self.lora_rank, self.epochs, self.batch_size = strategy, lora_rank, epochs, batch_size
        self.lr, self.seed, self.device, self.dtype = lr, seed, device, dtype

    def fit(self, X, y):
        """X (n, C, T), y (n,) labels of any type. Raises UserError for windows that the model cannot read."""
        y = column_or_1d(y)
        check_classification_targets(y)
        check_consistent_length(X, y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UserError(f"all {len(y)} labels are {self.classes_.tolist()}: two classes are needed at least")
        self.task_ = Task("fit", getattr(self, "question", ""), tuple(map(str, self.classes_)))
        about = ({"label": label, "task": self.task_, "file": "array"} for label in labels.tolist())
        samples = [window | more for window, more in zip(self._windows(X), about, strict=True)]
        with _aside():
            run = self._run(self.seed)
            seed_everything(run.seed)
            self.model_ = self._start(run).to(run.device)
            tune(self.model_, self.strategy, self.lora_rank, run, self.weights)
            self._train(samples, run)
        self.model_.cpu()
        return self

    def _train(self, samples, run) -> None:
        """The loop of the scripts, of which nothing is kept but the model."""
        loader = Loader(samples, min(self.batch_size, len(samples)), run, self.collate, check=check_eeg)
        steps = self.epochs * loader.steps_per_epoch
        optimizer = make_optimizer(self.groups(self.model_), self.lr, self.betas, run.device)
        rates = learning_rates(self.lr, self.lr / 10, steps, steps // 10)
        checkpoints = Checkpoints("no checkpoint")
        trainer = Trainer(self.model_, run, optimizer, rates, loader, checkpoints, {}, grad_clip=self.grad_clip)
        trainer.logger = Logger("", run, {}, steps)
        for _ in trainer.epochs():
            for (batch,) in trainer.steps():
                with trainer.forward(last=True):
                    loss = self._loss(batch)
                trainer.backward({"class": loss})
                trainer.update()

    def _windows(self, X) -> Cut:
        """The windows at 200 Hz, in whole seconds. Raises UserError for what the model cannot embed."""
        eeg = to_patches(resample(self._microvolts(X), self.sfreq))  # (n, C, S, 200)
        rows, seconds = channel_rows(self.ch_names), eeg.shape[2]
        beyond = [name for name, row in zip(self.ch_names, rows, strict=True) if row >= self.reads.max_rows]
        if beyond or seconds > self.reads.max_seconds:
            channels = f"without {', '.join(beyond)}" if beyond else "of these channels"
            raise UserError(f"windows of {seconds} s: the model reads {self.reads.max_seconds} s at most, {channels}")
        joined = rearrange(eeg, "n c s p -> c (n s p)").numpy()
        clean = CleanEEG(tuple(self.ch_names), joined, low=0.0, high=RATE / 2, notch=0.0, events=(), notes=())
        return Cut(clean, clean.channels, range(0, joined.shape[1], seconds * RATE), seconds)

    def predict_proba(self, X):
        """X (n, C, T) -> probabilities (n, classes) float64."""
        check_is_fitted(self)
        run = self._run(self.seed)
        model = self.model_.to(run.device)
        probabilities, _ = ask(model, self.task_, self._windows(X), self.batch_size, run)
        model.cpu()
        return probabilities

    def predict(self, X):
        """X (n, C, T) -> labels (n,)."""
        labels = most_likely(self.predict_proba(X))  # first: before `fit` there are no classes
        return self.classes_[labels]


class LaBraMClassifier(_Classifier):
    """LaBraM under a new head, trained as run_class_finetuning.py does."""

    reads, betas, grad_clip = LaBraMAdapter, (0.9, 0.999), 0.0
    collate = staticmethod(collate_montage)
    groups = staticmethod(partial(parameter_groups, weight_decay=0.05, layer_decay=0.65))

    def _start(self, run) -> Classifier:
        return read_labram(self.weights, len(self.classes_) if len(self.classes_) > 2 else 1, drop_path=0.1)

    def _loss(self, batch):
        return class_loss(self.model_(batch["x"], batch["chans"]), batch["label"], smoothing=0.1)


class NeuroLMClassifier(_Classifier):
    """NeuroLM, of stage 2 or 3, trained as train_instruction.py does with one task and without text: it answers
    `question` with the name of a class."""

    reads, betas, grad_clip = NeuroLMAdapter, (0.9, 0.95), 1.0
    groups = staticmethod(partial(decay_groups, weight_decay=0.1))

    def __init__(self, weights, ch_names, sfreq, unit="uV", question="Which class does this EEG segment belong to?",
                 strategy="full", lora_rank=8, epochs=10, batch_size=32, lr=5e-4, seed=0, device="auto",
                 dtype="auto"):  # fmt: skip
        shared = (strategy, lora_rank, epochs, batch_size, lr, seed, device, dtype)
        super().__init__(weights, ch_names, sfreq, unit, *shared)
        self.question = question

    def collate(self, samples):
        return QuestionCollate(tokenizer_of(self.model_))(samples)

    def _start(self, run) -> NeuroLM:
        model = NeuroLM.load(self.weights)
        choose_padding(model.tokenizer, None, QUESTION_TOKENS, run)
        return model

    def _loss(self, batch):
        return self.model_(eeg=batch)["eeg"]["loss"] / len(batch["source"])


@contextlib.contextmanager
def _aside():
    """Training seeds the global generators at every step: afterwards they go on as if it had not."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the caller may draw from it
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
