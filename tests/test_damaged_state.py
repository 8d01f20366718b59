"""What a checkpoint says of its tasks and of its run: wrong types are one line, and no name leads out of a folder."""

from dataclasses import asdict

import pytest
import stages
import torch
from small_models import make_lm

from dataset.tasks import TASKS
from errors import UserError
from evaluation.inference import load_model
from model.neurolm import NeuroLM
from model.vq import VQ_Align
from training.checkpoints import check_progress, load_scaler, write_checkpoint
from training.sharding import load_optimizer
from utils import decay_groups, make_optimizer

ROW = asdict(TASKS["TUAB"]) | {"dataset": None, "seconds": 4, "channels": ["C3"]}
BAD_TASKS = {
    "list": {"a": 1},
    "row": [5],
    "name": [ROW | {"name": "../../x"}],
    "long": [ROW | {"name": "x" * 300}],
    "kind": [ROW | {"name": ["x"]}],
    "answers": [ROW | {"answers": "Yes"}],
    "answer": [ROW | {"answers": [1, 2]}],
    "metrics": [ROW | {"metrics": ["harm"]}],
    "seconds": [ROW | {"seconds": "4"}],
    "channels": [ROW | {"channels": None}],
    "missing": [{"name": "x"}],
}


@pytest.mark.parametrize("kind", BAD_TASKS)
def test_tasks_of_a_checkpoint(tmp_path, kind):
    model = make_lm()
    checkpoint = {"model": model.state_dict(), **model.config_args(), "tasks": BAD_TASKS[kind]}
    write_checkpoint(checkpoint, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt"):
        load_model(NeuroLM, tmp_path / "x.pt")


GOOD = {"iter_num": 3, "epoch": 1, "best": 0.5, "recorded": {"sums": {"loss": 1.0}, "steps": 2}, "log_lines": 4}
WRONG = [{"iter_num": "3"}, {"iter_num": -1}, {"epoch": None}, {"best": "x"}, {"validated": 1.5}, {"total_steps": "9"},
         {"recorded": 5}, {"recorded": {"sums": {"loss": "x"}, "steps": 1}}, {"recorded": {"sums": {}}},
         {"log_lines": [1]}, {"samples_per_step": 0}, {"steps_per_epoch": True}]  # fmt: skip


def test_progress_of_a_run():
    check_progress(GOOD, "x.pt")
    for lost in ("iter_num", "epoch"):
        with pytest.raises(UserError, match=rf"x\.pt: {lost} = None, expected int of a run: --no-resume"):
            check_progress({name: value for name, value in GOOD.items() if name != lost}, "x.pt")
    for change in WRONG:
        with pytest.raises(UserError, match=r"x\.pt: .*--no-resume"):
            check_progress(GOOD | change, "x.pt")


def test_damaged_optimizers_and_scales():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, 3))])
    good = optimizer.state_dict()
    average = {"step": torch.tensor(1.0), "exp_avg": torch.ones(2, 3), "exp_avg_sq": torch.ones(2, 3)}
    load_optimizer(optimizer, good | {"state": {0: average}}, "x.pt")
    for change in ({"state": 5}, {"state": {7: average}}, {"state": {0: [1]}}, {"param_groups": 3},
                   {"state": {0: average | {"exp_avg": torch.ones(3)}}}, {"param_groups": [{}]}):  # fmt: skip
        with pytest.raises(UserError, match=r"x\.pt: its optimizer .*--no-resume"):
            load_optimizer(optimizer, good | change, "x.pt")
    scaler = torch.amp.GradScaler("cpu")
    load_scaler(scaler, scaler.state_dict(), "x.pt")
    for state in (5, {"scale": 1.0}, scaler.state_dict() | {"scale": "x"}):
        with pytest.raises(UserError, match=r"x\.pt: scaler = .*--no-resume"):
            load_scaler(scaler, state, "x.pt")


def test_a_run_whose_checkpoint_has_lost_its_step(refused, untrained, tmp_path):
    newest = tmp_path / "out" / "checkpoints" / "VQ" / "ckpt.pt"
    model = VQ_Align.load(stages.reference(untrained, "vq") / "ckpt.pt")
    optimizer = make_optimizer(decay_groups(model, 0.0), 1e-3, (0.9, 0.999), torch.device("cpu"))
    write_checkpoint({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, newest)
    refused("vq", [], newest, "iter_num = None", "--no-resume")
