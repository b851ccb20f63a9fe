"""Pairs of context and action, and the split by conversation and time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from usertwin.personas import ChatLog, Conversation, LogError, Pair, Split, Turn, split_pairs
from usertwin.personas.chat_log import in_time_order
from usertwin.personas.conversation import seconds
from usertwin.personas.pairs import LEFT, MIN_TURNS, check_speaker, pairs_of, pairs_of_log, visible_turns

HOUR = 3600


def iso(moment: float) -> str:
    """A moment of 2024 as the log would write it."""
    return f"2024-01-{1 + int(moment) // 86400:02d}T{int(moment) // HOUR % 24:02d}:{int(moment) // 60 % 60:02d}:00Z"


def talk(name: str, *said: tuple[str, str], started_at: str | None = None, times: list[str] | None = None) -> Conversation:
    """A conversation of (speaker, text); what the speaker "guide" says is private."""
    turns = [
        Turn(speaker, "instruction" if speaker == "guide" else "user", text, times[place] if times else None)
        for place, (speaker, text) in enumerate(said)
    ]
    return Conversation(name, tuple(turns), started_at)


def chats(count: int, own: int = 2) -> list[Conversation]:
    """Undated talks in which Ann speaks so many times."""
    return [talk(f"t{n}", *[(who, f"{who} {n} {k}") for k in range(own) for who in ("Bob", "Ann")]) for n in range(count)]


# Pairs -------------------------------------------------------------------------------------------------------------------


def test_a_pair_is_what_was_seen_and_what_was_said_next() -> None:
    conversation = talk("a", ("Bob", "hello"), ("Ann", "hi"), ("Bob", "tea?"), ("Ann", "yes"), started_at="1970-01-01T00:01:00")
    first, second = pairs_of(conversation, "Ann")
    assert first == Pair("Ann", (Turn("Bob", "user", "hello"),), "hi", "", "a", 1, 60.0, ends=False)
    assert [turn.text for turn in second.context] == ["hello", "hi", "tea?"]
    assert (second.action, second.position, second.ends) == ("yes", 3, True)


def test_who_speaks_first_has_an_empty_context() -> None:
    pair, left = pairs_of(talk("a", ("Ann", "hi"), ("Bob", "hello")), "Ann")
    assert (pair.context, pair.position, pair.ends, pair.kind, pair.answers_role) == ((), 0, False, "opening", "")
    assert (left.action, left.position, left.ends, left.abandoned) == (LEFT, 2, True, True)


def test_who_has_the_last_word_does_not_leave_silently() -> None:
    pairs = pairs_of(talk("a", ("Ann", "hi"), ("Bob", "hello"), ("Ann", "bye")), "Ann")
    assert [(pair.action, pair.ends, pair.abandoned) for pair in pairs] == [("hi", False, False), ("bye", True, False)]


def test_a_silent_leaving_has_the_last_words_of_the_others_as_context_and_all_that_the_person_was_told() -> None:
    said = [("guide", "book"), ("Ann", "x"), ("Bob", "and now?"), ("guide", "go"), ("Carl", "bye")]
    *_, left = pairs_of(talk("a", *said, started_at="2024-01-01"), "Ann", window=2)
    assert [turn.text for turn in left.context] == ["and now?", "bye"]
    assert (left.goal, left.kind, left.answers_role, left.abandoned) == ("book\ngo", "statement", "user", True)
    assert left.when == pairs_of(talk("a", *said, started_at="2024-01-01"), "Ann")[0].when


def test_who_only_listens_has_no_pairs() -> None:
    assert pairs_of(talk("a", ("Bob", "hi"), ("Carl", "hello")), "Ann") == []


def test_a_context_is_a_question_if_the_last_turn_asks() -> None:
    asked, told = (pairs_of(talk("a", ("Bob", text), ("Ann", "x")), "Ann")[0] for text in ("well? tell me", "fine."))
    assert (asked.kind, told.kind) == ("question", "statement")


def test_the_window_keeps_the_latest_turns() -> None:
    conversation = talk("a", *[("Bob" if n % 2 else "Ann", str(n)) for n in range(10)])
    assert [turn.text for turn in pairs_of(conversation, "Ann", window=3)[-2].context] == ["5", "6", "7"]
    assert [len(pair.context) for pair in pairs_of(conversation, "Bob", window=3)] == [1, 3, 3, 3, 3]


def test_turns_in_a_row_of_one_speaker_are_one_turn_and_blank_ones_none() -> None:
    conversation = talk("a", ("Bob", "one"), ("Bob", "two"), ("Ann", "three"), ("Bob", " \n"), ("Ann", "four"), ("Bob", "five"))
    pair, left = pairs_of(conversation, "Ann")
    assert [turn.text for turn in pair.context] == ["one\ntwo"]
    assert (pair.action, pair.position, pair.ends) == ("three\nfour", 1, False)
    assert (left.abandoned, left.position) == (True, 3)


def test_what_only_the_person_was_told_is_their_goal_from_then_on_and_never_context() -> None:
    conversation = talk("a", ("guide", "book"), ("Bob", "?"), ("Ann", "x"), ("guide", "insist"), ("Bob", "no"), ("Ann", "y"))
    first, second = pairs_of(conversation, "Ann")
    assert (first.goal, second.goal) == ("book", "book\ninsist")
    assert [turn.text for turn in second.context] == ["?", "x", "no"]


def test_an_instruction_between_two_turns_in_a_row_is_not_known_to_the_first() -> None:
    (pair,) = pairs_of(talk("a", ("Ann", "x"), ("guide", "insist"), ("Ann", "y")), "Ann")
    assert (pair.action, pair.goal) == ("x\ny", "")


def test_a_speaker_who_says_nothing_has_no_pairs_and_neither_has_who_gives_instructions() -> None:
    conversation = talk("a", ("guide", "book"), ("Ann", "x"))
    assert pairs_of(conversation, "Bob") == pairs_of(conversation, "guide") == []


def test_the_moment_of_a_pair_is_its_turn_s_else_its_conversation_s_else_its_place() -> None:
    said, times = [("Ann", "x"), ("Bob", "y"), ("Ann", "z")], [iso(60), iso(120), iso(180)]
    start = seconds(iso(0))
    timed = pairs_of(talk("a", *said, started_at=iso(0), times=times), "Ann", place=5)
    assert [pair.when for pair in timed] == [start + 60, start + 180]
    assert [pair.when for pair in pairs_of(talk("a", *said, started_at=iso(0)), "Ann", place=5)] == [start, start]
    # A log without dates is ordered by place, so times of single turns must not be mixed with it.
    assert [pair.when for pair in pairs_of(talk("a", *said, times=times), "Ann", place=5)] == [5.0, 5.0]


speech = st.lists(st.tuples(st.sampled_from(["Ann", "Bob", "Cid", "guide"]), st.sampled_from(["a", "b", " ", "c d", "e\nf"])))


@given(speech, st.integers(1, 5))
def test_pairs_tell_all_the_person_said_from_what_the_others_could_see(said: list[tuple[str, str]], window: int) -> None:
    conversation = talk("a", *said)
    pairs = pairs_of(conversation, "Ann", window=window)
    merged = [turn for turn, _ in visible_turns(conversation.turns)]
    heard = [text for speaker, text in said if speaker == "Ann" and text.strip()]
    last_word = bool(merged) and merged[-1].speaker == "Ann"
    assert [pair.abandoned for pair in pairs] == [False] * (len(pairs) - 1) + [not last_word] * bool(pairs)
    assert "\n".join(pair.action for pair in pairs if not pair.abandoned) == "\n".join(heard)
    assert [pair.ends for pair in pairs] == [False] * (len(pairs) - 1) + [True] * bool(pairs)
    told = [text for speaker, text in said if speaker == "guide"]
    for pair in pairs:
        assert pair.context == tuple(merged[max(0, pair.position - window) : pair.position])
        assert pair.abandoned or merged[pair.position] == Turn("Ann", "user", pair.action)
        assert not pair.abandoned or pair.position == len(merged)
        assert not any(turn.private for turn in pair.context)
        assert not pair.context or pair.context[-1].speaker != "Ann"
        assert pair.goal in ["\n".join(told[:n]) for n in range(len(told) + 1)]


@given(speech)
def test_no_two_visible_turns_in_a_row_have_one_speaker(said: list[tuple[str, str]]) -> None:
    found = [turn.speaker for turn, _ in visible_turns(talk("a", *said).turns)]
    assert all(one != two for one, two in pairwise(found))
    assert "guide" not in found


def test_pairs_of_a_log_are_grouped_by_conversation_and_know_its_place() -> None:
    log = [talk("a", ("Ann", "x")), talk("b", ("Bob", "x")), talk("c", ("Ann", "x"), ("Bob", "y"), ("Ann", "z"))]
    groups = pairs_of_log(log, "Ann")
    assert [[(pair.conversation_id, pair.when) for pair in group] for group in groups] == [
        [("a", 0.0)],
        [("c", 2.0), ("c", 2.0)],
    ]


# The split ---------------------------------------------------------------------------------------------------------------


def parts_of(split: Split) -> list[tuple[Pair, ...]]:
    return [split.corpus, split.validation, split.test]


def test_the_split_takes_the_latest_fifth_to_measure_on_and_a_tenth_before_it() -> None:
    split = split_pairs(ChatLog(tuple(chats(20)), "test"), "Ann")
    names = [list(dict.fromkeys(pair.conversation_id for pair in part)) for part in parts_of(split)]
    assert names == [[f"t{n}" for n in range(14)], ["t14", "t15"], [f"t{n}" for n in range(16, 20)]]
    assert [len(part) for part in parts_of(split)] == [28, 4, 8]


def test_other_shares_and_windows_can_be_asked_for() -> None:
    split = split_pairs(ChatLog(tuple(chats(20)), "test"), "Ann", window=1, validation=0.25, test=0.5)
    assert [len(part) for part in parts_of(split)] == [10, 10, 20]
    assert {len(pair.context) for part in parts_of(split) for pair in part} == {1}


def test_three_conversations_are_one_for_each_part_however_long_they_are() -> None:
    lopsided = [*chats(1, own=100), *(talk(f"x{n}", ("Bob", "?"), ("Ann", "y")) for n in range(2))]
    assert [len(part) for part in parts_of(split_pairs(ChatLog(tuple(lopsided), "test"), "Ann"))] == [100, 1, 1]
    assert [len(part) for part in parts_of(split_pairs(ChatLog(tuple(lopsided[::-1]), "test"), "Ann"))] == [1, 1, 100]


def test_what_was_said_after_a_later_part_had_begun_is_left_out() -> None:
    # The first talk goes on, a turn an hour, while all the others are held.
    times = [iso(HOUR * n) for n in range(40)]
    slow = talk("slow", *[("Bob" if n % 2 else "Ann", str(n)) for n in range(40)], started_at=times[0], times=times)
    quick = [
        talk(f"quick{n}", ("Bob", "?"), ("Ann", "!"), started_at=iso(HOUR * 10 * n), times=[iso(HOUR * 10 * n)] * 2)
        for n in (1, 2, 3)
    ]
    split = split_pairs(ChatLog(in_time_order([slow, *quick], "test"), "test"), "Ann")
    assert [pair.conversation_id for pair in (*split.validation, *split.test)] == ["quick1", "quick2", "quick3"]
    assert [pair.action for pair in split.corpus] == ["0", "2", "4", "6", "8"]  # quick1 begins in the tenth hour


@st.composite
def dated_logs(draw: st.DrawFn) -> ChatLog:
    """Ann's talks, some at once, with a time for each turn, for the conversation alone, or none at all."""
    kind = draw(st.sampled_from(["turns", "conversation", "none"]))
    found: list[Conversation] = []
    for number in range(draw(st.integers(3, 8))):
        start = draw(st.integers(0, 48)) * HOUR
        steps = draw(st.lists(st.integers(0, 20), min_size=2, max_size=24))
        times = [iso(start + HOUR * sum(steps[: n + 1])) for n in range(len(steps))]
        found.append(
            talk(
                f"t{number}",
                *[("Bob" if n % 2 else "Ann", str(n)) for n in range(len(steps))],
                started_at=None if kind == "none" else iso(start),
                times=times if kind == "turns" else None,
            )
        )
    return ChatLog(in_time_order(found, "test"), "test")


