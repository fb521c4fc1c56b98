"""One event loop for all asynchronous work that a synchronous caller waits for."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where a loop is running."""
    future = asyncio.run_coroutine_threadsafe(work, _loop(os.getpid()))
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """Start the loop of a process, in a thread: one for all calls, as clients keep connections."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="embeddings-adapted", daemon=True).start()
    return loop
