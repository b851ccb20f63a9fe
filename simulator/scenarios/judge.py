"""A judge model for what the rules of twin_faults.py cannot find: contradictions in words, and a twin that leaves its goal.

Design: the judge must quote the turn that it charges. A fault whose quote is not in that turn is left out, so that an invented
one charges nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from usertwin.memory.event_loop import run_sync
from usertwin.memory.models.chat import ChatModel, Ledger, limit_error, sample_readable
from usertwin.memory.models.token_limits import token_limit
from usertwin.memory.text.completions import json_objects
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.memory.text.transcript import single_line
from usertwin.memory.text.words import word_tokens
from usertwin.personas import VerdictError

from ..records import Simulation, TwinFault
from .scenario import Scenario
from .twin_faults import SaidTurn, said_turns, text_of

PROMPT = PromptTemplate(Path(__file__).with_name("judge_twin.txt"))
_Kind = Literal["contradicts_goal", "contradicts_fact", "goal_not_pursued"]
_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "faults": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "turn": {"type": "integer"}, "kind": {"type": "string", "enum": list(get_args(_Kind))},
                    "quote": {"type": "string"},
                },
                "required": ["turn", "kind", "quote"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["faults"],
    "additionalProperties": False,
}  # fmt: skip


async def ajudge_twin(
    simulation: Simulation, scenario: Scenario, judge: ChatModel, *, seed: int = 0, ledger: Ledger | None = None
) -> list[TwinFault]:  # fmt: skip
    """Return the faults of the twin that a judge model finds in a finished conversation, at most one in a turn.

    Raises:
        ModelError: the judge does not answer.
        VerdictError: it returns no readable verdict in three attempts.
    """
    turns = {turn.number: turn for turn in said_turns(simulation)}
    if not turns or not (scenario.goal or scenario.facts):
        return []
    prompt = PROMPT.fill(
        goal=scenario.goal or "(none)",
        facts=[fact.text for fact in scenario.facts],
        lines=_lines(list(turns.values()), simulation),
    )
    max_tokens = token_limit("action", judge.style)  # a list of quotes is as long as a turn
    rows, is_cut_off = await sample_readable(
        judge, [("user", prompt)], _read, seed=seed, max_tokens=max_tokens, schema=_SCHEMA, ledger=ledger
    )
    if is_cut_off:
        raise limit_error(judge, max_tokens)
    if rows is None:
        raise VerdictError(f'the judge "{judge.name}" returned no readable verdict on the twin; use another model as the judge')
    faults: dict[int, TwinFault] = {}
    for number, kind, quote in rows:
        turn = turns.get(number)
        if turn is not None and not turn.authored and _is_in(quote, turn.text):
            faults.setdefault(number, TwinFault(kind, number, f'the judge says that the twin left its part with "{quote}"'))
    return [faults[number] for number in sorted(faults)]


def judge_twin(simulation: Simulation, scenario: Scenario, judge: ChatModel, *, seed: int = 0) -> list[TwinFault]:
    """Return what a judge model finds; the synchronous form of `ajudge_twin`, with the same arguments."""
    return run_sync(ajudge_twin(simulation, scenario, judge, seed=seed))


def _lines(turns: Sequence[SaidTurn], simulation: Simulation) -> list[str]:
    """Return the chat, one line a turn, the player's with their number."""
    lines, after = [_line(message) for message in turns[0].before], turns[1:]
    for turn, following in zip(turns, [*(other.before for other in after), simulation.messages], strict=True):
        lines.append(f"Player, turn {turn.number}: {single_line(turn.text) or '(leaves)'}")
        rest = following[len(turn.before) :]
        lines += [_line(message) for message in rest if message["role"] != "user"]
    return [line for line in lines if line]


def _line(message: Mapping[str, Any]) -> str:
    speaker = "Player" if message["role"] == "user" else "Service"
    return f"{speaker}: {single_line(text)}" if (text := text_of(message)) else ""


def _read(completion: str) -> list[tuple[int, _Kind, str]] | None:
    """Return (turn, kind, quote) of each fault in a verdict; None if it has another shape."""
    for raw in json_objects(completion):
        rows = raw.get("faults")
        if isinstance(rows, list):
            try:
                read = [(row["turn"], row["kind"], row["quote"]) for row in rows]  # pyright: ignore[reportUnknownVariableType]
            except (TypeError, KeyError):
                return None
            valid = all(type(t) is int and k in get_args(_Kind) and isinstance(q, str) for t, k, q in read)
            return read if valid else None
    return None


def _is_in(quote: str, text: str) -> bool:
    """Return whether the words of a quote are in a text, in their order."""
    words = " ".join(word_tokens(quote))
    return bool(words) and f" {words} " in f" {' '.join(word_tokens(text))} "
