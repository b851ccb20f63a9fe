"""The prompts of a twin's two steps, reasoning and acting.

Design: both prompts have the same parts: persona, goal, recalled pairs, the current chat. For a model that continues
transcripts, the second prompt starts with the first one and its completion, so one engine answers it mostly from its cache.
The evaluation scores real actions after exactly these prompts.

A transcript holds the person's description only if the user wrote it. A description that was drawn from the log states counts,
which changed no bits beside recalled pairs (evals/EXPERIMENTS.md). Beside a style card, which counts more, an instruction
leaves it out too.

A model that follows instructions gets the chat as messages with the roles exchanged: the person is the "assistant". Its one
system message holds what stays the same for a whole chat, and the chat only grows. So a prompt cache holds both, up to the
last message. Recalled pairs change with every turn, so they stand in the last message: before the text to be answered, and
close to the reply. Their texts are in tags, and text from outside cannot be one of these tags. Roles alternate, begin with
"user" after the system message, and end with it, as strict chat templates demand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

from usertwin.memory import Triple
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.recon.synthesizer import backward_trace
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.memory.text.transcript import (
    format_action_prompt,
    format_example,
    format_thought_prompt,
    join_blocks,
    persona_line,
    single_line,
)
from usertwin.memory.twin.record import ShownTraces
from usertwin.personas import Pair, Persona, Turn
from usertwin.personas.style_card import VERSION as CARD_VERSION
from usertwin.personas.style_card import StyleCard, length_in, quantile

#: Turns shown of the current chat, unless tuning found another number, and of each recalled pair.
CONTEXT_TURNS, RECALLED_TURNS = 6, 2
_SYSTEM, _MOMENTS, _ACT, _REASON = (
    PromptTemplate(Path(__file__).parent / f"user_{part}.txt") for part in ("system", "moments", "act", "reason")
)

#: 4: line breaks inside a turn. 3: dashes between examples, so that every turn ends in the same token. 2: the description that
#: the user wrote, goal and turns whole, markers that no text can be.
_TRANSCRIPT_VERSION = "4"

#: (role, text) messages of a prompt.
Messages = list[tuple[str, str]]

#: The start of a tag of an instruction, also with characters in it that cannot be seen.
_TAG = re.compile(r"<(?=[\s/\u200b-\u200f\u2060\ufeff]*(?:moments?|goal|me|them|thought)\b)", re.IGNORECASE)
#: Times below this are numbers of conversations in a log without dates (see `Pair.when`).
_FIRST_DATE = 10_000_000
#: What stands for the other side: before the person's first turn, in place of turns that are left out, and without an answer.
_START, _LEFT_OUT = "(You write first.)", "(Earlier messages are left out here.)"
_OPENING, _UNANSWERED = "(Nobody has written yet. You write first.)", "(Nobody has answered yet. You write again.)"
#: The quantiles of the lengths of recalled answers between which a reply should be.
_USUAL = (0.2, 0.8)
#: A goal of at most so many characters is repeated close to the reply.
_REPEATED_GOAL = 400


def prompt_versions(style: PromptStyle, reasoner: PromptStyle | None = None) -> dict[str, str]:
    """Return the versions of the prompts for the style of the model that acts, and that of the reasoner if it is another."""
    transcript = {"transcript": _TRANSCRIPT_VERSION}
    shared = {"system": _SYSTEM.version, "moments": _MOMENTS.version, "style_card": f"style_card/{CARD_VERSION}"}
    act = transcript if style == "transcript" else shared | {"act": _ACT.version}
    return act | (shared | {"reason": _REASON.version} if (reasoner or style) == "instruction" else transcript)


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
    style: PromptStyle, persona: Persona, query: Pair, recalled: Sequence[Triple], *, turns: int = CONTEXT_TURNS,
    card: StyleCard | None = None,
) -> Messages:  # fmt: skip
    """Return the prompt for the twin's reasoning, with the latest `turns` turns of the chat."""
    if style == "transcript":
        return [("user", transcript(recalled, format_thought_prompt(query, turns), persona))]
    return _instruction(_REASON, persona, query, recalled, turns, card)


