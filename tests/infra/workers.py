"""Tasks of the tests of jobs, in a module of their own so that a process can import them."""

import os
import signal
import time
from pathlib import Path

import numpy as np


def ready() -> None:
    """An initializer."""


def broken() -> None:
    raise ValueError("no such potential")


def dying_start() -> None:
    os._exit(7)


def slow_start(trace: str) -> None:
    """Says who it is and takes long to get ready, as an import does."""
    Path(trace).write_text(str(os.getpid()))
    time.sleep(600)


def work(item: dict) -> dict:
    """Does what the item says."""
    if "trace" in item:
        with Path(item["trace"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
    match item.get("do"):
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "die once":
            if not Path(item["mark"]).exists():
                Path(item["mark"]).touch()
                os._exit(9)
        case "sleep":
            time.sleep(600)
        case "spin":
            while True:
                pass
        case "raise":
            raise ValueError("a task's own error")
        case "eat":
            np.ones(1 << 32)  # 32 GiB
    return {"value": item.get("value", 0)}
