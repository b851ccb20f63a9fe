"""memory/training/dataset.py: held-out people are held out completely, and no test pair is trained on."""

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

PARTS = ("train", "validation", "seen", "unseen")
SMALL = SplitConfig(people=1, unseen=1, train_pairs=40)


def talk(number: int, *speakers: str, turns: int = 8, words: int = 6) -> Conversation:
    """A conversation in which the speakers alternate; no turn repeats."""
    texts = (" ".join([f"n{number}t{place}", *["word"] * (words - 1)]) for place in range(turns))
    alternating = tuple(
        Turn(speaker, "user", text) for speaker, text in zip(islice(cycle(speakers), turns), texts, strict=True)
    )
    return Conversation(f"talk-{number:03d}", alternating, f"2024-01-01T{number // 60:02d}:{number % 60:02d}:00+00:00")


def log_of(*pairs: tuple[str, str]) -> ChatLog:
    """A log of conversations between two people each, one after another."""
    return ChatLog(tuple(talk(number, *two) for number, two in enumerate(pairs)), "log.jsonl")


def desk_log(*names: str, talks: int = 12) -> ChatLog:
    """A log of people who each talk with a desk, never with each other; earlier names have more turns."""
    order = [name for place, name in enumerate(names) for _ in range(talks + len(names) - place)]
    return log_of(*((f"desk {number}", name) for number, name in enumerate(order)))


def conversations(dataset: DatasetSplit, part: str) -> set[str]:
    return {example.pair.conversation_id for example in getattr(dataset, part)}


# Held-out people -----------------------------------------------------------------------------------------------------

PEOPLE = ("Ann", "Bob", "Cleo", "Dan", "Eve")
TWO = st.sampled_from(list(combinations(PEOPLE, 2)))


@settings(max_examples=25)
@given(st.lists(TWO, min_size=40, max_size=60), st.integers(1, 2))
def test_parts_share_no_conversation_and_held_out_people_speak_only_in_the_unseen_part(
    talks: list[tuple[str, str]], unseen: int
) -> None:
    log = log_of(*talks)
    try:
        dataset = build_dataset({"log": log}, SplitConfig(people=3, unseen=unseen, train_pairs=40))
    except LogError:
        return
    parts = [conversations(dataset, part) for part in PARTS]
    assert not any(first & second for first, second in combinations(parts, 2))
    held_out = {label.partition("/")[2] for label in dataset.people["unseen"]}
    used = set().union(*parts[:3])
    assert not any(
        held_out & {turn.speaker for turn in conversation.turns}
        for conversation in log.conversations
        if conversation.conversation_id in used
    )


def test_a_conversation_with_a_held_out_person_is_in_no_other_part() -> None:
    alone, together = [("desk", "Ann")] * 20, [("Ann", "Bob")] * 20
    log = log_of(*(two for both in zip(alone, together, strict=True) for two in both))
    config = SplitConfig(people=1, held_out=("Bob",), train_pairs=99, validation_pairs=99, test_pairs=99)
    dataset = build_dataset({"log": log}, config)
    assert dataset.people == {"seen": ["log/Ann"], "unseen": ["log/Bob"]}
    assert dataset.validation
    assert dataset.seen
    for part in ("train", "validation", "seen"):
        assert all(int(name.removeprefix("talk-")) % 2 == 0 for name in conversations(dataset, part))


def test_a_test_conversation_of_one_person_is_not_trained_on_for_another() -> None:
    # The last conversations of Bob are early ones of Ann.
    log = log_of(*[("desk", "Bob")] * 8, *[("Ann", "Bob")] * 4, *[("desk", "Ann")] * 20)
    config = SplitConfig(people=2, unseen=0, train_pairs=99, validation_pairs=99, test_pairs=99, role="user")
    dataset = build_dataset({"log": log}, config)
    assert {"log/Ann"} <= set(dataset.people["seen"])
    assert not conversations(dataset, "train") & conversations(dataset, "seen")


def test_held_out_people_are_spread_evenly_by_number_of_turns() -> None:
    dataset = build_dataset({"log": desk_log(*PEOPLE)}, SplitConfig(people=2, unseen=2, train_pairs=40))
    assert dataset.people == {"seen": ["log/Ann", "log/Cleo"], "unseen": ["log/Bob", "log/Dan"]}


