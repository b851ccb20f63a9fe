"""A twin with a memory of many triples, made of the turns of real conversations."""

from __future__ import annotations

from pathlib import Path

from usertwin.memory import ChatModel, Embedder, Recipe, alearn
from usertwin.memory.event_loop import run_sync
from usertwin.personas import ChatLog, Conversation, Turn
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.personas.pairs import extract_pairs
from usertwin.simulator import SimulatedUser

#: The person that the twin plays: one side of each conversation.
SPEAKER = "one side"


def one_sided_log(pairs: int, log: ChatLog | None = None) -> ChatLog:
    """Return conversations of a log (default: the built-in one) in which one side, as one person, has this many pairs."""
    conversations, total = list[Conversation](), 0
    for conversation in (log or load_chitchat()).conversations:
        first = conversation.turns[0].speaker
        relabelled = tuple(
            Turn(SPEAKER if turn.speaker == first else "the other", turn.role, turn.text) for turn in conversation.turns
        )
        conversations.append(Conversation(conversation.conversation_id, relabelled, conversation.started_at))
        total += sum(1 for _ in extract_pairs(conversations[-1], SPEAKER))
        if total >= pairs:
            break
    return ChatLog(tuple(conversations), "chitchat")


def large_twin(home: str | Path, model: ChatModel, embedder: Embedder, triples: int) -> SimulatedUser:
    """Learn, unless it exists, and return a twin with this many triples that never ends a conversation by itself."""
    recipe = Recipe(
        source="chitchat", speaker=SPEAKER, method="none", candidates=1, max_triples=triples, max_traces=None, window=6,
        embedder=embedder.name, model=None, scorer=None, seed=0,
    )  # fmt: skip
    run_sync(alearn("bench", one_sided_log(triples), recipe, embedder=embedder, home=home))
    user = SimulatedUser.load("bench", home=home, model=model, embedder=embedder)
    user.last_turn = user.abandonment = None
    return user
