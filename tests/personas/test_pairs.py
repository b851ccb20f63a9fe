"""(context, action) pairs and their split by conversation and time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from usertwin.personas import ChatLog, Conversation, LogError, Pair, Split, Turn, split_pairs
from usertwin.personas.chat_log import sort_by_time
from usertwin.personas.dates import to_timestamp
from usertwin.personas.pairs import ABANDONED, MIN_TURNS, check_speaker, extract_pairs, group_pairs, visible_turns

HOUR = 3600


def iso(seconds: float) -> str:
    """Return a time in January 2024, given in seconds, as ISO 8601."""
    return f"2024-01-{1 + int(seconds) // 86400:02d}T{int(seconds) // HOUR % 24:02d}:{int(seconds) // 60 % 60:02d}:00Z"


def talk(name: str, *lines: tuple[str, str], started_at: str | None = None, times: list[str] | None = None) -> Conversation:
    """Return a conversation of (speaker, text) turns; those of the speaker "guide" are private."""
    turns = [
        Turn(speaker, "instruction" if speaker == "guide" else "user", text, time=times[place] if times else None)
        for place, (speaker, text) in enumerate(lines)
    ]
    return Conversation(name, tuple(turns), started_at)


def chats(count: int, own: int = 2) -> list[Conversation]:
    """Return undated conversations in which Ann has `own` turns."""
    return [talk(f"t{n}", *[(who, f"{who} {n} {k}") for k in range(own) for who in ("Bob", "Ann")]) for n in range(count)]


# Pairs -------------------------------------------------------------------------------------------------------------------


def test_pair_holds_the_turns_before_and_the_next_turn() -> None:
    conversation = talk("a", ("Bob", "hello"), ("Ann", "hi"), ("Bob", "tea?"), ("Ann", "yes"), started_at="1970-01-01T00:01:00")
    first, second = extract_pairs(conversation, "Ann")
    assert first == Pair(
        speaker="Ann",
        context=(Turn("Bob", "user", "hello"),),
        action="hi",
        goal="",
        conversation_id="a",
        position=1,
        when=60.0,
        ends_conversation=False,
    )
    assert [turn.text for turn in second.context] == ["hello", "hi", "tea?"]
    assert (second.action, second.position, second.ends_conversation) == ("yes", 3, True)


def test_first_turn_has_an_empty_context() -> None:
    pair, left = extract_pairs(talk("a", ("Ann", "hi"), ("Bob", "hello")), "Ann")
    assert (pair.context, pair.position, pair.ends_conversation, pair.kind, pair.previous_role) == ((), 0, False, "opening", "")
    assert (left.action, left.position, left.ends_conversation, left.abandoned) == (ABANDONED, 2, True, True)


def test_person_with_the_last_turn_has_no_abandoned_pair() -> None:
    pairs = extract_pairs(talk("a", ("Ann", "hi"), ("Bob", "hello"), ("Ann", "bye")), "Ann")
    assert [(pair.action, pair.ends_conversation, pair.abandoned) for pair in pairs] == [
        ("hi", False, False),
        ("bye", True, False),
    ]


def test_abandoned_pair_has_the_last_turns_as_context_and_all_private_turns_as_goal() -> None:
    lines = [("guide", "book"), ("Ann", "x"), ("Bob", "and now?"), ("guide", "go"), ("Carl", "bye")]
    *_, left = extract_pairs(talk("a", *lines, started_at="2024-01-01"), "Ann", window=2)
    assert [turn.text for turn in left.context] == ["and now?", "bye"]
    assert (left.goal, left.kind, left.previous_role, left.abandoned) == ("book\ngo", "statement", "user", True)
    assert left.when == extract_pairs(talk("a", *lines, started_at="2024-01-01"), "Ann")[0].when


def test_person_without_turns_has_no_pairs() -> None:
    assert extract_pairs(talk("a", ("Bob", "hi"), ("Carl", "hello")), "Ann") == []


def test_context_kind_is_question_if_its_last_turn_asks() -> None:
    question, statement = (
        extract_pairs(talk("a", ("Bob", text), ("Ann", "x")), "Ann")[0] for text in ("well? tell me", "fine.")
    )
    assert (question.kind, statement.kind) == ("question", "statement")


def test_window_keeps_the_latest_turns() -> None:
    conversation = talk("a", *[("Bob" if n % 2 else "Ann", str(n)) for n in range(10)])
    assert [turn.text for turn in extract_pairs(conversation, "Ann", window=3)[-2].context] == ["5", "6", "7"]
    assert [len(pair.context) for pair in extract_pairs(conversation, "Bob", window=3)] == [1, 3, 3, 3, 3]


def test_consecutive_turns_of_one_speaker_are_merged_and_blank_turns_dropped() -> None:
    conversation = talk("a", ("Bob", "one"), ("Bob", "two"), ("Ann", "three"), ("Bob", " \n"), ("Ann", "four"), ("Bob", "five"))
    pair, left = extract_pairs(conversation, "Ann")
    assert [turn.text for turn in pair.context] == ["one\ntwo"]
    assert (pair.action, pair.position, pair.ends_conversation) == ("three\nfour", 1, False)
    assert (left.abandoned, left.position) == (True, 3)


def test_private_turns_become_the_goal_of_later_pairs_and_never_context() -> None:
    conversation = talk("a", ("guide", "book"), ("Bob", "?"), ("Ann", "x"), ("guide", "insist"), ("Bob", "no"), ("Ann", "y"))
    first, second = extract_pairs(conversation, "Ann")
    assert (first.goal, second.goal) == ("book", "book\ninsist")
    assert [turn.text for turn in second.context] == ["?", "x", "no"]


def test_instruction_between_merged_turns_is_not_part_of_their_goal() -> None:
    (pair,) = extract_pairs(talk("a", ("Ann", "x"), ("guide", "insist"), ("Ann", "y")), "Ann")
    assert (pair.action, pair.goal) == ("x\ny", "")


def test_absent_speaker_and_speaker_of_private_turns_have_no_pairs() -> None:
    conversation = talk("a", ("guide", "book"), ("Ann", "x"))
    assert extract_pairs(conversation, "Bob") == extract_pairs(conversation, "guide") == []


def test_when_comes_from_the_turn_then_the_conversation_then_the_fallback() -> None:
    lines, times = [("Ann", "x"), ("Bob", "y"), ("Ann", "z")], [iso(60), iso(120), iso(180)]
    start = to_timestamp(iso(0))
    timed = extract_pairs(talk("a", *lines, started_at=iso(0), times=times), "Ann", fallback_when=5)
    assert [pair.when for pair in timed] == [start + 60, start + 180]
    assert [pair.when for pair in extract_pairs(talk("a", *lines, started_at=iso(0)), "Ann", fallback_when=5)] == [start, start]
    # A log without dates is ordered by index, so times of single turns must not be mixed in.
    assert [pair.when for pair in extract_pairs(talk("a", *lines, times=times), "Ann", fallback_when=5)] == [5.0, 5.0]


speech = st.lists(st.tuples(st.sampled_from(["Ann", "Bob", "Cid", "guide"]), st.sampled_from(["a", "b", " ", "c d", "e\nf"])))


@given(speech, st.integers(1, 5))
def test_pairs_cover_all_turns_of_the_person_with_public_context(lines: list[tuple[str, str]], window: int) -> None:
    conversation = talk("a", *lines)
    pairs = extract_pairs(conversation, "Ann", window=window)
    merged = [turn for turn, _ in visible_turns(conversation.turns)]
    own_texts = [text for speaker, text in lines if speaker == "Ann" and text.strip()]
    has_last_word = bool(merged) and merged[-1].speaker == "Ann"
    assert [pair.abandoned for pair in pairs] == [False] * (len(pairs) - 1) + [not has_last_word] * bool(pairs)
    assert "\n".join(pair.action for pair in pairs if not pair.abandoned) == "\n".join(own_texts)
    assert [pair.ends_conversation for pair in pairs] == [False] * (len(pairs) - 1) + [True] * bool(pairs)
    private = [text for speaker, text in lines if speaker == "guide"]
    for pair in pairs:
        assert pair.context == tuple(merged[max(0, pair.position - window) : pair.position])
        assert pair.abandoned or merged[pair.position] == Turn("Ann", "user", pair.action)
        assert not pair.abandoned or pair.position == len(merged)
        assert not any(turn.private for turn in pair.context)
        assert not pair.context or pair.context[-1].speaker != "Ann"
        assert pair.goal in ["\n".join(private[:n]) for n in range(len(private) + 1)]


@given(speech)
def test_consecutive_visible_turns_have_different_speakers(lines: list[tuple[str, str]]) -> None:
    speakers = [turn.speaker for turn, _ in visible_turns(talk("a", *lines).turns)]
    assert all(speaker != following for speaker, following in pairwise(speakers))
    assert "guide" not in speakers


def test_pairs_are_grouped_by_conversation_with_its_index_as_when() -> None:
    log = [talk("a", ("Ann", "x")), talk("b", ("Bob", "x")), talk("c", ("Ann", "x"), ("Bob", "y"), ("Ann", "z"))]
    groups = group_pairs(log, "Ann")
    assert [[(pair.conversation_id, pair.when) for pair in group] for group in groups] == [
        [("a", 0.0)],
        [("c", 2.0), ("c", 2.0)],
    ]


# The split ---------------------------------------------------------------------------------------------------------------


def parts_of(split: Split) -> list[tuple[Pair, ...]]:
    return [split.corpus, split.validation, split.test]


def test_split_takes_the_latest_fifth_as_test_and_the_tenth_before_as_validation() -> None:
    split = split_pairs(ChatLog(tuple(chats(20)), "test"), "Ann")
    names = [list(dict.fromkeys(pair.conversation_id for pair in part)) for part in parts_of(split)]
    assert names == [[f"t{n}" for n in range(14)], ["t14", "t15"], [f"t{n}" for n in range(16, 20)]]
    assert [len(part) for part in parts_of(split)] == [28, 4, 8]


def test_split_takes_other_shares_and_windows() -> None:
    split = split_pairs(ChatLog(tuple(chats(20)), "test"), "Ann", window=1, validation=0.25, test=0.5)
    assert [len(part) for part in parts_of(split)] == [10, 10, 20]
    assert {len(pair.context) for part in parts_of(split) for pair in part} == {1}


def test_three_conversations_give_one_to_each_part() -> None:
    lopsided = [*chats(1, own=100), *(talk(f"x{n}", ("Bob", "?"), ("Ann", "y")) for n in range(2))]
    assert [len(part) for part in parts_of(split_pairs(ChatLog(tuple(lopsided), "test"), "Ann"))] == [100, 1, 1]
    assert [len(part) for part in parts_of(split_pairs(ChatLog(tuple(lopsided[::-1]), "test"), "Ann"))] == [1, 1, 100]


def test_turns_after_the_start_of_a_later_part_are_dropped() -> None:
    # The first conversation has one turn an hour and overlaps all the others.
    times = [iso(HOUR * n) for n in range(40)]
    slow = talk("slow", *[("Bob" if n % 2 else "Ann", str(n)) for n in range(40)], started_at=times[0], times=times)
    quick = [
        talk(f"quick{n}", ("Bob", "?"), ("Ann", "!"), started_at=iso(HOUR * 10 * n), times=[iso(HOUR * 10 * n)] * 2)
        for n in (1, 2, 3)
    ]
    split = split_pairs(ChatLog(sort_by_time([slow, *quick], "test"), "test"), "Ann")
    assert [pair.conversation_id for pair in (*split.validation, *split.test)] == ["quick1", "quick2", "quick3"]
    assert [pair.action for pair in split.corpus] == ["0", "2", "4", "6", "8"]  # quick1 begins in the tenth hour


@st.composite
def dated_logs(draw: st.DrawFn) -> ChatLog:
    """Ann's conversations, some overlapping, with times on turns, on conversations only, or on neither."""
    kind = draw(st.sampled_from(["turns", "conversation", "none"]))
    conversations: list[Conversation] = []
    for number in range(draw(st.integers(3, 8))):
        start = draw(st.integers(0, 48)) * HOUR
        steps = draw(st.lists(st.integers(0, 20), min_size=2, max_size=24))
        times = [iso(start + HOUR * sum(steps[: n + 1])) for n in range(len(steps))]
        conversations.append(
            talk(
                f"t{number}",
                *[("Bob" if n % 2 else "Ann", str(n)) for n in range(len(steps))],
                started_at=None if kind == "none" else iso(start),
                times=times if kind == "turns" else None,
            )
        )
    return ChatLog(sort_by_time(conversations, "test"), "test")


