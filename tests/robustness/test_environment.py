"""Where a run may find itself: other folders, odd names, no room, no home, nobody who listens."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import stages

from models.infra.files import ROOT


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("a folder of Å and ünicode")
    stages.write_inputs(root)
    return root


def run(root: Path, folder: Path, before=lambda: None, name: str = "material_dataset") -> tuple[int, str]:
    """Exit status and what was said, of a stage in a forked process that does `before` first."""
    stage = stages.stages(root)[name]
    prepared = stages.Stage(lambda: (before(), stage.main()), stage.flags, stage.out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _, status = os.waitpid(stages.child(prepared, folder), 0)
    return os.waitstatus_to_exitcode(status), folder.with_name("log.txt").read_text(errors="replace")


def test_names_with_spaces_and_letters_of_any_alphabet_from_another_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = run(root, tmp_path / "aus gabe ΔG" / "run")
    assert status == 0, said
    assert (tmp_path / "aus gabe ΔG/run/layers/report.json").is_file()
    assert os.listdir(tmp_path) == ["aus gabe ΔG"]


ROOMS = {
    "a file stands there": lambda folder: folder.write_text("x"),
    "nothing can be made there": lambda folder: folder.symlink_to("/proc/none"),
}


@pytest.mark.parametrize("room", ROOMS)
def test_an_output_that_cannot_be_written_is_said_at_once(root, tmp_path, room):
    ROOMS[room](tmp_path / "run")
    status, said = run(root, tmp_path / "run")
    assert status == 1 and "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: ") and "run" in said.splitlines()[-1]


@pytest.mark.parametrize("room", [100, 3000])
def test_a_full_disk_is_said_and_leaves_whole_files(root, tmp_path, room):
    """No file may grow beyond so many bytes, as on a disk that has no more."""
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    status, said = run(root, tmp_path / "run", full)
    assert status == 1 and "Traceback" not in said and "File too large" in said
    assert not list((tmp_path / "run").rglob("*.tmp*"))
    status, said = run(root, tmp_path / "run")
    assert status == 0, said


@pytest.mark.long
def test_a_bare_environment(root, tmp_path):
    """Nothing but a path: no home, no cache, the C locale without UTF-8 mode, stdout closed."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment |= {"HOME": "/nonexistent", "OMP_NUM_THREADS": "1"}
    stage = stages.stages(root)["material_dataset"]
    command = [
        sys.executable,
        ROOT / "material_dataset.py",
        *map(str, stage.flags),
        "--out",
        tmp_path / "out",
    ]
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(closed, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    assert (tmp_path / "out/report.json").is_file()
