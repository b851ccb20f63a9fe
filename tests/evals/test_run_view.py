"""The page of `usertwin view`: what it holds, filters and compares, in a real browser; every text on it is inert."""

from __future__ import annotations

import json
import re
import webbrowser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, needs_browser, open_browser
from cli_runner import error_of, output_of
from invented_conversations import answer, talk, write_run
from invented_run import EVIL

from usertwin.evals.agent_tests import read_agent_run
from usertwin.evals.run_view import write_view
from usertwin.simulator.records import CheckResult, Exchange, Simulation, TwinFault

HOSTILE = f"</script><script>alert(1)</script><!-- {EVIL} \x1b[31m \u202eltr\u2066 \x00 {'a' * 300}"
#: Conversations of a run.
COUNT = 80


def conversations(*, better: bool = False) -> list[Simulation]:
    """Return conversations of every outcome, whose texts are hostile; the agent that is better fails half as often."""
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "lookup", "arguments": {"q": HOSTILE}}}]}
    talks: list[Simulation] = []
    for number in range(COUNT):
        reply = "It is on its way." if better else HOSTILE
        replies = [call, {"role": "tool", "content": HOSTILE}, {"role": "assistant", "content": reply}]
        fails = number % (8 if better else 4) == 0
        checks = [
            CheckResult(name="is polite", passed=not fails, reason=HOSTILE), CheckResult(name="price", passed=None, error="no"),
        ]  # fmt: skip
        ended = "agent_error" if number % 20 == 3 else "user_stop"
        talks.append(
            talk(
                f"where is order {number}? {HOSTILE}", replies, "thanks", checks=checks if number % 2 else checks[:1],
                final_state={"note": HOSTILE}, goal=HOSTILE, twin=f"twin-{number % 5}", scenario=f"case {number // 5 % 4}",
                repeat=number // 20, seed=number, stop_reason=ended, error=HOSTILE if ended == "agent_error" else None,
                twin_faults=[TwinFault("contradicts_goal", 1, HOSTILE)] if number % 10 == 7 else [],
            )
        )  # fmt: skip
    first = talks[0].exchanges[0]
    written = answer(first.answer.action, discarded=2, candidates=4, cut_turns=1, reasoning=HOSTILE)
    talks[0].exchanges[0] = Exchange(written, first.replies, 0.5, 0.2, notes=("typos",), state={"cart": [1]})
    return talks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, `old` and `new`, in one folder, each with its page, and the page of both."""
    folder = tmp_path_factory.mktemp("runs")
    old, new = conversations(), [*conversations(better=True)[:-1], talk("hi", "Hello", scenario="only new")]
    for name, talks in (("old", old), ("new", new)):
        write_run(folder / name, talks, agent=f"desk:{name}")
    runs = [read_agent_run(folder / name) for name in ("old", "new")]
    write_view(runs[0], home=folder / "twins")
    write_view(*runs, home=folder / "twins")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests, with a fresh profile."""
    with open_browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


def data(page: Path, id: str) -> Any:
    """Return the data of a page as its script reads them."""
    [text] = re.findall(rf'<script type="application/json" id="{id}">(.*?)</script>', page.read_text("utf-8"))
    return json.loads(text)


# The file ---------------------------------------------------------------------------------------------------------------


def test_the_page_holds_every_conversation_and_no_text_ends_its_script(folder: Path) -> None:
    page = folder / "old" / "view.html"
    text = page.read_text("utf-8")
    assert text.count("<script") == text.count("</script>") == COUNT + 3
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert [row["id"] for [row] in data(page, "index")["items"]][:2] == ["case 0/twin-0/0", "case 0/twin-1/0"]
    first = data(page, "talk-0-0")
    assert first["turns"][0]["messages"][0][1].startswith("where is order 0? </script><script>alert(1)</script>")
    assert first["turns"][0]["about"]["numbers"] == [
        "twin 0.50 s", "agent 0.20 s", "100 prompt tokens, 60 of them cached", "10 tokens written", "typos",
        "2 defective replies discarded before it", "the best of 4 candidates", "1 earlier turn not whole in the prompt",
    ]  # fmt: skip
    assert page.stat().st_mode & 0o777 == 0o600


