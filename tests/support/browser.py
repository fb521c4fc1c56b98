"""A real browser without a screen, to look at reports: Chromium from the wheel PyQt6-WebEngine.

It runs in a process of its own and is driven through its DevTools protocol; playwright, selenium
and pyppeteer would download theirs.
"""

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

import pytest
from websockets.sync.client import ClientConnection, connect

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


class Tab:
    """One page; what its console, scripts and policy complain of, and what it asks for."""

    def __init__(self, line: ClientConnection) -> None:
        self._line, self._numbers, self._loaded = line, itertools.count(1), False
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def open(self, path: Path, *, width: int, dark: bool) -> None:
        self.complaints, self.requests, self._loaded = [], [], False
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        for name in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{name}.enable")
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._next()
        self.requests = [url for url in self.requests if url != path.resolve().as_uri()]

    def run(self, script: str) -> Any:
        settings = {"returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", expression=script, **settings)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        self._line.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := self._next()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        message = json.loads(self._line.recv(_PATIENCE_S))
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(str([arg.get("value") for arg in params["args"]]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
        return message


@contextmanager
def browser() -> Iterator[Tab]:
    """Start the browser and yield its tab; skip, with the reason, where it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listens = f"127.0.0.1:{free.getsockname()[1]}"
    flags = {"QTWEBENGINE_CHROMIUM_FLAGS": _FLAGS, "QTWEBENGINE_REMOTE_DEBUGGING": listens}
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen", **flags}
    command = [sys.executable, "-c", _BROWSER]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, env=environment, stdout=said, stderr=said) as process,
    ):
        try:
            address = _address(listens, process)
            if address is None:
                said.seek(0)
                pytest.skip(f"no headless browser here: {said.read().strip()[-300:]}")
            with connect(address, max_size=None, proxy=None) as line:
                yield Tab(line)
        finally:
            process.kill()


def _address(listens: str, process: subprocess.Popen[bytes]) -> str | None:
    """Return where the tab listens, None where the browser ends or says nothing."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{listens}/json", timeout=1) as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
        except OSError:
            pages = []
        if pages:
            return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    return None
