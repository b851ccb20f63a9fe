"""Tests of the HTML report in a real browser over DevTools: no errors, no wider than the window, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, needs_browser, open_browser
from invented_run import EVIL, PEOPLE, result, turn, turns

from usertwin.evals.reports.html import render_html

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests, with a fresh profile."""
    with open_browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


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
