"""Proposing traces: sampling what may have gone on in a person's mind before they acted.

All modes use the same context; they differ in one thing only, so that their traces can be compared:

    backward     context and action (Backward Synthesis, the first half of Recon)
    forward      the context alone, as the person had it: no leak is possible; the upper limit of an honest reasoner
    scaffolded   context and action, each sample through another psychological lens (after PB&J, arXiv 2504.17993:
                 the Big Five, Schwartz's values, primal world beliefs)
    search       backward drafts, then a local search on the score (see local_search.py)
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from usertwin.memory.concurrency import gather
from usertwin.memory.models.chat import ChatModel, Ledger, PromptStyle, sample
from usertwin.memory.models.token_limits import answer_tokens, reasoning_room, token_limit
from usertwin.memory.text.completions import without_reasoning
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.memory.text.transcript import (
    ME,
    context_lines,
    format_action_prompt,
    format_example,
    single_line,
    truncate_action,
)
from usertwin.memory.text.words import word_tokens
from usertwin.personas import Pair, UsageError

ProposalMode = Literal["backward", "forward", "scaffolded", "search"]
PROPOSAL_MODES: tuple[ProposalMode, ...] = get_args(ProposalMode)

#: Turns of context in the prompts of proposal and reconstruction.
CONTEXT_TURNS = 4
#: Stands for a completion that should be a JSON object and is not.
MALFORMED = "{"
#: Stands for a completion that reached its token limit before any text of an answer.
CUT_OFF = "…\n"  # a trace has no line break
#: Tokens of a trace itself, by prompt style: the limit in training, where no model reasons first.
TRACE_TOKENS: dict[PromptStyle, int] = {style: answer_tokens("trace", style) for style in get_args(PromptStyle)}
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
_ALL_BUT_LAST_CLAUSE = re.compile(r"(.+[.!?]|.+?(?=,[^,]*$))")
_CLIPPED_VERB = re.compile(r"['’](?:m|d|ll|ve)\b")
_BLOCKS = re.compile(r"<(action|reply)>.*?(</\1>|$)|```\w*|</?\w+>", re.DOTALL | re.IGNORECASE)


def sees_action(proposal_mode: ProposalMode) -> bool:
    """Return whether the action is in the prompt of a proposal, so that the trace can leak it."""
    return proposal_mode != "forward"


def prompt_template(name: str) -> PromptTemplate:
    """Return a prompt template of this folder."""
    return PromptTemplate(Path(__file__).parent / f"{name}.txt")


def proposal_template(model: ChatModel, proposal_mode: ProposalMode = "backward") -> PromptTemplate:
    """Return the template of the proposal prompt, by the model's prompt style."""
    return _template(model.style, proposal_mode)


