"""Giving the triples of a memory their traces: concurrently, each on disk before the next is begun, nothing asked twice.

The one design choice: a triple that was tried is known by its provenance, also where no trace passed, so that going on after a
stop is nothing but doing what is left.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from usertwin.memory.concurrency import run_concurrently
from usertwin.memory.models.answer_cache import COMPLETIONS_FILE, CompletionCache
from usertwin.memory.models.chat import ChatModel
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
    """Open what makes the twin's traces, after its recipe; whatever it asks a model is kept in the twin's folder."""
    recipe = record.recipe
    if recipe.method == "none":
        yield Synthesizer("none")
        return
    answers = CompletionCache(folder / COMPLETIONS_FILE)
    try:
        model, actor, judge = (None if one is None else replace(one, cache=answers) for one in (model, actor, judge))
        distractors = Distractors([triple.pair for triple in store.triples()], store.embedder)
        fidelity = None
        if recipe.scored:
            fidelity = fidelity_by_name(
                recipe.fidelity, scorer=scorer, actor=actor, judge=judge, embedder=store.embedder, distractors=distractors
            )
        synthesizer = Synthesizer(
            recipe.method,
            model,
            fidelity,
            scorer,
            store.embedder,
            distractors,
            judge,
            recipe.proposal_mode,
            recipe.candidates,
            recipe.max_calls,
        )
        synthesizer.check()
        yield synthesizer
    finally:
        answers.close()


async def add_traces(
    store: TripleStore,
    triples: Iterable[Triple],
    record: TwinRecord,
    synthesizer: Synthesizer,
    most: int | None,
    concurrency: int,
    progress: Progress,
) -> None:
    """Give triples that were not yet tried a trace, the latest first and `most` in all; each is on disk before the next."""
    recipe = record.recipe
    if recipe.method == "none":
        return
    wanted = [triple for triple in triples if not triple.pair.abandoned][::-1][:most]
    waiting = [triple for triple in wanted if triple.provenance is None]
    done, total = len(wanted) - len(waiting), len(wanted)
    progress("traces", done, total)
    queue = iter(waiting)

    async def work() -> None:
        nonlocal done
        for triple in queue:
            traced = await synthesizer.synthesize(triple.pair, record.persona.name, seed=recipe.seed)
            store.set_traces([traced])
            done += 1
            progress("traces", done, total)

    await run_concurrently(work, concurrency)
