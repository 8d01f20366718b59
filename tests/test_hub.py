"""Models as folders and repositories of the hub: every kind there and back, strictly; the card says what is known."""

import argparse
import json
import math

import httpx
import pytest
import torch
from huggingface_hub import HfApi, PyTorchModelHubMixin
from huggingface_hub.errors import RevisionNotFoundError
from small_models import make_lm, make_vq
from test_labram import TINY, make_vqnsp

from errors import UserError
from evaluation.inference import load_model
from model import hub
from model.hub import read_weights
from model.labram import Classifier, LaBraMConfig
from model.labram_masked import MaskedModel
from model.neurolm import NeuroLM
from model.opening import open_model
from model.vq import VQ_Align

ODD = LaBraMConfig(n_layer=1, n_head=2, n_embd=48, out_chans=4, layer_scale=0.0, qkv_bias=True)  # of no known width
MODELS = {
    "NeuroLM": lambda: make_lm(band_power=True),
    "VQ_Align": make_vq,
    "VQNSP": make_vqnsp,
    "MaskedModel": lambda: MaskedModel(ODD, 64),
    "Classifier": lambda: Classifier(ODD, 3),
}
KNOWN = {
    "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.99)), "best": -math.inf, "history": [{"step": 0}],
    "git_commit": "abc+", "iter_num": 5, "epoch": 2,
    "tasks": [{"name": "Sleep", "question": "Asleep?", "answers": ("no", "yes"), "seconds": 30, "channels": ["C3"]}],
    "trained_on": [{"name": "HMC", "corpus": "HMC", "hours": 12.5, "nameless": 1, "subjects": "aa bb"}],
    "datasets": {"HMC": {"preprocessing": "rate: 200\n"}}, "leaks": ["a: on both sides"],
}  # fmt: skip


def equal(model, state):
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in own.items())


@pytest.fixture
def folder(tmp_path):
    make_vq().save_pretrained(tmp_path / "vq")
    return tmp_path / "vq"


@pytest.mark.parametrize("kind", MODELS)
def test_there_and_back(kind, tmp_path, capsys):
    model = MODELS[kind]()
    assert isinstance(model, PyTorchModelHubMixin)
    state, folder = model.state_dict(), tmp_path / "out"
    model.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = type(model).from_pretrained(folder)
    assert equal(again, state) and again.config_args() == model.config_args() and not again.training
    assert f"out: {kind}, {len(state)} tensors, all of them loaded" in capsys.readouterr().out
    assert type(open_model(read_weights(folder), "x")) is type(model)