def test_shared_memories_and_lines_are_stored_once(folder: Path) -> None:
    shared = data(folder / "old" / "view.html", "shared")
    [memory] = shared["memories"]
    assert memory["from"] == "c7, turn 1"
    assert memory["action"] == "a refund, please"
    assert shared["lines"] == ["The run holds no checksums of its prompts: an earlier version of usertwin wrote it."]


def test_a_run_without_conversations_has_a_page(tmp_path: Path) -> None:
    run = read_agent_run(write_run(tmp_path / "run", []))
    assert write_view(run).conversations == 0


def test_secrets_and_newer_memories_of_the_same_pair_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = talk("hi", "Hello")
    memory = one.exchanges[0].answer.recalled[0]
    other = replace(memory, triple=replace(memory.triple, reasoning="wants it now"))
    one.exchanges.append(Exchange(replace(one.exchanges[0].answer, recalled=(other,)), (), 0.1, 0.0))
    one.messages.append({"role": "user", "content": "hi sk-<secret>&123"})
    page = write_view(read_agent_run(write_run(tmp_path / "run", [one]))).path
    assert [memory["trace"] for memory in data(page, "shared")["memories"]] == ["wants the money back", "wants it now"]
    assert "123" in page.read_text("utf-8")
    monkeypatch.setenv("SHOP_API_KEY", "sk-<secret>&123")
    write_view(read_agent_run(tmp_path / "run"))
    assert "123" not in page.read_text("utf-8").split('id="index"')[1].split("<script>")[0]


# The command ------------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_opens_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    out = tmp_path / "page.html"
    text = output_of("view", folder / "old", "--out", out, "--open")
    assert "0 prompts shown" in text
    assert f"{2 * COUNT} turns: The run holds no checksums of its prompts" in text
    assert text.endswith(f"written to {out}\n")
    assert opened == [out.as_uri()]
    assert out.stat().st_mode & 0o777 == 0o600
    assert str(folder / "old" / "comparison.html") in output_of("view", folder / "old", folder / "new")


def test_bad_input_is_refused_in_one_sentence(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "holds no run; name the folder that `usertwin simulate --out` wrote" in error_of("view", tmp_path)
    assert "is named twice" in error_of("view", folder / "old", folder / "old" / ".." / "old")
    assert "cannot be written" in error_of("view", folder / "old", "--out", tmp_path / "none" / "page.html")
    (tmp_path / "manifest.json").write_text('{"kind": "suite"}', "utf-8")
    assert "holds a run of another kind" in error_of("view", folder / "old", tmp_path)
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    out = tmp_path / "page.html"
    assert error_of("view", folder / "old", "--out", out, "--open").startswith(f"{out}: no browser could be started")


# In a browser -----------------------------------------------------------------------------------------------------------

every_window = pytest.mark.parametrize(("width", "scheme"), [(w, s) for w in (320, 768, 1280) for s in ("light", "dark")])
ROWS = "document.querySelectorAll('#list a').length"
SETTLED = "new Promise(done => requestAnimationFrame(() => setTimeout(done, 5)))"
OPEN_ALL = "document.querySelectorAll('#talk details').forEach(node => node.open = true)"
TEXT = "document.getElementById('talk').textContent"


def choose(browser: Browser, key: str, value: str) -> str:
    """Choose a value of a filter, and return the count that the page shows."""
    node = f"document.getElementById('f-{key}')"
    browser.evaluate(f"{node}.value = {json.dumps(value)}; {node}.dispatchEvent(new Event('input', {{ bubbles: true }}))")
    return browser.evaluate("document.getElementById('count').textContent")


def click(browser: Browser, selector: str) -> None:
    """Click an element, and wait until the page has followed its link."""
    browser.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
    browser.evaluate(SETTLED)


def press(browser: Browser, key: str) -> None:
    """Press a key."""
    for kind in ("rawKeyDown", "keyUp"):
        browser.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key)
    browser.evaluate(SETTLED)


