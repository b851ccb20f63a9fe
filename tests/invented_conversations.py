"""Invented simulated conversations with an agent, for tests of checks, summaries, reports and comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usertwin.memory import Recalled, Triple
from usertwin.memory.models.chat import Usage
from usertwin.personas import Pair, Turn
from usertwin.simulator.records import Exchange, Simulation
from usertwin.simulator.runs.run_folder import RunFolder
from usertwin.simulator.state import Answer

_PAIR = Pair(
    speaker="ann", context=(Turn("desk", "agent", "What do you need?"),), goal="", action="a refund, please",
    conversation_id="c7", position=1, when=0.0,
)  # fmt: skip


def answer(text: str, *, done: bool = False, **changes: Any) -> Answer:
    """Return a turn of a twin with a recalled pair and reasoning."""
    recalled = (Recalled(Triple(_PAIR, "wants the money back", 0.4), 0.81),)
    fields: dict[str, Any] = {"reasoning": "is in a hurry", "recalled": recalled, "done": done, "usage": Usage(100, 60, 10)}
    return Answer(action=text, **(fields | changes))


def talk(*turns: str | Sequence[dict[str, Any]], **changes: Any) -> Simulation:
    """Return a conversation: turns of the twin and replies of the agent in turn; a reply may be a list of messages."""
    messages, exchanges = list[dict[str, Any]](), list[Exchange]()
    for place in range(0, len(turns), 2):
        said = turns[place]
        assert isinstance(said, str)
        reply = turns[place + 1] if place + 1 < len(turns) else []
        replies = [{"role": "assistant", "content": reply}] if isinstance(reply, str) else list(reply)
        messages += [{"role": "user", "content": said}, *replies]
        exchanges.append(Exchange(answer(said, done=not replies), tuple(replies), 0.5, 0.25))
    fields: dict[str, Any] = {
        "twin": "ann", "goal": "You want a refund.", "seed": 1, "thread_id": "t", "messages": messages, "exchanges": exchanges,
        "stop_reason": "user_stop", "scenario": "refund", "seconds": 1.5,
    }  # fmt: skip
    return Simulation(**(fields | changes))


def write_run(
    folder: Path, simulations: Sequence[Simulation], *, scenarios: Sequence[Mapping[str, Any]] = (), finished: bool = True,
    **manifest: Any,
) -> Path:  # fmt: skip
    """Write conversations as the folder of a run, and return it."""
    content: dict[str, Any] = {
        "agent": "my_agent:reply", "models": {"action": "scripted:test"}, "prompts": {"act": "act/1"}, "seed": 0,
        "twins": {simulation.twin: {"speaker": "ann", "k": 8} for simulation in simulations}, "arguments": {},
        "versions": {"usertwin": "1"},
    }  # fmt: skip
    run = RunFolder(folder)
    run.begin(content | manifest, scenarios)
    for simulation in simulations:
        run.add(simulation)
    run.summarize(Counter(simulation.stop_reason for simulation in simulations), finished=finished)
    return folder
