"""A run goes on as it was started: what else it is given is refused, or applied and said; every flag is classified."""

import numpy as np
import pytest
import torch
from test_flags import REQUIRED, parse
from toy_eeg import write_toy

from errors import UserError
from training.agreement import CHANGEABLE, INPUTS, KINDS, agree, history
from training.provenance import describe_data, hash_blocks, hash_state, public_config
from training.sharding import load_optimizer
from utils import make_optimizer

SCRIPTS = [script for script in REQUIRED if script != "evaluation.__main__"]
FLAGS = [(script, name) for script in SCRIPTS for name in vars(parse(script))]
A, B = "a" * 64, "b" * 64
READ = {
    "datasets": {"TUAB": A}, "labels": {"TUAB": ["normal", "abnormal"]}, "text": A, "lm": A,
    "tokenizer": A, "weights": None,
    "tasks": {"TUAB question": "Is it?", "TUAB answers": ["No", "Yes"]},
}  # fmt: skip
OTHER = {
    "datasets": {"TUAB": B}, "labels": {"TUAB": ["abnormal", "normal"]}, "text": B, "lm": B,
    "tokenizer": B, "weights": A,
    "tasks": READ["tasks"] | {"TUAB answers": ["Yes", "No"]},
}  # fmt: skip


def kinds(name):
    return [kind for kind, names in KINDS.items() if name in names]


def made(script, **changes):
    """What a checkpoint holds of a run with the default flags, except for `changes`."""
    return {"config": public_config(parse(script)) | {"dtype": "float32"} | changes, "inputs": READ}


def another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [0.5, 0.5] if isinstance(value, tuple) else "another"


@pytest.mark.parametrize(("script", "name"), FLAGS)
def test_every_flag_is_of_one_kind_and_treated_so(script, name):
    (kind,) = kinds(name)  # a new flag belongs into training/agreement.py
    before = made(script)
    if name not in before["config"]:
        assert name == "wandb_api_key"
        return
    old = before["config"][name]
    now = made(script, **{name: another(old)})
    if kind == "fixed":
        with pytest.raises(UserError) as caught:
            agree(now, before, "ckpt.pt")
        said = str(caught.value)
        assert f"--{name} is {another(old)!r}, was {'nothing' if old is None else repr(old)}" in said
        assert "\n" not in said and "ckpt.pt" in said and "--no-resume" in said and f"--allow_changed {name}" in said
        config, (line,) = agree(now, before, "ckpt.pt", [name])
        assert config[name] == another(old) and line.startswith("resumed, as allowed: ")
        return
    config, lines = agree(now, before, "ckpt.pt")
    assert len(lines) == (kind in ("applied", "start"))
    assert all(f"--{name} is " in line and ", was " in line for line in lines)
    assert config[name] == (old if kind == "start" else another(old))


@pytest.mark.parametrize("name", INPUTS)
def test_other_inputs_are_refused(name):
    before, now = made("train_instruction"), made("train_instruction")
    assert agree(now, before, "ckpt.pt")[1] == []
    now["inputs"] = READ | {name: OTHER[name]}
    with pytest.raises(UserError, match=rf"ckpt\.pt was made otherwise: {name} is .*, was .*--allow_changed {name}$"):
        agree(now, before, "ckpt.pt")
    assert agree(now, before, "ckpt.pt", [name])[1]
    with pytest.raises(UserError, match=rf"--allow_changed seed {name}$"):
        now["config"]["seed"] = 7
        agree(now, before, "ckpt.pt", ["size"])


def test_the_order_of_datasets_counts():
    before, now = made("train_vq"), made("train_vq")
    before["inputs"], now["inputs"] = {"datasets": {"x": A, "y": B}}, {"datasets": {"y": B, "x": A}}
    with pytest.raises(UserError, match=r"datasets is \['y', 'x'\], was \['x', 'y'\]"):
        agree(now, before, "ckpt.pt")


def test_earlier_checkpoints_go_on_and_say_what_they_lack():
    now = made("train_vq")
    old = {"config": {name: value for name, value in now["config"].items() if name != "block_size"} | {"dtype": "auto"}}
    _, (line,) = agree(now, old, "ckpt.pt")
    assert line == f"ckpt.pt does not say its block_size, {', '.join(READ)}, which cannot be compared"
    assert agree(now, {}, "ckpt.pt")[1] == ["ckpt.pt does not say how it was made, nothing can be compared"]
    assert [entry["step"] for entry in history(now, old, 5)] == [0, 5]


@pytest.mark.parametrize("script", SCRIPTS)
def test_only_known_names_can_be_allowed(script, capsys):
    for name in CHANGEABLE:
        assert parse(script, "--allow_changed", name).allow_changed == [name]
    for name in ("lr", "learning_rate", "dataset_dir", "nonsense"):
        with pytest.raises(SystemExit):
            parse(script, "--allow_changed", name)
        assert name in capsys.readouterr().err


def test_hashes_see_what_they_should(tmp_path):
    path = tmp_path / "train.bin"
    content = np.random.default_rng(0).bytes(10**6)
    path.write_bytes(content)
    whole = hash_blocks(path)
    for place in (0, 500_000, 999_999):  # a small file is read whole
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert hash_blocks(path) != whole
    path.write_bytes(content + b"0")
    assert hash_blocks(path, 3, 10) != whole
    state = {"a": torch.zeros(3), "b": torch.tensor(1)}
    others = (state | {"a": torch.ones(3)}, state | {"a": torch.zeros(3, 1)}, {"c": state["a"], "b": state["b"]})
    assert hash_state(dict(reversed(state.items()))) == hash_state(state)
    assert len({hash_state(other) for other in (state, *others)}) == 4
    toy = write_toy(tmp_path / "toy", window=2)
    assert describe_data([toy])["toy"]["labels"] == ["slow", "fast"]
    for name in ("manifest.csv", "dataset.yaml"):
        (toy / name).unlink()
    first = describe_data([toy])["toy"]["content_sha256"]
    files = sorted((toy / "train").iterdir())
    swapped = [file.read_bytes() for file in files[:2]]
    for file, content in zip(files, reversed(swapped), strict=False):
        file.write_bytes(content)
    assert describe_data([toy])["toy"]["content_sha256"] != first


def test_the_optimizer_takes_the_new_options_and_kind():
    parameter = torch.nn.Parameter(torch.ones(2, 2))

    def optimizer(decay, betas, eps, kind):
        return make_optimizer([{"params": [parameter], "weight_decay": decay, "lr_scale": eps}], 1e-3, betas,
                              torch.device("cpu"), eps, kind)  # fmt: skip

    old = optimizer(0.1, (0.9, 0.99), 1e-8, "adamw")
    parameter.grad = torch.ones(2, 2)
    old.step()
    new = optimizer(0.2, (0.8, 0.9), 1e-6, "adam")
    fresh = optimizer(0.2, (0.8, 0.9), 1e-6, "adam").state_dict()["param_groups"]
    load_optimizer(new, old.state_dict(), "ckpt.pt")
    assert new.state_dict()["param_groups"] == fresh  # also `decoupled_weight_decay`, which makes an AdamW
    assert torch.equal(new.state[parameter]["exp_avg"], old.state[parameter]["exp_avg"])
