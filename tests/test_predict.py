"""predict.py: the same answers as the evaluation of a dataset, for a raw recording; bad input named with its cure."""

import mne
import numpy as np
import pandas as pd
import pytest
import torch
from raw_files import run_maker

import predict
from dataset.batches import collate_eeg
from dataset.channels import channel_rows
from dataset.tasks import TASKS, Task
from dataset.windows import describe_tasks, open_tasks
from dataset_maker import make_Workload
from dataset_maker.machinery.preprocessing import CleanEEG
from dataset_maker.simulate import simulate
from errors import UserError
from evaluation.answers import answer_tasks, classify_windows
from evaluation.inference import answer_table, ask, choose_channels, cut, load_model, summarize
from model.labram import CLASSIFIERS, Classifier
from model.neural_transformer import NTConfig
from model.neurolm import NeuroLM
from model.weights import read_checkpoint
from training.checkpoints import write_checkpoint
from utils import start_run

WORKLOAD = TASKS["Workload"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two simulated recordings, the dataset made of them, and a checkpoint of an untrained model of its task."""
    folder = tmp_path_factory.mktemp("predict")
    simulate("Workload", folder / "raw", subjects=1, seconds=60)
    run_maker(make_Workload, "--raw_dir", folder / "raw", "--out_dir", folder / "data", "--workers", 1)
    torch.manual_seed(0)
    model = NeuroLM.from_size("tiny", NTConfig(n_layer=1, n_head=2, n_embd=16), 8).eval()
    tasks = describe_tasks(open_tasks({WORKLOAD: folder / "data"}, "train"))
    write_checkpoint({"model": model.state_dict(), "tasks": tasks, **model.config_args()}, folder / "model.pt")
    name = "labram_tiny_patch200_200"
    classifier = Classifier(CLASSIFIERS[name], 1)
    about = {"classes": ["rest", "arithmetic"], "tasks": [tasks[0] | {"answers": ["rest", "arithmetic"]}]}
    about["args"] = {"model": name, "qkv_bias": False, "layer_scale_init_value": None}
    write_checkpoint({"model": classifier.state_dict(), **about}, folder / "labram.pth")
    return folder


def run_predict(made, out_dir, *more, recordings=("Subject00_2.edf",), model=("--NeuroLM_path", "model.pt")):
    paths = [made / "raw" / name for name in recordings]
    flags = [model[0], made / model[1], "--out_dir", out_dir, "--device", "cpu", *more]
    predict.main(predict.get_args([*map(str, paths), *map(str, flags)]))


def test_answers_are_those_of_the_dataset(made, tmp_path, capsys):
    run_predict(made, tmp_path, "--stride", 2, "--batch_size", 7, recordings=("Subject00_1.edf", "Subject00_2.edf"))
    model, _ = load_model(NeuroLM, made / "model.pt")
    windows = open_tasks({WORKLOAD: made / "data"}, "train")
    (seen,) = answer_tasks(model, windows, "train", 64, start_run("cpu"))
    expected = seen.windows.set_index(["recording", "start"])[["p_No", "p_Yes"]]
    for name in ("Subject00_1", "Subject00_2"):
        table = pd.read_csv(tmp_path / f"{name}_Workload.csv").set_index("start")
        rows = expected.loc[name]
        assert len(rows) == 29 and set(rows.index) <= set(table.index)
        np.testing.assert_allclose(table.loc[rows.index][["p_No", "p_Yes"]], rows, rtol=1e-4)
        assert table["answer"].tolist() == [("No", "Yes")[i] for i in table[["p_No", "p_Yes"]].to_numpy().argmax(1)]
    assert "channels left out: EEG A2-A1, ECG ECG" in capsys.readouterr().out

    first = windows[WORKLOAD][0]
    batch = collate_eeg([first])
    features = model.tokenizer(batch["x"], batch["chans"], batch["time"], None).mean(1)
    with np.load(tmp_path / "Subject00_1_Workload_features.npz") as saved:
        row = saved["start"].tolist().index(windows[WORKLOAD].index[0, 1] / 200)
        np.testing.assert_allclose(saved["features"][row], features[0].detach(), rtol=1e-3, atol=1e-4)
        assert tuple(saved["channels"]) == make_Workload.CHANNELS


def test_an_array_gets_the_answers_of_its_recording(made, tmp_path):
    raw = mne.io.read_raw(made / "raw" / "Subject00_2.edf", preload=True, verbose="ERROR")
    np.save(made / "raw" / "Array.npy", raw.get_data(units="mV").T)
    names = ("--rate", 500, "--unit", "mV", "--channels", *(name.replace(" ", "_") for name in raw.ch_names))
    run_predict(made, tmp_path, *names, recordings=("Array.npy",))
    run_predict(made, tmp_path)
    answers = [pd.read_csv(tmp_path / f"{name}_Workload.csv")["p_Yes"] for name in ("Array", "Subject00_2")]
    np.testing.assert_allclose(*answers, rtol=1e-4)


LABRAM = ("--LaBraM_path", "labram.pth")


def test_a_labram_classifier_answers_too(made, tmp_path):
    run_predict(made, tmp_path, "--stride", 2, model=LABRAM)
    model, _ = load_model(Classifier, made / "labram.pth")
    windows = open_tasks({WORKLOAD: made / "data"}, "train")[WORKLOAD]
    about = {"name": "Workload", "split": "train", "batch_size": 64, "run": start_run("cpu")}
    seen = classify_windows(model, windows, ("rest", "arithmetic"), **about).windows
    rows = seen[seen["recording"] == "Subject00_2"].set_index("start")[["p_rest", "p_arithmetic"]]
    table = pd.read_csv(tmp_path / "Subject00_2_Workload.csv").set_index("start")
    np.testing.assert_allclose(table.loc[rows.index][["p_rest", "p_arithmetic"]], rows, rtol=1e-4)
    with np.load(tmp_path / "Subject00_2_Workload_features.npz") as saved:
        logits = model.head(torch.from_numpy(saved["features"]))[:, 0]
        np.testing.assert_allclose(logits.sigmoid().detach(), table["p_arithmetic"], rtol=1e-4)


@pytest.mark.parametrize(
    "more, message",
    [
        (("--tasks", "TUAB"), r"--tasks: .*labram\.pth is a classifier, it knows nothing but rest, arithmetic"),
        (("--answer_by", "generate"), r"Subject00_2\.edf: --answer_by generate: a LaBraM classifier cannot write"),
        (("--official_padding",), r"--official_padding: LaBraM pads nothing, the flag is for --NeuroLM_path"),
        (("--window", 17), r"Subject00_2\.edf: a window of 17 s; LaBraM reads 16 s at most"),
    ],
)
def test_what_labram_cannot_do_is_named(made, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        run_predict(made, tmp_path, *more, model=LABRAM)


def test_a_checkpoint_of_the_other_kind_is_refused(made, tmp_path):
    with pytest.raises(UserError, match=r"model\.pt is no checkpoint of run_class_finetuning\.py"):
        run_predict(made, tmp_path, model=("--LaBraM_path", "model.pt"))
    with pytest.raises(UserError, match=r"labram\.pth lacks the dictionary .model_args."):
        run_predict(made, tmp_path, model=("--NeuroLM_path", "labram.pth"))
    windows = cut(clean(["C3", "I2"]), 4)
    with pytest.raises(UserError, match="LaBraM has no position for channel I2"):
        ask(load_model(Classifier, made / "labram.pth")[0], WORKLOAD, windows, 8, start_run("cpu"))


def test_other_questions_windows_and_written_answers(made, tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_text("name: own\nquestion: Asleep?\nanswers: [awake, asleep]\ndataset: nowhere\n")
    more = ("--tasks", path, "--window", 10, "--no-features", "--answer_by", "generate", "--channels", "O1", "FP2")
    with pytest.raises(UserError, match=r"does not say that it was trained on own: --untrained asks all the same"):
        run_predict(made, tmp_path / "out", *more)
    run_predict(made, tmp_path / "out", *more, "--untrained", "--no-figure")
    files = ["Subject00_2_own.csv", "Subject00_2_own.json", "summary.csv"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == files
    table = pd.read_csv(tmp_path / "out" / "Subject00_2_own.csv", keep_default_na=False)
    assert (table["stop"] - table["start"]).tolist() == [10] * len(table) and set(table["answer"]) == {""}
    assert "Asleep? none of the answers, in any window" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, message",
    [
        (("--tasks", "TUAB"), r"does not say how long the windows of task TUAB were: give --window SECONDS"),
        (("--tasks", "TUHH"), r"unknown task 'TUHH'"),
        (("--window", "65"), r"--window 65: windows have 1 to 64 seconds"),
        (("--window", "64"), r"Subject00_2\.edf: too short: \d\d\.\d s, a window has 64 s"),
        (("--stride", "0"), r"--stride 0: must be above 0 seconds"),
        (("--stride", "0.001"), r"--stride 0\.001: must be above 0 seconds"),
        (("--channels", "FP1", "OZ"), r"Subject00_2\.edf: without OZ; its channels"),
        (("--NeuroLM_path", "gone.pt"), r"--NeuroLM_path: no checkpoint found, tried gone\.pt"),
        (("--out_dir", __file__), r"--out_dir .*test_predict\.py cannot be made: File exists"),
    ],
)
def test_bad_requests_are_named(made, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        run_predict(made, tmp_path, *more)


def test_a_checkpoint_that_names_no_tasks(made, tmp_path):
    checkpoint = read_checkpoint(made / "model.pt")
    del checkpoint["tasks"]
    write_checkpoint(checkpoint, tmp_path / "released.pt")
    with pytest.raises(UserError, match="does not say which tasks it was trained on: name them"):
        load_model(NeuroLM, tmp_path / "released.pt")
    _, (question,) = load_model(NeuroLM, tmp_path / "released.pt", ["TUAB"], 10)
    assert (question.task, question.seconds, question.channels) == (TASKS["TUAB"], 10, None)


def clean(channels, seconds=9):
    eeg = np.arange(len(channels) * seconds * 200, dtype=np.float32).reshape(len(channels), -1)
    return CleanEEG(tuple(channels), eeg, 0.1, 75.0, 50.0, (), ())


def test_channels_are_those_of_the_training():
    recording = clean(["C3", "O1", "FP1"])
    assert choose_channels(recording, None) == (("C3", "O1", "FP1"), "")
    chosen, said = choose_channels(recording, ("FP1", "FP2", "C3"))
    assert chosen == ("FP1", "C3")
    window = cut(recording, 4, channels=chosen)[1]
    assert (window["eeg"] == recording.eeg[[2, 0], 800:1600] / np.float32(100)).all()
    assert window["rows"].tolist() == channel_rows(("FP1", "C3")).tolist()
    assert said == "without FP2, which the model was trained on; not used, as unknown to the model: O1"
    with pytest.raises(UserError, match=r"none of the channels that the model was trained on \(OZ\), but C3, O1, FP1"):
        choose_channels(recording, ("OZ",))


@pytest.mark.parametrize("stride, starts", [(None, [0, 4]), (2.5, [0, 2.5, 5]), (5, [0, 5])])
def test_windows_are_cut_at_the_stride(stride, starts):
    recording = clean(["C3"])
    windows = cut(recording, 4, stride)
    assert [window["eeg"][0, 0] * 100 / 200 for window in windows] == pytest.approx(starts)
    assert [window["index"] for window in windows] == list(range(len(starts)))
    assert all(window["eeg"].shape == (1, 800) for window in windows)


def test_answers_are_tabulated_and_summed_up():
    task = Task("x", "Which?", ("a", "b"))
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.0, 0.0]])
    table = answer_table(task, probabilities, np.array([0.0, 4.0, 8.0]), 4)
    assert table["answer"].tolist() == ["a", "b", ""] and table["stop"].tolist() == [4.0, 8.0, 12.0]
    assert summarize(task, table).startswith("Which? a  [mean probability: a 0.433 (33% of the windows), b 0.233 (33%")
    assert summarize(task, table.assign(p_a=0.0, p_b=0.0)) == "Which? none of the answers, in any window"
