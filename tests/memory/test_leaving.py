"""Leaving without another word: remembered, come to mind, and done by the twin as often as by the person."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conftest import other_conversation, recipe, scripted
from usertwin.evals import ReplayConfig, evaluate
from usertwin.memory import Recalled, Triple, TripleStore, alearn
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.twin.abandonment import NEIGHBOURS, AbandonmentModel, abandonment_rate, fit_abandonment
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import ChatLog, Conversation, Pair, Turn, TwinError, split_pairs
from usertwin.personas.chat_log import sort_by_time
from usertwin.personas.pairs import ABANDONED, extract_pairs
from usertwin.simulator import SimulatedUser, simulate
from usertwin.simulator.terminal import chat

ASKS = ("which city do you mean", "which day do you mean", "how many people")
BYE = "your ticket is booked goodbye"


def silent_talk(number: int) -> Conversation:
    """A talk that the agent ends: Ann never answers a goodbye."""
    turns = [Turn("desk", "agent", f"{ASKS[0]}?"), Turn("Ann", "user", f"city {number}")]
    for turn in range(number % 3):
        turns += [Turn("desk", "agent", f"{ASKS[1 + turn % 2]}?"), Turn("Ann", "user", f"number {number + turn} please")]
    turns.append(Turn("desk", "agent", f"{BYE} {number % 2}"))
    return Conversation(f"silent-{number:02d}", tuple(turns), f"2024-03-{number % 28 + 1:02d}T10:00:00+00:00")


@pytest.fixture
def silent_log() -> ChatLog:
    """Twenty-eight talks that Ann leaves without another word, and some of Bob's."""
    return ChatLog(sort_by_time([*map(silent_talk, range(28)), *map(other_conversation, range(6))], "test"), "test")


@pytest.fixture
def silent(silent_log: ChatLog) -> str:
    """A twin of that Ann."""
    recipe_ = recipe(method="none", model=None, scorer=None)
    asyncio.run(alearn("ann", silent_log, recipe_, embedder=FakeEmbedder()))
    return "ann"


def opened(name: str, *answers: str) -> SimulatedUser:
    return SimulatedUser.load(name, model=scripted(*answers), embedder=FakeEmbedder())


#: Ann has said something: from now on she may leave.
SAID = [{"role": "assistant", "content": f"{ASKS[0]}?"}, {"role": "user", "content": "city 3"}]


def recalled(*moments: tuple[float, bool]) -> list[Recalled]:
    return [
        Recalled(Triple(Pair("Ann", (), ABANDONED if left else "hi", "", "c", 1, 0.0, left)), similarity)
        for similarity, left in moments
    ]


def test_the_share_of_leavings_counts_the_similar_more() -> None:
    assert abandonment_rate(recalled((1.0, True), (0.5, False))) == pytest.approx(16 / 17)
    assert abandonment_rate(recalled((0.5, True), (0.5, False), (-0.9, True))) == 0.5
    assert abandonment_rate(recalled((0.9, False))) == abandonment_rate([]) == abandonment_rate(recalled((-1.0, True))) == 0


def test_leavings_are_remembered_and_only_come_to_mind_if_asked_for(silent: str) -> None:
    with opened(silent) as user:
        assert user.store.stats().abandoned > 10
        query = extract_pairs(silent_talk(99), "Ann")[-1]
        assert query.abandoned
        assert not any(r.triple.pair.abandoned for r in user.store.recall(query, 50))
        assert all(r.triple.pair.abandoned for r in user.store.recall(query, 5, abandoned=None))
        assert all(r.triple.pair.abandoned for r in user.store.recall(query, 50, abandoned=True))


def test_a_twin_leaves_where_the_person_left_and_stays_where_they_spoke(silent: str) -> None:
    messages = [
        {"role": "assistant", "content": f"{ASKS[0]}?"},
        {"role": "user", "content": "city 3"},
        {"role": "assistant", "content": f"{ASKS[1]}?"},
    ]
    with opened(silent, "number 4 please") as user:
        stays = user.respond(messages)
        leaves = user.respond([*messages[:2], {"role": "assistant", "content": f"{BYE} 1"}])
    assert (stays.action, stays.done) == ("number 4 please", False)
    assert (leaves.action, leaves.reasoning, leaves.done, leaves.usage.input_tokens) == ("", "", True, 0)
    assert leaves.abandonment_rate > 0.5 > stays.abandonment_rate
    assert sum(row["action"] == ABANDONED for row in leaves.recalled) > len(leaves.recalled) / 2  # what it can be explained by


def test_who_has_not_said_anything_yet_does_not_leave(silent: str) -> None:
    with opened(silent, "hello") as user:
        assert user.respond([{"role": "assistant", "content": f"{BYE} 1"}]).action == "hello"


def test_a_conversation_ends_when_the_twin_leaves_and_nothing_is_sent_to_the_agent(silent: str) -> None:
    asked: list[int] = []

    def agent(messages: list[dict[str, str]]) -> str:
        asked.append(len(messages))
        return f"{ASKS[0]}?" if len(asked) < 2 else f"{BYE} 1"

    with opened(silent, "city 5", "number 5 please") as user:
        found = simulate(user, agent, turns=8, agent_first=True)
    assert found.stop_reason == "user_stop"
    assert [m["content"] for m in found.messages] == [f"{ASKS[0]}?", "city 5", f"{BYE} 1"]
    assert [(e.answer.action, e.answer.done, e.replies == ()) for e in found.exchanges] == [
        ("city 5", False, False),
        ("", True, True),
    ]
    assert len(asked) == 2