@given(dated_logs())
def test_corpus_is_earlier_than_validation_and_test(log: ChatLog) -> None:
    pairs = [pair for group in group_pairs(log.conversations, "Ann") for pair in group]
    assume(sum(not pair.abandoned for pair in pairs) >= MIN_TURNS)
    try:
        split = split_pairs(log, "Ann")
    except LogError:  # only if the first two conversations start at the same time
        groups = sorted(group[0].when for group in group_pairs(log.conversations, "Ann"))
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


def test_conversations_with_one_start_time_cannot_be_split() -> None:
    same = [talk(f"t{n}", *[("Bob", "?"), ("Ann", "!")] * 5, started_at="2024-01-01") for n in range(5)]
    with pytest.raises(LogError, match='the same "started_at" as those of the test part; give times that differ, or none'):
        split_pairs(ChatLog(tuple(same), "test"), "Ann")


# Errors ------------------------------------------------------------------------------------------------------------------


def test_unknown_speaker_error_lists_the_ten_most_frequent() -> None:
    crowd = talk("a", ("guide", "go"), *[(f"p{n}", f"{n}{k}") for n in range(12) for k in range(12 - n)])
    with pytest.raises(LogError) as failed:
        split_pairs(ChatLog((crowd,), "chat.jsonl"), "ann")
    frequent = ", ".join(f'"p{n}" ({12 - n})' for n in range(10))
    assert str(failed.value) == f'chat.jsonl: no turns by "ann"; name a speaker with --speaker (most frequent: {frequent})'


