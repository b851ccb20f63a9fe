"""A model judge of criteria: one structured verdict for each criterion of a conversation.

Design: the agent under test wrote the transcript and may address the judge. So each message is one JSON string, which holds no
line of its own; the question stands before and after; a quote must occur in the conversation; and only a completion of the
judge is read. A verdict that cannot be read is an error of the check, never a pass or a fail.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from usertwin.memory import ChatModel
from usertwin.memory.models.chat import Ledger, limit_error, sample_readable
from usertwin.memory.models.token_limits import token_limit
from usertwin.memory.text.completions import json_objects, without_reasoning
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.memory.text.transcript import single_line
from usertwin.personas import ModelError, UsageError
from usertwin.simulator.records import CheckResult, Simulation

from .transcript import is_agents, raw_calls, text_of

JUDGE_PROMPT = PromptTemplate(Path(__file__).with_name("judge_criterion.txt"))
#: The name of the result of `ajudge_goal`.
GOAL_BY_JUDGE = "reaches_goal (judge)"
_GOAL_CRITERION = "By the end of the conversation the user has got what they wanted, or a definite and correct answer to it."
#: Tokens of the reason and the quote, beside those of the verdict.
_EXPLANATION = 500
_READ_CHARACTERS = 20_000
_TEXT = {"type": "string"}
_SCHEMA = {
    "type": "object",
    "properties": {"why": _TEXT, "quote": _TEXT, "met": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["why", "quote", "met"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on one criterion: whether it is met, why in one sentence, and a quote ("" if nothing can be quoted)."""

    met: bool
    why: str
    quote: str


def criterion_name(criterion: str) -> str:
    """Return the name of a criterion's result."""
    return f"criterion: {single_line(criterion)}"


async def ajudge_criteria(
    judge: ChatModel, simulation: Simulation, criteria: Iterable[str], *, seed: int = 0, ledger: Ledger | None = None
) -> list[CheckResult]:
    """Return the judge's verdict on each criterion, in order; a judge that fails gives a result with an error.

    Take a judge of another model family than the agent's. A conversation with a fault is not judged: its outcome is
    known.

    Raises:
        UsageError: a criterion is empty.
    """
    criteria = list(criteria)
    for criterion in criteria:
        if not criterion.strip():
            raise UsageError("a criterion is empty; write a sentence that is met or not")
    if simulation.fault is not None:
        return []
    judged = [(criterion_name(criterion), criterion, "") for criterion in criteria]
    return [await _result(judge, simulation, *question, seed=seed, ledger=ledger) for question in judged]


async def ajudge_goal(
    judge: ChatModel, simulation: Simulation, *, seed: int = 0, ledger: Ledger | None = None
) -> CheckResult | None:
    """Return the judge's verdict on whether the twin's goal was reached; None without a goal, or for a faulty conversation."""
    if simulation.fault is not None or not simulation.goal.strip():
        return None
    return await _result(
        judge, simulation, GOAL_BY_JUDGE, _GOAL_CRITERION, single_line(simulation.goal), seed=seed, ledger=ledger
    )


async def _result(
    judge: ChatModel, simulation: Simulation, name: str, criterion: str, goal: str, *, seed: int, ledger: Ledger | None
) -> CheckResult:  # fmt: skip
    try:
        verdict = await _verdict(judge, simulation, criterion, goal, seed, ledger)
    except ModelError as error:
        return CheckResult(name=name, passed=None, error=str(error))
    if verdict is None:
        return CheckResult(name=name, passed=None, error=f'the judge "{judge.name}" gave no readable verdict, three times')
    quote = f' ("{single_line(verdict.quote)}")' if verdict.quote else ""
    return CheckResult(name=name, passed=verdict.met, reason=verdict.why + quote)


async def _verdict(
    judge: ChatModel, simulation: Simulation, criterion: str, goal: str, seed: int, ledger: Ledger | None
) -> Verdict | None:
    lines = transcript_lines(simulation)
    prompt = JUDGE_PROMPT.fill(criterion=single_line(criterion), goal=goal, lines=lines)
    max_tokens = token_limit("verdict", judge.style) + _EXPLANATION
    if judge.count_tokens is not None and judge.context_tokens is not None:
        needed = judge.count_tokens(prompt)
        if needed + _EXPLANATION > judge.context_tokens:
            context = f"the judge's context holds {judge.context_tokens:,}"
            raise ModelError(f"the conversation takes {needed:,} tokens, and {context}; use another judge")
        max_tokens = min(max_tokens, judge.context_tokens - needed)
    read = partial(parse_verdict, said=quotable(simulation))
    verdict, is_cut_off = await sample_readable(
        judge, [("user", prompt)], read, seed=seed, max_tokens=max_tokens, schema=_SCHEMA, ledger=ledger
    )
    if is_cut_off:
        raise limit_error(judge, max_tokens)
    return verdict


def transcript_lines(simulation: Simulation) -> list[str]:
    """Return the messages as JSON objects, one line each: number, speaker, text, and calls of tools."""
    lines: list[str] = []
    for number, message in enumerate(simulation.messages, 1):
        role = str(message.get("role"))
        speaker = "agent" if is_agents(message) else "tool" if role in {"tool", "function"} else "user"
        line: dict[str, Any] = {"message": number, "speaker": speaker, "text": text_of(message)}
        calls = [dict(call) for call in raw_calls(message)]
        lines.append(json.dumps(line | ({"calls": calls} if calls else {}), ensure_ascii=False, default=str))
    # JSON leaves some line breaks as they are (such as U+2028), which a model may take for the end of a line
    return ["".join(_escaped(character) for character in line) for line in lines]


def _escaped(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def quotable(simulation: Simulation) -> str:
    """Return all texts of a conversation in the form in which quotes are looked up."""
    texts = [text_of(message) for message in simulation.messages]
    calls = [json.dumps(dict(call), ensure_ascii=False, default=str) for m in simulation.messages for call in raw_calls(m)]
    return "\n".join(map(_lookup, (*texts, *calls)))


def parse_verdict(text: str, said: str) -> Verdict | None:
    """Return the verdict in a judge's answer, after its reasoning.

    None if the answer holds none, two that differ, no reason, or a quote that is not in the conversation; `said` is what
    `quotable` returns.

    >>> parse_verdict('{"why": "It gives the price.", "quote": "It costs", "met": "yes"}', "it costs 3 euros")
    Verdict(met=True, why='It gives the price.', quote='It costs')
    """
    verdicts: list[Verdict] = []
    for raw in json_objects(without_reasoning(text).text[:_READ_CHARACTERS]):
        if "met" not in raw:
            continue
        met, why, quote = _met(raw["met"]), raw.get("why"), raw.get("quote", "")
        if met is None or not isinstance(why, str) or not isinstance(quote, str | None) or not why.strip():
            return None
        quote = (quote or "").strip()
        if not all(part in said for part in _parts(quote)):
            return None
        verdicts.append(Verdict(met, single_line(why), quote))
    return verdicts[-1] if verdicts and len({verdict.met for verdict in verdicts}) == 1 else None


def _met(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"yes": True, "no": False}.get(value.strip().casefold()) if isinstance(value, str) else None


def _parts(quote: str) -> Sequence[str]:
    """Return the parts of a quote between ellipses, as they are looked up."""
    return [part for part in map(_lookup, quote.replace("…", "...").split("...")) if part]


def _lookup(text: str) -> str:
    """Return a text without case, quotation marks and punctuation at the ends of words, on one line."""
    return " ".join(word for word in ("".join(filter(str.isalnum, word)) for word in text.casefold().split()) if word)
