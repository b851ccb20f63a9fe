"""Add reasoning traces to the triples of a memory, several at a time, each committed before the next starts.

Design: a triple with provenance was tried, even if no trace passed the guards. So a resumed run needs no other bookkeeping.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
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
from usertwin.memory.triples import Triple

from .record import TwinRecord


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
                recipe.fidelity, scorer=scorer, actor=actor, judge=judge, embedder=store.embedder, distractors=distractors
            )
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
    """Add traces to the latest `max_traces` triples, latest first, and commit each; skip triples that were tried before."""
    recipe = record.recipe
    if recipe.method == "none":
        return
    selected = [triple for triple in triples if not triple.pair.abandoned][::-1][:max_traces]
    untried = [triple for triple in selected if triple.provenance is None]
    done, total = len(selected) - len(untried), len(selected)
    progress("traces", done, total)
    queue = iter(untried)

    async def work() -> None:
        nonlocal done
        for triple in queue:
            traced = await synthesizer.synthesize(triple.pair, record.persona.name, seed=recipe.seed)
            store.set_traces([traced])
            done += 1
            progress("traces", done, total)

    await run_concurrently(work, concurrency)
