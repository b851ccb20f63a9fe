"""Tests of memory/twin/abandonment.py: abandonments are stored, recalled, and predicted as often as the person leaves."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from rich.console import Console

from conftest import other_conversation, recipe, scripted
from usertwin.evals import ReplayConfig, evaluate
from usertwin.memory import Recalled, Triple, TripleStore, alearn
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.store import indexed_database
from usertwin.memory.twin import abandonment as abandonment_file
from usertwin.memory.twin.abandonment import NEIGHBOURS, AbandonmentModel, abandonment_rate, fit_abandonment
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import ChatLog, Conversation, Pair, Turn, TwinError, split_pairs
from usertwin.personas.chat_log import sort_by_time
from usertwin.personas.pairs import ABANDONED, extract_pairs
from usertwin.simulator import SimulatedUser, simulate
from usertwin.simulator.terminal.chat import chat

ASKS = ("which city do you mean", "which day do you mean", "how many people")
BYE = "your ticket is booked goodbye"


def silent_talk(number: int) -> Conversation:
    """Return a conversation that the agent ends: Ann never answers a goodbye."""
    turns = [Turn("desk", "agent", f"{ASKS[0]}?"), Turn("Ann", "user", f"city {number}")]
    for turn in range(number % 3):
        turns += [Turn("desk", "agent", f"{ASKS[1 + turn % 2]}?"), Turn("Ann", "user", f"number {number + turn} please")]
    turns.append(Turn("desk", "agent", f"{BYE} {number % 2}"))
    return Conversation(f"silent-{number:02d}", tuple(turns), f"2024-03-{number % 28 + 1:02d}T10:00:00+00:00")


@pytest.fixture
def silent_log() -> ChatLog:
    """Return twenty-eight conversations that Ann leaves silently, and six of Bob."""
    return ChatLog(sort_by_time([*map(silent_talk, range(28)), *map(other_conversation, range(6))], "test"), "test")


@pytest.fixture
def silent(silent_log: ChatLog) -> str:
    """Learn a twin of that Ann; return its name."""
    recipe_without_traces = recipe(method="none", model=None, scorer=None)
    asyncio.run(alearn("ann", silent_log, recipe_without_traces, embedder=FakeEmbedder()))
    return "ann"


def open_twin(name: str, *answers: str) -> SimulatedUser:
    return SimulatedUser.load(name, model=scripted(*answers), embedder=FakeEmbedder())


#: A chat in which Ann has spoken: from now on she may leave.
SAID = [{"role": "assistant", "content": f"{ASKS[0]}?"}, {"role": "user", "content": "city 3"}]


def recalled(*moments: tuple[float, bool]) -> list[Recalled]:
    return [
        Recalled(
            Triple(
                Pair(
                    speaker="Ann",
                    context=(),
                    action=ABANDONED if left else "hi",
                    goal="",
                    conversation_id="c",
                    position=1,
                    when=0.0,
                    ends_conversation=left,
                )
            ),
            similarity,
        )
        for similarity, left in moments
    ]


def test_the_abandonment_rate_is_weighted_by_similarity() -> None:
    assert abandonment_rate(recalled((1.0, True), (0.5, False))) == pytest.approx(16 / 17)
    assert abandonment_rate(recalled((0.5, True), (0.5, False), (-0.9, True))) == 0.5
    assert abandonment_rate(recalled((0.9, False))) == abandonment_rate([]) == abandonment_rate(recalled((-1.0, True))) == 0


def asked(goal: str, *turns: str, earlier: int = 0) -> Pair:
    """Return a pair in which Ann and the desk have spoken by turns, the desk last."""
    speakers = ("desk", "Ann") * len(turns)
    context = tuple(
        Turn(who, "user" if who == "Ann" else "agent", text) for who, text in zip(speakers, turns[::-1], strict=False)
    )
    return Pair(
        speaker="Ann", context=context[::-1], action="", goal=goal, conversation_id="now", position=len(turns) + earlier,
        when=9.0,
    )  # fmt: skip


def test_with_a_goal_nobody_leaves_before_it_was_mentioned_or_where_most_stayed() -> None:
    model, goal = AbandonmentModel(0.1, 1.0, 9, 9), "You want a ticket to Oslo."
    most, few = recalled((0.9, True), (0.5, False)), recalled((0.5, True), (0.7, False))
    assert 0.1 < abandonment_rate(few) < 0.25 < abandonment_rate(most)
    unsaid, said = asked(goal, "hi", "Hello, how can I help?"), asked(goal, "a ticket to Oslo please", "It is booked. Goodbye")
    assert not model.leaves(most, unsaid)
    assert model.leaves(most, said)
    assert not model.leaves(few, said)
    for none in (None, asked("", "hi", "Hello, how can I help?")):  # without a goal the threshold alone decides
        assert model.leaves(few, none)
        assert model.leaves(most, none)
    assert model.leaves(most, asked(goal, "hi", "Goodbye", earlier=3))  # it may have been mentioned before
    assert not AbandonmentModel(0.99, 1.0, 9, 9).leaves(most, said)


def test_a_twin_with_a_goal_stays_after_a_greeting(silent: str) -> None:
    goodbye = {"role": "assistant", "content": f"{BYE} 1"}
    unsaid = [{"role": "user", "content": "hello there"}, goodbye]
    with open_twin(silent, "number 4 please") as user:
        assert user.respond(unsaid).done
        assert user.respond(unsaid, goal="You want a ticket to Oslo.").action == "number 4 please"
        said = [{"role": "user", "content": "a ticket to Oslo"}, goodbye]
        assert user.respond(said, goal="You want a ticket to Oslo.").done


def test_silent_leavings_are_stored_and_recalled_only_on_request(silent: str) -> None:
    with open_twin(silent) as user:
        assert user.store.stats().abandoned > 10
        query = extract_pairs(silent_talk(99), "Ann")[-1]
        assert query.abandoned
        assert not any(r.triple.pair.abandoned for r in user.store.recall(query, 50))
        assert all(r.triple.pair.abandoned for r in user.store.recall(query, 5, abandoned=None))
        assert all(r.triple.pair.abandoned for r in user.store.recall(query, 50, abandoned=True))


def test_a_twin_leaves_where_the_person_left_and_stays_where_the_person_spoke(silent: str) -> None:
    messages = [
        {"role": "assistant", "content": f"{ASKS[0]}?"},
        {"role": "user", "content": "city 3"},
        {"role": "assistant", "content": f"{ASKS[1]}?"},
    ]
    with open_twin(silent, "number 4 please") as user:
        stays = user.respond(messages)
        leaves = user.respond([*messages[:2], {"role": "assistant", "content": f"{BYE} 1"}])
    assert (stays.action, stays.done) == ("number 4 please", False)
    assert (leaves.action, leaves.reasoning, leaves.done, leaves.usage.input_tokens) == ("", "", True, 0)
    assert leaves.abandonment_rate > 0.5 > stays.abandonment_rate
    assert sum(item.triple.pair.action == ABANDONED for item in leaves.recalled) > len(leaves.recalled) / 2


def test_a_twin_that_has_not_spoken_does_not_leave(silent: str) -> None:
    with open_twin(silent, "hello") as user:
        assert user.respond([{"role": "assistant", "content": f"{BYE} 1"}]).action == "hello"


def test_a_silent_leaving_ends_the_simulation_without_a_message_to_the_agent(silent: str) -> None:
    lengths: list[int] = []

    def agent(messages: list[dict[str, str]]) -> str:
        lengths.append(len(messages))
        return f"{ASKS[0]}?" if len(lengths) < 2 else f"{BYE} 1"

    with open_twin(silent, "city 5", "number 5 please") as user:
        found = simulate(user, agent, max_turns=8, agent_first=True)
    assert found.stop_reason == "user_stop"
    assert [m["content"] for m in found.messages] == [f"{ASKS[0]}?", "city 5", f"{BYE} 1"]
    assert [(e.answer.action, e.answer.done, e.replies == ()) for e in found.exchanges] == [
        ("city 5", False, False),
        ("", True, True),
    ]
    assert len(lengths) == 2


def test_the_threshold_leaves_at_most_as_often_as_the_person(silent_log: ChatLog, tmp_path: Path) -> None:
    split = split_pairs(silent_log, "Ann")
    with TripleStore(tmp_path / "m", FakeEmbedder()) as store:
        store.add([Triple(pair) for pair in split.corpus])
        model = fit_abandonment(store, split.validation)
        assert model is not None
        turns = [pair for pair in split.validation if pair.position]
        neighbours = store.recall_many(turns, NEIGHBOURS, before=[pair.when for pair in turns], abandoned=None)
    predicted = [model.leaves(recalled) for recalled in neighbours]
    assert 0 < sum(predicted) <= sum(pair.abandoned for pair in turns)
    assert predicted == [pair.abandoned for pair in turns]
    assert (model.f1, model.validation_turns) == (1.0, len(turns))
    assert 0 < model.threshold < 1


@pytest.mark.parametrize("queries", [3, 512])
def test_the_rates_of_the_fit_are_those_of_the_recalled_neighbours(
    silent_log: ChatLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queries: int
) -> None:
    monkeypatch.setattr(abandonment_file, "_QUERIES", queries)
    monkeypatch.setattr(indexed_database, "_ROWS", 7)

    class RandomEmbedder(FakeEmbedder):
        def embed(self, texts: Sequence[str]) -> Any:
            rows = [np.random.default_rng(crc32(text.encode())).normal(size=self.dimension) for text in texts]
            return np.array([row / np.linalg.norm(row) for row in rows], np.float32)

    embedder = RandomEmbedder(8)
    texts = [f"text {i % 150}" for i in range(400)]  # repeats are equally similar
    pairs = [
        Pair(
            speaker="Ann",
            context=(Turn("desk", "agent", text),),
            action=ABANDONED if i % 3 == 0 else "ok",
            goal="",
            conversation_id=f"c{i}",
            position=1,
            when=float(i),
            ends_conversation=i % 3 == 0,
        )
        for i, text in enumerate(texts)
    ]
    with TripleStore(tmp_path / "m", embedder) as store:
        store.add([Triple(pair) for pair in pairs])
        store.delete([Triple(pair).id for pair in pairs[40:60]])
        queries_ = [*pairs[:3], *pairs[100::23]]  # the first ones have hardly any earlier triple
        recalled = store.recall_many(queries_, NEIGHBOURS, before=[pair.when for pair in queries_], abandoned=None)
        rates = abandonment_file._abandonment_rates(store, queries_)
    assert rates == pytest.approx([abandonment_rate(neighbours) for neighbours in recalled], abs=1e-6)


def test_too_few_silent_leavings_give_no_model(log: ChatLog, tmp_path: Path) -> None:
    split = split_pairs(log, "Ann")  # she always has the last word
    with TripleStore(tmp_path / "m", FakeEmbedder()) as store:
        store.add([Triple(pair) for pair in split.corpus])
        assert fit_abandonment(store, split.validation) is None
    assert not any(pair.abandoned for pair in (*split.corpus, *split.validation, *split.test))


def test_validation_turns_that_no_threshold_separates_give_no_model(silent_log: ChatLog, tmp_path: Path) -> None:
    split = split_pairs(silent_log, "Ann")
    abandonments = [pair for pair in split.validation if pair.abandoned]
    answers = [
        Pair(
            speaker="Ann",
            context=p.context,
            action="x",
            goal="",
            conversation_id=p.conversation_id,
            position=p.position + 1,
            when=p.when,
        )
        for p in abandonments
    ]
    with TripleStore(tmp_path / "m", FakeEmbedder()) as store:
        store.add([Triple(pair) for pair in split.corpus])
        assert fit_abandonment(store, [*abandonments[:1], *answers, *answers]) is None


def test_a_model_survives_saving_and_loading(silent: str, tmp_path: Path) -> None:
    path = tmp_path / "leaving.json"
    AbandonmentModel(0.25, 0.5, 7, 30).save(path)
    assert AbandonmentModel.load(path) == AbandonmentModel(0.25, 0.5, 7, 30)
    assert AbandonmentModel.load(tmp_path / "none.json") is None
    path.write_text('{"threshold": 0.25, "f1": 0.5, "leavings": 7, "validation_moments": 30}', "utf-8")  # before 0.1.0
    assert AbandonmentModel.load(path) == AbandonmentModel(0.25, 0.5, 7, 30)
    for damage in ("", "[]", "{}", json.dumps({"threshold": "high"})):
        path.write_text(damage)
        with pytest.raises(TwinError, match=r"leaving\.json: is damaged"):
            AbandonmentModel.load(path)


def test_silent_leavings_get_no_traces_and_are_not_in_the_persona(silent_log: ChatLog) -> None:
    model = scripted("I wanted to travel", "I was in a hurry")
    record = asyncio.run(alearn("ann", silent_log, recipe(), embedder=FakeEmbedder(), model=model, scorer=FakeScorer()))
    with TripleStore(twin_folder("ann"), FakeEmbedder()) as store:
        assert all(t.provenance is None for t in store.triples() if t.pair.abandoned)
        assert all(t.provenance is not None for t in store.triples() if not t.pair.abandoned)
    assert ABANDONED not in record.persona.sample_turns
    spoken = [pair for pair in split_pairs(silent_log, "Ann").corpus if not pair.abandoned]
    assert f"Seen in {len(spoken)} turns" in record.persona.description


def test_an_evaluation_counts_turns_and_scores_leaving(silent: str) -> None:
    every = ReplayConfig(limit=None, generate=0)
    with open_twin(silent, "city 1") as user:
        result = asyncio.run(evaluate(user, FakeScorer(), FakeEmbedder(), folder=twin_folder(silent), config=every))
        held_out = split_pairs(ChatLog(tuple(map(silent_talk, range(28))), "test"), "Ann").test
        assert result["turns"] == sum(not pair.abandoned for pair in held_out)
        assert result["ending"]["f1"]["value"] == 1.0
        assert result["ending"]["f1"]["n"] == len(held_out)
        user.abandonment = None
        blind = asyncio.run(evaluate(user, FakeScorer(), FakeEmbedder(), folder=twin_folder(silent), config=every))
    assert "f1" not in blind["ending"]  # a twin without the model never leaves


def test_a_query_is_embedded_once_although_a_turn_recalls_twice(silent: str) -> None:
    embedded: list[str] = []

    class Counting(FakeEmbedder):
        def embed(self, texts: Sequence[str]) -> Any:
            embedded.extend(texts)
            return super().embed(texts)

    with SimulatedUser.load(silent, model=scripted("number 4 please"), embedder=Counting()) as user:
        for _ in range(2):
            user.respond([*SAID, {"role": "assistant", "content": f"{ASKS[1]}?"}])
    assert len(embedded) == 1


def test_a_terminal_chat_ends_with_the_share_that_made_the_twin_leave(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter([f"{ASKS[0]}?", f"{BYE} 1", ""])
    screen = Console(record=True, width=300)
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    with SimulatedUser.load(silent, model=scripted("city 5"), embedder=FakeEmbedder()) as user:
        messages = chat(user, screen)
    assert [m["content"] for m in messages] == [f"{ASKS[0]}?", "city 5", f"{BYE} 1"]
    assert re.search(r"Ann leaves the chat without a word, as in \d+% of the most similar memories\.", screen.export_text())
