"""The conversations of a run as JSON values for the page: a row of the list for each, and what is read when it is opened.

Design: recalled triples, and lines of prompts, occur in many turns. Each is stored once, and turns refer to it by its number:
a page of a thousand conversations has a few megabytes. Control characters are pictures of themselves; the page
masks secrets in the JSON, once for each conversation.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from typing import Any

from usertwin.evals.agent_tests.outcomes import Outcome
from usertwin.evals.agent_tests.screen import seconds
from usertwin.evals.agent_tests.transcript import is_agents, messages_by_turn, raw_calls, text_of, tool_call
from usertwin.evals.reports.labels import counted, number, plural
from usertwin.memory import Recalled
from usertwin.personas.printable import visible
from usertwin.personas.roles import is_user
from usertwin.simulator.agents import Message
from usertwin.simulator.records import Exchange, Simulation
from usertwin.simulator.state import Answer

from .rebuilt_prompts import TurnPrompts

#: Characters of the first message in the list.
_FIRST = 140


class Shared:
    """Values that many turns share, each once.

    Attributes:
        lines: lines of prompts, and sentences about missing ones.
        memories: recalled triples as JSON objects.
    """

    def __init__(self) -> None:
        self.lines, self.memories = list[str](), list[dict[str, Any]]()
        self._places = dict[Hashable, int]()

    def line(self, text: str) -> int:
        """Return the number of a line."""
        if text not in self._places:
            self._places[text] = len(self.lines)
            self.lines.append(visible(text))
        return self._places[text]

    def memory(self, recalled: Recalled) -> int:
        """Return the number of a recalled triple."""
        triple = recalled.triple
        key = (triple.id, triple.reasoning, triple.score)
        if key not in self._places:
            self._places[key] = len(self.memories)
            pair = triple.pair
            self.memories.append({
                "id": triple.id, "from": visible(f"{pair.conversation_id}, turn {pair.position}"),
                "context": [[visible(turn.speaker), visible(turn.text)] for turn in pair.context],
                "action": visible(pair.action) if pair.action else "", "trace": visible(triple.reasoning or ""),
                "score": "" if triple.score is None else number(triple.score, 3),
            })  # fmt: skip
        return self._places[key]


def row_of(outcome: Outcome, place: int) -> dict[str, Any]:
    """Return the row of the list for a conversation; `place` is its number in its run, from 0."""
    simulation = outcome.simulation
    usage = simulation.usage
    first = next((text for e in simulation.exchanges if (text := e.answer.action.strip())), "")
    return {
        "n": place, "id": visible(simulation.id), "scenario": visible(simulation.scenario or "(none)"),
        "twin": visible(simulation.twin), "seed": simulation.seed, "outcome": outcome.name.replace("_", " "),
        "reason": simulation.stop_reason, "side": simulation.fault or "nobody", "why": visible("; ".join(outcome.reasons)),
        "checks": [[visible(check.name), _sign(check.passed)] for check in simulation.checks],
        "turns": len(simulation.exchanges), "time": seconds(simulation.seconds) if simulation.seconds else "",
        "tokens": usage.input_tokens + usage.output_tokens,
        "first": visible(first if len(first) <= _FIRST else f"{first[: _FIRST - 1]}…"),
    }  # fmt: skip


def details_of(simulation: Simulation, prompts: Sequence[TurnPrompts], shared: Shared) -> dict[str, Any]:
    """Return what the page shows of a conversation when it is opened; `prompts` are those of each turn of the twin."""
    opening, *blocks = messages_by_turn(simulation)
    turns = [
        {"messages": [_message(message) for message in block], "about": _about(exchange, built, shared)}
        for block, exchange, built in zip(blocks, simulation.exchanges, prompts, strict=True)
    ]
    return {
        "goal": visible(simulation.goal), "error": visible(simulation.error or ""),
        "thread": visible(simulation.thread_id),
        "faults": [visible(f"{fault.kind}: {fault.text}") for fault in simulation.twin_faults],
        "checks": [
            [_sign(check.passed), visible(check.name), visible(check.error or check.reason)] for check in simulation.checks
        ],
        "state": _json(simulation.final_state),
        "turns": [*([{"messages": [_message(message) for message in opening], "about": None}] if opening else []), *turns],
    }  # fmt: skip


def _message(message: Message) -> list[Any]:
    """Return who said a message, its text, and its calls of tools."""
    role = str(message.get("role"))
    who = "twin" if is_user(role) else "agent" if is_agents(message) else role
    return [visible(who), visible(text_of(message)), [visible(str(tool_call(raw, 0))) for raw in raw_calls(message)]]


def _about(exchange: Exchange, prompts: TurnPrompts, shared: Shared) -> dict[str, Any]:
    """Return what is behind a turn of the twin."""
    answer = exchange.answer
    texts = exchange.sent or (answer.action,)
    return {
        "thought": visible(answer.reasoning), "numbers": _numbers(exchange),
        "memories": [[shared.memory(memory), number(memory.similarity, 3)] for memory in answer.recalled],
        "prompts": [
            [step, [[role, [shared.line(line) for line in text.split("\n")]] for role, text in messages]]
            for step, messages in prompts.prompts
        ],
        "why_not": shared.line(prompts.why_not) if prompts.why_not else None,
        "written": "" if texts == (answer.action,) else visible(answer.action), "state": _json(exchange.state),
    }  # fmt: skip


def _numbers(exchange: Exchange) -> list[str]:
    """Return seconds, tokens, and what else is to be said of a turn."""
    answer, usage = exchange.answer, exchange.answer.usage
    cached = f", {counted(usage.cached_tokens)} of them cached" if usage.cached_tokens else ""
    parts = [
        f"twin {seconds(exchange.twin_seconds)}", *([f"agent {seconds(exchange.agent_seconds)}"] if exchange.replies else []),
        *([f"{counted(usage.input_tokens)} prompt tokens{cached}"] if usage.input_tokens else []),
        *([f"{plural(usage.output_tokens, 'token')} written"] if usage.output_tokens else []),
        *(["written by the scenario"] if exchange.authored else []),
        *exchange.notes, *_asides(answer),
    ]  # fmt: skip
    return [visible(part) for part in parts]


def _asides(answer: Answer) -> list[str]:
    asides = {
        f"{plural(answer.discarded, 'defective reply', 'defective replies')} discarded before it": answer.discarded,
        f"the best of {answer.candidates} candidates": answer.candidates,
        f"{plural(answer.cut_turns, 'earlier turn')} not whole in the prompt": answer.cut_turns,
        f"{plural(answer.cut_recalled, 'memory', 'memories')} left out of the prompt": answer.cut_recalled,
        f"reasoned by {answer.reasoner}": answer.reasoner,
        f"left without a word in {answer.abandonment_rate:.0%} of similar moments": answer.abandonment_rate,
        "leaves": answer.done,
    }
    return [text for text, value in asides.items() if value]


def _sign(passed: bool | None) -> str:
    return {True: "passed", False: "failed", None: "error"}[passed]


def _json(value: Any) -> str:
    """Return JSON values as indented text; a text as it is, "" for None."""
    if value is None:
        return ""
    return visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1, default=str))
