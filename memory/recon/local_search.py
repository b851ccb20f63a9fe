"""Local search on one trace (after REER, arXiv 2509.06160): better one part at a time, and keep what scores higher.

The one design choice: the budget is in texts that a model writes, drafts included, so that it can be matched with best-of-N;
everything that was looked at comes back as a candidate, so that choosing, guarding and counting are those of all proposals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from usertwin.memory.models.chat import ChatModel, Ledger, sample
from usertwin.memory.text.transcript import context_lines, shortened
from usertwin.memory.triples import Candidate
from usertwin.personas import Pair

from .fidelity import Fidelity, passed, with_scores
from .propose import CONTEXT_TURNS, cleaned, in_first_person, parts_of, prompt_for, prompt_template, propose

#: Drafts to begin with, and ways to write a part anew that are compared at each step.
_DRAFTS, _VARIANTS = 2, 2
_STEP_SEED = 104729


async def search(
    model: ChatModel,
    fidelity: Fidelity,
    pair: Pair,
    name: str,
    *,
    guard: Callable[[str], str | None],
    calls: int,
    seed: int,
    ledger: Ledger | None = None,
) -> list[Candidate]:
    """Draft traces backward, then write parts of the best one anew until the budget is used up.

    Args:
        model: who writes.
        fidelity: what is to grow.
        pair: what the person saw and did.
        name: what to call the person.
        guard: names the guard that rejects a trace, or None.
        calls: how many texts the model may write.
        seed: for the sampler.
        ledger: where to note what it cost.

    Returns:
        Every trace that was looked at, drafts first, with its score unless a guard rejected it.
    """
    spent = min(_DRAFTS, calls)
    drafts = await propose(model, pair, name, n=spent, seed=seed, ledger=ledger)
    found = await _looked_at(drafts, fidelity, pair, guard, seed, ledger)
    step = 0
    while spent < calls:
        best = max((one for one in found if one.score is not None), key=lambda one: one.score or 0.0, default=None)
        n = min(_VARIANTS, calls - spent)
        at = seed + _STEP_SEED * (step + 1)
        if best is None:  # nothing to better yet
            texts = await propose(model, pair, name, n=n, seed=at, ledger=ledger)
        else:
            texts = await _rewritten(model, pair, name, best.trace, step, n, at, ledger)
        known = {one.trace for one in found}
        found += await _looked_at([text for text in texts if text not in known], fidelity, pair, guard, seed, ledger)
        spent += n
        step += 1
    return found


async def _looked_at(
    traces: list[str], fidelity: Fidelity, pair: Pair, guard: Callable[[str], str | None], seed: int, ledger: Ledger | None
) -> list[Candidate]:
    found = [Candidate(trace, None, await asyncio.to_thread(guard, trace)) for trace in dict.fromkeys(traces)]
    allowed = passed(found)
    if not allowed:
        return found
    return await with_scores(found, fidelity.score(pair, allowed, seed=seed, ledger=ledger), fidelity.floor)


async def _rewritten(
    model: ChatModel, pair: Pair, name: str, trace: str, step: int, n: int, seed: int, ledger: Ledger | None
) -> list[str]:
    """The trace with one part written anew, n times; the parts take turns."""
    parts = list(parts_of(trace))
    place = step % len(parts)
    before, after = parts[:place], parts[place + 1 :]
    if model.style == "transcript":
        opening = prompt_for("transcript", pair, name, "backward")
        told = " ".join(["", *before]).removeprefix(" I") if before else ""
        prompt, most, stop = opening + told, 24, ["\n", ".", ",", ";"]
    else:
        lead, tail = "".join(f"{one} " for one in before), "".join(f" {one}" for one in after)
        prompt = prompt_template("rewrite_instruction").fill(
            name=name,
            context=context_lines(pair, CONTEXT_TURNS),
            action=shortened(pair.action),
            before=lead,
            part=parts[place],
            after=tail,
        )
        most, stop = 200, []
    answers = await sample(
        model, [("user", prompt)], n=n, seed=seed, max_tokens=most, temperature=0.9, stop=stop, ledger=ledger
    )
    found: list[str] = []
    for answer in answers:
        text = cleaned(answer.text)
        if text:
            if model.style == "transcript":  # the mark it stopped at is the one of the part that it replaces
                text = (text if before else in_first_person(text)) + (parts[place][-1] if parts[place][-1] in ".,;!?" else "")
            found.append(" ".join([*before, text, *after]))
    return found
