"""memory/store/recall.py: an opening recalls openings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import scripted
from usertwin.memory import Ranking, Triple, TripleStore
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.store.ranking import BY_STAGE, SIMILARITY, is_opening, rank
from usertwin.personas import Conversation, Pair, Turn
from usertwin.personas.pairs import extract_pairs
from usertwin.simulator import SimulatedUser

GREETING = "Hello, how can I help you?"
CLOSING = "Is there anything else I can help you with?"


def talk(number: int, *, agent_first: bool) -> Conversation:
    """Return a conversation of Ann with a help desk, which ends with the question whether there is anything else."""
    city = ("Oslo", "Rome", "Lima", "Cairo", "Kyoto")[number % 5]
    turns = (
        Turn("guide", "instruction", f"You want the weather for {city}."),
        *([Turn("desk", "agent", f"Welcome {number}")] if agent_first else []),
        Turn("Ann", "user", f"hi {number}, it is about {city}"),
        Turn("desk", "agent", f"Which day do you want for {city}?"),
        Turn("Ann", "user", f"day {number}, the weather"),
        Turn("desk", "agent", f"Sunny. {CLOSING}"),
        Turn("Ann", "user", f"no bye {number}"),
    )
    return Conversation(f"talk-{number:03d}", turns, f"2024-01-01T{number // 60:02d}:{number % 60:02d}:00+00:00")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TripleStore]:
    """Yield a memory of a hundred conversations, half of which the desk opens."""
    with TripleStore(tmp_path / "m", FakeEmbedder()) as store:
        for number in range(100):
            store.add([Triple(pair) for pair in extract_pairs(talk(number, agent_first=number % 2 == 0), "Ann")])
        yield store


def query(*turns: tuple[str, str], goal: str = "", position: int | None = None) -> Pair:
    context = tuple(Turn(speaker, "user" if speaker == "Ann" else "agent", text) for speaker, text in turns)
    place = len(turns) if position is None else position
    return Pair(speaker="Ann", context=context, action="", goal=goal, conversation_id="now", position=place, when=1e12)


def actions(store: TripleStore, pair: Pair, k: int, ranking: Ranking) -> list[str]:
    return [item.triple.pair.action for item in store.recall(pair, k, ranking=ranking)]


def test_a_greeting_recalls_openings_and_no_closing(store: TripleStore) -> None:
    greeting = query(("desk", GREETING))
    assert any(action.startswith("no bye") for action in actions(store, greeting, 8, SIMILARITY))  # the fault that this mends
    assert all(action.startswith("hi ") for action in actions(store, greeting, 8, BY_STAGE))
    store.save()
    assert all(action.startswith("hi ") for action in actions(store, greeting, 8, BY_STAGE))  # from the file, too


def test_a_first_turn_recalls_first_turns(store: TripleStore) -> None:
    recalled = store.recall(query(), 8, ranking=BY_STAGE)
    assert [item.triple.pair.position for item in recalled] == [0] * 8
    assert [item.triple.id for item in recalled] == [item.triple.id for item in store.recall(query(), 8)]


def test_later_turns_are_recalled_as_before(store: TripleStore) -> None:
    for turns in (
        [("Ann", "hi"), ("desk", "Which day do you want for Rome?")],
        [("Ann", "day 3"), ("desk", f"Sunny. {CLOSING}")],
    ):
        later = query(*turns, position=6)
        assert store.recall(later, 8, ranking=BY_STAGE) == store.recall(later, 8)


def test_other_triples_follow_where_there_are_few_openings(tmp_path: Path) -> None:
    with TripleStore(tmp_path / "few", FakeEmbedder()) as store:
        store.add([Triple(pair) for pair in extract_pairs(talk(1, agent_first=False), "Ann")])
        assert actions(store, query(("desk", CLOSING)), 8, BY_STAGE) == [
            "hi 1, it is about Rome",
            "no bye 1",
            "day 1, the weather",
        ]
        store.delete([next(triple.id for triple in store.triples() if is_opening(triple.pair))])
        assert actions(store, query(("desk", CLOSING)), 8, BY_STAGE) == ["no bye 1", "day 1, the weather"]
        store.add([Triple(pair) for pair in extract_pairs(talk(2, agent_first=True), "Ann")])
        assert actions(store, query(("desk", CLOSING)), 1, BY_STAGE) == ["hi 2, it is about Lima"]


def test_openings_respect_filters(store: TripleStore) -> None:
    greeting = query(("desk", GREETING))
    first = next(iter(store.triples())).pair.when
    assert store.recall(greeting, 8, before=first, ranking=BY_STAGE) == []
    recalled = store.recall(greeting, 8, before=first + 120, ranking=BY_STAGE)
    assert {item.triple.pair.conversation_id for item in recalled} == {"talk-000", "talk-001"}
    assert len({item.triple.id for item in recalled}) == len(recalled) == 6


def test_only_openings_need_a_larger_pool() -> None:
    assert Ranking(openings=True) == BY_STAGE
    assert (BY_STAGE.reorders, BY_STAGE.pool(8), BY_STAGE.pool(8, opens=True), BY_STAGE.pool(0, opens=True)) == (
        False,
        8,
        64,
        0,
    )


@given(
    st.lists(st.tuples(st.floats(-1, 1, width=16), st.booleans()), max_size=10), st.integers(0, 12), st.sampled_from([0.0, 1.0])
)
def test_the_first_come_first_and_keep_their_order(pool: list[tuple[float, bool]], k: int, diversity: float) -> None:
    similarity, first = np.array([s for s, _ in pool], np.float32), np.array([f for _, f in pool], bool)
    vectors = np.eye(max(1, len(pool)), dtype=np.float32)[: len(pool)]
    order = rank(Ranking(diversity=diversity), k, similarity, age=np.zeros(len(pool)), words=None, vectors=vectors, first=first)
    assert len(order) == len(set(order)) == min(k, len(pool))
    flags = [bool(first[index]) for index in order]
    assert flags == sorted(flags, reverse=True)
    if not diversity:
        for group in (True, False):
            chosen = [similarity[index] for index in order if first[index] == group]
            assert chosen == sorted(chosen, reverse=True)


def test_a_twin_recalls_openings_after_a_greeting(ann: str) -> None:
    greeting = [{"role": "assistant", "content": "It is sunny. Anything else?"}]  # as her conversations end
    with SimulatedUser.load(ann, model=scripted("hi"), k=4) as user:
        assert [item.triple.pair.position for item in user.respond(greeting).recalled] == [1] * 4
        user.ranking = SIMILARITY
        assert {item.triple.pair.action for item in user.respond(greeting).recalled} == {"no thats all thank you bye"}
