"""torch.hub.load from any folder: in a program whose own modules have the names of ours, which are never touched."""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import ROOT
from small_models import make_lm, make_vq
from test_labram import TINY, make_vqnsp

from model.labram import Classifier
from model.labram_masked import MaskedModel

THEIRS = ("utils", "model", "dataset", "errors", "training", "evaluation")


@pytest.fixture
def theirs(tmp_path):
    """The folder of a program that has modules and packages of our names."""
    for name in THEIRS[:2] + THEIRS[4:]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"OWNER = 'theirs, {name}'\n")
    (tmp_path / "model" / "neurolm.py").write_text("OWNER = 'theirs, model.neurolm'\n")
    for name in THEIRS[2:4]:
        (tmp_path / f"{name}.py").write_text(f"OWNER = 'theirs, {name}'\n")
    return tmp_path


def run(folder, program):
    """Run a program from its folder -> what it printed last."""
    (folder / "program.py").write_text("import torch\n" + textwrap.dedent(program))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert not done.returncode, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_modules_of_the_same_names_stay_the_programs_own(theirs):
    lm = make_lm()
    torch.save({"model": lm.state_dict(), **lm.config_args()}, theirs / "lm.pt")
    make_vq().save_pretrained(theirs / "tokenizer")
    program = f"""
        import io, pickle, sys
        import errors, model, utils
        before = dict(sys.modules)
        lm = torch.hub.load({str(ROOT)!r}, "neurolm", source="local", weights="lm.pt")
        vq = torch.hub.load({str(ROOT)!r}, "neurolm_tokenizer", source="local", weights="tokenizer")
        again = torch.hub.load({str(ROOT)!r}, "neurolm", source="local", weights="lm.pt")
        assert all(sys.modules[name] is module for name, module in before.items())
        import dataset, evaluation, training, model.neurolm
        for module in (utils, model, dataset, errors, training, evaluation, model.neurolm):
            assert module.OWNER == "theirs, " + module.__name__, module
        files = {{name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}}
        ours = [name for name, file in files.items() if file.startswith({str(ROOT / "model")!r})]
        assert ours and all(name.startswith("neurolm_hub.") for name in ours), ours

        sample = {{"tokens": torch.arange(5)[None]}}
        assert type(lm) is type(again) and not lm.training
        assert torch.equal(lm.read(sample)[0], again.read(sample)[0])
        assert torch.equal(pickle.loads(pickle.dumps(lm)).pos_embed.weight, lm.pos_embed.weight)
        try:
            torch.hub.load({str(ROOT)!r}, "labram", source="local", weights="lm.pt")
        except Exception as error:
            print(error)
    """
    assert run(theirs, program) == "lm.pt holds a NeuroLM, expected Classifier or MaskedModel"


def test_what_ours_import_late_is_ours_too(theirs, tmp_path):
    """A repository with the same hubconf.py whose functions import when they are called."""
    repository, other = tmp_path / "repository", tmp_path / "other"
    (repository / "model").mkdir(parents=True)
    shutil.copy(ROOT / "hubconf.py", repository)
    (repository / "errors.py").write_text("OWNER = 'ours'\n")
    (repository / "utils.py").write_text("from errors import OWNER\n")
    (repository / "model" / "hub.py").write_text("OWNER = 'ours'\ndef read_weights(*_):\n    return {}\n")
    (repository / "model" / "opening.py").write_text(
        "def open_model(*_):\n    def late():\n        import errors\n        import model.hub as hub\n"
        "        from model import hub as same\n        from utils import OWNER\n"
        "        return errors.OWNER, hub.OWNER, same.OWNER, OWNER\n    return late\n"
    )
    shutil.copytree(repository, other)
    program = """
        import model
        late = torch.hub.load("repository", "neurolm", source="local", weights="any")
        import errors, utils
        assert late() == ("ours",) * 4 and errors.OWNER == "theirs, errors" and utils.OWNER == "theirs, utils"
        try:
            torch.hub.load("other", "neurolm", source="local", weights="any")
        except ImportError as error:
            print(error)
    """
    assert "it cannot load some from" in run(theirs, program)


@pytest.mark.parametrize(
    ("entry", "make"),
    [
        ("labram", lambda: Classifier(TINY, 3)),
        ("labram", lambda: MaskedModel(TINY, 64)),
        ("labram_tokenizer", make_vqnsp),
        ("neurolm_tokenizer", make_vq),
    ],
)
def test_every_entry_in_every_form(tmp_path, entry, make):
    model = make()
    torch.save({"model": model.state_dict(), **model.config_args()}, tmp_path / "weights.pth")
    model.save_pretrained(tmp_path / "folder")
    for weights in (tmp_path / "weights.pth", tmp_path / "folder"):
        loaded = torch.hub.load(str(ROOT), entry, source="local", weights=weights)
        assert type(loaded).__name__ == type(model).__name__
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(Exception, match=r"weights\.pth is here, a revision \(v1\) is of a repository of the hub"):
        torch.hub.load(str(ROOT), entry, source="local", weights=tmp_path / "weights.pth", revision="v1")
