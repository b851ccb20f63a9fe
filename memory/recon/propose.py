"""Proposing traces: what may have gone on in a person before they acted.

The one design choice: every proposer sees the same moment and differs in one thing only, so that they can be compared: what
else it is shown or asked.

    backward     context and action (Backward Synthesis, the first half of Recon)
    forward      the context alone, as the person had it: leak-free, the honest ceiling of a reasoner
    scaffolded   context and action, each sample through another psychological lens (after PB&J, arXiv 2504.17993:
                 the Big Five, Schwartz's values, primal world beliefs)
    search       backward drafts, bettered part by part against the score (see search.py)
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from usertwin.memory.models.chat import ChatModel, Ledger, Style, sample
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.memory.text.transcript import ME, context_lines, current_moment, flat, past_moment, shortened
from usertwin.memory.text.words import word_tokens
from usertwin.personas import Pair, UsageError

ProposalMode = Literal["backward", "forward", "scaffolded", "search"]
PROPOSAL_MODES: tuple[ProposalMode, ...] = get_args(ProposalMode)

#: Turns of context that proposer and reconstruction see.
CONTEXT_TURNS = 4
#: Stands for an answer that was to be a JSON object and is none.
MALFORMED = "{"
#: The most tokens of a trace, and how freely it is sampled.
TRACE_TOKENS = {"transcript": 48, "instruction": 400}  # a hosted model may reason before it writes
TEMPERATURE = 0.8
_LENSES = {
    "how I am by nature": "my personality (how open, conscientious, outgoing, agreeable and anxious I am)",
    "what I value": "what I value (security, freedom, achievement, kindness, tradition, pleasure)",
    "how I take the world to be": "what I believe the world to be like (safe or dangerous, scarce or plentiful, fair or not)",
}
_FIELDS = ("noticed", "felt", "wanted", "decided")
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in _FIELDS},
    "required": list(_FIELDS),
    "additionalProperties": False,
}
_LAST_CLAUSE = re.compile(r"(.+[.!?]|.+?(?=,[^,]*$))")
_CLIPPED_VERB = re.compile(r"['’](?:m|d|ll|ve)\b")
_BLOCKS = re.compile(r"<(action|think|reply)>.*?(</\1>|$)|```\w*|</?\w+>", re.DOTALL | re.IGNORECASE)


def prompt_template(name: str) -> PromptTemplate:
    """A prompt of this folder."""
    return PromptTemplate(Path(__file__).parent / f"{name}.txt")


def proposal_template(model: ChatModel, proposal_mode: ProposalMode = "backward") -> PromptTemplate:
    """The prompt that traces are asked for with, by the model's style."""
    return _template(model.style, proposal_mode)


def _template(style: Style, proposal_mode: ProposalMode) -> PromptTemplate:
    if style == "transcript":
        return prompt_template(
            {"forward": "forward_transcript", "scaffolded": "scaffold_transcript"}.get(proposal_mode, "propose_transcript")
        )
    return prompt_template("forward_instruction" if proposal_mode == "forward" else "propose_instruction")


