"""Endings: F1, Brier score and reliability bins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import recipe, scripted
from usertwin.evals.metrics.statistics import Estimate, ratio
from usertwin.evals.replay.endings import measure_endings
from usertwin.evals.replay.held_out import held_out_pairs
from usertwin.memory import ChatModel, alearn
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.abandonment import NEIGHBOURS, abandonment_rate
from usertwin.personas import ChatLog, Conversation, Pair, Turn
from usertwin.simulator import SimulatedUser

MODEL: ChatModel = scripted("hi")
#: The twin's folder, which nothing is read from while the memory ends before the held-out turns.
FOLDER = Path("unused")


def mixed_talk(number: int) -> Conversation:
    """Ann leaves with a last turn, without one, or goes on; each is sometimes predicted wrongly."""
    booked = ("your ticket is booked goodbye", "which day do you mean", "it is booked")[number % 3]
    turns = [
        Turn("desk", "agent", "hello which city"),
        Turn("Ann", "user", f"city {number % 7} please"),
        Turn("desk", "agent", booked),
    ]
    if number % 3 == 1 or number % 5 == 0:
        turns += [Turn("Ann", "user", "thanks bye" if number % 4 else f"and city {number % 6}")]
    if number % 7 == 0:
        turns += [Turn("desk", "agent", "anything else"), Turn("Ann", "user", "no thanks bye")]
    return Conversation(f"talk-{number:02d}", tuple(turns), f"2024-{1 + number // 28:02d}-{number % 28 + 1:02d}T10:00:00+00:00")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[SimulatedUser, list[Pair]]:
    """A twin that leaves in both ways, and its held-out pairs."""
    home = tmp_path_factory.mktemp("home")
    log = ChatLog(tuple(map(mixed_talk, range(80))), "test")
    asyncio.run(alearn("mixed", log, recipe(method="none", model=None, scorer=None), embedder=FakeEmbedder(), home=home))
    user = SimulatedUser.load("mixed", home=home, model=MODEL)
    return user, held_out_pairs(user, home / "mixed")[0]


def direct_f1(user: SimulatedUser, moments: Sequence[Pair]) -> Estimate | None:
    """Return F1 by a direct computation."""
    silent = [False] * len(moments)
    if user.abandonment is not None:
        near = user.store.recall_many(moments, NEIGHBOURS, before=[pair.when for pair in moments], abandoned=None)
        own = [any(turn.speaker == pair.speaker for turn in pair.context) for pair in moments]
        silent = [spoken and user.abandonment.leaves(recalled) for recalled, spoken in zip(near, own, strict=True)]
    said = [
        gone or (user.last_turn is not None and not pair.abandoned and user.last_turn.leaves(pair))
        for gone, pair in zip(silent, moments, strict=True)
    ]
    hits = [2.0 * (predicted_end and pair.ends_conversation) for predicted_end, pair in zip(said, moments, strict=True)]
    costs = [
        hit + (predicted_end != pair.ends_conversation) for hit, predicted_end, pair in zip(hits, said, moments, strict=True)
    ]
    return ratio(hits, costs, [pair.conversation_id for pair in moments], share=True)


def leaving_probability(user: SimulatedUser, pair: Pair) -> float:
    """Return the larger of the probabilities of abandonment and of a last turn."""
    silent = spoken = 0.0
    if user.abandonment is not None and any(turn.speaker == pair.speaker for turn in pair.context):
        silent = abandonment_rate(user.store.recall(pair, NEIGHBOURS, before=pair.when, abandoned=None))
    if user.last_turn is not None and not pair.abandoned:
        spoken = user.last_turn.probability(pair)
    return max(silent, spoken)


def only(user: SimulatedUser, *ways: str) -> SimulatedUser:
    """The same twin, leaving in these ways only."""
    return SimulatedUser(
        user.record, user.store, MODEL,
        last_turn=user.last_turn if "ending" in ways else None, abandonment=user.abandonment if "leaving" in ways else None,
    )  # fmt: skip


@pytest.mark.parametrize("ways", [("ending", "leaving"), ("ending",), ("leaving",)])
def test_f1_equals_a_direct_computation(learned: tuple[SimulatedUser, list[Pair]], ways: tuple[str, ...]) -> None:
    user, moments = only(learned[0], *ways), learned[1]
    result, before = measure_endings(user, FOLDER, moments), direct_f1(user, moments)
    assert result is not None
    assert before is not None
    assert result["f1"] == before.to_json()
    assert 0.0 < before.value < 1.0  # neither always right nor always wrong, so that the two may differ
    assert before.n == len(moments)


@pytest.mark.parametrize("ways", [("ending", "leaving"), ("ending",), ("leaving",)])
def test_brier_is_the_mean_squared_error_of_the_probabilities(
    learned: tuple[SimulatedUser, list[Pair]], ways: tuple[str, ...]
) -> None:
    user, moments = only(learned[0], *ways), learned[1]
    result = measure_endings(user, FOLDER, moments)
    assert result is not None
    by_hand = [(leaving_probability(user, pair) - pair.ends_conversation) ** 2 for pair in moments]
    assert result["calibration"]["brier"]["value"] == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-6)
    assert result["calibration"]["brier"]["n"] == len(moments)


def test_the_bins_hold_every_pair_and_its_outcome(learned: tuple[SimulatedUser, list[Pair]]) -> None:
    user, moments = learned
    result = measure_endings(user, FOLDER, moments)
    assert result is not None
    bins = result["calibration"]["bins"]
    assert sum(one["n"] for one in bins) == len(moments)
    assert sum(row["observed"] * row["n"] for row in bins) == pytest.approx(sum(pair.ends_conversation for pair in moments))
    assert all(one["low"] <= one["predicted"] <= one["high"] for one in bins)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_twin_without_models_of_leaving_has_no_score(learned: tuple[SimulatedUser, list[Pair]]) -> None:
    assert measure_endings(only(learned[0]), FOLDER, learned[1]) is None


def test_without_endings_there_is_no_score(
    learned: tuple[SimulatedUser, list[Pair]],
) -> None:
    user = only(learned[0], "ending")
    assert user.last_turn is not None
    user.last_turn = replace(user.last_turn, threshold=1.1)
    stays = [replace(pair, ends_conversation=False) for pair in learned[1] if not pair.ends_conversation]
    assert stays
    assert measure_endings(user, FOLDER, stays) is None


def test_the_first_turn_is_never_abandoned(learned: tuple[SimulatedUser, list[Pair]]) -> None:
    """A person who has not spoken does not leave, however many left at similar pairs."""
    user = only(learned[0], "leaving")
    assert user.abandonment is not None
    user.abandonment = replace(user.abandonment, threshold=0.0)  # leaves wherever it may
    opening = [pair for pair in learned[1] if not any(turn.speaker == "Ann" for turn in pair.context)]
    result = measure_endings(user, FOLDER, learned[1])
    assert result is not None
    may = [pair for pair in learned[1] if pair not in opening]
    right = sum(pair.ends_conversation for pair in may)
    assert result["f1"]["value"] == pytest.approx(
        2 * right / (2 * right + (len(may) - right) + sum(p.ends_conversation for p in opening))
    )


def test_with_a_goal_that_was_not_mentioned_the_twin_stays(learned: tuple[SimulatedUser, list[Pair]]) -> None:
    user, moments = learned
    result = measure_endings(user, FOLDER, [replace(pair, goal="You want to sell seventeen old bicycles.") for pair in moments])
    assert result is not None
    assert result["f1"]["value"] == 0.0  # every ending is missed, and nobody leaves too soon
    assert result["calibration"] == (measure_endings(user, FOLDER, moments) or {})["calibration"]
