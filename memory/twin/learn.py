"""Learn a twin from a chat log: split the log, store the pairs, fit the leaving models, add the traces.

Design: every step writes to a folder that can be opened at any time, and the cheap steps (pairs and embeddings) come first. So
an interrupted run leaves a usable twin, and the same call resumes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from usertwin.memory.concurrency import to_thread
from usertwin.memory.models.chat import ChatModel
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.models.scoring import Scorer
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.store.error_messages import changed_before, storage_errors
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.triples import Triple
from usertwin.personas import ChatLog, Conversation, Pair, Persona, Split, TwinError, split_pairs
from usertwin.personas.files import private_folder
from usertwin.personas.persona import derive_persona

from .abandonment import fit_leaving_models
from .add_traces import add_traces, open_synthesizer
from .consent import allow_own_models
from .forget import finish_forgetting
from .locks import refuse_links, replace_twin, writing
from .recipe import Recipe
from .record import (
    HELD_OUT_FILE,
    OTHER_PERSON_FILE,
    TwinRecord,
    conversation_ids,
    twin_folder,
    update_record,
    write_stored_conversations,
)
from .staging import work_folder

#: Triples that are embedded and committed together. The embedder sorts them by length, so a larger chunk needs less padding;
#: a killed process loses at most one chunk.
_CHUNK = 1024
#: Turns of the other person after which no further conversation of theirs is stored.
_OTHER_PERSON_TURNS = 300
_MAX_NAME = 24
_RECORDED_PACKAGES = (
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
        name: name of the twin.
        log: the conversations.
        recipe: the settings. An interrupted run with an equal recipe is resumed.
        embedder: computes the embeddings.
        model: proposes traces; required if `recipe.method` is not "none".
        scorer: scores and guards traces; required if `recipe.method` is not "none".
        actor: reconstructs actions; required if `recipe.reconstructs`.
        judge: rates traces or reconstructions; required if `recipe.judged`.
        persona: persona of the twin; derived from the log if None.
        home: folder of all twins; see `default_home`.
        overwrite: replace a twin of the same name. The old one stays until the new one is complete.
        concurrency: number of pairs that may wait for a model at the same time.
        progress: called after each chunk of pairs and after each trace.

    Raises:
        LogError: the speaker is unknown or has too few turns.
        TwinError: the name is taken or invalid.
        UsageError: a setting of the recipe is invalid.
        ModelError: a model does not answer; finished work is kept.
    """
    recipe.check()
    split = split_pairs(log, recipe.speaker, window=recipe.window)
    target = twin_folder(name, home)
    _make_home(target.parent)
    refuse_links(target)
    with writing(target, wait=0.0), changed_before("finished work is kept"):
        finish_forgetting(target, embedder)
        with storage_errors(target):
            work, resumed = work_folder(target, recipe, split, overwrite, embedder)
        with storage_errors(work):
            record = _write_folder(work, name, log, recipe, split, persona, resumed)
        allow_own_models(record, target)
        try:
            pairs = split.corpus if recipe.max_triples is None else split.corpus[-recipe.max_triples :]
            with TripleStore(work, embedder) as store:
                await add_pairs(store, pairs, progress)
                await to_thread(fit_leaving_models, work, record, store)
                with open_synthesizer(work, record, store, model, scorer, actor, judge) as synthesizer:
                    await add_traces(store, store.triples(), record, synthesizer, recipe.max_traces, concurrency, progress)
            record = update_record(work, lambda record: replace(record, state="complete"))
        except BaseException:
            if work != target and not target.exists() and (work / "memory.faiss").exists():
                replace_twin(target)  # an interrupted twin is usable
            raise
        if work != target:
            replace_twin(target)
    return record


def _make_home(folder: Path) -> None:
    """Make the folder of all twins if it is missing. TwinError if that is not possible."""
    try:
        private_folder(folder)
    except OSError as error:
        reason = f"cannot hold twins ({error.strerror}); choose another folder with --home"
        raise TwinError(f"{folder}: {reason}") from None


