"""Forget: remove a person's turns from every file in a twin's folder, without a way to restore them.

Design: a held-out conversation is removed as a whole, because measuring needs whole conversations. What was derived from
forgotten turns (leaving models, sample turns) is derived again from the rest.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from usertwin.memory.models.completion_cache import COMPLETIONS_FILE
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.store.writer_lock import WriterLock
from usertwin.personas import Conversation, UsageError, write_conversations
from usertwin.personas.conversation import to_timestamp

from .abandonment import fit_leaving_models
from .record import HELD_OUT_FILE, OTHER_PERSON_FILE, TwinRecord, read_stored_conversations


@dataclass(frozen=True, slots=True)
class ForgetResult:
    """What was removed.

    Attributes:
        triples: number of triples removed from the memory.
        conversations: number of conversations removed from the held-out ones and from those of the other person.
    """

    triples: int
    conversations: int


def forget(
    folder: Path,
    embedder: Embedder,
    *,
    conversation: str | None = None,
    before: float | None = None,
    after: float | None = None,
) -> ForgetResult:
    """Remove a conversation, or all turns before or after a time; no byte of them stays in the twin's folder.

    The stored measurements are removed too, because they belong to another memory; the settings chosen with them stay.

    Args:
        folder: the twin's folder.
        embedder: the embedding model of its memory.
        conversation: id of the conversation.
        before: seconds since 1970; earlier turns are removed.
        after: seconds since 1970; later turns are removed. With `before`, only turns between the two.

    Raises:
        UsageError: neither or both of a conversation and a time are given, or a time for a log without dates.
        TwinError: the folder is not a twin, its memory is damaged, or another process is writing in it.
    """
    timed = before is not None or after is not None
    if timed == (conversation is not None):
        raise UsageError("to forget, name either a conversation, or a date before or after which to forget")
    record = TwinRecord.load(folder)
    if timed and not record.dated:
        raise UsageError(f"the log of {record.name} has no dates; name the conversation to forget instead")
    partial = folder.parent / f".{folder.name}.partial"
    if partial.exists():  # an interrupted run with --overwrite; it starts again, without the forgotten turns
        WriterLock(partial, wait=0.0).check()
    for other in (partial, folder.parent / f".{folder.name}.old"):
        shutil.rmtree(other, ignore_errors=True)
    for file in folder.glob(f"{COMPLETIONS_FILE}*"):
        file.unlink()
    with TripleStore(folder, embedder, create=False) as store:
        triples = store.forget(conversation, before=before, after=after)
        removed = [
            _remove_conversations(folder / file, conversation, before, after) for file in (HELD_OUT_FILE, OTHER_PERSON_FILE)
        ]
        store.save()
        if triples or any(removed):
            _update_record(folder, record, store, set().union(*removed) | ({conversation} if conversation else set()))
    return ForgetResult(triples, sum(map(len, removed)))


def _remove_conversations(path: Path, conversation_id: str | None, before: float | None, after: float | None) -> set[str]:
    """Remove the matching conversations from a file; return their ids."""

    def matches(conversation: Conversation) -> bool:
        if conversation_id is not None:
            return conversation.conversation_id == conversation_id
        times = [to_timestamp(turn.time or conversation.started_at) or 0.0 for turn in conversation.turns]
        return any((before is None or time < before) and (after is None or time > after) for time in times)

    conversations = read_stored_conversations(path)
    removed = {conversation.conversation_id for conversation in conversations if matches(conversation)}
    if removed:
        partial = path.with_name("kept.partial.jsonl.gz")
        write_conversations((c for c in conversations if c.conversation_id not in removed), partial)
        partial.replace(path)
    return removed


def _update_record(folder: Path, record: TwinRecord, store: TripleStore, removed: set[str]) -> None:
    """Fit the leaving models again and save a record without the removed conversations."""
    pairs = [triple.pair for triple in store.triples()]
    corpus = {pair.conversation_id for pair in pairs}
    fit_leaving_models(folder, record, store)
    actions = {" ".join(pair.action.split()) for pair in pairs}
    persona = replace(record.persona, sample_turns=tuple(turn for turn in record.persona.sample_turns if turn in actions))
    replace(
        record,
        persona=persona,
        corpus=tuple(id_ for id_ in record.corpus if id_ in corpus),
        validation=tuple(id_ for id_ in record.validation if id_ not in removed),
        test=tuple(id_ for id_ in record.test if id_ not in removed),
        closeness=None,
        settings=None if record.settings is None else replace(record.settings, measured=None),
    ).save(folder)


def parse_date(date: str) -> float:
    """Return an ISO 8601 date as seconds since 1970. UsageError if it is not one."""
    try:
        return to_timestamp(date) or 0.0
    except ValueError:
        raise UsageError(f'"{date}" is not a date; write it as 2026-05-31 or 2026-05-31T18:00') from None
