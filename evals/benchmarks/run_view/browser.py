"""A real browser without a window, driven over DevTools: for the benchmark of pages, and for tests."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Commands that start a browser.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")
#: The path of the browser; None if none is installed.
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
#: A sentence for when there is none.
NO_BROWSER = f"no browser is installed: none of {', '.join(NAMES)}"
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
_TIMEOUT_S = 60.0


class Browser:
    """A browser that takes commands over two pipes: JSON messages that end with a zero byte."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]  # 3 and 4 must be free
        quiet = (os.POSIX_SPAWN_OPEN, 2, str(profile.with_suffix(".log")), os.O_WRONLY | os.O_CREAT, 0o600)
        moves = [(os.POSIX_SPAWN_DUP2, end, place) for end, place in zip(ends, (3, 4), strict=True)]
        command = [BROWSER, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._pid = os.posix_spawn(BROWSER, command, os.environ, file_actions=[quiet, *moves], setpgroup=0)
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self._rest, self._last, self.events = b"", 0, list[dict[str, Any]]()
        page = next(target for target in self.ask("Target.getTargets")["targetInfos"] if target["type"] == "page")
        self._session: str | None = None
        self._session = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        self._last += 1
        command: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if getattr(self, "_session", None):
            command["sessionId"] = self._session
        os.write(self._out, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._last:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.events.append(message)

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + _TIMEOUT_S
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0], "the browser does not answer"
            data = os.read(self._in, 1 << 16)
            assert data, "the browser has exited"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def show(self, file: Path, width: int, scheme: str, *, media: str = "") -> None:
        """Open a file in a window of this width with this colour scheme, and wait until it is loaded."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.ask("Page.navigate", url=file.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page, of a promise once it is kept."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return result["result"].get("value")

    def complaints(self) -> list[str]:
        """Return console messages of the page, and its requests other than the page itself."""
        self.evaluate("0")
        requests = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        noisy = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        messages = [json.dumps(e["params"]) for e in self.events if e.get("method") in noisy]
        return messages + [url for url in requests[1:] if not url.startswith("data:")]

    def picture(self, file: Path) -> None:
        """Save the whole page as a PNG."""
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def processor_seconds(self) -> float:
        """Return the processor time of the browser and its child processes so far."""
        import psutil

        main = psutil.Process(self._pid)
        times = [process.cpu_times() for process in (main, *main.children(recursive=True))]
        return sum(time.user + time.system for time in times)

    def close(self) -> None:
        """Kill the browser and its child processes."""
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)


@contextmanager
def open_browser(folder: Path) -> Generator[Browser]:
    """A browser with a fresh profile in a folder; it is killed at the end."""
    browser = Browser(folder / "profile")
    try:
        yield browser
    finally:
        browser.close()