@needs_browser
@every_window
@pytest.mark.parametrize("name", ["view", "comparison"])
def test_the_page_is_no_wider_than_the_window_and_logs_and_loads_nothing(
    browser: Browser, folder: Path, name: str, width: int, scheme: str
) -> None:
    browser.show(folder / "old" / f"{name}.html", width, scheme)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    click(browser, "#list a")
    browser.evaluate(OPEN_ALL)
    click(browser, "header summary")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelector('#talk h2').textContent") == "case 0/twin-0/0"
    assert browser.complaints() == []
    colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]


@needs_browser
def test_texts_are_inert_and_shown_whole(browser: Browser, folder: Path) -> None:
    browser.show(folder / "old" / "view.html", 1280, "light")
    click(browser, "#list a")
    browser.evaluate(OPEN_ALL)
    browser.evaluate(SETTLED)
    shown = browser.evaluate(TEXT)
    words = f"</script><script>alert(1)</script><!-- {EVIL} ␛[31m �ltr� ␀ {'a' * 300}"
    for text in (
        words, "a refund, please", "c7, turn 1", "cosine 0.810", "desk: What do you need?", "Trace: wants the money back",
        "Reasoning: ", '"cart"', "lookup(", "✗failed: is polite", "No promptThe run holds no checksums",
        "Final state of the agent",
    ):  # fmt: skip
        assert text in shown, text
    assert browser.evaluate("document.querySelectorAll('#talk script, #talk img, #list script, #list img').length") == 0
    assert browser.evaluate("document.scripts.length") == COUNT + 3
    assert browser.complaints() == []


@needs_browser
def test_the_policy_of_the_page_lets_nothing_else_run_or_load(browser: Browser, folder: Path) -> None:
    browser.show(folder / "old" / "view.html", 1280, "light")
    browser.evaluate(
        "{ const s = document.createElement('script');"
        " try { s.textContent = 'window.ran = 1' } catch {} document.body.append(s);"
        " const i = document.createElement('img'); i.src = 'https://example.org/x.png'; document.body.append(i) }"
    )
    browser.evaluate(SETTLED)
    assert browser.evaluate("window.ran") is None
    assert any("violates the following Content Security Policy" in complaint for complaint in browser.complaints())


@needs_browser
def test_filters_by_outcome_end_fault_twin_scenario_check_and_text(browser: Browser, folder: Path) -> None:
    browser.show(folder / "old" / "view.html", 1280, "light")
    talks = conversations()
    assert browser.evaluate("document.getElementById('count').textContent") == "80 conversations"
    assert browser.evaluate(ROWS) == 60
    assert choose(browser, "end", "agent_error") == f"{sum(t.stop_reason == 'agent_error' for t in talks)} of 80 conversations"
    assert choose(browser, "end", "") == "80 conversations"
    assert choose(browser, "fault", "twin") == f"{sum(t.fault == 'twin' for t in talks)} of 80 conversations"
    assert choose(browser, "twin", "twin-2") == "8 of 80 conversations"
    assert browser.evaluate(ROWS) == 8
    click(browser, "button[type=reset]")
    assert choose(browser, "check", "is polite: failed") == "20 of 80 conversations"
    assert choose(browser, "scenario", "case 0") == "8 of 80 conversations"
    click(browser, "button[type=reset]")
    assert choose(browser, "q", "ORDER 41?") == "1 of 80 conversations"
    assert choose(browser, "q", "nobody says this") == "0 of 80 conversations"