def act_messages(
    style: PromptStyle, persona: Persona, query: Pair, recalled: Sequence[Triple], reasoning: str, *,
    turns: int = CONTEXT_TURNS, card: StyleCard | None = None, structured: bool = False,
) -> Messages:  # fmt: skip
    """Return the prompt for the twin's action, with the latest `turns` turns of the chat.

    An instruction shows the style card, if there is one. A structured one asks for thoughts and reply in one JSON object (see
    structured_reply.py), and else for the reply alone.
    """
    if style == "transcript":
        return [("user", act_transcript(query, recalled, reasoning or None, persona=persona, turns=turns))]
    return _instruction(
        _ACT, persona, query, recalled, turns, card, reasoning=inert(reasoning),
        structured=structured, length=length_rule(recalled, card, persona),
    )  # fmt: skip


def inert(text: str) -> str:
    """Return the text with the start of each tag of an instruction escaped; all other text and its line breaks stay."""
    return _TAG.sub("&lt;", text)


def length_rule(recalled: Sequence[Triple], card: StyleCard | None, persona: Persona) -> str:
    """Return the usual length of a reply, such as "8 to 21 words": of recalled answers, else of all turns; "" if unknown."""
    unit = "words" if card is None else card.unit
    lengths: Sequence[int] = sorted(length_in(unit, triple.pair.action) for triple in recalled)
    lengths = lengths or (card.lengths if card else ()) or ((persona.typical_words,) if persona.typical_words else ())
    if not lengths:
        return ""
    low, high = (max(1, quantile(lengths, share)) for share in _USUAL)
    return f"{low} to {high} {unit}" if low < high else f"about {high} {unit.removesuffix('s') if high == 1 else unit}"


def _instruction(
    template: PromptTemplate, persona: Persona, query: Pair, recalled: Sequence[Triple], turns: int, card: StyleCard | None,
    **values: object,
) -> Messages:  # fmt: skip
    """Return the messages whose last one is a template about the recalled pairs and the text to be answered."""
    system = _SYSTEM.fill(
        name=single_line(persona.name), description="" if card and persona.derived else inert(persona.description),
        card=card, examples=[inert(text) for text in card.examples] if card else [], goal=inert(query.goal),
    )  # fmt: skip
    latest = query.context[-turns:] if turns else ()
    names = len({turn.speaker for turn in query.context} - {query.speaker}) > 1
    groups = [(own, list(group)) for own, group in groupby(latest, lambda turn: turn.speaker == query.speaker)]
    now, unanswered = _OPENING if not query.context else _UNANSWERED, not groups or groups[-1][0]
    if not unanswered:
        now = "\n".join(_tagged(turn, query, names) for turn in groups.pop()[1])
    chat = [
        (
            "assistant" if own else "user",
            "\n".join(_tagged(t, query, names) if names and not own else inert(t.text) for t in group),
        )
        for own, group in groups
    ]
    if chat and chat[0][0] == "assistant":
        chat.insert(0, ("user", _START if len(latest) >= query.position else _LEFT_OUT))
    moments = [_moment(triple) for triple in reversed(recalled)]
    shown = _MOMENTS.fill(
        moments=moments, goal=query.goal, with_thoughts=any(moment["thought"] for moment in moments)
    ) if moments else ""  # fmt: skip
    last = template.fill(
        moments=shown, now=now, unanswered=unanswered, goal=inert(query.goal) if len(query.goal) <= _REPEATED_GOAL else "",
        has_goal=bool(query.goal), **values,
    )  # fmt: skip
    return [("system", system), *chat, ("user", last)]


def _moment(triple: Triple) -> dict[str, object]:
    """Return the values of a recalled pair for its template."""
    pair = triple.pair
    latest = pair.context[-RECALLED_TURNS:]
    names = len({turn.speaker for turn in pair.context} - {pair.speaker}) > 1
    return {
        "date": _date(pair.when), "goal": inert(pair.goal), "turns": [_tagged(turn, pair, names) for turn in latest],
        "thought": inert(triple.reasoning or ""), "action": inert(pair.action),
    }  # fmt: skip


def _tagged(turn: Turn, pair: Pair, names: bool) -> str:
    """Return a turn in its tag: of the person, or of another speaker, with their name if there are several."""
    if turn.speaker == pair.speaker:
        return f"<me>{inert(turn.text)}</me>"
    name = single_line(re.sub(r"[<>\"&]", "", turn.speaker)) if names else ""
    return (f'<them name="{name}">' if name else "<them>") + f"{inert(turn.text)}</them>"


def _date(when: float) -> str:
    """Return the day of a pair, as in 2024-03-01; "" in a log without dates."""
    if not (-6e10 < when < 0 or _FIRST_DATE <= when < 2e11):
        return ""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=when)).date().isoformat()


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
