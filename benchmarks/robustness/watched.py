"""Reads something hostile and sees that nothing but reading happens: no code, no hang, no flood."""

from __future__ import annotations

import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_index_embeddings_adapted.errors import AdaptedError

CPU_SECONDS, SECONDS = 5.0, 60.0  # the second for what waits instead of working
BYTES = 1 << 30  # of address space, beyond what the process has
_RUNS = ("os.exec", "os.fork", "os.posix_spawn", "os.system", "pty.spawn", "pickle.find_class",
         "socket.connect", "subprocess.Popen", "ctypes.dlopen")  # fmt: skip
_CHANGES = ("os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink",
            "os.truncate", "shutil.rmtree")  # fmt: skip


class Misdeed(BaseException):  # no error that code below could catch
    """Something happened that reading must never do."""


class _Watch:
    """What the audit hook, which can never be removed, looks at."""

    thread: int | None = None
    folder = ""
    seen: str | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _Watch.thread != threading.get_ident():
        return
    if event in _RUNS or (event == "import" and str(arguments[0]).startswith("stranger")):
        _Watch.seen = f"{event} {arguments[0]!r}"
    elif event in _CHANGES or (event == "open" and _writes(arguments)):
        paths = arguments[:1] if event == "open" else arguments[:2]
        places = [str(each) for each in paths if isinstance(each, (str, Path))]
        if not all(place.startswith(_Watch.folder) for place in places):
            _Watch.seen = f"{event} {arguments!r}"


def _writes(arguments: tuple[Any, ...]) -> bool:
    path, mode, flags = arguments
    if not isinstance(path, (str, bytes, Path)) or str(path) == "/dev/null":
        return False
    return any(sign in (mode or "") for sign in "wax+") or bool((flags or 0) & 0o1103)


def outcome(read: Callable[[], object], folder: Path) -> str:
    """Return ``"valid"`` or ``"refused"``, that is one of our errors; let everything else out.

    ``folder`` is the only place where ``read`` may change anything.

    Raises:
        Misdeed: It ran code, asked the network, changed a file elsewhere, or took too long.
        Exception: Any error that is not ours, ``MemoryError`` included.
    """
    with _time_and_memory(), _watched(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except AdaptedError as error:
            if len(str(error)) > 5000:
                raise Misdeed(f"a message of {len(str(error))} characters") from error
            return "refused"
        return "valid"


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    if not getattr(_Watch, "installed", False):
        sys.addaudithook(_hook)
        _Watch.installed = True  # type: ignore[attr-defined]
    _Watch.seen, _Watch.folder = None, str(folder)
    _Watch.thread = threading.get_ident()
    try:
        yield
    finally:
        _Watch.thread = None
        if _Watch.seen is not None:
            raise Misdeed(_Watch.seen)


@contextmanager
def _time_and_memory() -> Iterator[None]:
    def too_long(*_: object) -> None:
        raise Misdeed("took too long")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    before = {each: signal.signal(each, too_long) for each in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        for each, handler in before.items():
            signal.signal(each, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