async def add_pairs(store: TripleStore, pairs: Sequence[Pair], progress: Progress) -> None:
    """Add the pairs to the memory; skip those that it already holds. A cancellation ends it after a chunk."""
    triples = store.missing([Triple(pair) for pair in pairs])
    total, done = len(pairs), len(pairs) - len(triples)
    progress("memories", done, total)
    for start in range(0, len(triples), _CHUNK):
        chunk = triples[start : start + _CHUNK]
        await to_thread(store.add, chunk)
        done += len(chunk)
        progress("memories", done, total)


def _write_folder(
    work: Path, name: str, log: ChatLog, recipe: Recipe, split: Split, persona: Persona | None, resumed: bool
) -> TwinRecord:
    """Write every file of the twin except its memory; return the record."""
    held_out = {pair.conversation_id for pair in (*split.validation, *split.test)}
    write_stored_conversations([c for c in log.conversations if c.conversation_id in held_out], work / HELD_OUT_FILE)
    other_speaker, other_conversations = _other_person(log, recipe.speaker, held_out)
    write_stored_conversations(other_conversations, work / OTHER_PERSON_FILE)
    record = TwinRecord(
        name=name,
        persona=_persona(persona, derive_persona(split.corpus, _display_name(recipe.speaker))),
        recipe=recipe,
        state="interrupted",
        learned_at=datetime.now(UTC).isoformat(timespec="seconds"),
        dated=any(conversation.started_at is not None for conversation in log.conversations),
        corpus_ends=max(pair.when for pair in split.corpus),
        corpus=conversation_ids(split.corpus),
        validation=conversation_ids(split.validation),
        test=conversation_ids(split.test),
        other_speaker=other_speaker,
        versions={package: version(package) for package in _RECORDED_PACKAGES},
    )
    if not resumed:
        record.save(work)
        return record
    return update_record(
        work,
        lambda old: replace(
            record,
            learned_at=old.learned_at,
            closeness=old.closeness,
            settings=old.settings,
            judge_check=old.judge_check,
        ),
    )


def _persona(given: Persona | None, derived: Persona) -> Persona:
    """Return the given persona, or else the derived one, whose typical length and sample turns fill gaps of the given one."""
    if given is None:
        return derived
    words, samples = given.typical_words or derived.typical_words, given.sample_turns or derived.sample_turns
    return replace(given, typical_words=words, sample_turns=samples)


def _display_name(speaker: str) -> str:
    """Return the speaker, or the first part of a long identifier."""
    return speaker if len(speaker) <= _MAX_NAME else speaker.split("-")[0][:_MAX_NAME]


def _other_person(log: ChatLog, speaker: str, held_out: set[str]) -> tuple[str | None, list[Conversation]]:
    """Return the most frequent other speaker of the same role, with conversations of theirs that are not held out."""
    roles: dict[str, str] = {}
    for conversation in log.conversations:
        for turn in conversation.turns:
            if not turn.private:
                roles.setdefault(turn.speaker, turn.role)
    for other in log.turn_counts():
        if other != speaker and roles[other] == roles[speaker]:
            conversations = _conversations_of(log, other, held_out)
            if conversations:
                return other, conversations
    return None, []


def _conversations_of(log: ChatLog, speaker: str, held_out: set[str]) -> list[Conversation]:
    """Return the first conversations of a speaker that are not held out, up to `_OTHER_PERSON_TURNS` turns."""
    conversations: list[Conversation] = []
    turns = 0
    for conversation in log.conversations:
        own_turns = sum(turn.speaker == speaker for turn in conversation.turns)
        if own_turns and conversation.conversation_id not in held_out:
            conversations.append(conversation)
            turns += own_turns
        if turns >= _OTHER_PERSON_TURNS:
            break
    return conversations
