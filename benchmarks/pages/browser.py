"""A real browser without a screen, to look at reports: Chromium from the wheel PyQt6-WebEngine.

Considered: playwright and selenium, which download their browsers, and pyppeteer, likewise. The
page is driven through Chromium's DevTools protocol, in a process of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

_BROWSER = """
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication
app = QApplication(["browser"])
view = QWebEngineView()
view.setHtml("")
view.show()
app.exec()
"""
_FLAGS = "--no-sandbox --disable-gpu --remote-allow-origins=*"
_PATIENCE_S = 20.0


class NoBrowserError(Exception):
    """There is no browser here, or the system lacks what it needs; the message says what."""


class Tab:
    """One page of the browser.

    Attributes:
        complaints: What the page wrote on its console, and errors of scripts and of the policy.
        requests: Addresses asked for, but for the page itself.
    """

    def __init__(self, line: aiohttp.ClientWebSocketResponse, loop: Any) -> None:
        self._line, self._loop = line, loop
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._loaded = asyncio.Event()
        self._reader = loop.create_task(self._read())
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def open(self, path: Path, *, width: int, dark: bool, height: int = 900) -> None:
        """Load a file from disk.

        Args:
            path: Of the file.
            width: Of the window, in pixels.
            dark: Whether the system prefers dark pages.
            height: Of the window.
        """
        self.complaints.clear()
        self.requests.clear()
        self._loaded.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        for name in ("Page.enable", "Runtime.enable", "Log.enable", "Network.enable"):
            self.call(name)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self._loop.run_until_complete(asyncio.wait_for(self._loaded.wait(), _PATIENCE_S))
        self.requests = [url for url in self.requests if url != path.resolve().as_uri()]

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page and return its value."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def call(self, method: str, **params: Any) -> Any:
        """Send a command of the DevTools protocol and return its answer."""
        return self._loop.run_until_complete(
            asyncio.wait_for(self._call(method, params), _PATIENCE_S)
        )

    async def _call(self, method: str, params: dict[str, Any]) -> Any:
        number = next(self._numbers)
        self._waiting[number] = self._loop.create_future()
        await self._line.send_json({"id": number, "method": method, "params": params})
        return await self._waiting[number]

    async def _read(self) -> None:
        async for message in self._line:
            data = json.loads(message.data)
            if "id" in data:
                waiting = self._waiting.pop(data["id"])
                if "error" in data:
                    waiting.set_exception(RuntimeError(data["error"]["message"]))
                else:
                    waiting.set_result(data["result"])
            else:
                self._note(data["method"], data["params"])

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded.set()
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            self.complaints.append(str([arg.get("value") for arg in params["args"]]))
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))

    async def close(self) -> None:
        """Stop listening."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


@contextmanager
def browser() -> Iterator[Tab]:
    """Start the browser and yield its tab.

    Raises:
        NoBrowserError: PyQt6-WebEngine is not installed, or does not start on this machine.
    """
    port = _free_port()
    environment = {
        **os.environ,
        "QT_QPA_PLATFORM": "offscreen",
        "QTWEBENGINE_CHROMIUM_FLAGS": _FLAGS,
        "QTWEBENGINE_REMOTE_DEBUGGING": f"127.0.0.1:{port}",
    }
    command = [sys.executable, "-c", _BROWSER]
    loop = asyncio.new_event_loop()
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, env=environment, stdout=said, stderr=said) as process,
    ):
        try:
            address = _address(port, process)
            if address is None:
                said.seek(0)
                raise NoBrowserError(f"no headless browser here: {said.read().strip()[-300:]}")
            yield from _connected(loop, address)
        finally:
            process.kill()
            loop.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _address(port: int, process: subprocess.Popen[bytes]) -> str | None:
    """Return where the tab listens, None where the browser ends or says nothing."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=1) as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
        except OSError:
            pages = []
        if pages:
            return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    return None


def _connected(loop: asyncio.AbstractEventLoop, address: str) -> Iterator[Tab]:
    async def connect() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
        session = aiohttp.ClientSession()
        return session, await session.ws_connect(address, max_msg_size=0)

    session, line = loop.run_until_complete(connect())
    tab = Tab(line, loop)
    try:
        yield tab
    finally:
        for step in (tab.close(), line.close(), session.close()):
            loop.run_until_complete(step)
