"""A free simulation: the twin's own words stand in its past, the other side says what it really said."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from conftest import Telling, telling
from usertwin.evals.metrics.writing_style import style_distance
from usertwin.evals.replay.drift import DEPTHS, Drifted, drift, drift_result
from usertwin.memory import Settings
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.personas import Conversation, Pair, Turn
from usertwin.personas.pairs import extract_pairs
from usertwin.simulator import SimulatedUser

PLAIN = Settings(k=2, window=6, traces="none", reasons=False)


def long_talk(turns: int = 12, name: str = "long") -> Conversation:
    """A talk in which Ann says "yes" twice, and otherwise something else each time."""
    said: list[Turn] = []
    for number in range(1, turns + 1):
        answer = "yes" if number in {2, 3} else f"answer {number} of {name}"
        said += [Turn("desk", "agent", f"question {number} of {name}"), Turn("Ann", "user", answer)]
    return Conversation(name, tuple(said), "2024-06-01T10:00:00+00:00")


@pytest.fixture
def opened(ann: str) -> Iterator[tuple[SimulatedUser, Telling]]:
    """Ann's twin, which never says the same twice, and its model."""
    numbers = itertools.count(1)
    model, chat = telling(lambda prompt, seed: f"twin {next(numbers)}")
    with SimulatedUser.load(ann, model=model, settings=PLAIN) as user:
        yield user, chat


def drifted(user: SimulatedUser, *talks: Conversation, most: int = 9) -> list[Drifted]:
    pairs = [pair for talk in talks for pair in extract_pairs(talk, "Ann")]
    return asyncio.run(drift(user, FakeEmbedder(), pairs, "small/Ann", most=most))


def chats(chat: Telling) -> list[list[str]]:
    """The present chat in each prompt, the line to be continued left out."""
    return [prompt.split("\n\n")[-1].splitlines()[:-1] for prompt in chat.prompts]


def test_the_twin_is_looked_at_at_the_depths_that_a_talk_reaches(opened: tuple[SimulatedUser, Telling]) -> None:
    found = drifted(opened[0], long_talk(12), long_talk(4, "short"))
    assert [(one.conversation_id, one.depth) for one in found] == [
        *(("long", depth) for depth in DEPTHS), ("short", 1), ("short", 3),
    ]  # fmt: skip
    assert [one.action for one in found[:4]] == ["answer 1 of long", "yes", "answer 5 of long", "answer 10 of long"]
    assert {one.person for one in found} == {"small/Ann"}


def test_at_the_first_turn_both_histories_are_the_same_and_asked_about_once(opened: tuple[SimulatedUser, Telling]) -> None:
    user, chat = opened
    [first] = drifted(user, long_talk(1))
    assert first.free == first.led == "twin 1"
    assert first.free_similarity == first.led_similarity
    assert chats(chat) == [["Them: question 1 of long"]]


def test_later_the_twins_own_words_stand_in_its_past_and_the_partners_turns_stay_real(
    opened: tuple[SimulatedUser, Telling],
) -> None:
    user, chat = opened
    drifted(user, long_talk(12))
    asked = chats(chat)
    assert len(asked) == 10 + 3  # a free turn each, and three more after the real history
    led = [lines for lines in asked if any(line.startswith(("Me: answer", "Me: yes")) for line in lines)]
    assert len(led) == 3
    free = [lines for lines in asked if lines not in led]
    said: dict[int, str] = {}  # what the twin said at each turn: the third, fifth and tenth are followed by another reply
    numbers = itertools.count(1)
    for depth in range(1, 11):
        said[depth] = f"Me: twin {next(numbers)}"
        if depth in DEPTHS[1:]:
            next(numbers)
    for depth, lines in enumerate(free, 1):
        past = [line for before in range(1, depth) for line in (f"Them: question {before} of long", said[before])]
        assert lines == [*past, f"Them: question {depth} of long"][-6:]


def test_after_the_real_history_nothing_of_the_twins_own_is_shown(opened: tuple[SimulatedUser, Telling]) -> None:
    user, chat = opened
    found = drifted(user, long_talk(12))
    led = [lines for lines in chats(chat) if any(line.startswith(("Me: answer", "Me: yes")) for line in lines)]
    assert [lines[-1] for lines in led] == [f"Them: question {depth} of long" for depth in DEPTHS[1:]]
    assert not [line for lines in led for line in lines if line.startswith("Me: twin")]
    assert led[0][-2] == "Me: yes"
    assert all(one.free != one.led for one in found[1:])


