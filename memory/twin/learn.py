"""Learning a twin from a chat log: split, remember the pairs, learn the ending, make the traces.

The one design choice: everything is written as it comes into a folder that can be opened at any time, the cheap part (pairs
and embeddings) first, so that a learning that is stopped leaves a usable twin, and the same call goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from usertwin.memory.models.answer_cache import ANSWERS
from usertwin.memory.models.chat import ChatModel
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.store.writer_lock import WriterLock
from usertwin.memory.triples import Triple
from usertwin.personas import (
    ChatLog,
    Conversation,
    LogError,
    Pair,
    Persona,
    Split,
    TwinError,
    draw_persona,
    split_pairs,
    write_conversations,
)
from usertwin.personas.pairs import check_speaker, pairs_of_log

from .abandonment import learn_when_to_leave
from .add_traces import Progress, no_progress, open_synthesizer, trace
from .record import HELD_OUT, OTHER_PERSON, Recipe, TwinRecord, existing_twin, twin_folder

_BATCH = 32
_OTHER_TURNS = 300
_VERSIONED = (
    "usertwin",
    "langgraph",
    "langchain-openai",
    "transformers",
    "faiss-cpu",
    "sentence-transformers",
    "torch",
    "xllamacpp",
)


async def learn(
    name: str,
    log: ChatLog,
    recipe: Recipe,
    *,
    embedder: Embedder,
    model: ChatModel | None = None,
    scorer: Scorer | None = None,
    actor: ChatModel | None = None,
    judge: ChatModel | None = None,
    persona: Persona | None = None,
    home: str | Path | None = None,
    overwrite: bool = False,
    concurrency: int = 1,
    progress: Progress = no_progress,
) -> TwinRecord:
    """Learn a twin and return its record.

    Args:
        name: what to call the twin.
        log: the conversations.
        recipe: how to learn; an interrupted learning with the same recipe is continued.
        embedder: makes the embeddings.
        model: proposes traces, where the recipe wants some.
        scorer: scores and guards them, where the recipe wants that.
        actor: reconstructs actions, where the recipe's fidelity needs that.
        judge: judges, where the recipe needs that.
        persona: who the twin plays; drawn from the log if None.
        home: where twins live; see `default_home`.
        overwrite: replace a twin of this name; the old one is only gone when the new one is complete.
        concurrency: how many pairs may wait for the model at once.
        progress: is told how far things are.

    Raises:
        LogError: the speaker is unknown or has too few turns.
        TwinError: the name is taken or no name.
        UsageError: a limit that makes no sense.
        ModelError: a model does not answer; what was done until then is kept.
    """
    recipe.check()
    split = split_pairs(log, recipe.speaker, window=recipe.window)
    target = twin_folder(name, home)
    work = _work_folder(name, target, recipe, split, overwrite, embedder)
    record = _prepare(work, name, log, recipe, split, persona)
    try:
        pairs = split.corpus if recipe.max_triples is None else split.corpus[-recipe.max_triples :]
        with TripleStore(work, embedder) as store:
            _remember(store, pairs, progress)
            learn_when_to_leave(work, record, store)
            with open_synthesizer(work, record, store, model, scorer, actor, judge) as synthesizer:
                await trace(store, store.triples(), record, synthesizer, recipe.max_traces, concurrency, progress)
        record = replace(record, state="complete")
        record.save(work)
    except BaseException:
        if work != target and not target.exists() and (work / "memory.faiss").exists():
            work.rename(target)  # what was remembered until now is a twin that can be used
        raise
    if work != target:
        _replace(work, target)
    return record


async def append(
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
        went_on = {triple.pair.conversation_id: triple.pair.position for triple in new if not triple.pair.left}
        store.delete(
            [t.id for t in store.triples() if t.pair.left and t.pair.position <= went_on.get(t.pair.conversation_id, -1)]
        )
        _remember(store, [triple.pair for triple in new], progress)
        if max_traces:
            with open_synthesizer(folder, record, store, model, scorer, actor, judge) as synthesizer:
                await trace(store, new, record, synthesizer, max_traces, concurrency, progress)
        if new:
            learn_when_to_leave(folder, record, store)
    record = replace(record, corpus=tuple(dict.fromkeys([*record.corpus, *_ids([triple.pair for triple in new])])))
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


def _work_folder(name: str, target: Path, recipe: Recipe, split: Split, overwrite: bool, embedder: Embedder) -> Path:
    """Where to work: on an interrupted twin of the same recipe and log, else in a hidden folder beside the target."""
    if target.exists():
        if _begun(target, recipe, split, embedder):
            return target
        if not overwrite:
            TwinRecord.load(target)  # a damaged twin is said to be damaged
            raise TwinError(f'there is a twin "{name}" in {target.parent} already; choose another name, or pass --overwrite')
    work = target.parent / f".{name}.partial"
    for folder in (target, work):
        if folder.exists():  # nothing is replaced that somebody is writing
            WriterLock(folder, wait=0.0).check()
    if not _begun(work, recipe, split, embedder):
        answers = next((kept for folder in (work, target) if (kept := _answers(folder, recipe))), {})
        shutil.rmtree(work, ignore_errors=True)
        with _writable(target.parent):
            work.mkdir(parents=True)
        for file, kept in answers.items():  # the same question need not be asked again
            (work / file).write_bytes(kept)
    return work


def _answers(folder: Path, recipe: Recipe) -> dict[str, bytes]:
    """The files of what models answered about the same person, by name; a killed run leaves a log beside the database."""
    try:
        known = TwinRecord.load(folder).recipe
    except TwinError:
        return {}
    if (known.source, known.speaker) != (recipe.source, recipe.speaker):
        return {}  # nothing of one person is kept in another one's folder
    return {file.name: file.read_bytes() for file in folder.glob(f"{ANSWERS}*")}


def _begun(folder: Path, recipe: Recipe, split: Split, embedder: Embedder) -> bool:
    """Whether the same learning was begun here: the recipe, what is held out (a log may have changed), a memory that opens."""
    try:
        record = TwinRecord.load(folder)
        same = (record.recipe, record.validation, record.test) == (recipe, _ids(split.validation), _ids(split.test))
        if record.state == "interrupted" and same:
            TripleStore(folder, embedder, create=False).close()
            return True
    except TwinError:
        pass
    return False


@contextmanager
def _writable(home: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise TwinError(f"{home}: twins cannot be kept there ({error.strerror}); choose another folder with --home") from None


def _replace(work: Path, target: Path) -> None:
    """Put the new twin where the old one is; if that is interrupted, the old one is beside it, its name with a dot and .old."""
    old = target.parent / f".{target.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    work.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _prepare(work: Path, name: str, log: ChatLog, recipe: Recipe, split: Split, persona: Persona | None) -> TwinRecord:
    """Write everything about the twin but its memory."""
    held_out = {pair.conversation_id for pair in (*split.validation, *split.test)}
    write_conversations((c for c in log.conversations if c.conversation_id in held_out), work / HELD_OUT)
    other, others = _other_person(log, recipe.speaker, held_out)
    write_conversations(others, work / OTHER_PERSON)
    record = TwinRecord(
        name=name,
        persona=persona or draw_persona(split.corpus, _called(recipe.speaker)),
        recipe=recipe,
        state="interrupted",
        learned_at=_learned_at(work),
        dated=any(c.started_at is not None for c in log.conversations),
        corpus_ends=max(pair.when for pair in split.corpus),
        corpus=_ids(split.corpus),
        validation=_ids(split.validation),
        test=_ids(split.test),
        other_speaker=other,
        versions={package: version(package) for package in _VERSIONED},
    )
    record.save(work)
    return record


def _learned_at(work: Path) -> str:
    """When this learning began: now, or when it was first tried."""
    try:
        return TwinRecord.load(work).learned_at
    except TwinError:
        return datetime.now(UTC).isoformat(timespec="seconds")


def _ids(pairs: Sequence[Pair]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(pair.conversation_id for pair in pairs))


def _called(speaker: str) -> str:
    """A short name for the person: their own, or the first part of a long identifier."""
    return speaker if len(speaker) <= 24 else speaker.split("-")[0][:24]


def _other_person(log: ChatLog, speaker: str, without: set[str]) -> tuple[str | None, list[Conversation]]:
    """The most frequent other speaker who plays the same part, with conversations of theirs that are not held out."""
    roles: dict[str, str] = {}
    for conversation in log.conversations:
        for turn in conversation.turns:
            if not turn.private:
                roles.setdefault(turn.speaker, turn.role)
    for other in log.turn_counts():
        if other != speaker and roles[other] == roles[speaker]:
            found = _conversations_of(log, other, without)
            if found:
                return other, found
    return None, []


def _conversations_of(log: ChatLog, speaker: str, without: set[str]) -> list[Conversation]:
    """Conversations of a speaker, none of which is held out, until there are enough turns."""
    found: list[Conversation] = []
    turns = 0
    for conversation in log.conversations:
        own = sum(turn.speaker == speaker for turn in conversation.turns)
        if own and conversation.conversation_id not in without:
            found.append(conversation)
            turns += own
        if turns >= _OTHER_TURNS:
            break
    return found


def _remember(store: TripleStore, pairs: Sequence[Pair], progress: Progress) -> None:
    """Put the pairs into the memory; those already there are skipped."""
    triples = store.missing([Triple(pair) for pair in pairs])
    total, done = len(pairs), len(pairs) - len(triples)
    progress("memories", done, total)
    for start in range(0, len(triples), _BATCH):
        batch = triples[start : start + _BATCH]
        store.add(batch)
        done += len(batch)
        progress("memories", done, total)
