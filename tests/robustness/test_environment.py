"""Where a run may find itself: other folders, odd names, no room, no home, nobody who listens."""

import ctypes
import errno
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import stages
from test_interruption import assert_whole, comparable

from models.infra.files import ROOT

NEW_NETWORK = 0x40000000  # CLONE_NEWNET of Linux


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


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own of so many kilobytes, mounted on tmp_path/run."""
    (tmp_path / "run").mkdir()

    def resize(kilobytes: int) -> Path:
        again = "remount," if os.path.ismount(tmp_path / "run") else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}size={kilobytes}k", "none", str(tmp_path / "run")]
        mounted = subprocess.run(command, capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
        return tmp_path / "run"

    yield resize
    if os.path.ismount(tmp_path / "run"):
        subprocess.run(["umount", "--lazy", str(tmp_path / "run")], check=True)


@pytest.mark.parametrize("kilobytes", [8, 24])
def test_a_small_disk_fills_up_and_a_larger_one_goes_on(root, tmp_path, small_disk, kilobytes):
    """The second start, with more room, ends with the bytes of a run that always had it."""
    folder = small_disk(kilobytes)
    status, said = run(root, folder)
    assert status == 1 and "Traceback" not in said and "No space left on device" in said.splitlines()[-1]
    assert_whole(folder)
    small_disk(4096)
    stage = stages.stages(root)["material_dataset"]
    stages.finish(stage, folder, *stage.again)
    (tmp_path / "roomy").mkdir()
    stages.finish(stage, tmp_path / "roomy" / "run")
    found, expected = stages.contents(folder), stages.contents(tmp_path / "roomy" / "run")
    assert found.keys() == expected.keys()
    assert all(comparable(name, found[name]) == comparable(name, expected[name]) for name in found)


def without_network() -> None:
    """Leaves the network: a namespace without any (needs rights), else sockets that connect to nothing."""
    if ctypes.CDLL(None).unshare(NEW_NETWORK) == 0:
        return

    def unreachable(*_):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    socket.socket.connect = socket.socket.connect_ex = unreachable


@pytest.mark.parametrize("name", ["structure_generator", "evaluate_external"])
def test_no_stage_needs_a_network(root, tmp_path, name):
    def leave() -> None:
        without_network()
        with pytest.raises(OSError), socket.socket() as tried:  # port of an address that is nobody's
            tried.settimeout(5)
            tried.connect(("192.0.2.1", 9))

    status, said = run(root, tmp_path / "run", leave, name)
    assert status == 0, said


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
