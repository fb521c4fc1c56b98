"""Threads: how many a training step is worth, and trainings side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import torch

_WORTH_TWO_THREADS = 100_000_000  # multiplications per step


@contextmanager
def threads_for(multiplications: int) -> Iterator[None]:
    """Keep small steps on one thread: waiting for a second one costs more than it saves, and on a
    busy machine ten times as much."""
    before = torch.get_num_threads()
    if multiplications < _WORTH_TWO_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(works: Sequence[Iterator[Any]], most: int | None = None) -> None:
    """Exhaust iterators, several at once, with torch's threads divided among them.

    Two trainings on a thread each are done sooner than one after the other on two threads. An error
    or an interrupt ends all of them, each after what it does at that moment.

    Args:
        works: Independent of each other; what they yield is of no interest.
        most: How many at once; by default as many as torch has threads.

    Raises:
        BaseException: The first error of any of them.
    """
    threads = torch.get_num_threads()
    workers = min(len(works), most or threads)
    if workers < 2:
        for work in works:
            for _ in work:
                pass
        return
    ended = threading.Event()

    def exhaust(work: Iterator[Any]) -> None:
        for _ in work:
            if ended.is_set():
                return

    share = max(1, threads // workers)
    try:
        with ThreadPoolExecutor(workers, "side", torch.set_num_threads, (share,)) as pool:
            tasks = [pool.submit(exhaust, work) for work in works]
            try:
                for task in as_completed(tasks):
                    task.result()
            except BaseException:
                ended.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)  # as some libraries below keep one number for all threads