@given(dated_logs())
def test_nothing_a_twin_may_remember_is_as_late_as_what_it_is_measured_on(log: ChatLog) -> None:
    pairs = [pair for group in pairs_of_log(log.conversations, "Ann") for pair in group]
    assume(sum(not pair.abandoned for pair in pairs) >= MIN_TURNS)
    try:
        split = split_pairs(log, "Ann")
    except LogError:  # only where the first talks began together with the last
        groups = sorted(group[0].when for group in pairs_of_log(log.conversations, "Ann"))
        assert groups[0] == groups[1]
        return
    assert split.corpus
    spoken, measured = ({pair.conversation_id for pair in part} for part in (pairs, split.test))
    assert len(split.test) >= 0.2 * len(pairs) or len(measured) == len(spoken) - 2  # the other two parts need one each
    for part, later in [(split.corpus, [*split.validation, *split.test]), (split.validation, split.test)]:
        if part:
            assert max(pair.when for pair in part) < min(pair.when for pair in later)
            assert not {pair.conversation_id for pair in part} & {pair.conversation_id for pair in later}
    kept = [*split.corpus, *split.validation, *split.test]
    assert len(set(map(id, kept))) == len(kept)
    assert set(kept) <= set(pairs)


def test_talks_that_all_began_at_one_moment_cannot_be_split_by_time() -> None:
    same = [talk(f"t{n}", *[("Bob", "?"), ("Ann", "!")] * 5, started_at="2024-01-01") for n in range(5)]
    with pytest.raises(LogError, match='the same "started_at" as those to measure on; give times that differ, or none'):
        split_pairs(ChatLog(tuple(same), "test"), "Ann")


