"""memory/guards.py: a trace that gives the action away is rejected, and no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory.guards import LONGEST_ECHO, LONGEST_RUN, LONGEST_TRACE, longest_new_run, rejected_by, word_tokens
from usertwin.personas import Pair, Turn

ACTION = "I would rather take the early train to Oslo"


def pair(action: str = ACTION, *context: str, goal: str = "") -> Pair:
    turns = tuple(Turn("Bob", "agent", text) for text in context)
    return Pair("Ann", turns, action, goal, "talk", len(turns), 0.0)


def naive_longest(trace: list[str], action: list[str], known: list[str]) -> int:
    """Every run of the trace, looked for in the action and in what is known."""

    def has(words: list[str], run: list[str]) -> bool:
        return any(words[i : i + len(run)] == run for i in range(len(words) - len(run) + 1))

    runs = (trace[i:j] for i in range(len(trace)) for j in range(i + 1, len(trace) + 1))
    return max((len(run) for run in runs if has(action, run) and not has(known, run)), default=0)


words = st.lists(st.sampled_from(["tea", "milk", "no", "I'm"]), max_size=9)


@given(trace=words, action=words, known=words)
def test_the_longest_new_run_is_what_a_naive_search_finds(trace: list[str], action: list[str], known: list[str]) -> None:
    found = longest_new_run(" ".join(trace), "... ".join(action), ", ".join(known))
    plain = [[word.lower() for word in part] for part in (trace, action, known)]
    assert found == naive_longest(*plain)


@given(trace=words.filter(bool), action=words, context=st.lists(words, max_size=3), goal=words)
def test_a_trace_is_rejected_by_the_five_token_rule_and_nothing_else(
    trace: list[str], action: list[str], context: list[list[str]], goal: list[str]
) -> None:
    known = [word.lower() for part in (*context, goal) for word in part]
    run = naive_longest([w.lower() for w in trace], [w.lower() for w in action], known)
    whole = len(action) in (3, 4) and run == len(action)
    moment = pair(" ".join(action), *(" ".join(turn) for turn in context), goal=" ".join(goal))
    assert rejected_by(" ".join(trace), moment) == ("quotes_action" if run >= 5 or whole else None)


def test_five_shared_words_are_rejected_and_four_are_not() -> None:
    assert LONGEST_RUN == 5
    assert rejected_by("Thinks: would rather take the early one.", pair()) == "quotes_action"
    assert rejected_by("Thinks: would rather take the late one.", pair()) is None


def test_case_punctuation_and_line_breaks_hide_no_quotation() -> None:
    assert rejected_by('Says "i WOULD...\nrather - take; the"', pair()) == "quotes_action"


def test_a_typographic_apostrophe_hides_no_quotation() -> None:
    assert word_tokens("Don’t") == word_tokens("don't")
    assert rejected_by("So: I don’t think we can’t come.", pair("i don't think we can't come")) == "quotes_action"


def test_a_run_that_the_context_or_the_goal_has_is_allowed() -> None:
    trace = "Was asked to take the early train to Oslo and likes it."
    assert rejected_by(trace, pair()) == "quotes_action"
    assert rejected_by(trace, pair(ACTION, "Hello", "Will you take the early train to Oslo?")) is None
    assert rejected_by(trace, pair(goal="Take the early train to Oslo.")) is None


def test_a_run_longer_than_what_the_context_has_is_rejected() -> None:
    trace = "Would rather take the early train to Oslo."
    assert rejected_by(trace, pair(ACTION, "Will you take the early train to Oslo?")) == "quotes_action"


@pytest.mark.parametrize("action", ["see you tomorrow", "no thank you Bob"])
def test_a_short_action_may_not_be_quoted_whole(action: str) -> None:
    assert rejected_by(f"Will say {action.upper()}!", pair(action)) == "quotes_action"
    assert rejected_by(f"Will say {action.split()[0]} and more", pair(action)) is None
    assert rejected_by(f"Will say {action}", pair(action, f"Say: {action}")) is None


@pytest.mark.parametrize("action", ["", "yes", "ok bye", "!!!"])
def test_one_or_two_words_give_nothing_away(action: str) -> None:
    assert rejected_by(f"Agrees, so it is ok bye, yes, {action}", pair(action)) is None


def test_seven_words_of_the_prompts_examples_are_rejected_and_six_are_not() -> None:
    assert LONGEST_ECHO == 7
    examples = "Note: feels unsure about strangers and asks who comes."
    assert rejected_by("Ann feels UNSURE about strangers, and asks who", pair(), examples) == "echoes_examples"
    assert rejected_by("Ann feels unsure about strangers and asks them", pair(), examples) is None
    assert rejected_by("Ann feels unsure about strangers and asks who", pair()) is None


@pytest.mark.parametrize("trace", ["", " \n", "...", "?! —"])
def test_a_trace_without_words_is_empty(trace: str) -> None:
    assert rejected_by(trace, pair()) == "empty"
    assert rejected_by(trace, pair("")) == "empty"


def test_a_trace_may_be_120_words_and_not_121() -> None:
    assert LONGEST_TRACE == 120
    assert rejected_by("well " * 120, pair()) is None
    assert rejected_by("well " * 121, pair()) == "too_long"


@given(st.text(), st.text(), st.text())
def test_any_text_is_judged(trace: str, action: str, known: str) -> None:
    assert rejected_by(trace, pair(action, known)) in {None, "empty", "too_long", "quotes_action"}


@given(st.text())
def test_a_copy_of_an_action_of_three_words_or_more_never_passes(action: str) -> None:
    verdict = rejected_by(action, pair(action))
    assert (verdict is None) == (1 <= len(word_tokens(action)) <= 2)
