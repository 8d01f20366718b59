"""Nobody is on both sides of a run without a word: not in its sets, not through what its weights were trained on."""

import json

import pytest
import stages
import torch
from raw_files import table
from refusals import assert_refused, write_untrained
from test_labram_scripts import CLASSIFIER, CPU, MASKED, TOKENIZER
from test_manifest_truth import write_manifest
from toy_eeg import write_toy

import run_class_finetuning
import run_labram_pretraining
import run_vqnsp_training
from dataset.leaks import Roster, Row, find_leaks, read_roster
from dataset_maker import check_leaks
from errors import UserError
from model.weights import read_checkpoint
from training.screening import read_trained

HELD = ("val", "test")


def rename(folder, **subjects):
    """Give recordings of a dataset other subjects."""
    write_manifest(folder, lambda row: row.update(subject=subjects.get(row["recording"], row["subject"])))


def labram(script, data, out_dir, *more):
    flags = ["--dataset_dir", data, "--output_dir", out_dir, "--max_steps", 1, "--batch_size", 4, *CPU, *more]
    script.main(script.get_args([*map(str, flags)]))


def finetune(data, out_dir, *more):
    labram(run_class_finetuning, data, out_dir, "--dataset", "Toy", *CLASSIFIER, *more)
    return json.loads((out_dir / "results.json").read_text())["about"]


@pytest.fixture
def data(tmp_path):
    write_toy(tmp_path / "data" / "pair", splits=(("train", 3), ("val", 1)))
    write_toy(tmp_path / "data" / "Toy", window=2, splits=(("train", 2), ("val", 1), ("test", 1)))
    return tmp_path / "data"


@pytest.mark.parametrize("stage, dataset", [("vq", "pair"), ("pretrain", "pair"), ("instruction", "Toy")])
def test_neurolm_refuses_a_subject_in_two_splits(tmp_path, capsys, stage, dataset):
    corpus = write_untrained(tmp_path)
    rename(corpus / "data" / dataset, val0="strain0")
    argv = stages.flags(stage, corpus, tmp_path / "out")
    words = ["subjects are on both sides", f"strain0: in training of {dataset} and in val of {dataset}", "--allow_leak"]
    assert_refused(capsys, stages.SCRIPTS[stage], argv, words)


@pytest.mark.parametrize("script", [run_vqnsp_training, run_labram_pretraining, run_class_finetuning])
def test_labram_refuses_a_subject_in_two_splits(data, tmp_path, script):
    labram(run_vqnsp_training, data, tmp_path / "vqnsp", *TOKENIZER)
    rename(data / "pair", val0="strain1")
    rename(data / "Toy", test0="strain1")
    more = {
        run_vqnsp_training: TOKENIZER,
        run_labram_pretraining: [*MASKED, "--tokenizer_weight", tmp_path / "vqnsp" / "checkpoint.pth"],
        run_class_finetuning: ["--dataset", "Toy", *CLASSIFIER],
    }
    with pytest.raises(UserError, match=r"on both sides, 1 in all.*strain1: in training of (pair|Toy) and in (val|t)"):
        labram(script, data, tmp_path / "out", *more[script])


def test_a_leak_that_is_allowed_is_kept_with_the_results(data, tmp_path, capsys):
    rename(data / "Toy", test0="strain1")
    about = finetune(data, tmp_path / "out", "--allow_leak")
    assert about["leaks"] == ["strain1: in training of Toy and in test of Toy"] and about["not_compared"] == []
    assert "warning: subjects on both sides: strain1" in capsys.readouterr().out
    rename(data / "Toy", test0="anna")
    assert finetune(data, tmp_path / "clean")["leaks"] == []


def test_whom_labram_was_pretrained_on_is_not_tested(data, tmp_path):
    rename(data / "pair", train2="bob.k")
    labram(run_vqnsp_training, data, tmp_path / "vqnsp", *TOKENIZER)
    rename(data / "pair", train2="anna.k")
    weight = ["--tokenizer_weight", tmp_path / "vqnsp" / "checkpoint.pth"]
    labram(run_labram_pretraining, data, tmp_path / "masked", *MASKED, *weight)
    start = ["--finetune", tmp_path / "masked" / "checkpoint.pth"]
    assert finetune(data, tmp_path / "tuned", *start)["leaks"] == []
    rename(data / "Toy", test0="anna.k", val0="bob.k")  # of the masked model, of its tokenizer
    both = r"2 in all.*bob\.k: in training of pair and in val of Toy.*anna\.k: .* in test of Toy"
    with pytest.raises(UserError, match=both):
        finetune(data, tmp_path / "again", *start)
    tuned = ["--eval", "--finetune", tmp_path / "tuned" / "checkpoint-best.pth"]
    with pytest.raises(UserError, match=r"1 in all.*anna\.k: in training of pair and in test of Toy"):
        finetune(data, tmp_path / "again", *tuned)


def test_whom_neurolm_was_pretrained_on_is_not_tested(tmp_path):
    corpus = stages.write_corpus(tmp_path)
    rename(corpus / "data" / "pair", train0="anna.k")
    for stage in ("vq", "pretrain"):
        stages.train(stage, corpus, corpus / "reference", "--max_steps", 1)
    rename(corpus / "data" / "pair", train0="other")
    rename(corpus / "data" / "Toy", test0="anna.k")
    with pytest.raises(UserError, match=r"1 in all.*anna\.k: in training of pair and in test of Toy"):
        stages.train("instruction", corpus, tmp_path / "out", "--max_steps", 1)
    folder = stages.train("instruction", corpus, tmp_path / "out", "--max_steps", 1, "--allow_leak")
    for written in (folder / "results.json", folder / "config.json"):
        content = json.loads(written.read_text())
        assert content.get("about", content)["leaks"] == ["anna.k: in training of pair and in test of Toy"]
    kept = read_checkpoint(folder / "ckpt.pt")["trained_on"]
    assert sorted(entry["dataset"] for entry in kept) == ["Toy", "four", "pair"] and "anna" not in json.dumps(kept)


