"""Add new conversations to an existing twin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from usertwin.memory.concurrency import to_thread
from usertwin.memory.models.chat import ChatModel
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.store.error_messages import changed_before, storage_errors
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.text.transcript import single_line
from usertwin.memory.triples import Triple
from usertwin.personas import ChatLog, Conversation, LogError, Pair
from usertwin.personas.pairs import check_speaker, group_pairs, visible_turns

from .abandonment import fit_leaving_models
from .add_traces import add_traces, open_synthesizer
from .forget import finish_forgetting
from .learn import add_pairs
from .locks import writing
from .record import HELD_OUT_FILE, TwinRecord, conversation_ids, existing_twin, read_stored_conversations, update_record
from .unfinished_add import UnfinishedAdd

#: Turns in a row by which a held-out conversation is known again, if they reach to an end of it.
_MIN_SHARED = 3


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
    """Add the person's pairs in another log to the twin's memory; return the record and the number of new pairs.

    Pairs already in the memory and held-out conversations are skipped; without dates, known conversations too. The persona
    stays as it is. A call that was stopped is completed by the same call, whose number of new pairs counts those added before.

    Args:
        name: name of the twin.
        log: conversations of the same person. For a twin without dates, all of them count as later than its memory.
        embedder: the embedding model of the twin's memory.
        model: proposes traces; required if `max_traces` is not 0.
        scorer: scores and guards traces; required if `max_traces` is not 0.
        actor: reconstructs actions; required if the twin's recipe reconstructs.
        judge: rates traces or reconstructions; required if the twin's recipe has a judge.
        home: folder of all twins; see `default_home`.
        max_traces: number of new pairs that get traces, latest first.
        concurrency: number of pairs that may wait for a model at the same time.
        progress: called after each chunk of pairs and after each trace.

    Raises:
        TwinError: there is no such twin, it is damaged, or another process is writing in its memory.
        LogError: the person does not speak in the log, or the log has no dates and the twin's log had them.
        ModelError: a model does not answer; finished work is kept.
    """
    folder = existing_twin(name, home)
    with writing(folder):
        finish_forgetting(folder, embedder)
        record = TwinRecord.load(folder)
        pairs = _usable_pairs(log, record, folder)
        with TripleStore(folder, embedder, create=False) as store:
            new = _begin(folder, pairs, record, store)
            if not new:
                return record, 0
            with changed_before("what was added is kept, and the same command adds the rest"):
                _delete_resumed_abandonments(store, new)
                await add_pairs(store, [triple.pair for triple in new], progress)
                if max_traces:
                    with open_synthesizer(folder, record, store, model, scorer, actor, judge) as synthesizer:
                        await add_traces(store, new, record, synthesizer, max_traces, concurrency, progress)
                await to_thread(fit_leaving_models, folder, record, store)
                ids = conversation_ids([triple.pair for triple in new])
                record = update_record(folder, lambda old: replace(old, corpus=tuple(dict.fromkeys([*old.corpus, *ids]))))
                store.save()
                UnfinishedAdd().save(folder)
    return record, len(new)


def _begin(folder: Path, pairs: Sequence[Pair], record: TwinRecord, store: TripleStore) -> list[Triple]:
    """Write the journal of this call; return its new triples, and those of a stopped call with the same log as they are now."""
    unfinished = UnfinishedAdd.load(folder)
    triples = [Triple(pair) for pair in pairs]
    stopped = {triple.id for triple in triples} & {*unfinished.triples}
    shift = 0.0
    if not record.dated:
        begun = {triple.pair.conversation_id for triple in triples if triple.id in stopped}
        ids = {triple.pair.conversation_id for triple in triples} - begun
        known = {triple.pair.conversation_id for triple in store.triples(conversations=ids)} - begun
        shift = unfinished.shift if stopped else _first_free_time(record, store)
        shifted = (replace(triple.pair, when=shift + triple.pair.when) for triple in triples)
        triples = [Triple(pair) for pair in shifted if pair.conversation_id not in known]
    new = {triple.id: triple for triple in store.missing(triples)}
    if stopped:
        ids = {triple.pair.conversation_id for triple in triples}
        new |= {triple.id: triple for triple in store.triples(conversations=ids) if triple.id in stopped}
    if new:
        with storage_errors(folder):
            UnfinishedAdd(tuple(new), shift).save(folder)
    return [new[triple.id] for triple in triples if triple.id in new]


def _usable_pairs(log: ChatLog, record: TwinRecord, folder: Path) -> list[Pair]:
    """Return the person's pairs in the log, without held-out conversations or copies of them. LogError without dates."""
    speaker, held_out = record.recipe.speaker, {*record.validation, *record.test}
    check_speaker(log, speaker)
    known = _HeldOutTurns([_texts(conversation) for conversation in read_stored_conversations(folder / HELD_OUT_FILE)])
    conversations = [c for c in log.conversations if c.conversation_id not in held_out and not known.hold(_texts(c))]
    if record.dated and any(conversation.started_at is None for conversation in conversations):
        raise LogError(
            f'{log.source}: "started_at" is missing, and the twin was learned from a log with dates; '
            'add "started_at" to every conversation'
        )
    return [pair for group in group_pairs(conversations, speaker, window=record.recipe.window) for pair in group]


