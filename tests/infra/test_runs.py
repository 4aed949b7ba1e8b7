"""One run an output, one line an error, an exit status that says what happened."""

import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import pytest

from models.infra.cli import add_system, real, whole
from models.infra.files import ROOT, UnreadableFile
from models.infra.shards import Shard

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}"}
PREAMBLE = """
import sys, time
from pathlib import Path
from models.infra.runs import run_script, take_output
"""


def script(body: str, *arguments, **more) -> subprocess.CompletedProcess:
    """A script whose main is `body`."""
    code = f"{PREAMBLE}\ndef main():\n    {body}\n\nrun_script(main)"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(command, **streams | {"env": ENVIRONMENT, "text": True, "timeout": 60} | more)


@pytest.mark.parametrize(
    "body, said",
    [
        ("raise ValueError('x.db is\\n  no database')", "error: x.db is no database"),
        ("open('/nowhere/x')", "error: /nowhere/x: No such file or directory"),
        ("open('/dev/full', 'w').write('x' * 100000)", "error: output: No space left on device"),
        ("raise MemoryError", "error: MemoryError"),
    ],
)
def test_an_error_is_one_line(body, said):
    done = script(body)
    assert done.returncode == 1 and done.stderr == f"{said}\n"


def test_a_bug_keeps_its_traceback_and_any_error_with_the_switch():
    assert "Traceback" in script("{}['x']").stderr
    assert "Traceback" in script("raise ValueError('x')", env=ENVIRONMENT | {"HER2D_DEBUG": "1"}).stderr


def test_lost_items_are_no_success(tmp_path):
    body = (
        "import workers; from models.infra.jobs import run_jobs; from models.infra.shards import Shard; "
        "items = {'a': {'do': 'exit'}, 'b': {}}; "
        "run_jobs(workers.work, items, Shard(sys.argv[1]), 1, workers.ready, (), 'relaxing')"
    )
    done = script(body, tmp_path / "s.jsonl")
    assert done.returncode == 3 and "1 at relaxing lost, e.g. a (worker died: exit status 3)" in done.stderr


def test_the_second_run_into_an_output_says_so_and_stops(tmp_path):
    code = PREAMBLE + "take_output(Path(sys.argv[1])); print('taken', flush=True); input()"
    first = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "taken\n"
    second = script("take_output(Path(sys.argv[1]))", tmp_path)
    assert second.returncode == 1
    assert f"is being written by another run (process {first.pid})" in second.stderr
    assert "--out" in second.stderr and "Traceback" not in second.stderr
    first.kill()
    first.communicate()
    assert script("take_output(Path(sys.argv[1])); take_output(Path(sys.argv[1]))", tmp_path).returncode == 0


def test_files_of_one_folder_are_taken_one_by_one(tmp_path):
    body = "take_output(Path(sys.argv[1]), True); print((Path(sys.argv[1]).parent / '.a.pt.lock').exists())"
    assert script(body, tmp_path / "a.pt").stdout == "True\n"


@pytest.mark.parametrize("name, status", [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_swallowed_signal_ends_the_run_all_the_same(name, status):
    """As where a library clears the exception that the handler raised."""
    body = [
        "import os, signal",
        f"sent, end = iter([signal.{name}]), time.time() + 20",
        "while time.time() < end:",
        "    try:",
        "        for number in sent: os.kill(os.getpid(), number)",
        "        time.sleep(0.05)",
        "    except BaseException:",
        "        pass",
    ]
    begin = time.monotonic()
    done = script("\n    ".join(body))
    assert done.returncode == status and time.monotonic() - begin < 15
    assert "start it again with --resume" in done.stderr


def test_a_reader_that_leaves_stops_nothing(tmp_path):
    """`… | head -1`, and stdout closed altogether."""
    body = "[print('x' * 1000, flush=True) for _ in range(1000)]; Path(sys.argv[1]).touch()"
    read, write = os.pipe()
    os.close(read)
    done = script(body, tmp_path / "done", stdout=write)
    os.close(write)
    assert done.returncode == 0 and (tmp_path / "done").exists() and not done.stderr
    code = f"{PREAMBLE}\nrun_script(lambda: (print('x'), Path({str(tmp_path / 'closed')!r}).touch()))"
    closed = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code], env=ENVIRONMENT)
    assert closed.returncode == 0 and (tmp_path / "closed").exists()


def test_text_of_any_alphabet_is_printed_in_the_c_locale():
    environment = ENVIRONMENT | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = script("print('\\u0394G_H \\udcff')", env=environment, text=False)
    assert done.returncode == 0 and done.stdout == "ΔG_H \\udcff\n".encode()


@pytest.mark.parametrize("kind", [whole(1), real(0.0, 1.0)])
@pytest.mark.parametrize("text", ["nan", "inf", "-1", "x", "", "1e400"])
def test_flags_out_of_range_are_refused(kind, text, capsys):
    parser = ArgumentParser()
    parser.add_argument("--flag", type=kind)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--flag={text}"])
    assert "is not a" in capsys.readouterr().err
    assert parser.parse_args(["--flag=1"]).flag == 1


def test_every_script_has_the_system_flags():
    parser = ArgumentParser()
    add_system(parser, out=Path("x"), resume="go on")
    args = parser.parse_args(["--seed", "3", "--resume"])
    assert args.seed == 3 and args.resume and args.threads == 1 and args.device == "auto"


def test_a_shard_loses_half_a_line_and_nothing_else(tmp_path):
    shard = Shard(tmp_path / "s.jsonl")
    shard.append("a", {"x": 1.5})
    shard.append("MoS₂", {"x": None})
    raw = shard.path.read_bytes()
    for cut in range(len(raw)):
        shard.path.write_bytes(raw[:cut])
        found = Shard(shard.path)
        assert list(found.rows) == ["a", "MoS₂"][: raw[:cut].count(b"\n")]
    assert shard.sorted_rows()[0]["key"] == "MoS₂"


@pytest.mark.parametrize("line", [b"[]", b"{}", b"\xff", b"{", b'{"key": 1}', b"[" * 100_000, b"null", b""])
def test_a_foreign_line_in_a_shard_is_named(tmp_path, line):
    (tmp_path / "s.jsonl").write_bytes(b'{"key": "a"}\n' + line + b"\n")
    with pytest.raises(UnreadableFile, match=r"s\.jsonl, line 2 is no row of a shard: remove the file"):
        Shard(tmp_path / "s.jsonl")


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    """A disk that takes half of a row: the row is not there, the next one is whole."""
    shard = Shard(tmp_path / "s.jsonl")
    shard.append("a", {})
    code = """
import resource, sys
from models.infra.shards import Shard
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
shard = Shard(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (60, resource.RLIM_INFINITY))
try:
    shard.append("b", {"text": "x" * 100})
except OSError:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    shard.append("c", {})
"""
    subprocess.run([sys.executable, "-c", code, shard.path], env=ENVIRONMENT, check=True)
    assert list(Shard(shard.path).rows) == ["a", "c"]
