"""Recon (arXiv 2605.26969): a trace is good if, with it and without the action, the action is predicted.

The file reads in the order of the method: propose, reconstruct, score, select, and then synthesize, which is all four. The
one design choice: fidelity is the gain in log-likelihood of the real action, under a local model, of context and trace
over context alone, in nats per token of the action; so no judge is needed, and a trace costs one short forward pass.

Backward Synthesis (the first proposal, unscored) and no traces at all are the other two methods of the same function.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from usertwin.personas import Pair, UsageError

from .guards import rejected_by
from .sampling import ChatModel, sample
from .scoring import Scorer
from .templates import PromptTemplate
from .transcript import action_line, context_lines, flat, open_moment, past_moment
from .triples import Provenance, Triple

Method = Literal["recon", "backward", "none"]
METHODS: tuple[Method, ...] = get_args(Method)

#: Turns of context that proposer and reconstruction see.
CONTEXT_TURNS = 4
#: How many traces are proposed for a pair, as in the paper.
DEFAULT_CANDIDATES = 4
_TRACE_TOKENS = {"transcript": 48, "instruction": 400}  # a hosted model may reason before it writes
_LAST_CLAUSE = re.compile(r"(.+[.!?]|.+?(?=,[^,]*$))")
_TRANSCRIPT = PromptTemplate(Path(__file__).parent / "propose_transcript.txt")
_INSTRUCTION = PromptTemplate(Path(__file__).parent / "propose_instruction.txt")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposed trace: its score in nats per token of the action, if it was scored, and the guard that rejects it, if any."""

    trace: str
    score: float | None
    rejected: str | None


def proposal_template(model: ChatModel) -> PromptTemplate:
    """The prompt that traces are asked for with, by the model's style."""
    return _TRANSCRIPT if model.style == "transcript" else _INSTRUCTION


async def propose(model: ChatModel, pair: Pair, name: str, *, n: int, seed: int) -> list[str]:
    """Sample n traces for a pair: what may have gone on in the person before the action. They see the action.

    Args:
        model: who writes them.
        pair: what the person saw and did.
        name: what to call the person.
        n: how many.
        seed: for the sampler.
    """
    template = proposal_template(model)
    if model.style == "transcript":
        prompt, stop = template.fill(moment=past_moment(pair, CONTEXT_TURNS).rstrip("\n")), ["\n"]
    else:
        prompt, stop = template.fill(
            name=name, goal=pair.goal, context=context_lines(pair, CONTEXT_TURNS), action=pair.action
        ), []  # fmt: skip
    answers = await sample(
        model, [("user", prompt)], n=n, seed=seed, max_tokens=_TRACE_TOKENS[model.style], temperature=0.8, stop=stop
    )
    if model.style == "transcript":
        return [_whole(f"I {flat(answer.text)}") if answer.text.strip() else "" for answer in answers]
    return [flat(answer.text) for answer in answers]


def _whole(text: str) -> str:
    """A text without the clause that was cut off at its end, if it has others."""
    whole = _LAST_CLAUSE.match(text)
    return whole[1] if whole else text


def reconstruct(pair: Pair, trace: str | None) -> str:
    """The text from which the action is to be predicted: context and, if given, the trace; never the action."""
    return open_moment(pair, CONTEXT_TURNS, thought=trace)


def score(scorer: Scorer, pair: Pair, traces: Sequence[str]) -> list[float]:
    """The fidelity of each trace: how much better it lets the action be predicted, in nats per token of the action.

    Above 0 the trace helps, below 0 it misleads.
    """
    action = action_line(pair.action)
    prompts = [reconstruct(pair, None), *(reconstruct(pair, trace) for trace in traces)]
    alone, *told = scorer.score([(prompt, action) for prompt in prompts])
    return [(likelihood.nats - alone.nats) / likelihood.tokens for likelihood in told]


def _judged(trace: str, score: float | None, rejected: str | None) -> Candidate:
    """A candidate; one that makes the action less likely than it is without any trace is rejected as "misleads"."""
    return Candidate(trace, score, "misleads" if rejected is None and score is not None and score < 0 else rejected)


def select(candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the highest score that no guard rejects; unscored ones go by order. None if none is left."""
    allowed = [candidate for candidate in candidates if candidate.rejected is None]
    return max(allowed, key=lambda c: float("-inf") if c.score is None else c.score, default=None)


async def synthesize(
    pair: Pair,
    name: str,
    *,
    method: Method,
    model: ChatModel | None = None,
    scorer: Scorer | None = None,
    candidates: int = DEFAULT_CANDIDATES,
    seed: int = 0,
) -> Triple:
    """Make a triple of a pair.

    Args:
        pair: what the person saw and did.
        name: what to call the person.
        method: "recon" takes the best-scored of `candidates` traces, "backward" the first one, "none" makes none.
        model: who proposes; needed unless the method is "none".
        scorer: who scores; needed for "recon".
        candidates: how many traces "recon" proposes; "backward" proposes one.
        seed: for the sampler.

    Returns:
        The triple; without a trace where every proposal was rejected (by a guard, or since it predicts the action worse than
        no trace does), with the rejections in its provenance.

    Raises:
        UsageError: an unknown method, fewer than one candidate, or a method without the models it needs.
        ModelError: a model does not answer.
    """
    if method not in METHODS:
        raise UsageError(f'"{method}" is no way to make traces; there are {", ".join(METHODS)}')
    if method == "none":
        return Triple(pair)
    if model is None or (method == "recon" and scorer is None):
        raise UsageError(f'traces by "{method}" need a model{" and a scorer" if method == "recon" else ""}')
    if candidates < 1:
        raise UsageError(f"{candidates} candidates: at least one is needed")
    n = candidates if method == "recon" else 1
    traces = await propose(model, pair, name, n=n, seed=seed)
    guarded = [rejected_by(trace, pair, proposal_template(model).text) for trace in traces]
    scores = dict[str, float]()
    used = scorer if method == "recon" else None
    if used is not None:  # on a thread of its own: scoring is computing, and must not hold up others that wait for a model
        allowed = [trace for trace, rejected in zip(traces, guarded, strict=True) if rejected is None]
        scores = dict(zip(allowed, await asyncio.to_thread(score, used, pair, allowed), strict=True)) if allowed else scores
    judged = [_judged(t, scores.get(t), r) for t, r in zip(traces, guarded, strict=True)]
    best = select(judged)
    provenance = Provenance(
        method=method,
        proposer=model.name,
        scorer=None if used is None else used.name,
        prompt_version=proposal_template(model).version,
        seed=seed,
        candidates=n,
        rejected=Counter(c.rejected for c in judged if c.rejected is not None),
    )
    if best is None:
        return Triple(pair, provenance=provenance)
    return Triple(pair, best.trace, best.score, provenance)