@needs_browser
def test_a_link_keeps_the_filters_and_the_open_conversation(browser: Browser, folder: Path) -> None:
    browser.show(folder / "old" / "view.html", 1280, "light")
    choose(browser, "twin", "twin-1")
    choose(browser, "q", "order 16?")
    click(browser, "#list a")
    state = browser.evaluate("location.hash")
    browser.show(folder / "old" / "view.html", 1280, "light")
    browser.evaluate(f"location.hash = {json.dumps(state + '&outcome=invented')}")
    browser.evaluate(SETTLED)
    assert browser.evaluate("document.getElementById('f-q').value") == "order 16?"
    assert browser.evaluate(ROWS) == 1
    assert "where is order 16?" in browser.evaluate(TEXT)


@needs_browser
def test_everything_can_be_done_by_the_keyboard(browser: Browser, folder: Path) -> None:
    browser.show(folder / "old" / "view.html", 360, "light")
    press(browser, "/")
    assert browser.evaluate("document.activeElement.id") == "f-q"
    browser.evaluate("document.activeElement.blur()")
    press(browser, "ArrowDown")
    assert browser.evaluate("document.activeElement.dataset.item") == "0"
    browser.evaluate("document.querySelector('#list [data-item=\"59\"]').focus()")
    for _ in range(2):  # beyond the rows that are there
        press(browser, "ArrowDown")
    assert browser.evaluate("document.activeElement.dataset.item") == "61"
    assert browser.evaluate(ROWS) == 80
    browser.evaluate("document.activeElement.click()")
    browser.evaluate(SETTLED)
    assert browser.evaluate("document.activeElement.textContent") == "case 0/twin-1/3"
    assert browser.evaluate("document.getElementById('side').checkVisibility()") is False
    press(browser, "j")
    assert "where is order 62?" in browser.evaluate(TEXT)
    press(browser, "k")
    press(browser, "Escape")
    assert browser.evaluate("document.activeElement.dataset.item") == "61"
    assert browser.evaluate("document.getElementById('talk').checkVisibility()") is False


@needs_browser
def test_two_runs_are_side_by_side_and_changed_ones_are_found(browser: Browser, folder: Path) -> None:
    browser.show(folder / "old" / "comparison.html", 1280, "light")
    old, new = conversations(), conversations(better=True)[:-1]
    changed = sum(a.checks[0].passed != b.checks[0].passed for a, b in zip(old, new, strict=False))
    assert choose(browser, "change", "changed") == f"{changed} of 81 pairs"
    click(browser, "#list a")
    text = browser.evaluate(TEXT)
    assert "1 check changed" in text
    assert "is polite: failed → passed" in text
    cells = browser.evaluate("[...document.querySelectorAll('.beside')[1].children].map(node => node.textContent)")
    assert "</script>" in cells[0]
    assert "It is on its way." in cells[1]
    assert browser.evaluate("document.querySelectorAll('.differs').length") == 2
    assert choose(browser, "change", "in one run only") == "2 of 81 pairs"
    click(browser, "#list a")
    assert "not in this run" in browser.evaluate(TEXT)
    header = browser.evaluate("document.querySelector('header').textContent")
    assert "desk:old passed" in header
    assert "desk:new passed" in header


@needs_browser
def test_a_screen_reader_gets_names_of_regions_controls_and_results(browser: Browser, folder: Path) -> None:
    browser.show(folder / "old" / "view.html", 1280, "light")
    click(browser, "#list a")
    browser.ask("Accessibility.enable")
    nodes = browser.ask("Accessibility.getFullAXTree")["nodes"]
    named = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")}
    controls = {(role, name) for role, name in named if role in {"combobox", "searchbox", "button", "link"}}
    assert all(name for _, name in controls)
    assert {("searchbox", "Text"), ("combobox", "Ended by"), ("combobox", "Side at fault"), ("button", "Clear")} <= controls
    assert {("region", "Conversations"), ("main", "Conversation"), ("list", "Checks")} <= named
