"""Forgetting: what a person said is taken out of everything a twin's folder holds, and cannot be had back.

The one design choice: forgetting goes by whole conversations where a conversation is only kept for measuring, and what was
learned from the forgotten (when to leave, the sample turns) is learned anew from what is left.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from usertwin.memory.models.answer_cache import COMPLETIONS_FILE
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.store.writer_lock import WriterLock
from usertwin.personas import Conversation, UsageError, write_conversations
from usertwin.personas.conversation import seconds

from .abandonment import fit_leaving_models
from .record import HELD_OUT, OTHER_PERSON, TwinRecord, kept_conversations


@dataclass(frozen=True, slots=True)
class ForgetResult:
    """What was forgotten.

    Attributes:
        triples: from the memory.
        conversations: that were held out, or kept of the other person.
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
    """Forget a conversation, or what was said before or after a moment; nothing of it is left in the twin's folder.

    The last measurements are forgotten too, since they were of another twin; what was decided by them stays as it is.

    Args:
        folder: the twin's.
        embedder: the embedding model of its memory.
        conversation: the conversation's id.
        before: seconds since 1970; what was said earlier is forgotten.
        after: what was said later is forgotten. With `before`, what is both.

    Raises:
        UsageError: not one thing is said to forget: a conversation or a time; or a time where the log had no dates.
        TwinError: no twin, a damaged memory, or somebody else writes in it.
    """
    timed = before is not None or after is not None
    if timed == (conversation is not None):
        raise UsageError("to forget, name either a conversation, or a date before or after which to forget")
    record = TwinRecord.load(folder)
    if timed and not record.dated:
        raise UsageError(f"the log of {record.name} has no dates; name the conversation that is to be forgotten")
    begun = folder.parent / f".{folder.name}.partial"
    if begun.exists():  # a learning that was to replace this twin; it is begun again, without the forgotten
        WriterLock(begun, wait=0.0).check()
    for other in (begun, folder.parent / f".{folder.name}.old"):
        shutil.rmtree(other, ignore_errors=True)
    for kept in folder.glob(f"{COMPLETIONS_FILE}*"):
        kept.unlink()
    with TripleStore(folder, embedder, create=False) as store:
        triples = store.forget(conversation, before=before, after=after)
        gone = [_without(folder / name, conversation, before, after) for name in (HELD_OUT, OTHER_PERSON)]
        store.save()
        if triples or any(gone):
            _learn_anew(folder, record, store, set().union(*gone) | ({conversation} if conversation else set()))
    return ForgetResult(triples, sum(map(len, gone)))


def _without(path: Path, conversation: str | None, before: float | None, after: float | None) -> set[str]:
    """Take conversations out of a file of them; returns their ids."""

    def concerned(one: Conversation) -> bool:
        if conversation is not None:
            return one.conversation_id == conversation
        said = [seconds(turn.time or one.started_at) or 0.0 for turn in one.turns]
        return any((before is None or when < before) and (after is None or when > after) for when in said)

    known = kept_conversations(path)
    gone = {one.conversation_id for one in known if concerned(one)}
    if gone:
        partial = path.with_name("kept.partial.jsonl.gz")
        write_conversations((one for one in known if one.conversation_id not in gone), partial)
        partial.replace(path)
    return gone


def _learn_anew(folder: Path, record: TwinRecord, store: TripleStore, gone: set[str]) -> None:
    """Bring everything that was drawn from the forgotten to what is left."""
    left = [triple.pair for triple in store.triples()]
    there = {pair.conversation_id for pair in left}
    fit_leaving_models(folder, record, store)
    said = {" ".join(pair.action.split()) for pair in left}
    persona = replace(record.persona, sample_turns=tuple(turn for turn in record.persona.sample_turns if turn in said))
    replace(
        record,
        persona=persona,
        corpus=tuple(name for name in record.corpus if name in there),
        validation=tuple(name for name in record.validation if name not in gone),
        test=tuple(name for name in record.test if name not in gone),
        closeness=None,
        settings=None if record.settings is None else replace(record.settings, measured=None),
    ).save(folder)


def moment_of(date: str) -> float:
    """An ISO 8601 date as seconds since 1970. UsageError if it is none."""
    try:
        return seconds(date) or 0.0
    except ValueError:
        raise UsageError(f'"{date}" is no date; write it as 2026-05-31 or 2026-05-31T18:00') from None