def test_named_people_are_held_out_instead() -> None:
    config = SplitConfig(people=2, unseen=3, held_out=("Eve", "Eve"), train_pairs=40)
    dataset = build_dataset({"log": desk_log(*PEOPLE)}, config)
    assert dataset.people["unseen"] == ["log/Eve"]
    assert len(dataset.people["seen"]) == 2


def test_a_log_without_the_named_people_holds_nobody_out() -> None:
    logs = {"one": desk_log("Ann", "Bob"), "two": desk_log("Cleo", "Dan")}
    dataset = build_dataset(logs, SplitConfig(people=1, unseen=1, held_out=("Bob",), train_pairs=60))
    assert dataset.people["unseen"] == ["one/Bob"]


def test_an_unknown_person_cannot_be_held_out() -> None:
    with pytest.raises(LogError, match='--hold-out: "Anne" does not speak in log; name a speaker'):
        build_dataset({"log": desk_log("Ann", "Bob")}, replace(SMALL, held_out=("Bob", "Anne")))


def test_a_role_limits_the_people(log: ChatLog) -> None:
    dataset = build_dataset({"log": log}, replace(SMALL, role="user"))
    assert {example.label for part in PARTS for example in getattr(dataset, part)} == {"log/Ann", "log/Bob"}


def test_labels_distinguish_people_of_two_logs() -> None:
    logs = {"one": desk_log("Ann", "Bob"), "two": desk_log("Ann", "Bob")}
    dataset = build_dataset(logs, SplitConfig(people=1, held_out=("Ann",), train_pairs=40))
    assert dataset.people == {"seen": ["one/Bob", "two/Bob"], "unseen": ["one/Ann", "two/Ann"]}


# Pairs ---------------------------------------------------------------------------------------------------------------


def test_training_pairs_come_before_validation_pairs_and_those_before_test_pairs() -> None:
    dataset = build_dataset({"log": desk_log("Ann", "Bob")}, SMALL)
    for label in dataset.people["seen"]:
        train, validation, seen = (
            [example.pair.when for example in part if example.label == label]
            for part in (dataset.train, dataset.validation, dataset.seen)
        )
        assert max(train) < min(validation) <= max(validation) < min(seen)


@given(st.lists(st.integers(1, MAX_WORDS + 5), min_size=30, max_size=60))
@settings(max_examples=10)
def test_only_replies_of_usual_length_are_used(lengths: list[int]) -> None:
    talks = tuple(talk(number, "Ann", "Bob", words=words) for number, words in enumerate(lengths))
    try:
        dataset = build_dataset({"log": ChatLog(talks, "log")}, replace(SMALL, unseen=0))
    except LogError:
        return
    pairs = [example.pair for part in PARTS for example in getattr(dataset, part)]
    assert all(MIN_WORDS <= len(word_tokens(pair.action)) <= MAX_WORDS for pair in pairs)
    assert all(pair.context and not pair.abandoned for pair in pairs)


@pytest.mark.parametrize("limit", [1, 5, 16])
def test_the_number_of_pairs_is_limited(limit: int) -> None:
    dataset = build_dataset(
        {"log": desk_log(*PEOPLE)},
        SplitConfig(people=4, unseen=1, train_pairs=max(4, limit), validation_pairs=limit, test_pairs=limit),
    )
    for label in dataset.people["seen"]:
        assert sum(example.label == label for example in dataset.train) == max(4, limit)
        assert sum(example.label == label for example in dataset.seen) <= limit
    assert len(dataset.validation) == limit
    assert 0 < len(dataset.unseen) <= limit


def test_people_take_turns_in_the_training_pairs() -> None:
    config = SplitConfig(people=3, unseen=0, train_pairs=10, validation_pairs=3)
    dataset = build_dataset({"log": desk_log("Ann", "Bob", "Cleo")}, config)
    labels = [example.label for example in dataset.train]
    assert [len({*labels[start : start + 3]}) for start in range(0, 30, 3)] == [3] * 10
    for label in {*labels}:
        own = [example.pair for example in dataset.train if example.label == label]
        assert own == sorted(own, key=lambda pair: (pair.when, pair.position))