# Errors ------------------------------------------------------------------------------------------------------------------


def test_an_unknown_speaker_is_told_the_ten_most_frequent_ones() -> None:
    crowd = talk("a", ("guide", "go"), *[(f"p{n}", f"{n}{k}") for n in range(12) for k in range(12 - n)])
    with pytest.raises(LogError) as failed:
        split_pairs(ChatLog((crowd,), "chat.jsonl"), "ann")
    frequent = ", ".join(f'"p{n}" ({12 - n})' for n in range(10))
    assert str(failed.value) == f'chat.jsonl: nobody called "ann" speaks here; the most frequent speakers are {frequent}'


def test_who_gives_instructions_is_no_speaker() -> None:
    with pytest.raises(LogError, match='nobody called "guide" speaks here; the most frequent speakers are "Ann"'):
        check_speaker(ChatLog((talk("a", ("guide", "go"), ("Ann", "x"), ("Bob", "y")),), "test"), "guide")


def test_a_log_with_one_speaker_is_refused() -> None:
    alone = tuple(talk(f"t{n}", ("guide", "go"), ("Ann", "x")) for n in range(30))
    with pytest.raises(LogError, match='"Ann" is the only speaker; a twin is learned from conversations with somebody'):
        split_pairs(ChatLog(alone, "test"), "Ann")


@pytest.mark.parametrize(("count", "own"), [(2, 30), (3, 6), (1, 1)])
def test_a_person_with_too_few_turns_is_told_how_many_are_needed(count: int, own: int) -> None:
    needed = f"has {count * own} turns in {count} conversations; a twin needs at least 20 turns in 3 conversations"
    with pytest.raises(LogError, match=needed):
        split_pairs(ChatLog(tuple(chats(count, own)), "test"), "Ann")


def test_just_enough_turns_are_enough() -> None:
    split = split_pairs(ChatLog((*chats(2, 7), talk("last", *[("Bob", "?"), ("Ann", "!")] * 6)), "test"), "Ann")
    assert [len(part) for part in parts_of(split)] == [7, 7, 6]
