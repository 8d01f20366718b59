"""Answers of a NeuroLM: the likelihood of each allowed one, or what it writes, whatever the batches."""

import numpy as np
import pytest
import torch

from dataset.batches import collate_eeg
from dataset.tasks import TASKS, Task, first_tokens_differ
from dataset.text import END_TOKEN, VOCAB, load_tokenizer
from evaluation.answers import answer_tasks
from model.neural_transformer import NTConfig
from model.neurolm import NeuroLM
from utils import start_run

STAGES = Task("stages", "Which?", ("sleep stage one", "sleep stage twenty two"))  # both begin with " sleep"


class Rows(list):
    """Windows with the given labels, of a recording each; montages and lengths differ."""

    def __init__(self, labels):
        rng = np.random.default_rng(0)
        for index, label in enumerate(labels):
            channels, seconds = 1 + index % 3, 1 + index % 2
            eeg = rng.normal(size=(channels, 200 * seconds)).astype(np.float32)
            self.append({"eeg": eeg, "rows": range(channels), "label": label, "index": index, "file": f"r{index}"})

    def describe(self):
        names = [row["file"] for row in self]
        return {"recording": names, "subject": names, "start": [0.0] * len(self)}


class Written:
    """Stands in for a NeuroLM: its likelihoods and its words are those given for each window."""

    def __init__(self, likelihoods, words):
        tokenizer = load_tokenizer()
        self.likelihoods = torch.tensor(likelihoods)
        rows = [[*tokenizer.encode(text), *[END_TOKEN] * 8][:4] for text in words]
        self.words, self.training = torch.tensor(rows), True

    def eval(self):
        self.training = False

    def score_answers(self, sample, options, whole):
        self.asked = sample["tokens"], options, whole
        return self.likelihoods[sample["index"]]

    def generate(self, sample, new_tokens, end_token):
        assert end_token == END_TOKEN
        return self.words[sample["index"]][:, :new_tokens]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_are_scored_or_written(batch_size):
    task, run = TASKS["Workload"], start_run("cpu")
    model = Written(
        likelihoods=[[-1.0, -3.0], [-50.0, -2.0], [-2.0, -1.0], [-2.0, -1.0]],
        words=[" No ", " Yes ", " Yes ", " Maybe not"],
    )
    (scored,) = answer_tasks(model, {task: Rows([0, 1, 0, 1])}, "test", batch_size, run)
    assert not model.training
    tokens, options, whole = model.asked
    assert tokens[0].tolist() == task.prompt(load_tokenizer()) and options[1][-1] == END_TOKEN and whole is False
    expected = model.likelihoods.double().softmax(1)
    np.testing.assert_array_equal(scored.windows[["p_No", "p_Yes"]], expected)
    assert scored.metrics["accuracy"] == 0.75 and scored.metrics["auroc"] == 0.875 and scored.unanswered == 0

    (written,) = answer_tasks(model, {task: Rows([0, 1, 0, 1])}, "test", batch_size, run, answer_by="generate")
    assert written.windows[["p_No", "p_Yes"]].to_numpy().tolist() == [[1, 0], [0, 1], [0, 1], [0, 0]]
    assert written.unanswered == 0.25 and written.metrics["accuracy"] == 0.5
    assert written.confusion.tolist() == [[1, 1, 0], [0, 1, 1]]


def test_answers_with_a_common_beginning_are_scored_whole():
    model = Written([[-1.0, -2.0]], [" sleep stage one "])
    answer_tasks(model, {STAGES: Rows([0])}, "test", 8, start_run("cpu"))
    assert model.asked[2] is True


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return NeuroLM.from_size("tiny", NTConfig(n_layer=1, n_head=4, n_embd=32), 16).eval()


@pytest.mark.parametrize("task", [TASKS["Workload"], TASKS["TUSL"], STAGES], ids=lambda task: task.name)
def test_scores_are_likelihoods_of_the_answers_read_one_by_one(model, task):
    tokenizer, windows = load_tokenizer(), Rows([0, 1, 1, 0])
    (seen,) = answer_tasks(model, {task: windows}, "test", 3, start_run("cpu"))
    prompt, options = task.prompt(tokenizer), task.options(tokenizer)
    for row, window in enumerate(windows):
        likelihoods = []
        for option in options:
            scored = option[:1] if first_tokens_differ(task.options(load_tokenizer())) else option
            with torch.no_grad():
                hidden, _ = model.read(collate_eeg([window]) | {"tokens": torch.tensor([prompt + scored])})
                logits = model.GPT2.lm_head(hidden[0, -len(scored) - 1 : -1])[:, :VOCAB]
            likelihoods.append(logits.log_softmax(-1)[range(len(scored)), scored].sum())
        expected = torch.stack(likelihoods).softmax(0)
        np.testing.assert_allclose(seen.windows.filter(like="p_").to_numpy()[row], expected, rtol=1e-4)


@pytest.mark.parametrize("answer_by", ["score", "generate"])
def test_numbers_do_not_depend_on_the_batch_size(model, answer_by):
    windows = {TASKS["TUEV"]: Rows(np.arange(20) % 6), TASKS["TUAB"]: Rows(np.arange(7) % 2)}
    runs = [answer_tasks(model, windows, "test", size, start_run("cpu"), 0, answer_by) for size in (1, 7, 64)]
    for first, second, third in zip(*runs, strict=True):
        assert first.metrics == second.metrics == third.metrics and first.intervals == third.intervals
        for other in (second, third):
            columns = [run.windows.filter(like="p_").to_numpy() for run in (first, other)]
            np.testing.assert_allclose(*columns, rtol=1e-5)
