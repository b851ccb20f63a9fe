"""Add new conversations to an existing twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from usertwin.memory.models.chat import ChatModel
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.triples import Triple
from usertwin.personas import ChatLog, LogError, Pair
from usertwin.personas.pairs import check_speaker, pairs_of_log

from .abandonment import fit_leaving_models
from .add_traces import add_traces, open_synthesizer
from .learn import remember
from .record import TwinRecord, conversation_ids, existing_twin


async def aappend(
    name: str,
    log: ChatLog,
    *,
    embedder: Embedder,
    model: ChatModel | None = None,
    scorer: Scorer | None = None,
    actor: ChatModel | None = None,
    judge: ChatModel | None = None,
    home: str | Path | None = None,
    max_traces: int = 0,
    concurrency: int = 1,
    progress: Progress = no_progress,
) -> tuple[TwinRecord, int]:
    """Add what the person said in another log to the memory of their twin; returns the record and how many pairs were new.

    What the memory holds already is skipped, and so are the conversations that the twin is measured on. Nothing is built
    again; the persona and the held-out conversations stay as they are.

    Args:
        name: the twin.
        log: conversations of the same person. If the twin was learned from a log without dates, all of them count as later.
        embedder: the embedding model of its memory.
        model: proposes traces, in the way the twin was learned.
        scorer: scores and guards them.
        actor: reconstructs actions, where the twin was learned so.
        judge: judges, where the twin was learned so.
        home: where twins live.
        max_traces: for how many of the new pairs to find traces, the latest ones.
        concurrency: how many pairs may wait for the model at once.
        progress: is told how far things are.

    Raises:
        TwinError: no such twin, a damaged one, or somebody else writes in its memory.
        LogError: the person does not speak in the log, or it has no dates though that of the twin had.
        ModelError: a model does not answer; what was done until then is kept.
    """
    folder = existing_twin(name, home)
    record = TwinRecord.load(folder)
    pairs = _not_held_out(log, record)
    with TripleStore(folder, embedder, create=False) as store:
        if not record.dated:
            pairs = _later(pairs, record, store)
        new = store.missing([Triple(pair) for pair in pairs])
        went_on = {triple.pair.conversation_id: triple.pair.position for triple in new if not triple.pair.abandoned}
        store.delete(
            [t.id for t in store.triples() if t.pair.abandoned and t.pair.position <= went_on.get(t.pair.conversation_id, -1)]
        )
        remember(store, [triple.pair for triple in new], progress)
        if max_traces:
            with open_synthesizer(folder, record, store, model, scorer, actor, judge) as synthesizer:
                await add_traces(store, new, record, synthesizer, max_traces, concurrency, progress)
        if new:
            fit_leaving_models(folder, record, store)
    record = replace(record, corpus=tuple(dict.fromkeys([*record.corpus, *conversation_ids([triple.pair for triple in new])])))
    record.save(folder)
    return record, len(new)


def _not_held_out(log: ChatLog, record: TwinRecord) -> list[Pair]:
    """What the twin's person did in another log, but for the conversations that the twin is measured on."""
    speaker, held_out = record.recipe.speaker, {*record.validation, *record.test}
    check_speaker(log, speaker)
    fresh = [one for one in log.conversations if one.conversation_id not in held_out]
    if record.dated and any(one.started_at is None for one in fresh):
        raise LogError(f'{log.source}: its conversations need "started_at", since those the twin was learned from have it')
    return [pair for group in pairs_of_log(fresh, speaker, window=record.recipe.window) for pair in group]


def _later(pairs: Sequence[Pair], record: TwinRecord, store: TripleStore) -> list[Pair]:
    """Of conversations that the memory does not know, the pairs after all it knows and all that is held out.

    Where logs have no dates, `when` is a place in the log; everything held out came before the log that is added.
    """
    known = {triple.pair.conversation_id for triple in store.triples()}
    held_out = {*record.validation, *record.test}
    begins = max(record.corpus_ends + 1 + len(held_out), (store.stats().last or 0.0) + 1)
    return [replace(pair, when=begins + pair.when) for pair in pairs if pair.conversation_id not in known]
