"""The prompts of a twin's two steps, reasoning and acting.

Design: both prompts have the same parts: persona, goal, recalled pairs, the current chat. For a model that continues
transcripts, the second prompt starts with the first one and its completion, so one engine answers it mostly from its cache.
The evaluation scores real actions after exactly these prompts.

A transcript holds the person's description only if the user wrote it. A description that was drawn from the log states counts,
which changed no bits beside recalled pairs (evals/EXPERIMENTS.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from usertwin.memory import Triple
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.recon.synthesizer import backward_trace
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.memory.text.transcript import (
    context_lines,
    format_action_prompt,
    format_example,
    format_thought_prompt,
    join_blocks,
    persona_line,
)
from usertwin.memory.twin.record import ShownTraces
from usertwin.personas import Pair, Persona

#: Turns shown of the current chat, unless tuning found another number, and of each recalled pair.
CONTEXT_TURNS, RECALLED_TURNS = 6, 2
_REASON = PromptTemplate(Path(__file__).parent / "user_reason.txt")
_ACT = PromptTemplate(Path(__file__).parent / "user_act.txt")

#: 3: dashes between examples, so that every turn ends in the same token. 2: the user's description of the person, goal and
#: turns whole, markers that no text can be.
_TRANSCRIPT_VERSION = "3"

#: (role, text) messages of a prompt.
Messages = list[tuple[str, str]]


def prompt_versions(style: PromptStyle, reasoner: PromptStyle | None = None) -> dict[str, str]:
    """Return the versions of the prompts for the style of the model that acts, and that of the reasoner if it is another."""
    transcript = {"transcript": _TRANSCRIPT_VERSION}
    act = transcript if style == "transcript" else {"act": _ACT.version}
    return act | ({"reason": _REASON.version} if (reasoner or style) == "instruction" else transcript)


def transcript(recalled: Sequence[Triple], last: str, persona: Persona | None = None) -> str:
    """Return the user's description of the person, if there is one, the recalled pairs (best last), and the current one."""
    described = persona is not None and persona.description and not persona.derived
    about = [persona_line(f"{persona.name}. {persona.description}")] if persona is not None and described else []
    examples = [format_example(t.pair, RECALLED_TURNS, thought=t.reasoning) for t in reversed(recalled)]
    return join_blocks([*about, *examples, last])


def act_transcript(
    query: Pair,
    recalled: Sequence[Triple],
    reasoning: str | None = None,
    *,
    persona: Persona | None = None,
    turns: int = CONTEXT_TURNS,
) -> str:
    """Return the text that a transcript model continues with the action, and after which real actions are scored."""
    return transcript(recalled, format_action_prompt(query, turns, thought=reasoning), persona)


def reason_messages(
    style: PromptStyle, persona: Persona, query: Pair, recalled: Sequence[Triple], *, turns: int = CONTEXT_TURNS
) -> Messages:
    """Return the prompt for the twin's reasoning, with the latest `turns` turns of the chat."""
    if style == "transcript":
        return [("user", transcript(recalled, format_thought_prompt(query, turns), persona))]
    return [("user", _REASON.fill(**_parts(persona, query, recalled, turns)))]


def act_messages(
    style: PromptStyle, persona: Persona, query: Pair, recalled: Sequence[Triple], reasoning: str, *, turns: int = CONTEXT_TURNS
) -> Messages:
    """Return the prompt for the twin's action, with the latest `turns` turns of the chat."""
    if style == "transcript":
        return [("user", act_transcript(query, recalled, reasoning or None, persona=persona, turns=turns))]
    return [("user", _ACT.fill(reasoning=reasoning, **_parts(persona, query, recalled, turns)))]


def _parts(persona: Persona, query: Pair, recalled: Sequence[Triple], turns: int) -> dict[str, object]:
    moments = [format_example(t.pair, RECALLED_TURNS, thought=t.reasoning).rstrip("\n") for t in reversed(recalled)]
    return {"persona": persona, "goal": query.goal, "moments": moments, "context": context_lines(query, turns)}


def shown_turns(style: PromptStyle, query: Pair, window: int) -> int:
    """Return the number of turns of a chat to show: a transcript has `window`, an instruction the whole conversation."""
    return window if style == "transcript" else len(query.context)


def with_shown_traces(recalled: Sequence[Triple], traces: ShownTraces) -> list[Triple]:
    """Return recalled triples with the traces that the twin is shown: none, the first proposals, or the Recon-selected ones."""
    if traces == "none":
        return [Triple(triple.pair) for triple in recalled]
    if traces == "backward":
        return [replace(triple, reasoning=backward_trace(triple)) for triple in recalled]
    return list(recalled)
