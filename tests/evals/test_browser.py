"""evals/report.html in a real browser: no errors, no wider than the window, light and dark (steered by DevTools)."""

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
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser is here: none of {', '.join(NAMES)}")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60.0


class Browser:
    """A browser that is told what to do over two pipes, in JSON that ends with a zero byte."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]  # out of the way of 3 and 4
        quiet = (os.POSIX_SPAWN_OPEN, 2, str(profile.with_suffix(".log")), os.O_WRONLY | os.O_CREAT, 0o600)
        moves = [(os.POSIX_SPAWN_DUP2, end, place) for end, place in zip(ends, (3, 4), strict=True)]
        command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._pid = os.posix_spawn(BROWSER, command, os.environ, file_actions=[quiet, *moves], setpgroup=0)
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self._rest, self._last, self.events = b"", 0, list[dict[str, Any]]()
        page = next(one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session: str | None = None
        self._session = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command."""
        self._last += 1
        said: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if getattr(self, "_session", None):
            said["sessionId"] = self._session
        os.write(self._out, json.dumps(said).encode() + b"\0")
        while True:
            heard = self._hear()
            if heard.get("id") == self._last:
                assert "error" not in heard, f"{method}: {heard['error']}"
                return heard["result"]
            self.events.append(heard)

    def _hear(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0], "the browser says nothing"
            some = os.read(self._in, 1 << 16)
            assert some, "the browser is gone"
            self._rest += some
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def show(self, file: Path, width: int, scheme: str, *, media: str = "") -> None:
        """Open a file in a window of this width, for this taste in colours, and wait until it is there."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.ask("Page.navigate", url=file.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._hear())

    def tell(self, expression: str) -> Any:
        """What a line of JavaScript gives in the page."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def complaints(self) -> list[str]:
        """What the page wrote to the console, and what it asked for besides itself."""
        self.tell("0")
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        noisy = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        said = [json.dumps(e["params"]) for e in self.events if e.get("method") in noisy]
        return said + [url for url in asked[1:] if not url.startswith("data:")]

    def picture(self, file: Path) -> None:
        """The whole page as a PNG."""
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser, and everything that it started."""
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests, with a profile of its own."""
    one = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield one
    one.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it: all sections, a very long word, somebody who talks in HTML."""
    measured = [*turns(), turn(41, PEOPLE[1], 0.99, 300.0, EVIL), turn(42, PEOPLE[2], 0.0, -30.0, "a" * 400)]
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_html(result(), measured), "utf-8")
    return file


every_window = pytest.mark.parametrize(("width", "scheme"), [(w, s) for w in (320, 360, 768, 1280) for s in ("light", "dark")])
OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"


@every_window
def test_the_page_is_no_wider_than_the_window_and_says_nothing_to_the_console(
    browser: Browser, page: Path, width: int, scheme: str
) -> None:
    browser.show(page, width, scheme)
    assert browser.tell("window.innerWidth") == width
    assert browser.tell("document.documentElement.scrollWidth") <= width
    browser.tell(OPEN_ALL)
    assert browser.tell("document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []


def test_the_page_follows_the_taste_for_dark(browser: Browser, page: Path) -> None:
    found = {}
    for scheme in ("light", "dark"):
        browser.show(page, 360, scheme)
        found[scheme] = browser.tell("getComputedStyle(document.body).backgroundColor")
    assert found == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}


def test_what_people_said_is_text_and_never_runs(browser: Browser, page: Path) -> None:
    browser.show(page, 1280, "light")
    assert browser.tell("document.title") == "How close is the twin? four <people>"
    assert browser.tell("document.scripts.length") == 0
    assert EVIL in browser.tell("document.body.textContent")


def test_wide_tables_scroll_inside_their_box_and_can_be_reached_by_the_keyboard(browser: Browser, page: Path) -> None:
    browser.show(page, 360, "light")
    boxes = "[...document.querySelectorAll('.scroll')]"
    assert browser.tell(f"{boxes}.some(one => one.scrollWidth > one.clientWidth)") is True
    assert browser.tell(f"{boxes}.every(one => one.tabIndex === 0 && one.getAttribute('aria-label'))") is True


def test_a_screen_reader_is_given_tables_and_the_plot_in_words(browser: Browser, page: Path) -> None:
    browser.show(page, 360, "light")
    browser.ask("Accessibility.enable")
    nodes = browser.ask("Accessibility.getFullAXTree")["nodes"]
    names = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")]
    plots = [name for role, name in names if role == "image"]
    assert "Persona: −0.008 bits per character, −0.014 to −0.002, n=412" in plots
    assert sum(role == "table" for role, _ in names) == browser.tell("document.querySelectorAll('table').length")
    assert sum(role == "row" for role, _ in names) == browser.tell("document.querySelectorAll('tr').length")


def test_the_dots_of_the_plot_stand_where_the_numbers_say(browser: Browser, page: Path) -> None:
    browser.show(page, 1280, "light")
    middle = "(one => (one.getBoundingClientRect().left + one.getBoundingClientRect().right) / 2)"
    dots = browser.tell(f"[...document.querySelectorAll('.forest .dot')].map({middle})")
    zero = browser.tell(f"[...document.querySelectorAll('.forest .zero')].map({middle})[0]")
    values = [one["bits_per_char"]["value"] for one in result()["paired"].values()]
    offsets = [dot - zero for dot in dots]
    scale = offsets[0] / values[0]
    assert scale > 0
    assert offsets == pytest.approx([value * scale for value in values], abs=1.0)


def test_on_paper_every_example_is_open(browser: Browser, page: Path) -> None:
    browser.show(page, 1000, "light", media="print")
    hidden = "[...document.querySelectorAll('details .sides')].filter(one => !one.checkVisibility()).length"
    assert browser.tell(hidden) == 0
    browser.show(page, 1000, "light")
    assert browser.tell(hidden) > 0
