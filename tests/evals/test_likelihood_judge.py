"""The judge by likelihood: gains over another person's pairs, win rates with checks, and the suite's key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from test_replay import RecordingScorer, by_prompt

from conftest import function_model, tiny
from usertwin.evals.arm_names import QUOTING_ARMS
from usertwin.evals.judges.likelihood_judge import likelihood_wins
from usertwin.evals.records.measured_turns import REAL_TURN, MeasuredTurn
from usertwin.evals.replay.arms import Arms
from usertwin.evals.replay.held_out import held_out_pairs, other_person_store
from usertwin.evals.replay.outside_gain import outside_gains
from usertwin.evals.replay.replay import Replay, ReplayConfig
from usertwin.evals.suites.config import Suite
from usertwin.memory import Scorer
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.memory.twin.record import default_home
from usertwin.simulator import SimulatedUser

ARMS = ("other_person", "recalled_pairs", *QUOTING_ARMS)


def gains(scorer: Scorer, *, arms: tuple[str, ...] = ARMS, replies: dict[str, str] | None = None, count: int = 3) -> list[Any]:
    """Return the gains of replies at some held-out turns of Ann, and each turn."""
    with SimulatedUser.load("ann", model=function_model(by_prompt)[0], k=3) as user, ExitStack() as stack:
        folder = default_home() / "ann"
        other = other_person_store(user, folder, FakeEmbedder(), stack)
        turns = Arms(user, names=arms, other=other).held_out_turns(held_out_pairs(user, folder)[0][:count])
        return [(outside_gains(scorer, user, turn, replies or {"recalled_pairs": "hello"}), turn) for turn in turns]


# Gains --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ann")
def test_a_gain_is_the_bits_saved_by_own_pairs_for_each_character() -> None:
    scorer = RecordingScorer(lambda prompt, action: -9.0 if "order" in prompt.lower() else -2.0)  # the other person orders
    for found, turn in gains(scorer, replies={"recalled_pairs": "hello", "no_memory": "a"}):
        bits = 7.0 / 0.6931471805599453
        assert found["recalled_pairs"] == pytest.approx(bits / 6)  # five characters and the end of the turn
        assert found["no_memory"] == pytest.approx(bits / 2)
        assert set(found) == {REAL_TURN, "recalled_pairs", "no_memory"}
        assert len(turn.shown["other_person"]) == 3


@pytest.mark.usefixtures("ann")
def test_the_pairs_in_the_prompt_are_none_that_an_arm_was_shown() -> None:
    scorer = RecordingScorer(lambda prompt, action: -1.0)
    for found, turn in gains(scorer, count=1):
        own = scorer.prompts[0]
        shown = {triple.pair.action for arm in ("recalled_pairs", *QUOTING_ARMS) for triple in turn.shown[arm]}
        days = {action for action in shown if "day" in action}
        assert found
        assert days
        assert not any(f"Me: {action}\n" in own for action in days)
        assert own.count("\n---\n") == 3


@pytest.mark.usefixtures("ann")
def test_without_another_persons_pairs_there_is_no_gain() -> None:
    assert [found for found, _ in gains(FakeScorer(), arms=("recalled_pairs",))] == [{}, {}, {}]


@pytest.mark.usefixtures("ann", "in_one_thread")
def test_a_transformers_model_gives_the_same_text_the_same_gain() -> None:
    scorer = TransformersScorer("tiny", tiny)
    [(found, _)] = gains(scorer, replies={"recalled_pairs": "hello there", "no_memory": "hello there", "a": "x"}, count=1)
    assert found["recalled_pairs"] == found["no_memory"]
    assert all(abs(gain) < 9 for gain in found.values())


@pytest.mark.usefixtures("ann")
def test_replay_records_the_gains_of_turns_with_replies() -> None:
    with SimulatedUser.load("ann", model=function_model(by_prompt)[0], k=3) as user, ExitStack() as stack:
        folder = default_home() / "ann"
        arms = Arms(user, names=ARMS, other=other_person_store(user, folder, FakeEmbedder(), stack))
        replay = Replay(
            user=user, scorer=FakeScorer(), embedder=FakeEmbedder(), arms=arms, config=ReplayConfig(arms=ARMS, generate=2),
            person="x/Ann", outside=FakeScorer(),
        )  # fmt: skip
        turns = asyncio.run(replay.run(held_out_pairs(user, folder)[0]))
    measured = [turn for turn in turns if turn.outside_gain]
    assert measured == [turn for turn in turns if turn.replies]
    assert all(set(turn.outside_gain) == {REAL_TURN, *turn.replies} for turn in measured)


# Win rates ----------------------------------------------------------------------------------------------------------


def turns_of(rows: Sequence[dict[str, float]], people: int = 6) -> list[MeasuredTurn]:
    """Return turns with these gains for each person, each in its own conversation."""
    return [
        MeasuredTurn(
            person=f"x/p{person}", conversation_id=f"c{place}", position=0, context=(), action="hi", characters=3,
            outside_gain=row,
        )
        for person in range(people)
        for place, row in enumerate(rows)
    ]  # fmt: skip


def test_the_higher_gain_wins_and_a_tie_counts_half() -> None:
    rows = [{REAL_TURN: 2.0, "twin": 1.0, "a": 0.5}, {REAL_TURN: 3.0, "twin": 1.0, "a": 1.0}, {REAL_TURN: 2.0, "twin": 1.0}]
    result = likelihood_wins(turns_of(rows), "twin", model="m")
    assert result is not None
    assert result["contrasts"]["twin - a"]["win"]["value"] == 0.75
    assert result["contrasts"]["twin - a"]["win"]["n"] == 12
    assert result["contrasts"]["twin - a"]["p"] == 2 / 64
    assert result["identical"]["value"] == 0.5
    assert {arm: row["win"]["value"] for arm, row in result["real"].items()} == {"twin": 1.0, "a": 1.0}
    assert all(row["holds"] for row in result["real"].values())
    assert result["usable"]
    assert result["warnings"] == []


def test_a_model_that_does_not_prefer_the_real_turn_is_not_usable() -> None:
    rows = [{REAL_TURN: 0.0, "twin": 1.0, "a": 0.5}, {REAL_TURN: 2.0, "twin": 1.0, "a": 0.5}]
    result = likelihood_wins(turns_of(rows), "twin", model="m")
    assert result is not None
    assert result["real"]["twin"]["holds"] is False
    assert not result["usable"]
    assert result["warnings"] == ['the model "m" does not prefer the real turn to the twin\'s reply: do not use its win rates']


def test_without_gains_of_the_twin_there_are_no_win_rates() -> None:
    assert likelihood_wins([], "twin", model="m") is None
    assert likelihood_wins(turns_of([{}]), "twin", model="m") is None
    assert likelihood_wins(turns_of([{REAL_TURN: 0.0, "a": 1.0}]), "twin", model="m") is None


# The suite's key ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outside", "arms", "message"),
    [
        ("local", ("other_person", "recalled_pairs"), 'models.outside: "local" is the action model; name a model of another'),
        ("local:small", ("recalled_pairs",), 'pairs that the arm "other_person" shows; add that arm'),
    ],
)
def test_an_outside_model_that_cannot_judge_is_refused(outside: str, arms: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Suite.model_validate({"twins": ["ann"], "arms": arms, "models": {"action": "local", "outside": outside}})


def test_an_outside_model_of_another_family_is_taken() -> None:
    arms = ("other_person", "recalled_pairs")
    assert Suite.model_validate({"twins": ["ann"], "arms": arms, "models": {"outside": "local:small"}}).models.outside
