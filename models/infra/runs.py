"""A run of a script: its folder, one run at a time, its config.json, its signals and its exit status.

Exit status: 0 done, 1 an error said in one line, 2 a wrong flag, 3 done but some items were lost, 130 and 143
stopped by SIGINT and SIGTERM.
"""

import argparse
import fcntl
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from models.infra.files import file_text, plain, write_json
from models.infra.jobs import LOST

DEBUG = "HER2D_DEBUG"  # environment variable: show the traceback of an error that is said in one line
_held = {}  # lock file -> its open descriptor; closing it, or the end of the process, frees the folder


class Busy(RuntimeError):
    """Another run is writing to the same output."""


def resolve(args: argparse.Namespace, out_is_file: bool = False) -> argparse.Namespace:
    """Takes the output for this run, resolves the device, seeds torch, and writes config.json into the output
    folder, or beside the output file.

    Raises:
        ValueError: there is no such device.
        Busy: another run writes there.
        OSError: the output cannot be written.
    """
    import torch  # late, for --help

    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError):  # torch's reasons fill a page
        raise ValueError(f"--device {args.device} is not to be had here: give cpu, or auto") from None
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    folder = args.out.parent if out_is_file else args.out
    take_output(args.out, out_is_file)
    name = f"{args.out.stem}.config.json" if out_is_file else "config.json"
    write_json(folder / name, plain(vars(args)))
    return args


def take_output(out: Path, out_is_file: bool = False) -> None:
    """Takes an output folder (or file) for this process until it ends, however it ends: `.lock` in the folder
    holds its process id and is locked, so that a leftover of a killed run bars nobody.

    Raises:
        Busy: another process has taken it.
    """
    path = out.with_name(f".{out.name}.lock") if out_is_file else out / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.resolve()
    if path in _held:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise Busy(
            f"{file_text(out)} is being written by another run (process {owner}): wait for it, or give "
            "another --out"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    _held[path] = descriptor


class _Output:
    """A text stream that a closed pipe cannot stop: from then on what is written to it is gone."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (BrokenPipeError, ValueError):
            return self._gone(len(text))

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (BrokenPipeError, ValueError):
            self._gone(0)

    def _gone(self, written: int) -> int:
        """Points the descriptor to nowhere, so that Python's own flush at the end succeeds too."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        self.stream = open(os.devnull, "w", encoding="utf-8")
        return written

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


GRACE = 3.0  # s that a run has for its cleaning up after a signal
INTERRUPTED = "interrupted: start it again with --resume to continue"
TERMINATED = "terminated: start it again with --resume to continue"


def run_late(build_parser: Callable[[], argparse.ArgumentParser], module: str) -> None:
    """Parses the flags, and only then imports the module whose `run` takes them: that costs seconds of torch,
    and --help and a wrong flag none.
    """
    args = build_parser().parse_args()
    importlib.import_module(module).run(args)


def run_script(main: Callable[[], object]) -> None:
    """Runs a script's main to its exit status; every error is one line on stderr that says what to do.

    HER2D_DEBUG=1 shows tracebacks; errors of other kinds (KeyError, TypeError …) are bugs and keep theirs.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # LC_ALL=C: names and Å are written as they are
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if sys.stdout is not None:
        sys.stdout = _Output(sys.stdout)
    signal.signal(signal.SIGINT, _interrupted)  # a shell lets `script.py &` ignore it
    signal.signal(signal.SIGTERM, _terminated)
    try:
        main()
    except KeyboardInterrupt:
        _end(130, INTERRUPTED)
    except (OSError, ValueError, RuntimeError, ImportError, MemoryError) as error:
        if os.environ.get(DEBUG):
            raise
        _end(1, f"error: {one_line(error)}")
    if LOST:
        kinds = ", ".join(f"{len(keys)} at {label}" for label, keys in LOST.items())
        first = next(iter(next(iter(LOST.values())).items()))
        _end(3, f"not complete: {kinds} lost, e.g. {first[0]} ({first[1]}); start it again with --resume")
    _end(0)


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{file_text(error.filename) if error.filename else 'output'}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _interrupted(number: int, frame: object) -> None:
    _end_soon(130, INTERRUPTED)
    raise KeyboardInterrupt


def _terminated(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the second one must not break the cleaning up
    _end_soon(143, TERMINATED)
    _end(143, TERMINATED)


def _end_soon(status: int, text: str) -> None:
    """Ends the process after GRACE as a kill would, in case that a library swallows a signal's exception."""

    def end(number: int, frame: object) -> None:
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)
        os._exit(status)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, GRACE)


def _end(status: int, text: str = "") -> None:
    if text and sys.stderr is not None:
        print(text, file=sys.stderr)
    raise SystemExit(status)
