"""Local search on one trace (after REER, arXiv 2509.06160): rewrite one clause at a time and keep what scores higher.

Design: the budget counts completions, drafts included, so that a search can be compared with best-of-N at equal cost. Every
trace that was scored is returned as a candidate, so selection, guards and counts work as for all proposals.
"""

from __future__ import annotations

from collections.abc import Callable

from usertwin.memory.concurrency import to_thread
from usertwin.memory.models.chat import ChatModel, Ledger, sample
from usertwin.memory.models.token_limits import token_limit
from usertwin.memory.text.transcript import context_lines, truncate_action
from usertwin.memory.triples import Candidate
from usertwin.personas import Pair

from .fidelity import Fidelity, apply_scores, passing_traces
from .propose import CONTEXT_TURNS, clauses_of, clean_line, in_first_person, prompt_template, proposal_prompt, propose

#: Number of first drafts, and of rewrites that each step compares.
_DRAFTS, _REWRITES = 2, 2
_STEP_SEED = 104729


async def search(
    model: ChatModel,
    fidelity: Fidelity,
    pair: Pair,
    name: str,
    *,
    guard: Callable[[str], str | None],
    max_calls: int,
    seed: int,
    ledger: Ledger | None = None,
) -> list[Candidate]:
    """Draft traces backward, then rewrite clauses of the best one until the budget is used up.

    Args:
        model: the proposer.
        fidelity: the score to increase.
        pair: the context and action.
        name: the person's name in the prompts.
        guard: returns the name of the guard that rejects a trace, or None.
        max_calls: number of completions that the model may write.
        seed: seed of the sampler.
        ledger: records the cost.

    Returns:
        Every trace of the search, drafts first, with its score unless a guard rejected it.
    """
    spent = min(_DRAFTS, max_calls)
    drafts = await propose(model, pair, name, n=spent, seed=seed, ledger=ledger)
    candidates = await _scored_candidates(drafts, fidelity, pair, guard, seed, ledger)
    step = 0
    while spent < max_calls:
        scored = (candidate for candidate in candidates if candidate.score is not None)
        best = max(scored, key=lambda candidate: candidate.score or 0.0, default=None)
        n = min(_REWRITES, max_calls - spent)
        step_seed = seed + _STEP_SEED * (step + 1)
        if best is None:  # no trace to improve yet
            traces = await propose(model, pair, name, n=n, seed=step_seed, ledger=ledger)
        else:
            traces = await _rewrites(model, pair, name, best.trace, step, n, step_seed, ledger)
        known = {candidate.trace for candidate in candidates}
        new = [trace for trace in traces if trace not in known]
        candidates += await _scored_candidates(new, fidelity, pair, guard, seed, ledger)
        spent += n
        step += 1
    return candidates


async def _scored_candidates(
    traces: list[str], fidelity: Fidelity, pair: Pair, guard: Callable[[str], str | None], seed: int, ledger: Ledger | None
) -> list[Candidate]:
    candidates = [Candidate(trace, None, await to_thread(guard, trace)) for trace in dict.fromkeys(traces)]
    passing = passing_traces(candidates)
    if not passing:
        return candidates
    return await apply_scores(candidates, fidelity.score(pair, passing, seed=seed, ledger=ledger), fidelity.floor)


async def _rewrites(
    model: ChatModel, pair: Pair, name: str, trace: str, step: int, n: int, seed: int, ledger: Ledger | None
) -> list[str]:
    """Return n versions of the trace with one clause rewritten; the clauses take turns from step to step."""
    clauses = list(clauses_of(trace))
    index = step % len(clauses)
    before, clause, after = clauses[:index], clauses[index], clauses[index + 1 :]
    if model.style == "transcript":
        opening = proposal_prompt("transcript", pair, name, "backward")
        kept = " ".join(["", *before]).removeprefix(" I") if before else ""
        prompt, stop = opening + kept, ["\n", ".", ",", ";"]
    else:
        prompt = prompt_template("rewrite_instruction").fill(
            name=name,
            context=context_lines(pair, CONTEXT_TURNS),
            action=truncate_action(pair.action),
            before="".join(f"{other} " for other in before),
            part=clause,
            after="".join(f" {other}" for other in after),
        )
        stop = list[str]()
    completions = await sample(
        model, [("user", prompt)], n=n, seed=seed, max_tokens=token_limit("rewrite", model.style), temperature=0.9, stop=stop,
        ledger=ledger,
    )  # fmt: skip
    rewrites: list[str] = []
    for completion in completions:
        text = clean_line(completion.text)
        if text:
            if model.style == "transcript":  # generation stops before the punctuation mark: take that of the old clause
                mark = clause[-1] if clause[-1] in ".,;!?" else ""
                text = (text if before else in_first_person(text)) + mark
            rewrites.append(" ".join([*before, text, *after]))
    return rewrites