def test_all_that_a_checkpoint_knows_comes_back(tmp_path):
    model = make_lm()
    checkpoint = {"model": model.state_dict(), **model.config_args(), **KNOWN, "optimizer": {}, "scaler": {}}
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    results = [["Sleep", "test", "40 windows", {"kappa": 0.5, "auroc_hard": None}]]
    opened = NeuroLM.from_pretrained(tmp_path / "ckpt.pt")
    opened.save_pretrained(tmp_path / "out", model_card_kwargs={"license": "cc0-1.0", "results": results})
    json.loads((tmp_path / "out" / "config.json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    again = NeuroLM.from_pretrained(tmp_path / "out").to_checkpoint()
    assert equal(model, again.pop("model")) and again == {**model.config_args(), **KNOWN}
    assert repr(again) == repr({**model.config_args(), **KNOWN})

    NeuroLM.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "copy")
    card = (tmp_path / "copy" / "README.md").read_text()
    assert card == (tmp_path / "out" / "README.md").read_text()
    for said in (
        "license: cc0-1.0", "stage 3", "| commit | abc+ |", "| HMC | HMC | 12.5 | 2 and 1 without a name |",
        "| Sleep | Asleep? | no, yes | 30 | C3 |", "rate: 200", "| dataset | split | of | kappa | auroc_hard |",
        "| Sleep | test | 40 windows | 0.5 | - |", "on both sides: a: on both sides",
        hub._sha256(tmp_path / "out" / "model.safetensors"),
    ):  # fmt: skip
        assert said in card, said


def test_a_model_that_was_trained_on_or_set_otherwise(folder, tmp_path):
    model = VQ_Align.from_pretrained(folder)
    model.known["checkpoint"] |= {"git_commit": "abc"}
    model.VQ.encoder.pad_windows(276)
    model.save_pretrained(tmp_path / "padded")
    assert VQ_Align.from_pretrained(tmp_path / "padded").VQ.encoder.config.padded_length == 276
    assert "abc" in (tmp_path / "padded" / "README.md").read_text()
    with torch.no_grad():
        model.wte.weight[0, 0] += 1e-6
    model.save_pretrained(tmp_path / "trained")
    assert "abc" not in (tmp_path / "trained" / "README.md").read_text()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"vq lacks config\.json: .*half of one"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"vq lacks model\.safetensors: .*half of one"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is none of save_pretrained"),
        (lambda folder: (folder / "config.json").write_text("[" * 9999), r"config\.json is none of save_pretrained"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json is none of save_pretrained"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "is not the file that config"),
        (lambda folder: change(folder, sizes={"decoder_args": 3}), "lacks the dictionary 'encoder_args'"),
        (lambda folder: change(folder, decoder={"n_layer": 3}), r"does not fit this model: .* missing"),
        (lambda folder: change(folder, decoder={"n_layer": "2"}), "n_layer = '2', expected int"),
        (lambda folder: change(folder, decoder={"n_embd": 10**7}), "does not fit this model"),
        (lambda folder: change(folder, sizes=[]), r"config\.json is none of save_pretrained"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, harm, message):
    harm(folder)
    with pytest.raises(UserError, match=message) as caught:
        VQ_Align.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def change(folder, sizes=None, decoder=None):
    about = json.loads((folder / "config.json").read_text())
    about["sizes"] = about["sizes"] if sizes is None else sizes
    if decoder:
        about["sizes"]["decoder_args"] |= decoder
    (folder / "config.json").write_text(json.dumps(about))


def test_weights_that_are_not_there(folder, monkeypatch):
    for name, message in (("none.pt", "does not exist"), ("a/none.pt", "does not exist"), ("some where", "OWNER/NAME")):
        with pytest.raises(UserError, match=message):
            VQ_Align.from_pretrained(name)
    with pytest.raises(UserError, match="a revision .v1. is of a repository"):
        VQ_Align.from_pretrained(folder, revision="v1")
    with pytest.raises(UserError, match=r"already holds model\.safetensors, config\.json, README\.md"):
        make_vq().save_pretrained(folder)
    with pytest.raises(UserError, match="x holds tensors of no known model .a., expected VQ_Align"):
        open_model({"checkpoint": {"model": {"a": torch.ones(1)}}}, "x", ["VQ_Align"])

    def download(name, revision, **_):
        if revision == "v2":
            response = httpx.Response(404, request=httpx.Request("GET", "https://hub/owner/name"))
            raise RevisionNotFoundError("404\nRevision Not Found", response=response)
        assert (name, revision) == ("owner/name", "v1")
        return folder

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert equal(VQ_Align.from_pretrained("owner/name", revision="v1"), make_vq().state_dict())
    with pytest.raises(UserError, match="owner/name is no .* revision v2 cannot be had .*Not Found") as said:
        VQ_Align.from_pretrained("owner/name", revision="v2")
    assert "\n" not in str(said.value)


def test_push_sends_all_three_files(monkeypatch):
    sent = []
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, repo_id, **__: argparse.Namespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", lambda *_, folder_path, **__: sent.extend(folder_path.iterdir()))
    make_vq().push_to_hub("owner/name", model_card_kwargs={"license": "mit"})
    assert sorted(path.name for path in sent) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("title", ["labram_base_patch200_1600", "labram_base_patch200_200", "vqnsp"])
def test_released_labrams_are_known_by_their_tensors(golden, title):
    cases = json.loads((golden / "labram.json").read_text())
    shapes = next(shapes for name, shapes in cases.items() if name.startswith(title))
    state = {name: torch.full(shape, i / 100) for i, (name, shape) in enumerate(shapes.items())}
    checkpoint = {"model": state, "args": argparse.Namespace(model=title), "optimizer": {}, "epoch": 4}
    model = open_model({"checkpoint": checkpoint}, "released")
    assert equal(model, state) and model.to_checkpoint().keys() == {"model", "args", "epoch"}
    sizes = model.config_args()["backbone"]
    assert (sizes["n_head"], sizes["n_layer"], sizes["out_chans"]) == (10, 12, 8)


def test_a_classifier_without_names_is_asked_nothing(tmp_path):
    torch.save({"model": Classifier(TINY, 3).state_dict(), "epoch": 4}, tmp_path / "official.pth")
    for names, message in ((None, "say which tasks"), (["TUAB"], "nothing but classes that it does not name")):
        with pytest.raises(UserError, match=message):
            load_model(Classifier, tmp_path / "official.pth", names)
