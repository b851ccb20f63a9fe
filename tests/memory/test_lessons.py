"""memory/training/dataset.py: who is held out is held out wholly, what is measured is never trained on, and what cannot be is said."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, cycle, islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.text.words import word_tokens
from usertwin.memory.training.dataset import (
    MAX_WORDS,
    MIN_WORDS,
    DatasetSplit,
    SplitConfig,
    TrainingExample,
    build_dataset,
    with_related_pairs,
)
from usertwin.personas import ChatLog, Conversation, LogError, Turn, UsageError
from usertwin.personas.pairs import extract_pairs

PARTS = ("train", "watched", "seen", "unseen")
FEW = SplitConfig(people=1, unseen=1, train_pairs=40)


def talk(number: int, *speakers: str, turns: int = 8, words: int = 6) -> Conversation:
    """A talk of some people by turns, none of which is said twice."""
    said = [
        Turn(who, "user", " ".join([f"n{number}t{place}", *["word"] * (words - 1)]))
        for place, who in enumerate(islice(cycle(speakers), turns))
    ]
    return Conversation(f"talk-{number:03d}", tuple(said), f"2024-01-01T{number // 60:02d}:{number % 60:02d}:00+00:00")


def among(*pairs: tuple[str, str]) -> ChatLog:
    """A log of talks of two, one after the other."""
    return ChatLog(tuple(talk(number, *two) for number, two in enumerate(pairs)), "among.jsonl")


def with_desk(*names: str, talks: int = 12) -> ChatLog:
    """A log of people who talk with some desk or other, and never with each other; who is named first said most."""
    order = [name for place, name in enumerate(names) for _ in range(talks + len(names) - place)]
    return among(*((f"desk {number}", name) for number, name in enumerate(order)))


def conversations(lessons: DatasetSplit, part: str) -> set[str]:
    return {one.pair.conversation_id for one in getattr(lessons, part)}


def words_of(lesson: TrainingExample) -> int:
    return len(word_tokens(lesson.pair.action))


# Who is held out -----------------------------------------------------------------------------------------------------

PEOPLE = ("Ann", "Bob", "Cleo", "Dan", "Eve")
TWO = st.sampled_from(list(combinations(PEOPLE, 2)))


@settings(max_examples=40)
@given(st.lists(TWO, min_size=40, max_size=60), st.integers(1, 2))
def test_no_conversation_is_in_two_parts_and_none_of_a_stranger_in_any_but_the_last(
    talks: list[tuple[str, str]], unseen: int
) -> None:
    log = among(*talks)
    try:
        lessons = build_dataset({"log": log}, SplitConfig(people=3, unseen=unseen, train_pairs=40))
    except LogError:
        return
    parts = [conversations(lessons, part) for part in PARTS]
    assert not any(one & other for one, other in combinations(parts, 2))
    strangers = {label.partition("/")[2] for label in lessons.people["unseen"]}
    known = set().union(*parts[:3])
    assert not any(
        strangers & {turn.speaker for turn in one.turns} for one in log.conversations if one.conversation_id in known
    )


def test_a_talk_of_somebody_trained_on_with_somebody_held_out_is_kept_from_all_but_the_held_out() -> None:
    alone, together = [("desk", "Ann")] * 20, [("Ann", "Bob")] * 20
    log = among(*(two for both in zip(alone, together, strict=True) for two in both))
    lessons = build_dataset(
        {"log": log}, SplitConfig(people=1, held_out=("Bob",), train_pairs=99, validation_pairs=99, test_pairs=99)
    )
    assert lessons.people == {"seen": ["log/Ann"], "unseen": ["log/Bob"]}
    assert lessons.validation
    assert lessons.seen
    for part in ("train", "watched", "seen"):
        assert all(int(name.removeprefix("talk-")) % 2 == 0 for name in conversations(lessons, part))


def test_what_is_measured_of_one_is_not_trained_on_as_a_part_of_another() -> None:
    # The last talks of Bob are early ones of Ann, who goes on talking with the desk.
    log = among(*[("desk", "Bob")] * 8, *[("Ann", "Bob")] * 4, *[("desk", "Ann")] * 20)
    lessons = build_dataset(
        {"log": log}, SplitConfig(people=2, unseen=0, train_pairs=99, validation_pairs=99, test_pairs=99, role="user")
    )
    assert {"log/Ann"} <= set(lessons.people["seen"])
    assert not conversations(lessons, "train") & conversations(lessons, "seen")


def test_the_held_out_are_spread_evenly_among_those_who_said_most() -> None:
    lessons = build_dataset({"log": with_desk(*PEOPLE)}, SplitConfig(people=2, unseen=2, train_pairs=40))
    # the first and the third of four, counted from the middle of each half
    assert lessons.people == {"seen": ["log/Ann", "log/Cleo"], "unseen": ["log/Bob", "log/Dan"]}


def test_people_who_are_named_are_held_out_instead() -> None:
    told = SplitConfig(people=2, unseen=3, held_out=("Eve", "Eve"), train_pairs=40)
    lessons = build_dataset({"log": with_desk(*PEOPLE)}, told)
    assert lessons.people["unseen"] == ["log/Eve"]
    assert len(lessons.people["seen"]) == 2


def test_where_somebody_is_named_a_log_without_them_holds_nobody_out() -> None:
    logs = {"one": with_desk("Ann", "Bob"), "two": with_desk("Cleo", "Dan")}
    lessons = build_dataset(logs, SplitConfig(people=1, unseen=1, held_out=("Bob",), train_pairs=60))
    assert lessons.people["unseen"] == ["one/Bob"]


def test_somebody_unknown_cannot_be_held_out() -> None:
    with pytest.raises(LogError, match='nobody called "Anne" speaks in log, so nothing of theirs can be held out'):
        build_dataset({"log": with_desk("Ann", "Bob")}, replace(FEW, held_out=("Bob", "Anne")))


def test_a_role_narrows_who_is_looked_at(log: ChatLog) -> None:
    lessons = build_dataset({"log": log}, replace(FEW, role="user"))
    assert {one.label for part in PARTS for one in getattr(lessons, part)} == {"log/Ann", "log/Bob"}


def test_people_of_two_logs_are_told_apart_by_the_log() -> None:
    logs = {"one": with_desk("Ann", "Bob"), "two": with_desk("Ann", "Bob")}
    lessons = build_dataset(logs, SplitConfig(people=1, held_out=("Ann",), train_pairs=40))
    assert lessons.people == {"seen": ["one/Bob", "two/Bob"], "unseen": ["one/Ann", "two/Ann"]}


# What is learned from ------------------------------------------------------------------------------------------------


def test_training_comes_before_what_is_watched_and_that_before_what_is_measured() -> None:
    lessons = build_dataset({"log": with_desk("Ann", "Bob")}, FEW)
    for label in lessons.people["seen"]:
        train, watched, seen = (
            [one.pair.when for one in part if one.label == label] for part in (lessons.train, lessons.validation, lessons.seen)
        )
        assert max(train) < min(watched) <= max(watched) < min(seen)


@given(st.lists(st.integers(1, MAX_WORDS + 5), min_size=30, max_size=60))
@settings(max_examples=20)
def test_only_answers_to_somebody_of_a_usual_length_are_learned_from(lengths: list[int]) -> None:
    talks = tuple(talk(number, "Ann", "Bob", words=words) for number, words in enumerate(lengths))
    try:
        lessons = build_dataset({"log": ChatLog(talks, "log")}, replace(FEW, unseen=0))
    except LogError:
        return
    found = [one for part in PARTS for one in getattr(lessons, part)]
    assert all(MIN_WORDS <= words_of(one) <= MAX_WORDS and one.pair.context and not one.pair.left for one in found)


@pytest.mark.parametrize("most", [1, 5, 16])
def test_of_many_pairs_so_many_are_taken_and_no_more(most: int) -> None:
    lessons = build_dataset(
        {"log": with_desk(*PEOPLE)},
        SplitConfig(people=4, unseen=1, train_pairs=max(4, most), validation_pairs=most, test_pairs=most),
    )
    for label in lessons.people["seen"]:
        assert sum(one.label == label for one in lessons.train) == max(4, most)
        assert sum(one.label == label for one in lessons.seen) <= most
    assert len(lessons.validation) == most
    assert 0 < len(lessons.unseen) <= most


def test_a_budget_that_ends_early_leaves_nobody_out() -> None:
    lessons = build_dataset(
        {"log": with_desk("Ann", "Bob", "Cleo")}, SplitConfig(people=3, unseen=0, train_pairs=10, validation_pairs=3)
    )
    firsts = [one.label for one in lessons.train]
    assert [len({*firsts[start : start + 3]}) for start in range(0, 30, 3)] == [3] * 10
    for label in {*firsts}:
        own = [one.pair for one in lessons.train if one.label == label]
        assert own == sorted(own, key=lambda pair: (pair.when, pair.position))


def test_those_who_are_watched_take_turns() -> None:
    lessons = build_dataset(
        {"log": with_desk("Ann", "Bob", "Cleo")}, SplitConfig(people=3, unseen=0, train_pairs=40, validation_pairs=3)
    )
    assert len({one.label for one in lessons.validation}) == 3


def test_pairs_are_spread_over_the_whole_of_what_may_be_trained_on() -> None:
    all_of_them = build_dataset({"log": with_desk("Ann", "Bob")}, replace(FEW, train_pairs=9999)).train
    some = build_dataset({"log": with_desk("Ann", "Bob")}, replace(FEW, train_pairs=20)).train
    own = [one.pair for one in all_of_them if one.label == some[0].label]
    places = [own.index(one.pair) for one in some if one.label == some[0].label]
    gaps = [after - before for before, after in pairwise(places)]
    assert max(gaps) - min(gaps) <= 1


# What cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["people", "pairs", "watched"])
def test_no_person_or_pair_makes_no_lessons(name: str, log: ChatLog) -> None:
    with pytest.raises(UsageError, match="at least one person"):
        build_dataset({"log": log}, replace(FEW, **{name: 0}))


@pytest.mark.parametrize("name", ["unseen", "measured"])
def test_a_negative_number_makes_no_lessons(name: str, log: ChatLog) -> None:
    with pytest.raises(UsageError, match="no number is negative"):
        build_dataset({"log": log}, replace(FEW, **{name: -1}))


def test_more_people_than_said_enough_are_too_many(log: ChatLog) -> None:
    with pytest.raises(LogError, match=r"test: only 4 people said enough, and 12 are wanted \(8 to train on and 4 held out\)"):
        build_dataset({"log": log}, SplitConfig())


def test_too_few_pairs_are_said_to_be_too_few() -> None:
    with pytest.raises(LogError, match=r"only 3 pairs to train on .* at least 16 .* take more people"):
        build_dataset({"log": with_desk("Ann", "Bob")}, replace(FEW, train_pairs=3))


def test_nothing_to_watch_is_an_error_before_anything_long_begins() -> None:
    # What would be watched is said in single words.
    talks = tuple(talk(number, "Ann", "Bob", words=1 if 14 <= number < 18 else 6) for number in range(20))
    with pytest.raises(LogError, match="and 0 to watch"):
        build_dataset({"log": ChatLog(talks, "log")}, replace(FEW, unseen=0))


# The other moment ----------------------------------------------------------------------------------------------------

MOMENTS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.sampled_from(["tea", "rain", "tea rain"])))


@given(MOMENTS)
def test_the_other_moment_is_of_the_same_person_and_never_of_the_same_conversation(told: list[tuple[str, str, str]]) -> None:
    lessons = [lesson(*one, position=place) for place, one in enumerate(told)]
    found = with_related_pairs(lessons, FakeEmbedder())
    assert sorted(one.pair.position for one in found) == list(range(len(lessons)))
    for one in found:
        assert one.pair in [known.pair for known in lessons if known.label == one.label]
        others = {known[1] for known in told if known[0] == one.label} - {one.pair.conversation_id}
        assert (one.related_pair is None) == (not others)
        if one.related_pair is not None:
            assert one.related_pair.speaker == one.label
            assert one.related_pair.conversation_id in others


def test_the_other_moment_is_the_most_alike() -> None:
    lessons = [lesson("a", "x", "tea"), lesson("a", "y", "rain"), lesson("a", "z", "tea cake")]
    found = with_related_pairs(lessons, FakeEmbedder())
    assert found[0].related_pair is not None
    assert found[0].related_pair.conversation_id == "z"


def lesson(who: str, where: str, topic: str, position: int = 1) -> TrainingExample:
    """A lesson of somebody who answers to a topic."""
    [pair] = extract_pairs(Conversation(where, (Turn("desk", "agent", topic), Turn(who, "user", "so it is")), None), who)
    return TrainingExample(who, replace(pair, position=position))


def test_fewer_later_pairs_of_those_trained_on_can_be_measured_than_of_the_others() -> None:
    log = {"log": with_desk(*PEOPLE)}
    many, few = (
        build_dataset(log, SplitConfig(people=3, unseen=1, train_pairs=20, test_pairs=4, later_test_pairs=later))
        for later in (None, 1)
    )
    assert (len(few.unseen), len(few.seen)) == (len(many.unseen), 3)
    assert len(many.seen) > 3
    assert few.train == many.train
    with pytest.raises(UsageError, match="negative"):
        build_dataset(log, SplitConfig(later_test_pairs=-1))