def test_speaker_of_private_turns_is_unknown() -> None:
    with pytest.raises(LogError, match=r'no turns by "guide"; name a speaker with --speaker \(most frequent: "Ann"'):
        check_speaker(ChatLog((talk("a", ("guide", "go"), ("Ann", "x"), ("Bob", "y")),), "test"), "guide")


def test_log_with_one_speaker_is_an_error() -> None:
    alone = tuple(talk(f"t{n}", ("guide", "go"), ("Ann", "x")) for n in range(30))
    with pytest.raises(LogError, match='"Ann" is the only speaker; a twin is learned from conversations between people'):
        split_pairs(ChatLog(alone, "test"), "Ann")


@pytest.mark.parametrize(("count", "own"), [(2, 30), (3, 6), (1, 1)])
def test_too_few_turns_error_gives_the_needed_number(count: int, own: int) -> None:
    needed = f"has {count * own} turns in {count} conversations; a twin needs at least 20 turns in 3 conversations"
    with pytest.raises(LogError, match=needed):
        split_pairs(ChatLog(tuple(chats(count, own)), "test"), "Ann")


def test_smallest_allowed_person_is_split() -> None:
    split = split_pairs(ChatLog((*chats(2, 7), talk("last", *[("Bob", "?"), ("Ann", "!")] * 6)), "test"), "Ann")
    assert [len(part) for part in parts_of(split)] == [7, 7, 6]


def test_a_turn_with_the_text_of_silence_is_a_turn() -> None:
    last = talk("t", ("Bob", "Hello"), ("Ann", ABANDONED))
    [pair] = extract_pairs(last, "Ann")
    assert (pair.action, pair.abandoned) == (ABANDONED, False)
    [real, silent] = extract_pairs(talk("t", ("Ann", ABANDONED), ("Bob", "Hello?")), "Ann")
    assert (real.abandoned, silent.abandoned) == (False, True)
