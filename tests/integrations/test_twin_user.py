"""A twin in a conversation that another tool runs: what it sees, how it ends, and whose fault a failure is."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from twins import BYE, GOAL, failing_twin, silent_twin, talking_twin

from usertwin.personas import AgentError, ModelError, UsageError
from usertwin.simulator import Fact, Scenario
from usertwin.simulator.integrations import deepeval, inspect_ai, langwatch, mlflow, tau2
from usertwin.simulator.integrations.twin_user import TwinTalk, TwinUser, UserTurn, third_party


def said(*texts: str) -> list[dict[str, Any]]:
    """Return messages that the agent begins."""
    return [{"role": ("assistant", "user")[number % 2], "content": text} for number, text in enumerate(texts)]


def test_the_twin_sees_what_was_said_and_its_goal_but_not_the_agents_instructions(ann: str) -> None:
    user, chat = talking_twin(ann)
    calls = [{"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}]
    messages = [
        {"role": "system", "content": "SECRET of the agent"}, *said("Hello!", "hi", "Which city?"),
        {"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "tool_call_id": "1", "content": "SUNNY"},
    ]  # fmt: skip
    turn = TwinUser(user, goal=GOAL, seed=3).play(messages)
    assert turn.text == f"the weather in Oslo please, request {chat.requests[0][1]}"
    assert turn.stop is None
    assert turn.answer is not None
    [prompt] = chat.prompts
    assert GOAL in prompt
    assert "Which city?" in prompt
    assert "SECRET" not in prompt
    assert "SUNNY" not in prompt


def test_the_tools_goal_counts_only_without_one_of_the_twin(ann: str) -> None:
    user, chat = talking_twin(ann)
    TwinUser(user).play([], goal="You want snow.")
    TwinUser(user, goal=GOAL).play([], goal="You want snow.")
    assert ["You want snow." in prompt for prompt in chat.prompts] == [True, False]


def test_a_seed_gives_the_same_turn_and_another_seed_another_one(ann: str) -> None:
    user, _ = talking_twin(ann)
    twin = TwinUser(user, seed=1)
    assert twin.play([]).text == twin.play([], seed=1).text != twin.play([], seed=2).text


def test_a_scenario_is_played_as_in_our_own_conversations(ann: str) -> None:
    user, chat = talking_twin(ann)
    start = tuple(said("Welcome.", "hello", "What is it?"))
    facts = (Fact(text="Your order number is 4711.", value="4711", reveal=1),)
    twin = TwinUser(user, scenario=Scenario(
        name="parcel", goal="Your parcel is late.", facts=facts, start=start, opener="where is my parcel?",
        until=("it is here",), max_turns=3, min_turns=1,
    ))  # fmt: skip
    turns = list[UserTurn]()
    twin.on_turn = turns.append
    messages = list(start)
    for reply in ("One moment.", "And now?", "One more moment."):
        turn = twin.play(messages)
        messages += [{"role": "user", "content": turn.text}, {"role": "assistant", "content": reply}]
    assert turns[0].texts == ("where is my parcel?",)
    assert ["4711" in prompt for prompt in chat.prompts] == [True, True]
    assert twin.play(messages) == UserTurn((), None, "max_turns")
    messages[-3]["content"] = "IT IS HERE"
    assert twin.play(messages[:-2]) == UserTurn((), None, "goal_reached")
    with pytest.raises(UsageError, match='scenario "parcel": the conversation does not begin with its start'):
        twin.play(said("Hello."))


def test_interrupted_turns_are_one_turn(ann: str) -> None:
    user, _ = talking_twin(ann)
    twin = TwinUser(user, scenario=Scenario(name="s", script={1: "the second turn"}))
    messages = [{"role": "user", "content": "the first"}, {"role": "user", "content": "and its rest"}, *said("Yes?")]
    assert twin.play(messages).texts == ("the second turn",)


def test_arguments_that_exclude_each_other(ann: str) -> None:
    user, _ = talking_twin(ann)
    with pytest.raises(UsageError, match="a scenario holds the goal"):
        TwinUser(user, goal=GOAL, scenario=Scenario(name="s"))
    with pytest.raises(UsageError, match=r"no_such_tool cannot be imported .*; run: pip install 'no-such-tool>=1'"):
        third_party("no_such_tool", "no-such-tool>=1")


@pytest.mark.parametrize(
    ("door", "package"),
    [
        (deepeval.twin_user, "deepeval.simulator.simulation_graph"), (langwatch.twin_user, "scenario"),
        (lambda user: mlflow.twin_simulator(user, []), "mlflow.genai.simulators"),
        (inspect_ai.twin_conversation, "inspect_ai.solver"), (tau2.register_twin, "tau2.user.base"),
    ],
)  # fmt: skip
def test_a_tool_that_is_not_installed_is_named_with_the_command(
    ann: str, door: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"{package} cannot be imported .*; run: pip install '[\w-]+>=[\d.]+'"):
        door(talking_twin(ann)[0])


@pytest.mark.parametrize("silence", [[], [{"role": "assistant", "content": ""}]])
def test_an_agent_that_says_nothing_is_named(ann: str, silence: list[Any]) -> None:
    with pytest.raises(AgentError, match="the agent said nothing after the user's last turn"):
        TwinUser(talking_twin(ann)[0]).play([{"role": "user", "content": "hello"}, *silence])


def test_a_failure_of_the_twin_is_raised_as_its_own(ann: str) -> None:
    with pytest.raises(ModelError, match="the model does not answer"):
        TwinUser(failing_twin(ann)).play([])


def test_a_talk_ends_where_the_person_leaves_with_words_or_without(ann: str) -> None:
    async def talk(twin: TwinUser) -> tuple[list[str], str | None]:
        talk, messages = TwinTalk(twin), list[dict[str, Any]]()
        for _ in range(5):
            if await talk.stops(messages) is not None:
                break
            turn = await talk.turn(messages, "stop")
            messages += [{"role": "user", "content": turn.text}, {"role": "assistant", "content": "Yes?"}]
        with pytest.raises(
            UsageError, match=r"ann has left the conversation \(user_stop\) and is asked for another turn; stop"
        ):
            await talk.turn(messages, "stop")
        return [message["content"] for message in messages if message["role"] == "user"], talk.stop

    turns, stop = asyncio.run(talk(TwinUser(talking_twin(ann, leaves_after=1)[0])))
    assert (len(turns), turns[-1], stop) == (2, BYE, "user_stop")
    written = list[UserTurn]()
    turns, stop = asyncio.run(talk(TwinUser(silent_twin(ann, after=2), on_turn=written.append)))
    assert (len(turns), stop) == (2, "user_stop")
    assert [len(turn.texts) for turn in written] == [1, 1, 0]  # each was written once


def test_the_check_of_the_twin_names_its_faults(ann: str) -> None:
    user, _ = talking_twin(ann)
    scenario = Scenario(name="s", goal=GOAL, facts=(Fact(text="Your order number is 4711.", value="4711"),), opener="hi")
    twin = TwinUser(user, scenario=scenario)
    talk = said("Hello.", "hi", "Which order?", "my order number is 1234", "Thank you.")
    assert [(fault.kind, fault.turn) for fault in twin.faults(talk)] == [("contradicts_fact", 1)]
    assert [(f.kind, f.turn) for f in twin.faults(said("Hello.", "hi", "How can I help?"), stop="user_stop")] == [
        ("ends_early", 1)
    ]