def test_what_was_really_said_twice_is_replaced_each_time_by_what_the_twin_said_there(
    opened: tuple[SimulatedUser, Telling],
) -> None:
    user, chat = opened
    drifted(user, long_talk(4))
    [*_, last] = [lines for lines in chats(chat) if lines[-1] == "Them: question 4 of long"]
    assert [line for line in last if line.startswith("Me:")] == ["Me: twin 1", "Me: twin 2", "Me: twin 3"]


def test_where_the_twin_says_nothing_the_real_turn_stands(ann: str) -> None:
    model, chat = telling(lambda prompt, seed: "")
    with SimulatedUser.load(ann, model=model, settings=PLAIN) as user:
        found = drifted(user, long_talk(3))
    assert [one.free for one in found] == ["", ""]
    assert "Me: answer 1 of long" in chats(chat)[-1]


def test_a_twin_that_thinks_does_so_here_too(ann: str) -> None:
    model, chat = telling(lambda prompt, seed: "wants it now" if prompt.endswith("(Me thinking:") else "soon")
    with SimulatedUser.load(ann, model=model, settings=Settings(k=2, window=6, traces="recon", reasons=True)) as user:
        [one] = drifted(user, long_talk(1))
    assert one.free == "soon"
    assert chat.prompts[1].endswith("(Me thinking: wants it now)\nMe:")


def test_no_more_talks_than_asked_and_the_long_ones_first(opened: tuple[SimulatedUser, Telling]) -> None:
    talks = [long_talk(length, f"talk {length}") for length in (1, 2, 3, 11, 5)]
    assert {one.conversation_id for one in drifted(opened[0], *talks, most=1)} == {"talk 11"}
    assert len({one.conversation_id for one in drifted(opened[0], *talks, most=2)}) == 2


def test_silent_leavings_are_no_turns_of_a_simulation(opened: tuple[SimulatedUser, Telling]) -> None:
    talk = long_talk(1)
    pairs: list[Pair] = extract_pairs(Conversation("x", (*talk.turns, Turn("desk", "agent", "bye")), talk.started_at), "Ann")
    assert pairs[-1].abandoned
    found = asyncio.run(drift(opened[0], FakeEmbedder(), pairs, "x", most=1))
    assert [one.depth for one in found] == [1]


def test_progress_reaches_the_end(opened: tuple[SimulatedUser, Telling]) -> None:
    told: list[tuple[str, int, int]] = []
    pairs = extract_pairs(long_talk(2), "Ann")
    asyncio.run(drift(opened[0], FakeEmbedder(), pairs, "x", most=3, progress=lambda *now: told.append(now)))
    assert told == [("drifting", 0, 1), ("drifting", 1, 1)]


# What comes of it ----------------------------------------------------------------------------------------------------


def record(talk: str, depth: int, free: float, led: float, person: str = "a") -> Drifted:
    return Drifted(person, talk, depth, "yes please", f"no {free}", "yes", free, led)


def test_the_result_is_a_mean_for_each_depth_with_the_difference_paired() -> None:
    found = drift_result([record(f"t{n}", depth, 0.5 - depth / 20 + n / 10, 0.5) for n in range(4) for depth in (1, 3)])
    assert list(found) == ["1", "3"]
    assert found["3"]["similarity"]["value"] == pytest.approx(0.5 - 0.15 + 0.15)
    assert found["1"]["real_history"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 4}
    assert found["3"]["difference"]["value"] == pytest.approx(found["3"]["similarity"]["value"] - 0.5)
    assert found["3"]["difference"]["low"] < found["3"]["difference"]["value"] < found["3"]["difference"]["high"]


def test_people_weigh_the_same_however_many_talks_they_have() -> None:
    records = [*(record(f"t{n}", 1, 0.0, 0.0, "a") for n in range(9)), record("t0", 1, 1.0, 0.0, "b")]
    assert drift_result(records)["1"]["similarity"]["value"] == pytest.approx(0.5)


def test_style_is_the_distance_of_all_that_was_said_at_a_depth() -> None:
    records = [record(f"t{n}", 5, n / 10, 0.5) for n in range(3)]
    wanted = style_distance([one.free for one in records], [one.action for one in records])
    assert drift_result(records)["5"]["style"] == {"value": wanted, "low": None, "high": None, "n": 3}


def test_without_a_simulation_there_is_no_result() -> None:
    assert drift_result([]) == {}
