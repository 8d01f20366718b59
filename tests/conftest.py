"""What every test may ask for: the reference folders, a free look at real EEG, and the scripts as a user runs them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session", autouse=True)
def same_precision():
    """"auto" is float32 on every CPU: the tests' numbers are not those of one machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils._multiplies_bfloat16", lambda: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def smaller():
    """A language model of a quarter of the width of --size tiny, here and in what is forked: 50257 words take most of
    the time. Gives tiny's row."""
    from model.lm_sizes import LM_SIZES

    row = LM_SIZES["tiny"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LM_SIZES, "tiny", replace(row, n_embd=32))
        yield row


@pytest.fixture(scope="module")
def full_tiny(smaller):
    """--size tiny as a user gets it, to the end of a module: it learns to write answers, a smaller one not."""
    from model.lm_sizes import LM_SIZES

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LM_SIZES, "tiny", smaller)
        yield


def shared_folder() -> Path:
    return Path(os.environ.get("NEUROLM_SHARED", ROOT.parent / "shared"))


def pytest_addoption(parser):
    parser.addoption("--golden", default=None, help="folder of reference results, default ../shared/golden")


def pytest_collection_modifyitems(items):
    """Files with end-to-end runs first: the last ones to start should be short, so that all workers end together."""
    slow = {item.path for item in items if item.get_closest_marker("e2e")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real EEG and text; tests that need it are skipped where it is missing."""
    if not shared_folder().is_dir():
        pytest.skip("no shared data: set NEUROLM_SHARED to the folder that holds data/, text/ and golden/")
    return shared_folder()


@pytest.fixture(scope="session")
def golden(request) -> Path:
    """The folder of reference results."""
    folder = Path(request.config.getoption("--golden") or shared_folder() / "golden")
    if not folder.is_dir():
        pytest.skip(f"no reference results at {folder}")
    return folder


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Path:
    """A corpus of toy data, and checkpoints that nobody trained, for the flags of `stages`."""
    from refusals import write_untrained

    return write_untrained(tmp_path_factory.mktemp("untrained"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """A corpus of toy data after NeuroLM's three stages: what they made is in `stages.reference`. Only to be read."""
    import stages

    corpus = stages.write_corpus(tmp_path_factory.mktemp("corpus"))
    stages.train_all(corpus)
    return corpus


@pytest.fixture
def refused(untrained, tmp_path, capsys):
    """Runs a stage with more flags; checks that one line of error says all words."""
    import stages
    from refusals import assert_refused

    def check(stage, more, *words):
        assert_refused(
            capsys, stages.SCRIPTS[stage], stages.flags(stage, untrained, tmp_path / "out", *more), words
        )

    return check


def run_script(*arguments, nproc: int = 1, check: bool = True, env: dict | None = None, timeout: int = 600):
    """Run a script of the repository in a process of its own, under torchrun when nproc > 1."""
    command = [sys.executable]
    if nproc > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", **(env or {})}
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
    if check and done.returncode:
        raise AssertionError(f"{arguments} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    return done