def test_weights_of_unknown_subjects_are_said(tmp_path, capsys, untrained):
    folder = stages.train("instruction", untrained, tmp_path, "--max_steps", 1)
    (line,) = json.loads((folder / "results.json").read_text())["about"]["not_compared"]
    assert "does not say on whom it was trained" in line and line in capsys.readouterr().out
    start = stages.reference(untrained, "pretrain") / "ckpt.pt"
    assert line.startswith(f"val and test of Toy and training of {start}:")
    on = ("--max_steps", 1, "--NeuroLM_path", folder / "ckpt.pt")
    again = stages.train("instruction", untrained, tmp_path / "on", *on)
    assert json.loads((again / "results.json").read_text())["about"]["not_compared"] == [line]  # nor does a later stage


def roster(name, corpus, *rows):
    return Roster(name, name, corpus, tuple(Row(*row) for row in rows))


@pytest.mark.parametrize(
    "train, held, subjects, expected",
    [
        (("A", None), ("A", None), ("1", "1"), "leak"),  # one dataset
        (("TUEG", "TUH"), ("TUAB", "TUH"), ("aaaaaaab", "aaaaaaab"), "leak"),
        (("TUEG", "TUH"), ("HMC", "HMC"), ("aaaaaaab", "aaaaaaab"), "nothing"),  # two known corpora
        (("A", None), ("B", None), ("anna01", "anna01"), "leak"),
        (("A", None), ("TUAB", "TUH"), ("aaaaaaab", "aaaaaaab"), "leak"),
        (("A", None), ("B", None), ("S001", "S001"), "unclear"),  # two people, or one
        (("A", None), ("B", None), ("sub-07", "sub-07"), "unclear"),
        (("A", "mine"), ("B", "mine"), ("S001", "S001"), "leak"),
        (("A", "mine"), ("B", "other"), ("S001", "S001"), "nothing"),
        (("A", None), ("B", None), ("anna01", "anna02"), "nothing"),
        (("SEED", "SEED"), ("SEED", "SEED"), ("1", "1"), "published"),
        (("TUEV", "TUH"), ("TUEV", "TUH"), ("aaaaaaab", "003"), "unclear"),  # a number, not a name
        (("A", None), ("B", None), ("", ""), "unclear"),
    ],
)
def test_when_equal_names_are_one_person(train, held, subjects, expected):
    training = roster(*train, ("r1", "train", subjects[0], 1000)).trained(["train"])
    found = find_leaks([training], [roster(*held, ("r2", "test", subjects[1], 2000))], HELD)
    kinds = {"leak": found.leaks, "published": found.published, "unclear": found.not_compared}
    assert [(kind, len(lines)) for kind, lines in kinds.items() if lines] == [(expected, 1)] * (expected != "nothing")


def test_a_recording_in_both_tells_whose_counters_agree():
    rows = [("S001R04", "train", "S001", 1000), ("S002R04", "train", "S002", 800)]
    training = roster("A", None, *rows).trained(["train"])
    rows = [("S001R04", "train", "S001", 1000), ("S002R08", "test", "S002", 900)]
    assert find_leaks([training], [roster("B", None, *rows)], HELD).leaks == ["S002: in training of A and in test of B"]
    assert not find_leaks([training], [roster("B", None, *rows[1:])], HELD).leaks


def test_numbers_for_names_are_never_called_no_leaks(tmp_path, capsys):
    for name, subject in (("TUEG", "aaaaaaaa"), ("TUEV", "003")):
        rename(write_toy(tmp_path / name, splits=(("train", 1), ("test", 1))), train0=subject, test0=subject)
    with pytest.raises(UserError, match="not everybody could be compared"):
        argv = ["--train", str(tmp_path / "TUEG"), "--against", str(tmp_path / "TUEV")]
        check_leaks.main(check_leaks.get_args(argv))
    said = capsys.readouterr().out
    assert "no subject leaks" not in said
    assert "val and test of TUEV and training of TUEG: some subjects have no name" in said
    assert read_roster(tmp_path / "TUEV").corpus == "TUH" and len(table(tmp_path / "TUEV" / "manifest.csv")) == 2


def test_a_folder_without_manifest_is_not_called_free_of_leaks(tmp_path):
    (tmp_path / "official").mkdir()
    official = read_roster(tmp_path / "official")
    toy = read_roster(write_toy(tmp_path / "Toy", splits=(("train", 1), ("test", 1))))
    for trained, held in ((official, toy), (toy, official)):
        found = find_leaks([trained.trained(["train"])], [held], HELD)
        assert not found.leaks and len(found.not_compared) == 1


@pytest.mark.parametrize("entries", [3, ["x"], [{"dataset": "A"}], [{"subjects": 7}]])
def test_a_malformed_memory_of_subjects_is_named(tmp_path, entries):
    torch.save({"trained_on": entries}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="ckpt.pt: 'trained_on' is not a list of dataset"):
        read_trained(tmp_path / "ckpt.pt")
