"""Add reasoning traces to the triples of a memory, several at a time, each committed before the next starts.

Design: a triple with provenance was tried, even if no trace passed the guards. So a resumed run needs no other bookkeeping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from usertwin.memory.concurrency import run_concurrently
from usertwin.memory.models.chat import ChatModel
from usertwin.memory.models.completion_cache import COMPLETIONS_FILE, CompletionCache
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.progress import Progress
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.judged_fidelity import fidelity_by_name
from usertwin.memory.recon.synthesizer import Synthesizer
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.triples import Provenance, Triple
from usertwin.personas import ModelError

from .record import TwinRecord

#: Pairs without any usable proposal after which the models are given up, and what their proposals lack.
_MAX_VOID = 5
_VOID = {
    "cut_off": "it stopped at its limit of tokens before it answered",
    "empty": "it wrote nothing",
    "malformed": "it did not write the JSON object that the prompt requires",
    "no_verdict": "gave no readable verdict",
}


@contextmanager
def open_synthesizer(
    folder: Path,
    record: TwinRecord,
    store: TripleStore,
    model: ChatModel | None,
    scorer: Scorer | None,
    actor: ChatModel | None,
    judge: ChatModel | None,
) -> Generator[Synthesizer]:
    """Yield the synthesizer of the twin's recipe; the completions of its models are cached in the twin's folder."""
    recipe = record.recipe
    if recipe.method == "none":
        yield Synthesizer(method="none")
        return
    cache = CompletionCache(folder / COMPLETIONS_FILE)
    try:
        model, actor, judge = (None if chat is None else replace(chat, cache=cache) for chat in (model, actor, judge))
        distractors = Distractors([triple.pair for triple in store.triples()], store.embedder)
        fidelity = None
        if recipe.scored:
            fidelity = fidelity_by_name(
                recipe.fidelity, scorer=scorer, actor=actor, judge=judge, embedder=store.embedder, distractors=distractors,
                proposal_mode=recipe.proposal_mode,
            )  # fmt: skip
        synthesizer = Synthesizer(
            method=recipe.method,
            model=model,
            fidelity=fidelity,
            scorer=scorer,
            embedder=store.embedder,
            distractors=distractors,
            judge=judge,
            proposal_mode=recipe.proposal_mode,
            candidates=recipe.candidates,
            max_calls=recipe.max_calls,
        )
        synthesizer.check()
        yield synthesizer
    finally:
        cache.close()


async def add_traces(
    store: TripleStore,
    triples: Iterable[Triple],
    record: TwinRecord,
    synthesizer: Synthesizer,
    max_traces: int | None,
    concurrency: int,
    progress: Progress,
) -> None:
    """Add traces to the latest `max_traces` triples, latest first, and commit each; skip triples that were tried before.

    Triples without any usable proposal count as tried only once the models have shown that they can do it.

    Raises:
        ModelError: the models wrote nothing, or gave no readable verdict, for all pairs or the first `_MAX_VOID`.
    """
    recipe = record.recipe
    if recipe.method == "none":
        return
    selected = [triple for triple in triples if not triple.pair.abandoned][::-1][:max_traces]
    untried = [triple for triple in selected if triple.provenance is None]
    done, total = len(selected) - len(untried), len(selected)
    progress("traces", done, total)
    queue = iter(untried)
    able, void = any(triple.provenance and not _is_void(triple.provenance) for triple in selected), list[Triple]()

    async def work() -> None:
        nonlocal done, able
        for triple in queue:
            traced = await synthesizer.synthesize(triple.pair, record.persona.name, seed=recipe.seed)
            void.append(traced)
            able = able or traced.provenance is None or not _is_void(traced.provenance)
            if able:
                store.set_traces(void)
                void.clear()
            elif len(void) >= _MAX_VOID:
                raise _void_error(void, recipe.judge)
            done += 1
            progress("traces", done, total)

    await run_concurrently(work, concurrency)
    if void:
        raise _void_error(void, recipe.judge)


def _is_void(provenance: Provenance) -> bool:
    """Return whether no proposal could be used, and no guard has read one: a fault of the models."""
    return all(proposal.rejected_by in _VOID for proposal in provenance.proposals)


def _void_error(triples: Sequence[Triple], judge: str | None) -> ModelError:
    """Return the error for triples without a usable proposal; it names the model that is at fault."""
    provenances = [triple.provenance for triple in triples if triple.provenance is not None]
    counts = Counter(proposal.rejected_by or "" for provenance in provenances for proposal in provenance.proposals)
    [(reason, _)] = counts.most_common(1) or [("empty", 0)]
    proposals = f"{counts.total()} proposals for {len(triples)} pairs"
    if reason == "no_verdict":
        return ModelError(f'the judge "{judge}" {_VOID[reason]} in all {proposals}; use another judge')
    return ModelError(
        f'the model "{provenances[0].proposer}" made no trace: {_VOID[reason]} in all {proposals}; use another model'
    )
