"""Tests of the HTML report in a real browser over DevTools: no errors, no wider than the window, light and dark."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invented_run import EVIL, PEOPLE, result, turn, turns

from usertwin.evals.reports.html import render_html

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser is installed: none of {', '.join(NAMES)}")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT_S = 60.0


class Browser:
    """A browser that takes commands over two pipes: JSON messages that end with a zero byte."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]  # 3 and 4 must be free
        quiet = (os.POSIX_SPAWN_OPEN, 2, str(profile.with_suffix(".log")), os.O_WRONLY | os.O_CREAT, 0o600)
        moves = [(os.POSIX_SPAWN_DUP2, end, place) for end, place in zip(ends, (3, 4), strict=True)]
        command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
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
        until = time.monotonic() + TIMEOUT_S
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
        """Return the value of a JavaScript expression in the page."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

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

    def close(self) -> None:
        """Kill the browser and its child processes."""
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests, with a fresh profile."""
    started = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all sections, a very long word, and a turn in HTML."""
    measured = [*turns(), turn(41, PEOPLE[1], 0.99, 300.0, EVIL), turn(42, PEOPLE[2], 0.0, -30.0, "a" * 400)]
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_html(result(), measured), "utf-8")
    return file


every_window = pytest.mark.parametrize(("width", "scheme"), [(w, s) for w in (320, 360, 768, 1280) for s in ("light", "dark")])
OPEN_ALL = "document.querySelectorAll('details').forEach(node => node.open = true)"


@every_window
def test_the_page_is_no_wider_than_the_window_and_logs_nothing(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.show(page, width, scheme)
    assert browser.evaluate("window.innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.evaluate(OPEN_ALL)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []


def test_the_page_follows_the_colour_scheme(browser: Browser, page: Path) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        browser.show(page, 360, scheme)
        colours[scheme] = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}


def test_turns_are_text_and_never_run_as_scripts(browser: Browser, page: Path) -> None:
    browser.show(page, 1280, "light")
    assert browser.evaluate("document.title") == "How close is the twin? four <people>"
    assert browser.evaluate("document.scripts.length") == 0
    assert EVIL in browser.evaluate("document.body.textContent")


def test_wide_tables_scroll_inside_their_box_and_can_be_reached_by_the_keyboard(browser: Browser, page: Path) -> None:
    browser.show(page, 360, "light")
    boxes = "[...document.querySelectorAll('.scroll')]"
    assert browser.evaluate(f"{boxes}.some(node => node.scrollWidth > node.clientWidth)") is True
    assert browser.evaluate(f"{boxes}.every(node => node.tabIndex === 0 && node.getAttribute('aria-label'))") is True


def test_a_screen_reader_gets_the_tables_and_the_plot_in_words(browser: Browser, page: Path) -> None:
    browser.show(page, 360, "light")
    browser.ask("Accessibility.enable")
    nodes = browser.ask("Accessibility.getFullAXTree")["nodes"]
    names = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")]
    plots = [name for role, name in names if role == "image"]
    assert "Persona: −0.008 bits per character, −0.014 to −0.002, n=412" in plots
    assert sum(role == "table" for role, _ in names) == browser.evaluate("document.querySelectorAll('table').length")
    assert sum(role == "row" for role, _ in names) == browser.evaluate("document.querySelectorAll('tr').length")


def test_the_dots_of_the_plot_are_at_their_values(browser: Browser, page: Path) -> None:
    browser.show(page, 1280, "light")
    middle = "(node => (node.getBoundingClientRect().left + node.getBoundingClientRect().right) / 2)"
    dots = browser.evaluate(f"[...document.querySelectorAll('.forest .dot')].map({middle})")
    zero = browser.evaluate(f"[...document.querySelectorAll('.forest .zero')].map({middle})[0]")
    values = [paired["bits_per_char"]["value"] for paired in result()["paired"].values()]
    offsets = [dot - zero for dot in dots]
    scale = offsets[0] / values[0]
    assert scale > 0
    assert offsets == pytest.approx([value * scale for value in values], abs=1.0)


def test_on_paper_every_example_is_open(browser: Browser, page: Path) -> None:
    browser.show(page, 1000, "light", media="print")
    hidden = "[...document.querySelectorAll('details .sides')].filter(node => !node.checkVisibility()).length"
    assert browser.evaluate(hidden) == 0
    browser.show(page, 1000, "light")
    assert browser.evaluate(hidden) > 0
