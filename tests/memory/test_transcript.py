"""memory/text/transcript.py: a turn is a line, the person is Me, and the thought stands before the action."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory.text.transcript import action_line, context_lines, current_moment, flat, joined, open_thought, past_moment
from usertwin.personas import Pair, Turn


def pair(*turns: tuple[str, str], action: str = "fine, thanks", goal: str = "") -> Pair:
    return Pair("Ann", tuple(Turn(speaker, "any", text) for speaker, text in turns), action, goal, "talk", len(turns), 0.0)


TALK = pair(("Bob", "Hello"), ("Ann", "hi"), ("Bob", "How are\nyou?"), goal="Be friendly.")

texts = st.text(st.characters(exclude_categories=[]), max_size=40)
pairs = st.builds(
    lambda turns, action, goal: pair(*turns, action=action, goal=goal),
    st.lists(st.tuples(st.one_of(st.just("Ann"), texts), texts), max_size=6),
    texts,
    texts,
)


def test_an_open_moment_shows_goal_context_and_thought_and_stops_where_the_action_begins() -> None:
    assert current_moment(TALK, 4) == "(My goal: Be friendly.)\nThem: Hello\nMe: hi\nThem: How are you?\nMe:"
    assert current_moment(TALK, 1, thought="is  polite\n") == (
        "(My goal: Be friendly.)\nThem: How are you?\n(Me thinking: is polite)\nMe:"
    )


def test_a_past_moment_shows_the_action_and_no_goal() -> None:
    assert past_moment(TALK, 1) == "Them: How are you?\nMe: fine, thanks\n"
    assert past_moment(TALK, 1, thought="is polite") == "Them: How are you?\n(Me thinking: is polite)\nMe: fine, thanks\n"


def test_no_turns_of_context_show_none() -> None:
    assert context_lines(TALK, 0) == []
    assert current_moment(pair(), 4) == "Me:"


def test_several_others_are_told_apart_by_name_even_if_only_one_is_shown() -> None:
    three = pair(("Bob", "Hello"), ("Cleo", "Hi all"), ("Ann", "hi"), ("Bob", "So?"))
    assert context_lines(three, 3) == ["Cleo: Hi all", "Me: hi", "Bob: So?"]
    assert context_lines(three, 1) == ["Bob: So?"]


def test_of_a_long_turn_and_a_long_goal_the_end_is_shown() -> None:
    (line,) = context_lines(pair(("Bob", "x" * 300 + "end")), 4)
    assert line == "Them: …" + "x" * 237 + "end"
    assert current_moment(pair(goal="y" * 500 + "end"), 4) == "(My goal: …" + "y" * 397 + "end)\nMe:"
    assert context_lines(pair(("Bob", "x" * 240)), 4) == ["Them: " + "x" * 240]


def test_moments_are_parted_by_a_blank_line() -> None:
    assert joined([past_moment(TALK, 1), current_moment(TALK, 0)]) == (
        "Them: How are you?\nMe: fine, thanks\n\n(My goal: Be friendly.)\nMe:"
    )


@given(texts)
def test_flat_is_one_line_with_the_same_words(text: str) -> None:
    assert len(flat(text).splitlines()) <= 1
    assert flat(text).split() == text.split()
    assert flat(flat(text)) == flat(text)


@given(pairs, st.integers(0, 6))
def test_a_turn_is_a_line_whatever_was_said_by_whom(moment: Pair, turns: int) -> None:
    shown = min(turns, len(moment.context))
    lines = past_moment(moment, turns, thought="why").splitlines()
    assert len(lines) == shown + 2
    assert lines[shown:] == ["(Me thinking: why)", f"Me: {flat(moment.action)}"]


@given(pairs, st.integers(0, 6), texts)
def test_an_open_moment_continued_with_the_action_is_the_past_moment(moment: Pair, turns: int, thought: str) -> None:
    without_goal = pair(*((turn.speaker, turn.text) for turn in moment.context), action=moment.action)
    told = current_moment(without_goal, turns, thought=thought)
    assert told + action_line(moment.action) == past_moment(moment, turns, thought=thought)


@given(pairs, st.integers(0, 6), texts)
def test_a_moment_with_a_thought_begins_with_the_open_thought(moment: Pair, turns: int, thought: str) -> None:
    assert current_moment(moment, turns, thought=thought).startswith(open_thought(moment, turns) + " ")
    assert open_thought(moment, turns).endswith("(Me thinking:")