def _texts(conversation: Conversation) -> tuple[str, ...]:
    """Return the public turns of a conversation, by which a copy under another id or date is known."""
    return tuple(single_line(turn.text) for turn, _ in visible_turns(conversation.turns))


class _HeldOutTurns:
    """The turns of held-out conversations, by which they are known under another id: as they were, grown, or cut elsewhere."""

    def __init__(self, conversations: Sequence[tuple[str, ...]]) -> None:
        self._conversations = conversations
        self._places: dict[str, set[int]] = {}
        for number, texts in enumerate(conversations):
            for text in texts:
                self._places.setdefault(text, set()).add(number)

    def hold(self, texts: tuple[str, ...]) -> bool:
        """Return whether the turns are those of a held-out conversation, or overlap with one by at least `_MIN_SHARED`."""
        shared = Counter(chain.from_iterable(self._places.get(text, ()) for text in texts))
        return any(
            texts == self._conversations[number] or (count >= _MIN_SHARED - 1 and _overlap(texts, self._conversations[number]))
            for number, count in shared.items()
        )


def _overlap(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Return whether two lists of turns, laid on each other, agree wherever both have one, in at least `_MIN_SHARED` turns.

    The last turn that both have may have grown by further messages.
    """
    for offset in range(_MIN_SHARED - len(second), len(first) - _MIN_SHARED + 1):
        start, end = max(0, offset), min(len(first), offset + len(second))
        here, there = first[start:end], second[start - offset : end - offset]
        if here[:-1] == there[:-1] and (here[-1].startswith(there[-1]) or there[-1].startswith(here[-1])):
            return True
    return False


def _first_free_time(record: TwinRecord, store: TripleStore) -> float:
    """Return a time after everything in the memory and held out. Without dates, `when` is the conversation's index in a log."""
    held_out = {*record.validation, *record.test}
    return max(record.corpus_ends + 1 + len(held_out), (store.stats().last or 0.0) + 1)


def _delete_resumed_abandonments(store: TripleStore, new: Sequence[Triple]) -> None:
    """Delete abandonments of conversations in which the person speaks again according to the new triples."""
    last_spoken = {triple.pair.conversation_id: triple.pair.position for triple in new if not triple.pair.abandoned}
    if last_spoken:
        store.delete(
            [
                triple.id
                for triple in store.triples(abandoned=True, conversations=last_spoken)
                if triple.pair.position <= last_spoken.get(triple.pair.conversation_id, -1)
            ]
        )
