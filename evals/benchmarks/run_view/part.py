"""Benchmark of the page of a run, `make bench ONLY=view`: the time until it can be used, in a browser without a window.

Design: the run is a real one: a twin with real memories talks in real turns with an agent that answers in real turns, and all
of its prompts are on the page. The page is interactive once a filter that was set when the page was parsed has been drawn.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import click

from usertwin.evals.agent_tests import read_agent_run
from usertwin.evals.run_view import write_view
from usertwin.memory import ChatModel
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.simulator import simulate_many

from ..conversations.twins import large_twin
from ..figures import Figure, figure, single_figure
from .browser import BROWSER, NO_BROWSER, Browser, open_browser


@dataclass(frozen=True, slots=True)
class _Use:
    """Seconds until a filter is drawn, by the clock and of the processor; then of opening a conversation and of a search."""

    ready: float
    processor: float
    opened: float
    searched: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSizes:
    """Conversations of the run, turns of each, triples of the twin, and how often the page is loaded."""

    conversations: int = 1000
    turns: int = 5
    triples: int = 2000
    loads: int = 15


#: Sets a filter as soon as the page is parsed, and notes when the result has been drawn.
_USE_AT_ONCE = """
addEventListener("DOMContentLoaded", () => {
  const filter = document.getElementById("f-fault");
  filter.value = "agent";
  filter.dispatchEvent(new Event("input", { bubbles: true }));
  requestAnimationFrame(() => setTimeout(() => { window.drawn = document.getElementById("count").textContent; }));
});
"""
_WAIT = "new Promise(done => { const look = () => window.drawn ? done(window.drawn) : setTimeout(look, 2); look(); })"
_SEARCH = """
(() => {
  const [field, before] = [document.getElementById("f-q"), performance.now()];
  field.value = "nobody ever says this";
  field.dispatchEvent(new Event("input", { bubbles: true }));
  return performance.now() - before;
})()
"""
_OPEN = """
new Promise(done => {
  const before = performance.now();
  addEventListener("hashchange", () => requestAnimationFrame(() => setTimeout(() => done(performance.now() - before))));
  document.querySelector("#list a").click();
})
"""


def view_part(sizes: ViewSizes | None = None) -> Iterator[tuple[str, Figure]]:
    """Yield the times to write, load, search and open; none without a browser, which is said."""
    if BROWSER is None:
        click.echo(f"view: not measured; {NO_BROWSER}", err=True)
        return
    sizes = sizes or ViewSizes()
    with tempfile.TemporaryDirectory() as folder:
        path, seconds, prompts = _page(sizes, Path(folder))
        size = path.stat().st_size / 1e6
        about = f"{sizes.conversations} conversations of {sizes.turns} turns, {prompts} prompts, {size:.1f} MB"
        yield "view.write_s", single_figure(seconds, "s", about)
        with open_browser(Path(folder)) as browser:
            uses = _used(browser, path, sizes.loads)
        yield "view.interactive_s", figure([use.ready for use in uses], "s", f"until a filter is drawn; {about} (bar: 2 s)")
        yield (
            "view.interactive_processor_s",
            figure([use.processor for use in uses], "s", "processor time of all processes of the browser until then"),
        )
        yield "view.open_s", figure([use.opened for use in uses], "s", "until the first conversation is drawn")
        yield "view.first_search_s", figure([use.searched for use in uses], "s", "the first search in all texts")


def _page(sizes: ViewSizes, folder: Path) -> tuple[Path, float, int]:
    """Return the page of a new run, the seconds that it took, and the number of its prompts."""
    from usertwin.simulator.backends.scripted import ScriptedChatModel

    said = [turn.text for conversation in load_chitchat().conversations[3000:] for turn in conversation.turns if turn.text]
    model = ChatModel("scripted:turns", ScriptedChatModel(answers=said), "instruction")
    replies = cycle(said[7::3])

    def agent(messages: list[dict[str, Any]]) -> str:
        if len(messages) == 2 * sizes.turns - 1 and len(messages[-1]["content"]) % 5 == 0:
            raise ConnectionError("the order service does not answer")
        return next(replies)

    with large_twin(folder / "twins", model, FakeEmbedder(), sizes.triples) as user:
        simulate_many(user, agent, count=sizes.conversations, max_turns=sizes.turns, out=folder / "run", spec="bench")
    run = read_agent_run(folder / "run")
    started = time.perf_counter()
    view = write_view(run, home=folder / "twins")
    return view.path, time.perf_counter() - started, view.prompts


def _used(browser: Browser, path: Path, loads: int) -> list[_Use]:
    """Load the page several times, and use it."""
    browser.ask("Page.addScriptToEvaluateOnNewDocument", source=_USE_AT_ONCE)
    uses = list[_Use]()
    for _ in range(loads):
        browser.evaluate("history.replaceState(null, '', location.pathname)")  # the next load begins without a filter
        started, processor = time.perf_counter(), browser.processor_seconds()
        browser.show(path, 1280, "light")
        count = browser.evaluate(_WAIT)
        ready, processor = time.perf_counter() - started, browser.processor_seconds() - processor
        if " of " not in count:
            raise ValueError(f"the filter had no effect: {count}")
        opened, searched = (browser.evaluate(script) / 1000 for script in (_OPEN, _SEARCH))
        uses.append(_Use(ready, processor, opened, searched))
    return uses
