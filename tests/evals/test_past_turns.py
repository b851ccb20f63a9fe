"""Past turns: an independent sample of the person's turns, so that the control of a discriminator can be 0.5, and can fail."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.evals.metrics.arm_discriminators import discriminator_controls
from usertwin.evals.records.measured_turns import ContextFit, MeasuredTurn, PastTurn
from usertwin.evals.replay.past_turns import past_turns
from usertwin.personas import Pair
from usertwin.personas.pairs import ABANDONED

WORDS = ("river", "stone", "cloud", "apple", "train", "house", "light", "paper", "glass", "bread", "sound", "green", "table")
FIT = ContextFit(latest=0.0, context=0.0, own=0.0, goal=0.0)
TURNS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), unique=True, max_size=25)


def pair(conversation: str, position: int, action: str = "hello", *, left: bool = False) -> Pair:
    return Pair(
        speaker="Ann", context=(), action=ABANDONED if left else action, goal="", conversation_id=conversation,
        position=position, when=0.0, ends_conversation=left,
    )  # fmt: skip


# Assignment ----------------------------------------------------------------------------------------------------------


@given(TURNS, TURNS, st.integers(0, 9))
def test_each_remembered_turn_is_taken_once_and_a_conversation_for_one_held_out_conversation_only(
    held_out: list[tuple[int, int]], remembered: list[tuple[int, int]], seed: int
) -> None:
    ours, memory = [pair(f"h{c}", p) for c, p in held_out], [pair(f"m{c}", p) for c, p in remembered]
    taken = past_turns(ours, memory, seed=seed)
    keys = [(own.conversation_id, own.position) for own in taken.values()]
    assert set(keys) <= {(own.conversation_id, own.position) for own in memory}
    assert len(keys) == len(set(keys))
    owners = {(past.conversation_id, conversation) for (conversation, _), past in taken.items()}
    assert len(owners) == len({past for past, _ in owners})
    assert past_turns(ours, memory, seed=seed) == taken


def test_every_held_out_turn_has_a_past_turn_if_enough_are_remembered() -> None:
    held_out = [pair(f"h{c}", p) for c in range(4) for p in range(5)]
    assert len(past_turns(held_out, [pair(f"m{c}", p) for c in range(30) for p in range(5)], seed=0)) == 20
    assert len(past_turns(held_out, [pair("m", p) for p in range(40)], seed=0)) == 5  # for one conversation of the four
    assert past_turns(held_out, [], seed=0) == {}


def test_a_remembered_pair_without_an_action_is_not_taken() -> None:
    assert past_turns([pair("h", 0)], [pair("m", 9, left=True)], seed=0) == {}


def test_each_remembered_turn_is_about_equally_likely() -> None:
    """Of conversations of one and of ten turns: drawing conversations first would give the short ones half of all."""
    memory = [pair(f"m{c}", p) for c in range(40) for p in range(1 if c % 2 else 10)]
    held_out = [pair(f"h{c}", p) for c in range(8) for p in range(3)]
    short = [past.conversation_id for seed in range(60) for past in past_turns(held_out, memory, seed=seed).values()]
    share = sum(int(name[1:]) % 2 for name in short) / len(short)
    assert share == pytest.approx(20 / 220, abs=0.04)  # n = 1440


# The control ---------------------------------------------------------------------------------------------------------


def spoken(rng: random.Random, talks: int, each: int) -> list[Pair]:
    """Return pairs of a person with favourite words; each conversation has a subject, one word."""
    own, subjects = rng.sample(WORDS, 6), rng.choices(WORDS, k=talks)
    return [
        pair(f"t{talk}", position, " ".join([subjects[talk], *rng.choices(own, k=3)]))
        for talk in range(talks)
        for position in range(each)
    ]


def control(people: int, seed: int, change: Callable[[str], str] = str) -> float:
    """Return the control of people whose remembered and held-out turns are alike, but for a change of the remembered ones."""
    rng = random.Random(f"{people}/{seed}")
    turns: list[MeasuredTurn] = []
    for number in range(people):
        every = spoken(rng, 18, 4)
        held_out, memory = every[48:], every[:48]
        taken = past_turns(held_out, memory, seed=seed)
        for own in held_out:
            past = taken[own.conversation_id, own.position]
            turn = PastTurn(
                conversation_id=past.conversation_id, position=past.position, context=(), action=change(past.action), fit=FIT,
                misplaced_fit=FIT,
            )  # fmt: skip
            turns.append(MeasuredTurn(
                person=f"x/p{number}", conversation_id=own.conversation_id, position=own.position, context=(),
                action=own.action, characters=9, past=turn, real_fit=FIT,
            ))  # fmt: skip
    result = discriminator_controls(turns, seed=seed)
    assert result is not None
    assert result["folds_by"] == ("conversation" if people == 1 else "person")
    return result["control"]["value"]


@pytest.mark.parametrize("people", [1, 4])
def test_the_control_is_one_half_on_average_and_not_always(people: int) -> None:
    values = [control(people, seed) for seed in range(12)]
    assert fmean(values) == pytest.approx(0.5, abs=3 * stdev(values) / len(values) ** 0.5)
    assert 0.01 < stdev(values) < 0.25
    assert len(set(values)) > 6


@pytest.mark.parametrize("people", [1, 4])
def test_the_control_fails_if_remembered_turns_differ(people: int) -> None:
    assert control(people, 0, str.upper) > 0.95
