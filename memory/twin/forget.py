"""Forget: remove a person's turns from every file of a twin, without a way to restore them.

What is to be forgotten is written to a journal first, by ids and times. Then every step can be repeated, and the journal is
removed when no file holds an id of it any more. If forgetting is stopped, the next command that opens the twin finishes it.

Design: a held-out conversation is removed as a whole, because measuring needs whole conversations. What was derived from
forgotten turns (leaving models, counts about the person) is derived again from the rest. An adapter is not: training takes
long, so it is deleted, and the user trains another one.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from usertwin.memory.models.completion_cache import COMPLETIONS_FILE
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.store.error_messages import changed_before, storage_errors
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.store.writer_lock import WriterLock
from usertwin.memory.triples import Triple
from usertwin.personas import Conversation, Pair, Persona, TwinError, UsageError
from usertwin.personas.dates import to_timestamp
from usertwin.personas.files import write_private
from usertwin.personas.persona import derive_persona

from .abandonment import fit_leaving_models
from .locks import replaced_folder, staged_folder, writing
from .record import (
    ADAPTER_FOLDER,
    ADAPTING_FOLDER,
    HELD_OUT_FILE,
    OTHER_PERSON_FILE,
    SESSIONS_FILE,
    TwinRecord,
    read_stored_conversations,
    update_record,
    write_stored_conversations,
)
from .unfinished_add import UnfinishedAdd

_LOG = logging.getLogger("usertwin.memory")
_JOURNAL = "forgetting.json"
_STORED = (HELD_OUT_FILE, OTHER_PERSON_FILE)
_BLOCK = 2**24  #: bytes of a file that are searched at once
_HEX = re.compile(rb"[0-9a-f]{16,}")


@dataclass(frozen=True, slots=True)
class ForgetResult:
    """What was removed.

    Attributes:
        triples: number of triples removed from the memory.
        conversations: number of conversations removed from the held-out ones and from those of the other person.
        adapter: whether the twin's adapter was deleted, since it was trained or measured on what is forgotten.
    """

    triples: int
    conversations: int
    adapter: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    """The turns to forget: those of a conversation, or those of a time span."""

    conversation: str | None
    before: float | None
    after: float | None

    def matches(self, conversation_id: str, times: Iterator[float]) -> bool:
        if self.conversation is not None:
            return conversation_id == self.conversation
        return any((self.before is None or time < self.before) and (self.after is None or time > self.after) for time in times)

    def matches_triple(self, triple: Triple) -> bool:
        """A triple holds the turns of its context too."""
        pair = triple.pair
        times = (to_timestamp(turn.time) for turn in pair.context if turn.time is not None)
        return self.matches(pair.conversation_id, iter([pair.when, *(time for time in times if time is not None)]))

    def matches_conversation(self, conversation: Conversation) -> bool:
        times = (to_timestamp(turn.time or conversation.started_at) or 0.0 for turn in conversation.turns)
        return self.matches(conversation.conversation_id, times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """What is to be forgotten, without its text.

    Attributes:
        request: what the user asked for.
        triples: ids of the triples.
        touched: ids of the conversations of these triples.
        removed: ids of the stored conversations that are removed as a whole.
        adapter: whether an adapter in use is deleted.
    """

    request: _Request
    triples: tuple[str, ...]
    touched: tuple[str, ...]
    removed: tuple[str, ...]
    adapter: bool = False

    @property
    def result(self) -> ForgetResult:
        """What is removed, whether by one call or after interruptions."""
        return ForgetResult(len(self.triples), len(self.removed), self.adapter)

    def touches_adapter(self, record: TwinRecord) -> bool:
        """Return whether an adapter of the twin was trained or measured on turns that are forgotten."""
        return bool(self.triples or not set(self.removed).isdisjoint(record.validation))

    def after(self, earlier: Journal) -> Journal:
        """Return the journal of this request and of an earlier one that is not finished."""
        conversations = (*earlier.removed, earlier.request.conversation)
        return replace(
            self,
            triples=(*self.triples, *earlier.triples),
            touched=(*self.touched, *earlier.touched),
            removed=(*self.removed, *(id_ for id_ in conversations if id_ is not None)),
        )

    def save(self, folder: Path) -> None:
        """Write the journal durably."""
        write_private(folder / _JOURNAL, json.dumps(asdict(self), ensure_ascii=False))

    @classmethod
    def load(cls, folder: Path) -> Journal | None:
        """Read the journal of a twin; None if nothing is left to forget. TwinError if it is damaged."""
        path = folder / _JOURNAL
        try:
            raw = json.loads(path.read_text("utf-8"))
            lists = {key: tuple(map(str, raw[key])) for key in ("triples", "touched", "removed")}
            return cls(request=_Request(**raw["request"]), adapter=raw.get("adapter") is True, **lists)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise TwinError(f"{path}: is damaged ({error}); delete it, and forget the same turns again") from None


def forget(
    folder: Path,
    embedder: Embedder,
    *,
    conversation: str | None = None,
    before: float | None = None,
    after: float | None = None,
) -> ForgetResult:
    """Remove a conversation, or all turns before or after a time; no byte of them stays in the twin's folder.

    A call that was stopped is finished by the same call, with the same result, or by `open_memory`. The stored measurements are
    removed too, because they belong to another memory; the settings chosen with them stay. All cached completions are removed,
    since their keys do not say of which turns they are, and all sessions, in which the twin may have repeated the turns. An
    adapter is deleted, with its checkpoints, unless only conversations are forgotten that it was neither trained nor measured
    on.

    Args:
        folder: the twin's folder.
        embedder: the embedding model of its memory.
        conversation: id of the conversation.
        before: seconds since 1970; earlier turns are removed.
        after: seconds since 1970; later turns are removed. With `before`, only turns between the two.

    Raises:
        UsageError: neither or both of a conversation and a time are given, the twin has no such conversation, or a time is
            given for a log without dates; nothing is changed.
        TwinError: the folder is not a twin, its memory is damaged, or another process is writing in it.
    """
    request = _Request(conversation, before, after)
    timed = before is not None or after is not None
    if timed == (conversation is not None):
        raise UsageError("to forget, name either a conversation, or a date before or after which to forget")
    with writing(folder):
        unfinished = Journal.load(folder)
        if unfinished is not None:
            finished = _execute(folder, embedder, unfinished)
            if unfinished.request == request:
                return unfinished.result
            unfinished = None if finished else unfinished
        record = TwinRecord.load(folder)
        if timed and not record.dated:
            raise UsageError(f"the log of {record.name} has no dates; name the conversation to forget instead")
        journal = _plan(folder, embedder, request, record)
        if conversation is None and not (journal.triples or journal.removed):
            return journal.result
        if not (journal.triples or journal.removed or conversation in (*record.corpus, *record.validation, *record.test)):
            raise UsageError(f'{record.name}: there is no conversation "{conversation}" in the twin; nothing was changed')
        whole = journal if unfinished is None else journal.after(unfinished)
        with storage_errors(folder):
            try:
                whole.save(folder)
            except BaseException:
                (folder / _JOURNAL).unlink(missing_ok=True)  # it may be in place, but not durable
                raise
        _execute(folder, embedder, whole)
    return journal.result


def finish_forgetting(folder: Path, embedder: Embedder) -> None:
    """Finish forgetting that was stopped, if any. Requires the writer lock."""
    journal = Journal.load(folder)
    if journal is not None and _execute(folder, embedder, journal):
        _LOG.warning("%s: forgetting was stopped before and is finished now; %d pairs erased", folder, len(journal.triples))


def open_memory(folder: Path, embedder: Embedder) -> TripleStore:
    """Open the memory of a twin, after forgetting that was stopped is finished."""
    if Journal.load(folder) is not None:
        with writing(folder):
            finish_forgetting(folder, embedder)
    return TripleStore(folder, embedder, create=False)


def unfinished_forgetting(folder: Path) -> list[Path] | None:
    """Return the files that still hold what was to be forgotten when that was stopped; None if it was not. Changes nothing."""
    journal = Journal.load(folder)
    return None if journal is None else remains(folder, journal)


def _plan(folder: Path, embedder: Embedder, request: _Request, record: TwinRecord) -> Journal:
    with TripleStore(folder, embedder, create=False) as store:
        triples = [triple for triple in store.triples() if request.matches_triple(triple)]
    stored = [conversation for file in _STORED for conversation in read_stored_conversations(folder / file)]
    journal = Journal(
        request=request,
        triples=tuple(triple.id for triple in triples),
        touched=tuple(dict.fromkeys(triple.pair.conversation_id for triple in triples)),
        removed=tuple(c.conversation_id for c in stored if request.matches_conversation(c)),
    )
    in_use = record.adapter is not None and record.adapter.used
    return replace(journal, adapter=in_use and journal.touches_adapter(record))


@changed_before("forgetting is not finished")
def _execute(folder: Path, embedder: Embedder, journal: Journal) -> bool:
    """Do every step that is not done yet, remove the journal if nothing remains, and return whether it is so.

    Requires the writer lock.
    """
    staged = staged_folder(folder)
    if staged.exists():  # an interrupted run with --overwrite; it starts again, without the forgotten turns
        WriterLock(staged, wait=0.0).check()
    with storage_errors(folder):
        for other in (staged, replaced_folder(folder)):
            shutil.rmtree(other, ignore_errors=True)
        for file in (*folder.glob(f"{COMPLETIONS_FILE}*"), *folder.glob(f"{SESSIONS_FILE}*")):
            file.unlink()
        if adapter := journal.touches_adapter(TwinRecord.load(folder)):
            for place in (folder / ADAPTER_FOLDER, folder / ADAPTING_FOLDER):
                if place.exists():
                    shutil.rmtree(place)
        UnfinishedAdd.load(folder).without(journal.triples).save(folder)
    with TripleStore(folder, embedder, create=False) as store:
        store.delete(journal.triples)  # takes the writer lock of the memory too, so every partial file is of a killed process
        with storage_errors(folder):
            for leftover in folder.glob("*.partial*"):
                if not leftover.name.startswith(".twin.json."):  # see `update_record`
                    leftover.unlink()
        store.save()
        with storage_errors(folder):
            for path in (folder / file for file in _STORED):
                conversations = read_stored_conversations(path)
                kept = [c for c in conversations if c.conversation_id not in journal.removed]
                if len(kept) < len(conversations):
                    write_stored_conversations(kept, path)
        record = _update_record(folder, store, journal, keeps_adapter=not adapter)
        fit_leaving_models(folder, record, store)
    with storage_errors(folder):
        remaining = remains(folder, journal)
        if not remaining:
            (folder / _JOURNAL).unlink()  # should it reappear after a power cut, the steps are done again
            return True
    names = ", ".join(path.name for path in remaining)
    _LOG.warning("%s: %s may still hold forgotten turns; they are erased when the twin is next opened", folder, names)
    return False


def _update_record(folder: Path, store: TripleStore, journal: Journal, *, keeps_adapter: bool) -> TwinRecord:
    """Save the record without the removed conversations, and return it."""
    pairs = [triple.pair for triple in store.triples()]
    left = {pair.conversation_id for pair in pairs}
    gone = {*journal.removed, journal.request.conversation, *(id_ for id_ in journal.touched if id_ not in left)}
    others = {turn.speaker for conv in read_stored_conversations(folder / OTHER_PERSON_FILE) for turn in conv.turns}

    def forgotten(record: TwinRecord) -> TwinRecord:
        ids = {key: tuple(id_ for id_ in getattr(record, key) if id_ not in gone) for key in ("corpus", "validation", "test")}
        return replace(
            record,
            persona=_without_forgotten(record.persona, pairs),
            corpus_ends=max((pair.when for pair in pairs if pair.when <= record.corpus_ends), default=0.0),
            other_speaker=record.other_speaker if record.other_speaker in others else None,
            closeness=None,
            judge_check=None,
            adapter=record.adapter if keeps_adapter else None,
            settings=None if record.settings is None else replace(record.settings, measured=None),
            **ids,
        )

    return update_record(folder, forgotten)


def _without_forgotten(persona: Persona, pairs: Sequence[Pair]) -> Persona:
    """Return a persona that states nothing of turns other than those of the pairs; what the user wrote of the person stays."""
    actions = {" ".join(pair.action.split()) for pair in pairs}
    kept = replace(persona, sample_turns=tuple(turn for turn in persona.sample_turns if turn in actions))
    if not persona.derived:
        return kept
    spoken = [pair for pair in pairs if not pair.abandoned]
    derived = derive_persona(spoken, persona.name) if spoken else Persona(persona.name)
    return replace(kept, description=derived.description, typical_words=derived.typical_words)


def remains(folder: Path, journal: Journal) -> list[Path]:
    """Return the files of a twin, those of hidden folders beside it included, that hold an id of what is to be forgotten."""
    triples = {id_.encode() for id_ in journal.triples}
    conversations = {id_ for id_ in (*journal.removed, journal.request.conversation) if id_ is not None}
    remaining: list[Path] = []
    for place in (folder, staged_folder(folder), replaced_folder(folder)):
        for path in sorted(path for path in place.rglob("*") if path.is_file() and path != folder / _JOURNAL):
            with suppress(FileNotFoundError):  # a reader has closed, and with it the write-ahead log
                if _has_triple(path, triples) or _has_conversation(path, conversations):
                    remaining.append(path)
    return remaining


def _has_triple(path: Path, ids: set[bytes]) -> bool:
    """Return whether a file holds one of the ids, which are 16 hexadecimal digits, also within a longer run of such digits."""
    with path.open("rb") as file:
        end = b""
        while block := file.read(_BLOCK):
            data = end + block
            for run in _HEX.finditer(data):
                if any(run[0][start : start + 16] in ids for start in range(len(run[0]) - 15)):
                    return True
            end = data[-15:]
    return False


def _has_conversation(path: Path, ids: set[str]) -> bool:
    """Return whether a record lists one of the ids, or a file of conversations has one of them."""
    try:
        if path.name.startswith(("twin.json", ".twin.json")):
            record = json.loads(path.read_bytes())
            return not ids.isdisjoint((*record["corpus"], *record["validation"], *record["test"]))
        if path.name.endswith(".gz"):
            lines = gzip.decompress(path.read_bytes()).splitlines()
            return any(json.loads(line).get("conversation_id") in ids for line in lines)
    except FileNotFoundError:
        return False
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError):
        return True  # a file that cannot be read may hold anything
    return False


def parse_date(date: str) -> float:
    """Return an ISO 8601 date as seconds since 1970. UsageError if it is not one."""
    try:
        return to_timestamp(date) or 0.0
    except ValueError:
        raise UsageError(f'"{date}" is not a date; write it as 2026-05-31 or 2026-05-31T18:00') from None
