"""The house of DESIGN: rooms on floors; no import goes upward, and neither rooms nor modules import in a circle."""

import ast
from graphlib import TopologicalSorter

from conftest import ROOT

SCRIPTS = 5
FLOORS = {
    "errors": 1,
    "utils": 2, "model": 2, "dataset": 2,
    "training": 3, "dataset_maker": 3, "text_dataset_maker": 3,
    "evaluation": 4,
    "benchmarks": 6,
}  # fmt: skip
MOST_ROOMS = 21


def modules() -> dict[str, set[str]]:
    """Every module of the repository outside the tests, and the ones of them that it imports, also inside functions."""
    paths = [path for path in ROOT.rglob("*.py") if not {".venv", "tests", "demo"} & set(path.relative_to(ROOT).parts)]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    found = {}
    for name, path in names.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        asked = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        for node in (node for node in nodes if isinstance(node, ast.ImportFrom)):
            asked += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found[name] = {other for other in asked if other in names} - {name}
    return found


def room(module: str) -> str:
    return module.split(".")[0]


def floor(module: str) -> int:
    return FLOORS.get(room(module), SCRIPTS)


def test_no_import_goes_upward():
    upward = [(a, b) for a, others in modules().items() for b in others if floor(b) > floor(a)]
    assert not upward


def test_no_script_imports_another_one():
    """What two scripts need stands below them; demo.py runs the others as a user does."""
    both = [(a, b) for a, others in modules().items() for b in others if floor(a) == floor(b) == SCRIPTS]
    assert not both


def test_nothing_imports_in_a_circle():
    graph = modules()
    list(TopologicalSorter(graph).static_order())  # raises CycleError naming the circle
    rooms = {}
    for module, others in graph.items():
        rooms.setdefault(room(module), set()).update(room(other) for other in others if room(other) != room(module))
    list(TopologicalSorter(rooms).static_order())
    assert len(rooms) <= MOST_ROOMS, f"{len(rooms)} rooms: {', '.join(sorted(rooms))}"


def test_models_know_tensors_only():
    imported = {room(other) for module, others in modules().items() if room(module) == "model" for other in others}
    assert imported <= {"model", "errors"}


def test_dataset_and_utils_know_no_model():
    for name in ("dataset", "utils"):
        imported = {room(b) for a, others in modules().items() if room(a) == name for b in others}
        assert imported <= {name, "errors"}, name