def _template(style: PromptStyle, proposal_mode: ProposalMode) -> PromptTemplate:
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
        model: the proposer.
        pair: the context and action.
        name: the person's name in the prompt.
        proposal_mode: see the top of this file; "search" samples its drafts as "backward" does.
        n: number of traces.
        seed: seed of the sampler.
        ledger: records the cost.

    Returns:
        The traces; "" for an empty completion, `CUT_OFF` for one that is empty at its token limit, `MALFORMED` for a broken
        JSON object.

    Raises:
        UsageError: there is no such mode.
        ModelError: the model does not answer.
    """
    if proposal_mode not in PROPOSAL_MODES:
        raise UsageError(f'the proposal mode is "{proposal_mode}"; it must be one of {", ".join(PROPOSAL_MODES)}')
    lenses = list(_LENSES)[: max(1, n)] if proposal_mode == "scaffolded" else [""]
    counts = [n // len(lenses) + (index < n % len(lenses)) for index in range(len(lenses))]
    groups = await gather(
        *(
            _sample_traces(
                model,
                proposal_prompt(model.style, pair, name, proposal_mode, lens=lens, structured=model.structured),
                count,
                seed,
                ledger,
            )
            for lens, count in zip(lenses, counts, strict=True)
            if count
        )
    )
    return [trace for traces in groups for trace in traces]


def proposal_prompt(
    style: PromptStyle, pair: Pair, name: str, proposal_mode: ProposalMode, *, lens: str = "", structured: bool = False
) -> str:
    """Return the prompt that traces of a pair are sampled from."""
    fill = _template(style, proposal_mode).fill
    if style == "instruction":
        return fill(
            name=name, goal=pair.goal, context=context_lines(pair, CONTEXT_TURNS), action=truncate_action(pair.action),
            lens=_LENSES.get(lens, ""), structured=structured,
        )  # fmt: skip
    if proposal_mode == "forward":
        return fill(moment=format_action_prompt(pair, CONTEXT_TURNS).removesuffix(f"{ME}:").rstrip("\n"))
    return fill(moment=format_example(pair, CONTEXT_TURNS).rstrip("\n"), lens=lens)


def expected_trace_tokens(style: PromptStyle) -> int:
    """Return the average length of a trace in tokens, for cost estimates."""
    return {"transcript": 30, "instruction": 90}[style]


async def _sample_traces(model: ChatModel, prompt: str, n: int, seed: int, ledger: Ledger | None) -> list[str]:
    transcript = model.style == "transcript"
    samples = await sample(
        model, [("user", prompt)], n=n, seed=seed, max_tokens=TRACE_TOKENS[model.style] + reasoning_room(model.style),
        temperature=TEMPERATURE, stop=["\n"] if transcript else [], schema=None if transcript else _SCHEMA, ledger=ledger,
    )  # fmt: skip
    return [
        CUT_OFF if completion.at_limit and not completion.text.strip() else parse_trace(model.style, completion.text)
        for completion in samples
    ]


def parse_trace(style: PromptStyle, text: str) -> str:
    """Return the trace in a completion of `proposal_prompt`; "" if there is none, `MALFORMED` for a broken JSON object."""
    if style == "instruction":
        return _parse_json_trace(text)
    text = clean_line(text.partition("\n")[0])
    trace = _drop_cut_clause(in_first_person(text)) if word_tokens(text) else ""
    return trace if word_tokens(trace[1:]) else ""  # dropping the cut clause may leave nothing but the "I"


async def paraphrase(model: ChatModel, text: str, *, seed: int, ledger: Ledger | None = None) -> str:
    """Return a text in other words, as the model writes it: a control trace that only repeats the action."""
    prompt = prompt_template(f"paraphrase_{model.style}").fill(action=truncate_action(text))
    [completion] = await sample(
        model, [("user", prompt)], seed=seed, max_tokens=token_limit("paraphrase", model.style), temperature=TEMPERATURE,
        stop=["\n"] if model.style == "transcript" else [], ledger=ledger,
    )  # fmt: skip
    return clean_line(completion.text)


def clean_line(text: str) -> str:
    """Return a text as one line, without blocks of markup (an action, a model's own thinking, a code fence)."""
    return single_line(_BLOCKS.sub(" ", without_reasoning(text).text))


def _parse_json_trace(text: str) -> str:
    """Return the trace in a JSON object, or the text itself where the model answered in plain words."""
    text = _BLOCKS.sub(" ", without_reasoning(text).text).strip()
    if not text.startswith("{"):
        return single_line(text)
    try:
        raw: Any = json.loads(text)
        names = raw if raw and not set(_FIELDS) & set(raw) else _FIELDS  # an endpoint without schemas may name its own fields
        parts = [single_line(raw[name]) for name in names]
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):  # no JSON, a missing field, not a text, nested too deep
        return MALFORMED
    return " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts if part)


def in_first_person(text: str) -> str:
    """Return a completion with the "I" in front that the prompt ended with, as in "I felt tired" or "I'm tired"."""
    return f"I{text}" if _CLIPPED_VERB.match(text) else f"I {text}"


def _drop_cut_clause(text: str) -> str:
    """Return a text without the unfinished clause at its end, if it has other clauses."""
    match = _ALL_BUT_LAST_CLAUSE.match(text)
    return match[1].rstrip() if match else text


def clauses_of(trace: str) -> Sequence[str]:
    """Return the clauses of a trace, in order; joined by spaces they are the trace."""
    return [clause for clause in re.split(r"(?<=[.!?;,]) +(?=\S)", trace) if clause]
