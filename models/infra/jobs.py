"""Work spread over processes of one thread each, every result written as it comes."""

import itertools
import multiprocessing
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from models.infra.shards import Shard


def _start(initializer, arguments: tuple):
    """Initialises a process that ends with its parent, even if that is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer(*arguments)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def run_jobs(
    task, items: dict, shard: Shard, jobs: int, initializer, arguments: tuple, label: str, hours: float = 1e6
) -> dict[str, str]:
    """Computes the items that the shard lacks and appends what `task` returns.

    Args:
        task: picklable function from an item to a row.
        items: key -> item.
        initializer, arguments: what each process runs once.
        hours: no new item is started after this time.

    Returns:
        key -> reason of the items lost because a process died (of memory, for instance); a rerun tries them
        again.
    """
    todo = [key for key in items if key not in shard.rows]
    if not todo:
        return {}
    deadline, queue = time.time() + hours * 3600, iter(todo)
    with ProcessPoolExecutor(
        min(jobs, len(todo)), multiprocessing.get_context("spawn"), _start, (initializer, arguments)
    ) as pool:
        running = {pool.submit(task, items[key]): key for key in itertools.islice(queue, 2 * jobs)}
        with tqdm(total=len(items), initial=len(items) - len(todo), desc=label, mininterval=2) as bar:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    key = running.pop(future)
                    try:
                        shard.append(key, future.result())
                    except BrokenProcessPool as error:
                        return dict.fromkeys([key, *running.values(), *queue], f"worker died: {error}")
                    bar.update()
                    following = next(queue, None) if time.time() < deadline else None
                    if following:
                        running[pool.submit(task, items[following])] = following
    return {}
