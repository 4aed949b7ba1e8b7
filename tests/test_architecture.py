"""The rooms of models/ import one way, and the first of them need no network."""

import ast
import subprocess
import sys

import pytest

from models.infra.files import ROOT

ROOMS = ("infra", "crystals", "physics", "datasets", "networks", "evaluation", "stages")
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}


def imported(path) -> set[str]:
    """Dotted names of all modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_from_a_later_one(room):
    later = ROOMS[ROOMS.index(room) + 1 :]
    for path in (ROOT / "models" / room).glob("*.py"):
        for name in imported(path):
            first, _, rest = name.partition(".")
            assert first not in {*SCRIPTS, "data", "benchmarks", "tests"}, f"{path.name} imports {name}"
            assert not (first == "models" and rest.partition(".")[0] in later), f"{path.name} imports {name}"


def test_every_module_stands_in_a_room():
    assert {path.name for path in (ROOT / "models").glob("*.py")} == {"__init__.py"}
    folders = {path.name for path in (ROOT / "models").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == {*ROOMS, "weights"}


@pytest.mark.parametrize("room", ["infra", "crystals"])
def test_early_rooms_load_no_network(room):
    """What `pytest tests/crystals` imports: no model, no torch-geometric."""
    modules = [f"models.{room}.{path.stem}" for path in (ROOT / "models" / room).glob("[a-z]*.py")]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "torch_geometric"} & set(loaded)
    assert not [name for name in loaded if name.startswith(("models.networks", "models.physics"))]
