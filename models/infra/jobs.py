"""Work spread over processes of one thread each, every result written as it comes.

Each process has one item at a time, so that one that dies, or takes too long, costs that item alone. The
processes are our own and not `concurrent.futures`: its pool breaks as a whole when one process dies, waits
for running items when it is interrupted, and its processes notice a dead parent only after their imports.
"""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from tqdm import tqdm

from models.infra.files import limit_memory
from models.infra.shards import Shard

SECONDS = 3600.0  # most time of one item; the slowest honest ones (phonons of 20 atoms) take some minutes
MEMORY = 8 << 30  # bytes that an item may take beside what its process holds once it is ready
TRIES = 2  # a process may be killed for what its neighbours took: the item is tried once more, alone to blame
BOOT = """import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = {path!r}
from models.infra.jobs import serve; serve({descriptor}, {parent})"""
LOST: dict[str, dict[str, str]] = {}  # label -> key -> reason, of this process: decides its exit status


def serve(descriptor: int, parent: int) -> None:
    """What a process does: initialises itself, then item after item, until its parent hangs up or dies."""
    _end_with(parent)
    connection = Connection(descriptor)
    try:
        task, initializer, arguments = pickle.loads(connection.recv_bytes())
        initializer(*arguments)
        limit_memory(MEMORY)
        _answer(connection, True, None)
        while True:
            item = connection.recv()
            try:
                _answer(connection, True, task(item))
            except Exception as error:
                error.add_note(traceback.format_exc())
                _answer(connection, False, error)
    except (EOFError, ConnectionError):
        pass
    except Exception as error:  # of the initialisation
        _answer(connection, False, error)
    sys.stdout.flush()
    os._exit(0)  # without the seconds that torch takes to say goodbye


def _answer(connection: Connection, good: bool, content: Any) -> None:
    """Sends a result, or an error as well as it can be pickled."""
    try:
        raw = pickle.dumps((good, content))
        pickle.loads(raw)
    except Exception:
        raw = pickle.dumps((False, RuntimeError(f"{type(content).__name__}: {content}")))
    connection.send_bytes(raw)


def _end_with(parent: int) -> None:
    """Has this process killed when its parent ends, however it ends, even during an import."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it had ended before we asked
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _Process:
    """A process with one item at a time.

    Attributes:
        key: of the item that it works at, None while it gets ready or has nothing to do.
        since: when it began, time.monotonic().
    """

    def __init__(self, setup: bytes):
        self.connection, theirs = Pipe()
        code = BOOT.format(path=sys.path, descriptor=theirs.fileno(), parent=os.getpid())
        command = [sys.executable, "-c", code]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self.key, self.since, self.ready = None, time.monotonic(), False
        self.connection.send_bytes(setup)

    def begin(self, key: str, item: Any) -> None:
        self.key, self.since = key, time.monotonic()
        self.connection.send(item)

    def end(self, at_once: bool) -> None:
        """Ends the process: idle ones by hanging up, others by a kill."""
        if not at_once:
            self.connection.close()
        try:
            self.process.wait(0 if at_once else 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.connection.close()

    def death(self) -> str:
        """How a dead process ended, in words."""
        code = self.process.wait()
        if code >= 0:
            return f"exit status {code}"
        return f"signal {-code}" + (", often for want of memory" if code == -signal.SIGKILL else "")


class _Pool:
    """The items still to do, and the processes at work on them."""

    def __init__(self, setup: bytes, items: dict[str, Any], todo: list[str], seconds: float):
        self.setup, self.items, self.todo, self.seconds = setup, items, deque(todo), seconds
        self.processes: list[_Process] = []
        self.deaths, self.lost, self.stillborn = Counter(), {}, 0

    def fill(self, jobs: int) -> None:
        """Starts processes while there is work for them, and gives the idle ones an item."""
        busy = sum(process.key is not None for process in self.processes)
        while len(self.processes) < min(jobs, busy + len(self.todo)):
            self.processes.append(_Process(self.setup))
        for process in self.processes:
            if process.ready and process.key is None and self.todo:
                key = self.todo.popleft()
                try:
                    process.begin(key, self.items[key])
                except OSError:  # it died idle, of nothing that an item did: `results` will find it dead
                    process.key = None
                    self.todo.appendleft(key)

    def results(self) -> list[tuple[str, Any]]:
        """(key, row) of the items that are done, after a second at most; buries the dead."""
        found = []
        for connection in wait([process.connection for process in self.processes], timeout=1):
            process = next(process for process in self.processes if process.connection is connection)
            try:
                good, content = pickle.loads(connection.recv_bytes())
            except (EOFError, OSError):
                self._bury(process, process.death())
                continue
            if not good:
                raise content
            if process.ready:
                found.append((process.key, content))
            process.ready, process.key = True, None
        for process in list(self.processes):
            if process.key is not None and time.monotonic() - process.since > self.seconds:
                process.end(at_once=True)
                self.deaths[process.key] = TRIES
                self._bury(process, f"more than {self.seconds:g} s: stopped")
        return found

    def _bury(self, process: _Process, reason: str) -> None:
        """Takes a dead process out; its item is tried again, or lost with the reason."""
        self.processes.remove(process)
        process.connection.close()
        key = process.key
        if key is None:
            self.stillborn += not process.ready
            if self.stillborn > 2:
                raise RuntimeError(f"processes end before they are ready ({reason}): try --jobs 1")
            return
        self.deaths[key] += 1
        if self.deaths[key] >= TRIES:
            self.lost[key] = f"worker died: {reason}"
        else:
            self.todo.appendleft(key)


def run_jobs(
    task: Callable,
    items: dict[str, Any],
    shard: Shard,
    jobs: int,
    initializer: Callable,
    arguments: tuple,
    label: str,
    hours: float = 1e6,
    seconds: float = SECONDS,
) -> dict[str, str]:
    """Computes the items that the shard lacks and appends what `task` returns.

    Args:
        task: picklable function from an item to a row.
        items: key -> item.
        initializer, arguments: what each process runs once.
        hours: no new item is started after this time.
        seconds: most time of one item.

    Returns:
        key -> reason of the items lost because a process died of them twice (of memory, for instance) or took
        too long; a rerun tries them again. They are kept in LOST too.

    Raises:
        Exception: what the initializer or a task raised.
    """
    todo = [key for key in items if key not in shard.rows]
    if not todo:
        return {}
    pool = _Pool(pickle.dumps((task, initializer, arguments)), items, todo, seconds)
    deadline, finished = time.monotonic() + hours * 3600, False
    try:
        with tqdm(total=len(items), initial=len(items) - len(todo), desc=label, mininterval=2) as bar:
            while pool.todo or any(process.key is not None for process in pool.processes):
                if time.monotonic() > deadline:
                    pool.todo.clear()
                pool.fill(jobs)
                for key, row in pool.results():
                    shard.append(key, row)
                    bar.update()
        finished = True
    finally:
        for process in pool.processes:
            process.end(at_once=not finished or not process.ready)
    if pool.lost:
        LOST.setdefault(label, {}).update(pool.lost)
    return pool.lost