def test_people_take_turns_in_the_validation_pairs() -> None:
    config = SplitConfig(people=3, unseen=0, train_pairs=40, validation_pairs=3)
    dataset = build_dataset({"log": desk_log("Ann", "Bob", "Cleo")}, config)
    assert len({example.label for example in dataset.validation}) == 3


def test_selected_pairs_are_spread_evenly_over_the_corpus() -> None:
    every = build_dataset({"log": desk_log("Ann", "Bob")}, replace(SMALL, train_pairs=9999)).train
    some = build_dataset({"log": desk_log("Ann", "Bob")}, replace(SMALL, train_pairs=20)).train
    own = [example.pair for example in every if example.label == some[0].label]
    places = [own.index(example.pair) for example in some if example.label == some[0].label]
    gaps = [after - before for before, after in pairwise(places)]
    assert max(gaps) - min(gaps) <= 1


def test_seen_people_can_have_fewer_test_pairs() -> None:
    log = {"log": desk_log(*PEOPLE)}
    many, few = (
        build_dataset(log, SplitConfig(people=3, unseen=1, train_pairs=20, test_pairs=4, later_test_pairs=later))
        for later in (None, 1)
    )
    assert (len(few.unseen), len(few.seen)) == (len(many.unseen), 3)
    assert len(many.seen) > 3
    assert few.train == many.train


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["people", "train_pairs", "validation_pairs"])
def test_a_split_needs_people_and_pairs(name: str, log: ChatLog) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is 0; it must be at least 1"):
        build_dataset({"log": log}, replace(SMALL, **{name: 0}))


@pytest.mark.parametrize("name", ["unseen", "test_pairs", "later_test_pairs"])
def test_no_number_may_be_negative(name: str, log: ChatLog) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is -1; it must be at least 0"):
        build_dataset({"log": log}, replace(SMALL, **{name: -1}))


def test_too_few_people_are_refused(log: ChatLog) -> None:
    with pytest.raises(LogError, match=r"test: only 4 people have enough turns, and 12 are wanted \(8 to train on and 4 held"):
        build_dataset({"log": log}, SplitConfig())


def test_too_few_training_pairs_are_refused() -> None:
    with pytest.raises(LogError, match=r"only 3 pairs to train on .* at least 16 .* take more people"):
        build_dataset({"log": desk_log("Ann", "Bob")}, replace(SMALL, train_pairs=3))


def test_missing_validation_pairs_are_refused() -> None:
    # The validation part consists of single words.
    talks = tuple(talk(number, "Ann", "Bob", words=1 if 14 <= number < 18 else 6) for number in range(20))
    with pytest.raises(LogError, match="and 0 for validation"):
        build_dataset({"log": ChatLog(talks, "log")}, replace(SMALL, unseen=0))


# Related pairs -------------------------------------------------------------------------------------------------------

KEYS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.sampled_from(["tea", "rain", "tea rain"])))


def example_of(person: str, conversation: str, topic: str, position: int = 1) -> TrainingExample:
    """A pair in which a person replies to a topic."""
    turns = (Turn("desk", "agent", topic), Turn(person, "user", "so it is"))
    [pair] = extract_pairs(Conversation(conversation, turns, None), person)
    return TrainingExample(person, replace(pair, position=position))


@settings(max_examples=50)
@given(KEYS)
def test_a_related_pair_is_of_the_same_person_in_another_conversation(keys: list[tuple[str, str, str]]) -> None:
    examples = [example_of(*key, position=place) for place, key in enumerate(keys)]
    related = with_related_pairs(examples, FakeEmbedder())
    assert sorted(example.pair.position for example in related) == list(range(len(examples)))
    for example in related:
        assert example.pair in [known.pair for known in examples if known.label == example.label]
        others = {key[1] for key in keys if key[0] == example.label} - {example.pair.conversation_id}
        assert (example.related_pair is None) == (not others)
        if example.related_pair is not None:
            assert example.related_pair.speaker == example.label
            assert example.related_pair.conversation_id in others


def test_the_related_pair_is_the_most_similar() -> None:
    examples = [example_of("a", "x", "tea"), example_of("a", "y", "rain"), example_of("a", "z", "tea cake")]
    related = with_related_pairs(examples, FakeEmbedder())
    assert related[0].related_pair is not None
    assert related[0].related_pair.conversation_id == "z"
