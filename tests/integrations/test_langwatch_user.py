"""A twin as the user-role agent of LangWatch's scenario, with the real package."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from twins import BYE, failing_twin, silent_twin, talking_twin, texts

pytest.importorskip("scenario", reason="runs in an environment of its own: make integrations")

import scenario

from usertwin.personas import ModelError, UsageError
from usertwin.simulator import Scenario
from usertwin.simulator.integrations.langwatch import twin_user


@pytest.fixture(autouse=True)
def _nothing_leaves_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGWATCH_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("SCENARIO_HEADLESS", "true")
    monkeypatch.delenv("LANGWATCH_API_KEY", raising=False)


class Agent(scenario.AgentAdapter):
    """An agent that records its messages."""

    def __init__(self) -> None:
        self.calls = list[list[Any]]()

    async def call(self, input: Any) -> str:
        self.calls.append(list(input.messages))
        return f"answer {len(self.calls)}"


class Judge(scenario.AgentAdapter):
    """A judge that decides only when it is asked for the final verdict."""

    role = scenario.AgentRole.JUDGE

    async def call(self, input: Any) -> Any:
        if input.judgment_request is None:
            return []
        return scenario.ScenarioResult(success=True, messages=input.messages, reasoning="judged at the end")


def run(*agents: Any, **options: Any) -> Any:
    facts = {"name": "weather", "description": "You want the weather for Oslo.", "verbose": False} | options
    return asyncio.run(scenario.run(agents=list(agents), **facts))


def test_the_judge_gives_its_verdict_when_the_twin_leaves(ann: str) -> None:
    (user, chat), agent = talking_twin(ann, leaves_after=1), Agent()
    result = run(agent, twin_user(user), Judge())
    assert (result.success, result.reasoning) == (True, "judged at the end")
    assert [message["role"] for message in result.messages] == ["user", "assistant"] * 2
    assert texts(result.messages, "user")[-1] == BYE
    assert all("You want the weather for Oslo." in prompt for prompt in chat.prompts)


def test_a_twin_that_leaves_without_a_word_says_nothing(ann: str) -> None:
    agent = Agent()
    result = run(agent, twin_user(silent_twin(ann, after=2)), Judge())
    assert result.success
    assert len(agent.calls) == 2
    assert len(result.messages) == 4


def test_a_script_may_mix_its_turns_with_the_twins(ann: str) -> None:
    (user, chat), agent = talking_twin(ann), Agent()
    script = [scenario.user("hi, a fixed turn"), scenario.agent(), scenario.user(), scenario.agent(), scenario.succeed()]
    result = run(agent, twin_user(user), script=script)
    assert texts(result.messages, "user") == ["hi, a fixed turn", f"the weather in Oslo please, request {chat.requests[0][1]}"]
    assert "a fixed turn" in chat.prompts[0]


def test_an_interrupted_turn_is_two_messages(ann: str) -> None:
    agent = Agent()
    one = Scenario(name="s", goal="You want the weather.", modifiers=("interrupts",))
    sizes = set[int]()
    for seed in range(12):
        twin = twin_user(talking_twin(ann)[0], scenario=one, seed=seed)
        result = run(agent, twin, script=[scenario.user(), scenario.succeed()])
        sizes.add(len(texts(result.messages, "user")))
    assert sizes == {1, 2}


def test_the_twins_failure_is_the_cause_of_langwatchs_error(ann: str) -> None:
    agent = Agent()
    with pytest.raises(RuntimeError, match=r"\[Twin\] the model does not answer") as caught:
        run(agent, twin_user(failing_twin(ann, after=1)), Judge())
    assert isinstance(caught.value.__cause__, ModelError)
    assert len(agent.calls) == 1


def test_without_a_judge_a_twin_that_has_left_says_so(ann: str) -> None:
    with pytest.raises(RuntimeError, match="there is no judge to end it; add a JudgeAgent") as caught:
        run(Agent(), twin_user(talking_twin(ann, leaves_after=0)[0]))
    assert isinstance(caught.value.__cause__, UsageError)
