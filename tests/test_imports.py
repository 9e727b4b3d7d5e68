"""Imports point one way: no circle among the package's files or rooms, and few floors from the bottom to the top."""

import ast
import graphlib
import importlib
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "deit_jax"
FLOORS = 11  # errors at the bottom, the command line on top


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(module: str) -> set[str]:
    """The package's modules that a file imports anywhere but under TYPE_CHECKING."""
    tree = ast.parse(FILES[module].read_text())
    static = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in static:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deit_jax"):
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                found.add(whole if whole in FILES else node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name in FILES}
    return found - {module}


def room(module: str) -> str:
    """deit_jax.train.loop → train; a file beside the rooms is a room of its own."""
    parts = module.split(".")
    return ".".join(parts[1:2]) if len(parts) > 1 else ""


def test_no_circle_among_files():
    graph = {module: imports(module) & FILES.keys() for module in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_rooms_stand_on_few_floors_without_a_circle():
    graph: dict[str, set[str]] = {}
    for module in FILES.keys() - {"deit_jax.__main__"}:  # starts the command line, as main.py beside the package does
        graph.setdefault(room(module), set()).update(room(m) for m in imports(module))
    graph = {name: below - {name, ""} for name, below in graph.items() if name}
    floor: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(graph).static_order():
        floor[name] = 1 + max((floor[below] for below in graph.get(name, ())), default=0)
    assert max(floor.values()) <= FLOORS, floor


def test_the_bottom_room_stands_on_nothing():
    below = {room(m) for module in FILES if room(module) == "runtime" for m in imports(module)}
    assert below <= {"runtime", "errors", ""}, below


def test_few_public_names_are_defined_in_two_files():
    places: dict[str, list[str]] = {}
    for module, path in FILES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    shared = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert len(shared) <= 15, shared


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_import_names_that_exist(script):
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deit_jax"):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or f"{node.module}.{name}" in FILES, f"{node.module}.{name}"
