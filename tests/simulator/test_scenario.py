"""Scenarios as data: their checks, their goal text, and facts that come out when they may."""

from __future__ import annotations

import json
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.personas import UsageError
from usertwin.simulator.scenarios import MODIFIERS, Fact, Scenario
from usertwin.simulator.scenarios.facts import requests

ORDER = Fact(text="Your order number is 4711.", value="4711")
GIFT = Fact(text="It was a gift for your brother.", reveal=2)
NAME = Fact(text="Your name is Sarah.", value="Sarah", reveal="at once")
SCENARIO = Scenario(name="x", goal="Your parcel is late.", private="Be brief.", facts=(NAME, ORDER, GIFT))


def said(*texts: str) -> list[dict[str, Any]]:
    """Return messages of the agent."""
    return [{"role": "assistant", "content": text} for text in texts]


def shown(turn: int, *texts: str, scenario: Scenario = SCENARIO) -> list[str]:
    """Return the lines of the goal text without the rule that ends it."""
    return scenario.goal_text(turn, said(*texts)).split("\n")[:-1]


ALWAYS = ["Your parcel is late.", "Be brief.", "Your name is Sarah."]


def test_facts_that_may_not_be_told_are_not_in_the_text() -> None:
    assert shown(0) == ALWAYS
    assert shown(1, "Hello! How can I help you today?") == ALWAYS


@pytest.mark.parametrize("request_", ["What is your order number?", "Please enter the ORDER NUMBER.", "Tell me your order"])
def test_a_fact_is_known_once_the_agent_asked_for_it_in_its_words(request_: str) -> None:
    assert shown(1, request_) == [*ALWAYS, "Your order number is 4711."]
    assert shown(1, request_, "In Rome.") == [*ALWAYS, "Your order number is 4711."]


@pytest.mark.parametrize("statement", ["Your order will be there soon.", "We look after every order number."])
def test_a_statement_about_a_fact_does_not_ask_for_it(statement: str) -> None:
    assert shown(1, statement) == ALWAYS


def test_a_question_in_other_words_shows_facts_that_are_to_be_told_only_if_asked_for() -> None:
    assert shown(1, "Could you give me the reference?") == [
        *ALWAYS, "Your order number is 4711. (Say this only if they ask for it.)"
    ]  # fmt: skip
    assert shown(1, "Is the parcel late?") == ALWAYS  # this is about the goal


def test_a_fact_may_be_told_from_its_turn_on() -> None:
    assert "It was a gift for your brother." not in shown(1, "Hm.")
    assert shown(2, "Hm.") == [*ALWAYS, "It was a gift for your brother."]


def test_only_instructions_say_what_to_do_with_facts() -> None:
    instruction = SCENARIO.goal_text(1, said("Could you give me the reference?"))
    assert instruction.endswith("make none up.")
    transcript = SCENARIO.goal_text(1, said("Could you give me the reference?"), style="transcript")
    assert transcript.split("\n") == [*ALWAYS, "Your order number is 4711."]
    assert Scenario(name="x", goal="A refund.").goal_text(0, []) == "A refund."


def test_the_turns_of_the_twin_ask_for_nothing() -> None:
    assert SCENARIO.goal_text(1, [{"role": "user", "content": "what is my order number?"}]) == SCENARIO.goal_text(0, [])


def test_messages_without_text_are_passed_over() -> None:
    assert requests([{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "?"}]) == []


def test_an_opener_and_a_script_are_said_verbatim() -> None:
    scenario = Scenario(name="x", opener="Hi!", script={2: "And now?"})
    assert [scenario.authored(turn) for turn in range(4)] == ["Hi!", None, "And now?", None]


# Checks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_turns": 0}, "max_turns is 0; it must be at least 1"),
        ({"min_turns": 9}, r"min_turns is 9, more than max_turns \(8\); lower it"),
        ({"sample": 0}, "sample is 0; it must be at least 1"),
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
        ({"max_seconds": 0.0}, "max_seconds is 0.0; it must be above 0"),
        ({"max_seconds": nan}, "max_seconds is nan; it must be above 0"),
        ({"script": {8: "hi"}}, "script: there is no turn 8; the person's turns are 0 to 7"),
        ({"script": {1: " "}}, "script: turn 1 is empty; write what the person says"),
        ({"opener": "hi", "script": {0: "ho"}}, "both opener and script say turn 0; leave one out"),
        ({"modifiers": ("typo",)}, 'modifiers: there is no "typo"; did you mean "typos"?'),
        ({"modifiers": ("rude",)}, 'modifiers: there is no "rude"; use impatient, typos, off_topic, interrupts, pushes'),
        ({"facts": (Fact(text=""),)}, "fact 1 is empty; write a sentence to the person"),
        ({"facts": (Fact(text="a", reveal=-1),)}, "fact 1: reveal is -1; the first turn of the person is 0"),
        ({"facts": (Fact(text="a", value="b"),)}, 'fact 1: the value "b" is not in its text; write it as it stands there'),
        ({"until": ("",)}, "until: a text is empty; leave it out"),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scenario(**dict[str, Any](name="x") | values)


# JSON ------------------------------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
facts = st.builds(Fact, text=words, reveal=st.sampled_from(["at once", "when asked"]) | st.integers(0, 9))
messages = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": words})
optional = st.just("") | words


def tuples(of: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Return tuples of at most three values."""
    return st.lists(of, max_size=3).map(tuple)


scenarios = st.builds(
    Scenario, name=words, twins=tuples(words), sample=st.none() | st.integers(1, 9), goal=optional, private=optional,
    facts=tuples(facts), start=tuples(messages), opener=optional, agent_first=st.booleans(),
    script=st.dictionaries(st.integers(1, 7), words, max_size=3), min_turns=st.integers(0, 8), until=tuples(words),
    max_seconds=st.just(inf) | st.floats(0.1, 1e6), goal_reached=st.none() | st.just("my_checks:reached"),
    modifiers=tuples(st.sampled_from(MODIFIERS)), repeats=st.integers(1, 5), checks=tuples(st.just("my_checks:polite")),
    criteria=tuples(words), counterpart=optional,
)  # fmt: skip


@given(scenarios)
def test_a_scenario_survives_json(scenario: Scenario) -> None:
    assert Scenario.from_json(json.loads(json.dumps(scenario.to_json(), allow_nan=False))) == scenario


def is_done(messages: list[dict[str, Any]]) -> bool:
    """Return whether there are four messages."""
    return len(messages) == 4


def test_functions_become_their_names_in_json() -> None:
    raw = Scenario(name="x", goal_reached=is_done, checks=(is_done, "a:b")).to_json()
    assert raw["goal_reached"] == f"{__name__}:is_done"
    assert raw["checks"] == [f"{__name__}:is_done", "a:b"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "input should be an object"), ({"name": "x", "max_turn": 3}, "max_turn: unexpected keyword argument"),
        ({"name": "x", "max_turns": "3"}, "max_turns: input should be a valid integer"),
        ({"name": "x", "max_turns": 0}, "max_turns is 0"), ({}, "name: "),
    ],
)  # fmt: skip
def test_other_json_is_refused(raw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenario.from_json(raw)
