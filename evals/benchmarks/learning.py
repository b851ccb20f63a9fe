"""Benchmarks of learning: its time against reading and embedding the log, and whether concurrent runs are equal."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from usertwin.memory import ChatModel, Embedder, Recipe, TripleStore, alearn
from usertwin.memory.models.embedding import CachedEmbedder, FakeEmbedder, SentenceTransformerEmbedder, query_text
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.text.words import stem
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import ChatLog, Conversation, read_conversations, split_pairs, write_conversations
from usertwin.personas.importers.chitchat import load_chitchat

from .figures import Figure, figure, ratios, run_alternately, single_figure, timed

_PERSON = "Person"


@dataclass(frozen=True, slots=True)
class LearnSizes:
    """Turns of the person in the log of the ratio, rounds of the ratio, and turns in the log that is learned once."""

    turns: int = 1500
    rounds: int = 3
    large_turns: int = 10_000


FULL = LearnSizes()


def learn_part(
    sizes: LearnSizes = FULL, embedder: Embedder | None = None, log: ChatLog | None = None
) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of learning from real conversations, in each of which one speaker is renamed to the same person."""
    encoder = embedder or CachedEmbedder(SentenceTransformerEmbedder(), size=0)  # size 0: every round embeds again
    conversations = (log or load_chitchat()).conversations
    encoder.embed(["load the model"])
    with tempfile.TemporaryDirectory() as folder:
        path, home = Path(folder) / "log.jsonl", Path(folder) / "twins"
        write_conversations(person_conversations(conversations, sizes.turns), path)
        learned, baseline = run_alternately(
            sizes.rounds,
            lambda number: timed(lambda: _learn(path, home, f"twin-{number}", encoder)),
            lambda _: timed(lambda: _read_and_embed(path, encoder)),
        )
        against = f"read the log and embed each text once, {sizes.turns} turns (limit: 1.3)"
        yield "learn.vs_read_and_embed", figure(ratios(learned, baseline), "ratio", against)

        write_conversations(person_conversations(conversations, sizes.large_turns), path)
        seconds = timed(lambda: _learn(path, home, "large", encoder))
        against = f"{sizes.large_turns} turns of one person (limit: 60 s on 2 cores)"
        yield "learn.10k_turns_s", single_figure(seconds, "s", against)


def _unordered_model(replies: list[str]) -> ChatModel:
    """Return a scripted model whose reply depends on prompt and seed only, and comes after a random time."""
    from langchain_core.outputs import ChatResult

    from usertwin.simulator.backends.scripted import ScriptedChatModel

    class UnorderedModel(ScriptedChatModel):
        async def _agenerate(self, messages: list[Any], *_: Any, seed: int = 0, **__: Any) -> ChatResult:
            await asyncio.sleep(random.random() / 500)
            prompt = "\n".join(str(message.text) for message in messages)
            reply = replies[zlib.crc32(f"{seed}/{prompt}".encode()) % len(replies)]
            return ScriptedChatModel(answers=[reply])._generate(messages)

    return ChatModel("scripted:bench", UnorderedModel(answers=replies), "transcript")


def threads_part(runs: int = 20, turns: int = 60, log: ChatLog | None = None) -> Iterator[tuple[str, Figure]]:
    """Yield the share of learning runs with 8 concurrent requests, in random order, whose memories equal the first one's."""
    conversations = person_conversations((log or load_chitchat()).conversations, turns)
    replies = [turn.text for conversation in conversations for turn in conversation.turns]
    model = _unordered_model(replies)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns within a call
    try:
        memories = [_traces(ChatLog(tuple(conversations), "bench"), model) for _ in range(runs)]
    finally:
        sys.setswitchinterval(interval)
    equal = sum(memory == memories[0] for memory in memories) / runs
    yield "learn.equal_runs", single_figure(equal, "share", "8 concurrent requests, scripted model (limit: 1)", runs)


def _traces(log: ChatLog, model: ChatModel) -> list[tuple[Any, ...]]:
    """Learn a twin with 8 concurrent requests; return each triple's trace, score, proposals and rejections."""
    stem.cache_clear()
    embedder = FakeEmbedder()
    recipe = Recipe(
        source="bench", speaker=_PERSON, method="recon", candidates=3, max_triples=None, max_traces=None, window=6,
        embedder=embedder.name, model=model.name, scorer=FakeScorer.name, seed=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        learning = alearn(
            "twin", log, recipe, embedder=embedder, model=model, scorer=FakeScorer(), home=home, concurrency=8
        )  # fmt: skip
        asyncio.run(learning)
        with TripleStore(twin_folder("twin", home), embedder) as store:
            return [
                (triple.id, triple.reasoning, triple.score, triple.provenance and triple.provenance.proposals)
                for triple in store.triples()
            ]


def person_conversations(conversations: Sequence[Conversation], turns: int) -> list[Conversation]:
    """Return undated conversations with at least `turns` turns of one person; they repeat if there are too few."""
    selected: list[Conversation] = []
    count = 0
    while count < turns:
        for conversation in conversations:
            speaker = next((turn.speaker for turn in conversation.turns if not turn.private), None)
            renamed = [replace(turn, speaker=_PERSON) if turn.speaker == speaker else turn for turn in conversation.turns]
            own_turns = sum(turn.speaker == _PERSON and not turn.private for turn in renamed)
            if not own_turns or own_turns == len(renamed):
                continue
            selected.append(Conversation(f"talk-{len(selected)}", tuple(renamed)))
            count += own_turns
            if count >= turns:
                break
        if not selected:
            raise ValueError("no conversation has two speakers")
    return selected


def _learn(path: Path, home: Path, name: str, embedder: Embedder) -> None:
    recipe = Recipe(
        source=str(path),
        speaker=_PERSON,
        method="none",
        candidates=1,
        max_triples=None,
        max_traces=None,
        window=6,
        embedder=embedder.name,
        model=None,
        scorer=None,
        seed=0,
    )
    asyncio.run(alearn(name, read_conversations(path), recipe, embedder=embedder, home=home))


def _read_and_embed(path: Path, embedder: Embedder) -> None:
    """Read the log and embed the contexts of the corpus and of the validation turns in one call, without repeats."""
    split = split_pairs(read_conversations(path), _PERSON, window=6)
    embedder.embed(list({query_text(pair) for pair in (*split.corpus, *split.validation)}))