async def propose(
    model: ChatModel,
    pair: Pair,
    name: str,
    *,
    proposal_mode: ProposalMode = "backward",
    n: int,
    seed: int,
    ledger: Ledger | None = None,
) -> list[str]:
    """Sample n traces for a pair.

    Args:
        model: who writes them.
        pair: what the person saw and did.
        name: what to call the person.
        proposal_mode: what the model is shown and asked; the drafts of "search" are "backward".
        n: how many.
        seed: for the sampler.
        ledger: where to note what it cost.

    Returns:
        The traces; "" where nothing was written, `MALFORMED` where an object was asked for and something broken came.

    Raises:
        UsageError: no such way.
        ModelError: the model does not answer.
    """
    if proposal_mode not in PROPOSAL_MODES:
        raise UsageError(f'"{proposal_mode}" is no way to propose traces; there are {", ".join(PROPOSAL_MODES)}')
    lenses = list(_LENSES)[: max(1, n)] if proposal_mode == "scaffolded" else [""]
    shares = [n // len(lenses) + (place < n % len(lenses)) for place in range(len(lenses))]
    found = await asyncio.gather(
        *(
            _sampled(
                model,
                prompt_for(model.style, pair, name, proposal_mode, lens=lens, structured=model.structured),
                share,
                seed,
                ledger,
            )
            for lens, share in zip(lenses, shares, strict=True)
            if share
        )
    )
    return [trace for traces in found for trace in traces]


def prompt_for(
    style: Style, pair: Pair, name: str, proposal_mode: ProposalMode, *, lens: str = "", structured: bool = False
) -> str:
    """The text that a trace is asked for with."""
    filled = _template(style, proposal_mode).fill
    if style == "instruction":
        return filled(
            name=name, goal=pair.goal, context=context_lines(pair, CONTEXT_TURNS), action=shortened(pair.action),
            lens=_LENSES.get(lens, ""), structured=structured,
        )  # fmt: skip
    if proposal_mode == "forward":
        return filled(moment=current_moment(pair, CONTEXT_TURNS).removesuffix(f"{ME}:").rstrip("\n"))
    return filled(moment=past_moment(pair, CONTEXT_TURNS).rstrip("\n"), lens=lens)


def written_tokens(style: Style) -> int:
    """About how many tokens a trace takes."""
    return {"transcript": 30, "instruction": 90}[style]


async def _sampled(model: ChatModel, prompt: str, n: int, seed: int, ledger: Ledger | None) -> list[str]:
    continues = model.style == "transcript"
    answers = await sample(
        model, [("user", prompt)], n=n, seed=seed, max_tokens=TRACE_TOKENS[model.style], temperature=TEMPERATURE,
        stop=["\n"] if continues else [], schema=None if continues else _SCHEMA, ledger=ledger,
    )  # fmt: skip
    return [as_trace(model.style, answer.text) for answer in answers]


def as_trace(style: Style, text: str) -> str:
    """The trace in what a model wrote after a prompt of `prompt_for`; "" if there is none, `MALFORMED` for a broken object."""
    if style == "instruction":
        return _of_object(text)
    text = cleaned(text.partition("\n")[0])
    trace = _whole(in_first_person(text)) if word_tokens(text) else ""
    return trace if word_tokens(trace[1:]) else ""  # what was cut off may have been all but the "I"


async def paraphrase(model: ChatModel, text: str, *, seed: int, ledger: Ledger | None = None) -> str:
    """A text in other words, as the model says it: what a trace that only repeats the action looks like (control C2)."""
    prompt = prompt_template(f"paraphrase_{model.style}").fill(action=shortened(text))
    most, stop = (80, ["\n"]) if model.style == "transcript" else (400, list[str]())
    [answer] = await sample(
        model, [("user", prompt)], seed=seed, max_tokens=most, temperature=TEMPERATURE, stop=stop, ledger=ledger
    )
    return cleaned(answer.text)


def cleaned(text: str) -> str:
    """A text as one line, without blocks of markup (an action, a model's own thinking, a code fence)."""
    return flat(_BLOCKS.sub(" ", text))


def _of_object(text: str) -> str:
    """The trace in an answer that is a JSON object, or in plain words where the model did not hold to that."""
    text = _BLOCKS.sub(" ", text).strip()
    if not text.startswith("{"):
        return flat(text)
    try:
        told: Any = json.loads(text)
        parts = [flat(told[name]) for name in _FIELDS]
    except (ValueError, KeyError, AttributeError, RecursionError):  # no JSON, a field missing, no text in it, nested too deep
        return MALFORMED
    return " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts if part)


def in_first_person(text: str) -> str:
    """What a model wrote after the "I" with which its prompt ended, with it: "felt tired", "'m tired"."""
    return f"I{text}" if _CLIPPED_VERB.match(text) else f"I {text}"


def _whole(text: str) -> str:
    """A text without the clause that was cut off at its end, if it has others."""
    whole = _LAST_CLAUSE.match(text)
    return whole[1].rstrip() if whole else text


def parts_of(trace: str) -> Sequence[str]:
    """The clauses of a trace, in order; joined they are the trace."""
    return [part for part in re.split(r"(?<=[.!?;,]) +(?=\S)", trace) if part]
