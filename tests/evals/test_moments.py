"""evals/demo/moments.py: held-out moments are chosen without a look at what the person said."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import recipe, scripted, small_log
from usertwin.evals.demo.moments import MAX_WORDS, MIN_TURNS, SHOWN_TURNS, choose_moments, messages_before
from usertwin.memory import alearn, existing_twin
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.twin.record import HELD_OUT_FILE, read_stored_conversations, write_stored_conversations
from usertwin.personas import ChatLog, Conversation, Pair
from usertwin.simulator import SimulatedUser


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    with SimulatedUser.load(ann, model=scripted("hm")) as user:
        yield user


def keys(pairs: list[Pair]) -> list[tuple[str, int]]:
    return [(pair.conversation_id, pair.position) for pair in pairs]


@pytest.mark.usefixtures("repeats_count")
def test_moments_are_of_test_conversations_with_the_whole_chat_before_them(user: SimulatedUser) -> None:
    moments = choose_moments(user, existing_twin("ann"), 3)
    assert len(moments) == 3
    assert {pair.conversation_id for pair in moments} <= set(user.record.test)
    assert all(len(pair.context) == pair.position >= MIN_TURNS for pair in moments)


@pytest.mark.usefixtures("repeats_count")
def test_the_most_similar_memory_comes_first(user: SimulatedUser) -> None:
    moments = choose_moments(user, existing_twin("ann"), 9)
    similarity = [memories[0].similarity for memories in user.recall_many(moments)]
    assert len(similarity) > 1
    assert similarity == sorted(similarity, reverse=True)


@pytest.mark.usefixtures("repeats_count")
def test_the_choice_does_not_depend_on_what_the_person_said(user: SimulatedUser) -> None:
    folder = existing_twin("ann")
    before = choose_moments(user, folder, 9)

    def with_another_end(number: int, conversation: Conversation) -> Conversation:
        *turns, last = conversation.turns
        return replace(
            conversation, turns=(*turns, replace(last, text=f"I would rather hear a long story {number * 'again '}"))
        )

    held_out = read_stored_conversations(folder / HELD_OUT_FILE)
    write_stored_conversations([with_another_end(*item) for item in enumerate(held_out)], folder / HELD_OUT_FILE)
    after = choose_moments(user, folder, 9)
    assert keys(after) == keys(before)
    assert [pair.action for pair in after] != [pair.action for pair in before]


def test_a_chat_that_the_memory_nearly_repeats_is_left_out(user: SimulatedUser) -> None:
    assert choose_moments(user, existing_twin("ann"), 9) == []  # each chat differs from a remembered one by a number


def learned(home: Path, changes: dict[str, Callable[[Conversation], Conversation]]) -> Path:
    """Learn Ann's twin from the small log with some conversations changed, and return its folder."""
    conversations = [changes.get(c.conversation_id, lambda same: same)(c) for c in small_log().conversations]
    log = ChatLog(tuple(conversations), "test")
    asyncio.run(alearn("ann", log, recipe(method="none"), embedder=FakeEmbedder(), scorer=FakeScorer(), home=home))
    return existing_twin("ann", home)


@pytest.mark.usefixtures("repeats_count")
def test_a_moment_after_a_long_turn_is_left_out(tmp_path: Path) -> None:
    def lengthened(conversation: Conversation) -> Conversation:
        turns = [
            replace(turn, text=" ".join(["sunny"] * (MAX_WORDS + 1))) if turn.text.startswith("It will be") else turn
            for turn in conversation.turns
        ]
        return replace(conversation, turns=tuple(turns))

    folder = learned(tmp_path, {"talk-19": lengthened})
    with SimulatedUser.load("ann", home=tmp_path, model=scripted("hm")) as user:
        chosen = {pair.conversation_id for pair in choose_moments(user, folder, 9)}
    assert "talk-19" in user.record.test
    assert chosen == set(user.record.test) - {"talk-19"}


@pytest.mark.usefixtures("repeats_count")
def test_moments_of_one_chat_do_not_show_each_other(tmp_path: Path) -> None:
    def prolonged(conversation: Conversation) -> Conversation:
        return replace(conversation, turns=(*conversation.turns[:-1], *conversation.turns[1:-1] * 3, *conversation.turns[-1:]))

    folder = learned(tmp_path, {"talk-19": prolonged})
    with SimulatedUser.load("ann", home=tmp_path, model=scripted("hm")) as user:
        positions = sorted(pair.position for pair in choose_moments(user, folder, 99) if pair.conversation_id == "talk-19")
    assert len(positions) > 1
    assert all(later - earlier > SHOWN_TURNS for earlier, later in itertools.pairwise(positions))


@pytest.mark.usefixtures("repeats_count")
def test_the_twin_is_the_user_of_the_messages(user: SimulatedUser) -> None:
    [moment, *_] = choose_moments(user, existing_twin("ann"), 1)
    messages = messages_before(moment)
    assert [message["role"] for message in messages] == ["assistant", "user"] * 2 + ["assistant"]
    assert str(messages[1]["content"]).startswith("hi, the weather in")
