"""One item costs one item: deaths, hangs, and greed; nothing outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import workers

from models.infra import jobs
from models.infra.files import ROOT
from models.infra.jobs import run_jobs
from models.infra.shards import Shard

HERE = Path(__file__).parent


def run(tmp_path: Path, items: dict, processes: int = 2, **more) -> tuple[dict, Shard]:
    shard = Shard(tmp_path / "s.jsonl")
    return run_jobs(workers.work, items, shard, processes, workers.ready, (), "test", **more), shard


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(jobs, "LOST", {})


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_only_the_item_that_kills_is_lost(tmp_path, processes):
    items = {f"{k}": {"value": k} for k in range(8)}
    items["2"]["do"] = "die"
    items["5"]["do"] = "exit"
    lost, shard = run(tmp_path, items, processes)
    assert {key: row["value"] for key, row in shard.rows.items()} == {f"{k}": k for k in (0, 1, 3, 4, 6, 7)}
    assert set(lost) == {"2", "5"} and "signal 9" in lost["2"] and "exit status 3" in lost["5"]
    assert jobs.LOST == {"test": lost}


def test_a_second_run_tries_the_lost_alone_again(tmp_path):
    items = {f"{k}": {"value": k, "trace": str(tmp_path / f"trace{k}")} for k in range(4)}
    items["1"]["do"] = "die"
    run(tmp_path, items)
    items["1"].pop("do")
    lost, shard = run(tmp_path, items)
    assert not lost and sorted(shard.rows) == ["0", "1", "2", "3"]
    assert [len((tmp_path / f"trace{k}").read_text().split()) for k in range(4)] == [1, 3, 1, 1]


def test_a_death_that_does_not_repeat_costs_nothing(tmp_path):
    items = {"a": {"do": "die once", "mark": str(tmp_path / "mark"), "value": 1}, "b": {"value": 2}}
    lost, shard = run(tmp_path, items, 1)
    assert not lost and {key: row["value"] for key, row in shard.rows.items()} == {"a": 1, "b": 2}


@pytest.mark.parametrize("what", ["sleep", "spin"])
def test_an_item_that_does_not_end_is_stopped(tmp_path, what):
    lost, shard = run(tmp_path, {"a": {"do": what}, "b": {"value": 2}}, 1, seconds=1.5)
    assert set(lost) == {"a"} and "more than 1.5 s" in lost["a"] and shard.rows["b"]["value"] == 2


def test_memory_of_an_item_is_bounded(tmp_path):
    with pytest.raises(MemoryError):
        run(tmp_path, {"a": {"do": "eat"}}, 1)


def test_errors_of_tasks_and_of_the_start_are_raised_here(tmp_path):
    with pytest.raises(ValueError, match="a task's own error"):
        run(tmp_path, {"a": {"do": "raise"}, "b": {"do": "sleep"}})
    with pytest.raises(ValueError, match="no such potential"):
        run_jobs(workers.work, {"a": {}}, Shard(tmp_path / "s.jsonl"), 2, workers.broken, (), "test")
    with pytest.raises(RuntimeError, match="before they are ready .*exit status 7"):
        run_jobs(workers.work, {"a": {}}, Shard(tmp_path / "s.jsonl"), 1, workers.dying_start, (), "test")


def test_no_item_begins_after_the_deadline(tmp_path):
    lost, shard = run(tmp_path, {"a": {}, "b": {}}, 1, hours=0.0)
    assert not lost and not shard.rows


RUN = """
import signal, sys, workers
from models.infra.jobs import run_jobs
from models.infra.runs import run_script
from models.infra.shards import Shard
items = {{k: {{"do": "sleep", "trace": sys.argv[1]}} for k in "ab"}}
run_script(lambda: run_jobs(workers.work, items, Shard(sys.argv[1] + ".jsonl"), 2, {start}, "test"))
"""
STARTS = {"while they work": "workers.ready, ()", "while they start": "workers.slow_start, (sys.argv[1],)"}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, done) -> float:
    """Waits until something holds, so long and no longer; returns how long it took."""
    begin = time.monotonic()
    while not done():
        assert time.monotonic() - begin < seconds
        time.sleep(0.02)
    return time.monotonic() - begin


@pytest.mark.parametrize("moment", STARTS)
@pytest.mark.parametrize("number, status", [("INT", 130), ("TERM", 143), ("KILL", -9)])
def test_a_signal_to_the_parent_alone_ends_all_within_seconds(tmp_path, moment, number, status):
    trace, code = tmp_path / "trace", RUN.format(start=STARTS[moment])
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}"}
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", code, trace]  # as `… &` does
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    within(30, lambda: trace.exists() and trace.read_text().strip())
    children = [int(pid) for pid in trace.read_text().split()]
    parent.send_signal(getattr(signal, f"SIG{number}"))
    _, said = parent.communicate(timeout=5)
    assert parent.returncode == status and "Traceback" not in said
    assert status == -9 or "--resume" in said
    within(5, lambda: not any(map(alive, children)))
