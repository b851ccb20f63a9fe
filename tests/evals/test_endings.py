"""Whether a twin leaves when the person left: the decision by F1, the probability behind it by Brier and by bins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from conftest import recipe, scripted
from usertwin.evals.metrics.statistics import Estimate, ratio
from usertwin.evals.replay.endings import endings
from usertwin.evals.replay.held_out import held_out_pairs
from usertwin.memory import ChatModel, alearn
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.twin.abandonment import NEIGHBOURS, abandonment_rate
from usertwin.personas import ChatLog, Conversation, Pair, Turn
from usertwin.simulator import SimulatedUser

MODEL: ChatModel = scripted("hi")


def mixed_talk(number: int) -> Conversation:
    """Ann leaves with a last word, without one, or goes on for a while: each is now and then told wrongly."""
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
    """A twin that leaves in both ways, and its held-out moments."""
    home = tmp_path_factory.mktemp("home")
    log = ChatLog(tuple(map(mixed_talk, range(80))), "test")
    asyncio.run(alearn("mixed", log, recipe(method="none", model=None, scorer=None), embedder=FakeEmbedder(), home=home))
    user = SimulatedUser.load("mixed", home=home, model=MODEL)
    return user, held_out_pairs(user, home / "mixed")[0]


def usual_f1(user: SimulatedUser, moments: Sequence[Pair], seed: int) -> Estimate | None:
    """F1 as it was reckoned before there was a calibration beside it."""
    silent = [False] * len(moments)
    if user.leaving is not None:
        near = user.store.recall_many(moments, NEIGHBOURS, before=[pair.when for pair in moments], left=None)
        own = [any(turn.speaker == pair.speaker for turn in pair.context) for pair in moments]
        silent = [spoken and user.leaving.leaves(recalled) for recalled, spoken in zip(near, own, strict=True)]
    said = [
        gone or (user.ending is not None and not pair.abandoned and user.ending.leaves(pair))
        for gone, pair in zip(silent, moments, strict=True)
    ]
    hits = [2.0 * (told and pair.ends) for told, pair in zip(said, moments, strict=True)]
    costs = [hit + (told != pair.ends) for hit, told, pair in zip(hits, said, moments, strict=True)]
    return ratio(hits, costs, [pair.conversation_id for pair in moments], seed=seed)


def one_by_one(user: SimulatedUser, pair: Pair) -> float:
    """The probability that the person leaves at a moment: without a word, or with this turn, whichever is likelier."""
    silent = spoken = 0.0
    if user.leaving is not None and any(turn.speaker == pair.speaker for turn in pair.context):
        silent = abandonment_rate(user.store.recall(pair, NEIGHBOURS, before=pair.when, left=None))
    if user.ending is not None and not pair.abandoned:
        spoken = user.ending.probability(pair)
    return max(silent, spoken)


def only(user: SimulatedUser, *ways: str) -> SimulatedUser:
    """The same twin, leaving in these ways only."""
    return SimulatedUser(
        user.record, user.store, MODEL,
        ending=user.ending if "ending" in ways else None, leaving=user.leaving if "leaving" in ways else None,
    )  # fmt: skip


@pytest.mark.parametrize("ways", [("ending", "leaving"), ("ending",), ("leaving",)])
def test_f1_is_what_it_was_before_there_was_a_calibration(
    learned: tuple[SimulatedUser, list[Pair]], ways: tuple[str, ...]
) -> None:
    user, moments = only(learned[0], *ways), learned[1]
    found, before = endings(user, moments, seed=3), usual_f1(user, moments, 3)
    assert found is not None
    assert before is not None
    assert found["f1"] == before.to_json()
    assert 0.0 < before.value < 1.0  # neither always right nor always wrong, so that the two may differ
    assert before.n == len(moments)


@pytest.mark.parametrize("ways", [("ending", "leaving"), ("ending",), ("leaving",)])
def test_brier_is_the_mean_square_of_what_the_probability_is_off(
    learned: tuple[SimulatedUser, list[Pair]], ways: tuple[str, ...]
) -> None:
    user, moments = only(learned[0], *ways), learned[1]
    found = endings(user, moments)
    assert found is not None
    by_hand = [(one_by_one(user, pair) - pair.ends) ** 2 for pair in moments]
    assert found["calibration"]["brier"]["value"] == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-6)
    assert found["calibration"]["brier"]["n"] == len(moments)


def test_the_bins_hold_every_moment_and_what_really_happened(learned: tuple[SimulatedUser, list[Pair]]) -> None:
    user, moments = learned
    found = endings(user, moments)
    assert found is not None
    bins = found["calibration"]["bins"]
    assert sum(one["n"] for one in bins) == len(moments)
    assert sum(one["left"] * one["n"] for one in bins) == pytest.approx(sum(pair.ends for pair in moments))
    assert all(one["low"] <= one["told"] <= one["high"] for one in bins)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_twin_that_never_learned_when_to_leave_is_given_no_score(learned: tuple[SimulatedUser, list[Pair]]) -> None:
    assert endings(only(learned[0]), learned[1]) is None


def test_where_nobody_left_and_none_was_told_to_there_is_nothing_to_divide_by(
    learned: tuple[SimulatedUser, list[Pair]],
) -> None:
    user = only(learned[0], "ending")
    assert user.ending is not None
    user.ending = replace(user.ending, threshold=1.1)
    stays = [replace(pair, ends=False) for pair in learned[1] if not pair.ends]
    assert stays
    assert endings(user, stays) is None


def test_a_moment_that_opens_a_talk_is_never_left_without_a_word(learned: tuple[SimulatedUser, list[Pair]]) -> None:
    """Who has not yet spoken has not come, and does not leave, however many left in moments like it."""
    user = only(learned[0], "leaving")
    assert user.leaving is not None
    user.leaving = replace(user.leaving, threshold=0.0)  # leaves wherever it may
    opening = [pair for pair in learned[1] if not any(turn.speaker == "Ann" for turn in pair.context)]
    found = endings(user, learned[1])
    assert found is not None
    may = [pair for pair in learned[1] if pair not in opening]
    right = sum(pair.ends for pair in may)
    assert found["f1"]["value"] == pytest.approx(2 * right / (2 * right + (len(may) - right) + sum(p.ends for p in opening)))
