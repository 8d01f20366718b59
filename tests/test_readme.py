"""Commands that README.md and docs/ print are those that the scripts take, and .gitignore covers what they make."""

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "checkpoints" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPT = re.compile(r"(?:^|\s)(?:python|torchrun(?: --\S+)*)\s+(-m evaluation|[\w/]+\.py)\s(.*)")
MADE = re.compile(r"--(?:out_dir|output_dir|raw_dir|figure)[ =](?!s3:)(\w[\w/.-]*)")


def commands(page):
    """Lines of a page's bash blocks, continued ones joined, without shell variables: (script, its words)."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            found = SCRIPT.search(line)
            if found and not set(line) & set("${*?"):
                yield found[1], shlex.split(found[2], comments=True)


def load_script(name):
    path = ROOT / ("evaluation/__main__.py" if name == "-m evaluation" else name)
    spec = importlib.util.spec_from_file_location(f"printed_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_printed_commands_are_taken(page):
    for script, words in commands(page):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                load_script(script).get_args(words)
        except SystemExit:
            pytest.fail(f"{page.name}: {script} {' '.join(words)}: {said.getvalue()[-300:]}")


def test_the_pages_hold_commands():
    assert {script for script, _ in commands(ROOT / "README.md")} >= {"train_vq.py", "predict.py", "-m evaluation"}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    known = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    printed = {word for page in PAGES for word in re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.MULTILINE)}
    assert printed - {"PYTHON"} <= known and {"help", "shell", "test", "demo"} <= known
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {name}" in said for name in known - {"all", "help"})


def test_git_ignores_what_the_pages_make():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    made = {place for place in MADE.findall(text) if place[0] not in "DR"} | {".venv-python3.12", "hands.yaml"}
    assert {"runs/neurolm", "datasets/hands"} <= made
    asked = subprocess.run(["git", "check-ignore", *(f"{place}/x" if "." not in place else place for place in made),
                            ".venv-python3.12/x"], cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    ignored = {line.removesuffix("/x") for line in asked.stdout.splitlines()}
    assert not made - ignored - {".venv-python3.12"} and ".venv-python3.12" in ignored
    assert sys.version_info >= (3, 11)


def test_pictures_are_there_and_small():
    shown = {page.parent / place for page in PAGES for place in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())}
    assert {path.resolve() for path in (ROOT / "docs" / "pictures").iterdir()} <= {path.resolve() for path in shown}
    sizes = [path.stat().st_size for path in shown]
    assert len(sizes) >= 10 and max(sizes) < 100_000 and sum(sizes) < 600_000
