"""What a twin is shown before it reasons and before it acts.

The one design choice: both steps are made of the same parts (persona, goal, recalled moments, the chat now), and for a model
that continues transcripts the second prompt begins with the first one and its answer, so that the engine has most of it in
its cache, if one model does both. Each is written in the style of the model that does it. The evaluation scores real actions
after exactly these prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from usertwin.memory import Triple
from usertwin.memory.models.chat import Style
from usertwin.memory.recon.synthesizer import backward_trace
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.memory.text.transcript import context_lines, current_moment, joined, open_thought, past_moment
from usertwin.memory.twin.record import ShownTraces
from usertwin.personas import Pair, Persona

#: Turns of the present chat, where nothing else was measured, and of each recalled moment that are shown.
CONTEXT_TURNS, RECALLED_TURNS = 6, 2
_REASON = PromptTemplate(Path(__file__).parent / "user_reason.txt")
_ACT = PromptTemplate(Path(__file__).parent / "user_act.txt")

Messages = list[tuple[str, str]]


def prompt_versions(style: Style, reasoner: Style | None = None) -> dict[str, str]:
    """The versions of the prompts, for a run's manifest; of a reasoner's too, where that has another style."""
    acts = {"transcript": "1"} if style == "transcript" else {"act": _ACT.version}
    return acts | ({"reason": _REASON.version} if (reasoner or style) == "instruction" else {"transcript": "1"})


def transcript(recalled: Sequence[Triple], last: str) -> str:
    """Recalled moments, the most similar one last, and then the present one."""
    moments = [past_moment(t.pair, RECALLED_TURNS, thought=t.reasoning) for t in reversed(recalled)]
    return joined([*moments, last])


def act_transcript(query: Pair, recalled: Sequence[Triple], reasoning: str | None = None, *, turns: int = CONTEXT_TURNS) -> str:
    """The text that a transcript model continues with the action, and after which real actions are scored."""
    return transcript(recalled, current_moment(query, turns, thought=reasoning))


def reason_messages(
    style: Style, persona: Persona, query: Pair, recalled: Sequence[Triple], *, turns: int = CONTEXT_TURNS
) -> Messages:
    """What a model is asked for the twin's reasoning with."""
    if style == "transcript":
        return [("user", transcript(recalled, open_thought(query, turns)))]
    return [("user", _REASON.fill(**_parts(persona, query, recalled, turns)))]


def act_messages(
    style: Style, persona: Persona, query: Pair, recalled: Sequence[Triple], reasoning: str, *, turns: int = CONTEXT_TURNS
) -> Messages:
    """What a model is asked for the twin's action with."""
    if style == "transcript":
        return [("user", act_transcript(query, recalled, reasoning or None, turns=turns))]
    return [("user", _ACT.fill(reasoning=reasoning, **_parts(persona, query, recalled, turns)))]


def _parts(persona: Persona, query: Pair, recalled: Sequence[Triple], turns: int) -> dict[str, object]:
    moments = [past_moment(t.pair, RECALLED_TURNS, thought=t.reasoning).rstrip("\n") for t in reversed(recalled)]
    return {"persona": persona, "goal": query.goal, "moments": moments, "context": context_lines(query, turns)}


def as_shown(recalled: Sequence[Triple], traces: ShownTraces) -> list[Triple]:
    """What came to mind as a twin is shown it: without traces, with the first proposals, or with the chosen ones."""
    if traces == "none":
        return [Triple(triple.pair) for triple in recalled]
    if traces == "backward":
        return [replace(triple, reasoning=backward_trace(triple)) for triple in recalled]
    return list(recalled)
