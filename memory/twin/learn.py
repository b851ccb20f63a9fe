"""Learning a twin from a chat log: split, remember the pairs, learn the ending, make the traces.

The one design choice: everything is written as it comes into a folder that can be opened at any time, the cheap part (pairs
and embeddings) first, so that a learning that is stopped leaves a usable twin, and the same call goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from usertwin.memory.models.chat import ChatModel
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.triples import Triple
from usertwin.personas import ChatLog, Conversation, Pair, Persona, Split, TwinError, split_pairs, write_conversations
from usertwin.personas.persona import draw_persona

from .abandonment import fit_leaving_models
from .add_traces import add_traces, open_synthesizer
from .recipe import Recipe
from .record import HELD_OUT, OTHER_PERSON, TwinRecord, conversation_ids, twin_folder
from .staging import replace_twin, work_folder

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


async def alearn(
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
    work = work_folder(name, target, recipe, split, overwrite, embedder)
    record = _prepare(work, name, log, recipe, split, persona)
    try:
        pairs = split.corpus if recipe.max_triples is None else split.corpus[-recipe.max_triples :]
        with TripleStore(work, embedder) as store:
            remember(store, pairs, progress)
            fit_leaving_models(work, record, store)
            with open_synthesizer(work, record, store, model, scorer, actor, judge) as synthesizer:
                await add_traces(store, store.triples(), record, synthesizer, recipe.max_traces, concurrency, progress)
        record = replace(record, state="complete")
        record.save(work)
    except BaseException:
        if work != target and not target.exists() and (work / "memory.faiss").exists():
            work.rename(target)  # what was remembered until now is a twin that can be used
        raise
    if work != target:
        replace_twin(work, target)
    return record


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
        corpus=conversation_ids(split.corpus),
        validation=conversation_ids(split.validation),
        test=conversation_ids(split.test),
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


def remember(store: TripleStore, pairs: Sequence[Pair], progress: Progress) -> None:
    """Put the pairs into the memory; those already there are skipped."""
    triples = store.missing([Triple(pair) for pair in pairs])
    total, done = len(pairs), len(pairs) - len(triples)
    progress("memories", done, total)
    for start in range(0, len(triples), _BATCH):
        batch = triples[start : start + _BATCH]
        store.add(batch)
        done += len(batch)
        progress("memories", done, total)
