"""The rooms of models/ import one way, and the first of them need no network."""

import ast
import subprocess
import sys

import pytest

from models.infra.files import ROOT

ROOMS = ("infra", "crystals", "physics", "datasets", "networks", "evaluation", "stages")
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
PARSING = sorted(SCRIPTS - {"geo_utils"}) + ["data.build", "data.build.dft", "data.build.competitors"]
PARSING += [f"benchmarks.{path.parent.name}" for path in sorted((ROOT / "benchmarks").glob("*/__main__.py"))]
PARSING += ["benchmarks.learning_curve", "benchmarks.published_hits", "tests.robustness"]


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


@pytest.mark.parametrize("flags", ["--help", "--no-such-flag"])
@pytest.mark.parametrize("script", PARSING)
def test_flags_cost_no_heavy_library(script, flags):
    """--help is told, and a wrong flag refused, before torch, pymatgen or matplotlib are imported."""
    code = f"""
import runpy, sys
sys.argv = [{script!r}, {flags!r}]
try:
    runpy.run_module({script!r}, run_name="__main__")
except SystemExit as end:
    heavy = [name for name in ("torch", "pymatgen", "matplotlib") if name in sys.modules]
    print("status", end.code or 0, "heavy", *heavy, flush=True)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    status = 0 if flags == "--help" else 2
    assert ran.stdout.splitlines()[-1] == f"status {status} heavy", ran.stderr[-2000:]
    assert "usage:" in (ran.stdout if flags == "--help" else ran.stderr)
