"""Answers of different lengths: scored per token where the model was never asked the question, and said."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import make_lm
from stages import TASK, reference, write_corpus
from test_answers import Rows, Written
from toy_eeg import write_toy

import predict
import train_instruction
from dataset.batches import collate_eeg
from dataset.tasks import TASKS, Task
from dataset.text import load_tokenizer
from dataset_maker.machinery.preprocessing import CleanEEG
from evaluation.answers import answer_tasks, choose_scoring
from evaluation.inference import load_model
from model.neurolm import NeuroLM
from model.vq import VQ_Align
from training.checkpoints import write_checkpoint
from utils import start_run

LONG = Task("Long", "What is this?", ("noise", "generalized periodic epileptiform discharge"))
SAID = "not a task of the training, and its answers have 3 to "


def lengths(task):
    return [len(option) for option in task.options(load_tokenizer())]


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_the_known_tasks_have_answers_of_one_length_and_are_scored_as_ever(task):
    assert len(set(lengths(task))) == 1
    assert choose_scoring(task, False, "score") == choose_scoring(task, True, "score") == ("score", "")


def test_the_way_follows_the_training_unless_it_is_named():
    way, said = choose_scoring(LONG, False, "score")
    assert way == "score_per_token" and said.startswith(SAID) and "score_sum" in said
    assert choose_scoring(LONG, True, "score") == ("score", "")
    for named in ("score_sum", "score_per_token", "generate"):
        assert choose_scoring(LONG, False, named) == (named, "")


def answered(answer_by, trained=None):
    """Two answers with equal log-likelihoods per token, so that the longer one's sum is far lower."""
    model = Written([[-2.0 * n for n in lengths(LONG)]], [" noise "])
    (seen,) = answer_tasks(model, {LONG: Rows([1])}, "test", 1, start_run("cpu"), answer_by=answer_by, trained=trained)
    return seen.windows.filter(like="p_").to_numpy()[0], seen.notes, model.asked[2]


def test_a_short_answer_has_no_advantage_in_a_question_never_asked():
    row = {"question": LONG.question, "answers": list(LONG.answers)}
    probabilities, notes, whole = answered("score", trained=[])
    np.testing.assert_allclose(probabilities, [0.5, 0.5])
    assert whole and any(note.startswith(SAID) for note in notes)
    for trained in (None, [row], [{"question": "Else?", "answers": ["a", "b"]}, row | {"answers": LONG.answers}]):
        probabilities, notes, whole = answered("score", trained)
        assert probabilities[0] > 0.99 and not whole and not any(SAID in note for note in notes)
    assert answered("score_sum", [])[0][0] > 0.99
    np.testing.assert_allclose(answered("score_per_token")[0], [0.5, 0.5])
    other = [row | {"answers": ["noise", "wave"]}]  # the same question with other answers is another task
    np.testing.assert_allclose(answered("score", other)[0], [0.5, 0.5])


def test_scores_per_token_are_the_model_s():
    model, tokenizer = make_lm(), load_tokenizer()
    (seen,) = answer_tasks(model, {LONG: Rows([0, 1])}, "test", 2, start_run("cpu"), trained=[])
    for i, window in enumerate(Rows([0, 1])):
        means = []
        for option in LONG.options(tokenizer):
            tokens = torch.tensor([LONG.prompt(tokenizer) + option])
            with torch.no_grad():
                hidden, _ = model.read(collate_eeg([window]) | {"tokens": tokens})
                logits = model.GPT2.lm_head(hidden[0, -len(option) - 1 : -1])[:, :50257]
            means.append(logits.log_softmax(-1)[range(len(option)), option].mean())
        expected = torch.stack(means).softmax(0)
        np.testing.assert_allclose(seen.windows.filter(like="p_").to_numpy()[i], expected, rtol=1e-4)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A test set, its task with answers of two lengths, and a checkpoint that has learnt it or not."""
    folder = write_corpus(tmp_path_factory.mktemp("scoring"))
    write_toy(folder / "data" / "Long", 2, 8, (("test", 1),), window=4)
    text = TASK.replace("Toy", "Long").replace("[slow, fast]", "[slow, fast rhythm of the waking brain]")
    (folder / "long.yaml").write_text(text)
    about = folder / "data" / "Long" / "dataset.yaml"
    about.write_text(about.read_text().replace("fast", "fast rhythm of the waking brain"))
    tokenizer = VQ_Align.from_size("tiny").VQ
    model = NeuroLM.from_size("tiny", tokenizer.encoder.config, tokenizer.quantize.n_codes)
    row = {"name": "Long", "question": "Which rhythm is this?", "seconds": 4, "channels": ["C3"], "lettered": False}
    row |= {"answers": ["slow", "fast rhythm of the waking brain"], "supervise_bracket": True}
    for name, rows in (("learnt", [row | {"dataset": None, "metrics": None}]), ("new", [])):
        made = {"model": model.state_dict(), **model.config_args(), "tasks": rows}
        write_checkpoint(made, reference(folder, "pretrain").with_name(f"{name}.pt"))
    return folder


@pytest.mark.parametrize("name", ["learnt", "new"])
def test_an_evaluation_and_a_prediction_say_and_record_it(asked, tmp_path, monkeypatch, capsys, name):
    path = reference(asked, "pretrain").with_name(f"{name}.pt")
    words = ["--eval_only", "--tasks", asked / "long.yaml", "--NeuroLM_path", path, "--out_dir", tmp_path / "out"]
    words += ["--size", "tiny", "--device", "cpu", "--num_workers", 0]
    train_instruction.main(train_instruction.get_args([*map(str, words)]))
    (written,) = (tmp_path / "out").rglob("results.json")
    (result,) = json.loads(written.read_text())["results"]
    said = capsys.readouterr().out
    assert any(note.startswith(SAID) for note in result["notes"]) == (SAID in said) == (name == "new")

    _, (question,) = load_model(NeuroLM, path, [asked / "long.yaml"], 4)
    assert question.trained == (name == "learnt")
    eeg = np.random.default_rng(0).normal(0, 30, (1, 1600)).astype(np.float32)
    clean = CleanEEG(("C3",), eeg, 0.1, 75.0, 50.0, (), ())
    monkeypatch.setattr("dataset_maker.machinery.preprocessing.load_recording", lambda *about, **more: clean)
    for answer_by in ("score", "score_per_token"):
        words = ["r.edf", "--NeuroLM_path", path, "--tasks", asked / "long.yaml", "--window", 4, "--device", "cpu"]
        words += ["--out_dir", tmp_path / answer_by, "--answer_by", answer_by, "--untrained"]
        predict.main(predict.get_args([*map(str, words)]))
        assert (SAID in capsys.readouterr().out) == (name == "new" and answer_by == "score")
    tables = [pd.read_csv(tmp_path / way / "r_Long.csv") for way in ("score", "score_per_token")]
    assert tables[0].equals(tables[1]) == (name == "new")
