"""The page of a run of simulated conversations: everything is there, and every text on it is inert."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, needs_browser, open_browser
from invented_conversations import answer, talk, write_run
from invented_run import EVIL
from test_html_in_browser import OPEN_ALL

from usertwin.evals.agent_tests import read_agent_run, summary_of_run, write_page
from usertwin.simulator.records import CheckResult, Exchange, Simulation, TwinFault


class Page(HTMLParser):
    """The tags and the text of a page, which must be well-formed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.open, self.text = list[tuple[str, dict[str, str | None]]](), list[str](), ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def conversations(count: int = 80) -> list[Simulation]:
    """Return conversations of every outcome, whose texts are hostile."""
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "lookup" + EVIL, "arguments": {"q": EVIL}}}]}
    replies = [call, {"role": "tool", "content": EVIL}, {"role": "assistant", "content": f"{EVIL} {'a' * 300}"}]
    talks: list[Simulation] = []
    for number in range(count):
        error = EVIL if number % 16 == 1 else None
        checks = [
            CheckResult(name="is polite " + EVIL, passed=number % 3 > 0, reason=EVIL),
            CheckResult(name="knows the price", passed=None if error else True, error=error),
        ]
        talks.append(
            talk(
                f"where is order {number}? {EVIL}", replies, "thanks", checks=checks, final_state={"note": EVIL}, goal=EVIL,
                twin=f"twin-{number % 10}", scenario=f"case {number % 4}", repeat=number // 20, seed=number,
                twin_faults=[TwinFault("contradicts_goal", 1, EVIL)] if number % 10 == 7 else [],
                stop_reason="agent_error" if number % 20 == 0 else "user_stop", error=EVIL if number % 20 == 0 else None,
            )
        )  # fmt: skip
    first = talks[0].exchanges[0]
    noted = answer(first.answer.action, discarded=1, reasoning=EVIL)
    talks[0].exchanges[0] = Exchange(noted, first.replies, 0.5, 0.2, notes=("typos",))
    return talks


def written(folder: Path, simulations: list[Simulation] | None = None, failures: tuple[str, ...] = (), **manifest: Any) -> Path:
    run = read_agent_run(write_run(folder, simulations or conversations(), **manifest))
    return write_page(run, summary_of_run(run), failures, limits=bool(failures))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests, with a fresh profile."""
    with open_browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 80 conversations that does not keep a limit."""
    return written(tmp_path_factory.mktemp("page") / "nightly", failures=("pass rate: 60%, below 90%",), agent="desk:" + EVIL)


def test_the_page_holds_every_conversation_with_turns_calls_memories_thought_and_checks(page: Path) -> None:
    parsed = Page(page.read_text("utf-8"))
    anchors = [attributes["id"] for tag, attributes in parsed.tags if tag == "div" and "id" in attributes]
    assert anchors == [f"c{number}" for number in range(1, 81)]
    links = [attributes["href"] for tag, attributes in parsed.tags if tag == "a"]
    ids = {attributes.get("id") for _, attributes in parsed.tags}
    assert {str(link).removeprefix("#") for link in links} <= ids
    assert sum(link is not None and link.startswith("#c") and link[2:].isdigit() for link in links) == 5
    for text in (
        "where is order 41?", "lookup<script>", "cosine 0.81", "Thought: is in a hurry", "trace: wants the money back",
        "typos", "1 defective turn discarded before it", "The twin: contradicts_goal: ", "Final state of the agent",
        "error of the check: ", "Limits that were not kept", "pass rate: 60%, below 90%", "Set aside: the twin's fault: 8",
        "seed 41; 2 turns; ended by user_stop",
    ):  # fmt: skip
        assert text in parsed.text, text


def test_texts_of_twins_agents_and_checks_are_inert(page: Path) -> None:
    text = page.read_text("utf-8")
    parsed = Page(text)
    assert not {tag for tag, _ in parsed.tags} & {"script", "iframe", "img", "form", "object", "base"}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert EVIL in parsed.text
    assert "default-src 'none'" in text


def test_long_texts_and_many_conversations_are_cut_with_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usertwin.evals.agent_tests.page._CONVERSATIONS", 10)
    many = [talk("hi", "Hello. " + "x" * 5000, twin=f"t{number}", seed=number) for number in range(12)]
    parsed = Page(written(tmp_path / "run", many).read_text("utf-8"))
    assert "1,007 more characters in conversations.jsonl" in parsed.text
    assert "2 of them are not on this page, and are in conversations.jsonl." in parsed.text


def test_a_run_without_conversations_has_a_page(tmp_path: Path) -> None:
    run = read_agent_run(write_run(tmp_path / "run", [], finished=False))
    parsed = Page(write_page(run, summary_of_run(run)).read_text("utf-8"))
    assert "no verdict on my_agent:reply: no usable conversation; the run is unfinished" in parsed.text


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(w, s) for w in (320, 768, 1280) for s in ("light", "dark")])
def test_the_page_fits_the_window_and_logs_nothing(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.show(page, width, scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.evaluate(OPEN_ALL)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []
    assert browser.evaluate("document.scripts.length") == 0


@needs_browser
def test_a_link_to_a_conversation_opens_it(browser: Browser, page: Path) -> None:
    browser.show(page, 1280, "light")
    first = "document.querySelector('.worst a')"
    target = browser.evaluate(f"{first}.getAttribute('href').slice(1)")
    assert browser.evaluate(f"document.getElementById('{target}').parentElement.open") is False
    browser.evaluate(f"{first}.click()")
    assert browser.evaluate(f"document.getElementById('{target}').parentElement.open") is True