def test_the_threshold_leaves_at_most_as_often_as_the_person(silent_log: ChatLog, tmp_path: Path) -> None:
    split = split_pairs(silent_log, "Ann")
    with TripleStore(tmp_path / "m", FakeEmbedder()) as store:
        store.add([Triple(pair) for pair in split.corpus])
        learned = fit_abandonment(store, split.validation)
        assert learned is not None
        moments = [pair for pair in split.validation if pair.position]
        near = store.recall_many(moments, NEIGHBOURS, before=[pair.when for pair in moments], abandoned=None)
    left = [learned.leaves(found) for found in near]
    assert 0 < sum(left) <= sum(pair.abandoned for pair in moments)
    assert left == [pair.abandoned for pair in moments]  # told apart with ease, here
    assert (learned.f1, learned.validation_moments) == (1.0, len(moments))
    assert 0 < learned.threshold < 1


def test_nothing_is_learned_from_too_few_leavings(log: ChatLog, tmp_path: Path) -> None:
    split = split_pairs(log, "Ann")  # she always has the last word
    with TripleStore(tmp_path / "m", FakeEmbedder()) as store:
        store.add([Triple(pair) for pair in split.corpus])
        assert fit_abandonment(store, split.validation) is None
    assert not any(pair.abandoned for pair in (*split.corpus, *split.validation, *split.test))


def test_where_leavings_come_to_mind_no_more_than_words_the_twin_stays(silent_log: ChatLog, tmp_path: Path) -> None:
    split = split_pairs(silent_log, "Ann")
    same = [pair for pair in split.validation if pair.abandoned]  # nothing but leavings: no share tells them from the rest
    other = [Pair("Ann", p.context, "x", "", p.conversation_id, p.position + 1, p.when) for p in same]
    with TripleStore(tmp_path / "m", FakeEmbedder()) as store:
        store.add([Triple(pair) for pair in split.corpus])
        assert fit_abandonment(store, [*same[:1], *other, *other]) is None


def test_when_it_leaves_is_the_same_when_loaded_again(silent: str, tmp_path: Path) -> None:
    path = tmp_path / "leaving.json"
    AbandonmentModel(0.25, 0.5, 7, 30).save(path)
    assert AbandonmentModel.load(path) == AbandonmentModel(0.25, 0.5, 7, 30)
    assert AbandonmentModel.load(tmp_path / "none.json") is None
    for damage in ("", "[]", "{}", json.dumps({"threshold": "high"})):
        path.write_text(damage)
        with pytest.raises(TwinError, match=r"leaving\.json: is damaged"):
            AbandonmentModel.load(path)


def test_leavings_get_no_traces_and_are_no_part_of_the_persona(silent_log: ChatLog) -> None:
    model = scripted("I wanted to travel", "I was in a hurry")
    record = asyncio.run(alearn("ann", silent_log, recipe(), embedder=FakeEmbedder(), model=model, scorer=FakeScorer()))
    with TripleStore(twin_folder("ann"), FakeEmbedder()) as store:
        assert all(t.provenance is None for t in store.triples() if t.pair.abandoned)
        assert all(t.provenance is not None for t in store.triples() if not t.pair.abandoned)
    assert ABANDONED not in record.persona.sample_turns
    spoken = [pair for pair in split_pairs(silent_log, "Ann").corpus if not pair.abandoned]
    assert f"Seen in {len(spoken)} turns" in record.persona.description


def test_the_evaluation_measures_turns_and_judges_leavings(silent: str) -> None:
    every = ReplayConfig(limit=None, generate=0)
    with opened(silent, "city 1") as user:
        result = asyncio.run(evaluate(user, FakeScorer(), FakeEmbedder(), folder=twin_folder(silent), config=every))
        held_out = split_pairs(ChatLog(tuple(map(silent_talk, range(28))), "test"), "Ann").test
        assert result["turns"] == sum(not pair.abandoned for pair in held_out)
        assert result["ending"]["f1"]["value"] == 1.0
        assert result["ending"]["f1"]["n"] == len(held_out)
        user.abandonment = None
        blind = asyncio.run(evaluate(user, FakeScorer(), FakeEmbedder(), folder=twin_folder(silent), config=every))
    assert "f1" not in blind["ending"]  # such a twin never leaves, and nothing is claimed


def test_a_moment_is_embedded_once_however_often_it_is_looked_up_in_a_turn(silent: str) -> None:
    asked: list[str] = []

    class Counting(FakeEmbedder):
        def embed(self, texts: Sequence[str]) -> Any:
            asked.extend(texts)
            return super().embed(texts)

    with SimulatedUser.load(silent, model=scripted("number 4 please"), embedder=Counting()) as user:
        for _ in range(2):  # the same moment again is known
            user.respond([*SAID, {"role": "assistant", "content": f"{ASKS[1]}?"}])
    assert len(asked) == 1


def test_a_chat_on_the_terminal_ends_with_the_share_that_made_the_twin_leave(
    silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter([f"{ASKS[0]}?", f"{BYE} 1"])
    screen = Console(record=True, width=300)
    monkeypatch.setattr(screen, "input", lambda *_: next(lines))
    with SimulatedUser.load(silent, model=scripted("city 5"), embedder=FakeEmbedder()) as user:
        messages = chat(user, screen)
    assert [m["content"] for m in messages] == [f"{ASKS[0]}?", "city 5", f"{BYE} 1"]
    assert re.search(r"Ann leaves the chat without another word: so ended \d+% of what came to mind\.", screen.export_text())
