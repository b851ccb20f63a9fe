"""A twin in DeepEval's conversation simulator, with the real package."""

from __future__ import annotations

from typing import Any

import pytest
from twins import BYE, failing_twin, silent_twin, talking_twin, texts

pytest.importorskip("deepeval", reason="runs in an environment of its own: make integrations")

from deepeval.dataset import ConversationalGolden
from deepeval.simulator import ConversationSimulator
from deepeval.test_case import Turn

from usertwin.personas import ModelError, UsageError
from usertwin.simulator import Scenario
from usertwin.simulator.integrations.deepeval import DeepEvalUser, twin_user


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


class Agent:
    """An agent that records its calls."""

    def __init__(self) -> None:
        self.calls = list[str]()

    async def reply(self, input: str, turns: list[Any]) -> Any:
        assert turns[-1].content == input
        self.calls.append(input)
        return Turn(role="assistant", content=f"answer {len(turns)}")


def simulate(user: DeepEvalUser, agent: Agent, goldens: list[Any], turns: int = 3, **options: Any) -> list[Any]:
    simulator = ConversationSimulator(
        model_callback=agent.reply, simulation_graph=user.graph, stopping_controller=user.stop, simulator_model=user.model,
        **options,
    )  # fmt: skip
    return simulator.simulate(goldens, max_user_simulations=turns)


def golden(scenario: str, **facts: Any) -> Any:
    return ConversationalGolden(scenario=scenario, **facts)


@pytest.mark.parametrize("async_mode", [True, False])
def test_each_golden_is_played_with_its_scenario_as_the_goal_and_a_seed_of_its_own(ann: str, async_mode: bool) -> None:
    (user, chat), agent = talking_twin(ann), Agent()
    goldens = [golden("You want ticket 1."), golden("You want ticket 2.")]
    cases = simulate(twin_user(user), agent, goldens, async_mode=async_mode)
    assert [[turn.role for turn in case.turns] for case in cases] == [["user", "assistant"] * 3] * 2
    assert sorted(text for case in cases for text in texts(case.turns, "user")) == sorted(agent.calls)
    assert sorted("You want ticket 1." in prompt for prompt in chat.prompts) == [False] * 3 + [True] * 3
    assert len({seed for _, seed in chat.requests}) == 6


def test_the_conversation_ends_when_the_twin_leaves(ann: str) -> None:
    agent = Agent()
    [case] = simulate(twin_user(talking_twin(ann, leaves_after=1)[0]), agent, [golden("You want the weather.")], 9)
    assert texts(case.turns, "user")[-1] == BYE
    assert len(agent.calls) == 2
    agent = Agent()
    [case] = simulate(twin_user(silent_twin(ann, after=1)), agent, [golden("You want the weather.")], 9)
    assert len(case.turns) == 2


def test_a_golden_with_turns_is_gone_on_with(ann: str) -> None:
    (user, chat), agent = talking_twin(ann), Agent()
    given = [Turn(role="assistant", content="Hello, who is there?"), Turn(role="user", content="me, the first")]
    [case] = simulate(twin_user(user), agent, [golden("You want the weather.", turns=given)], 1)
    assert agent.calls[0] == "me, the first"
    assert [turn.role for turn in case.turns] == ["assistant", "user", "assistant", "user", "assistant"]
    assert "me, the first" in chat.prompts[0]


def test_a_scenario_of_ours_is_played_and_ends_the_conversation(ann: str) -> None:
    agent = Agent()
    scenario = Scenario(name="s", goal="You want snow.", opener="hello there", until=("answer 3",))
    [case] = simulate(twin_user(talking_twin(ann)[0], scenario=scenario), agent, [golden("ignored")], 9)
    assert texts(case.turns, "user")[0] == "hello there"
    assert len(agent.calls) == 2


def test_the_twins_failure_is_raised_as_its_own(ann: str) -> None:
    agent = Agent()
    with pytest.raises(ModelError, match="the model does not answer"):
        simulate(twin_user(failing_twin(ann, after=1)), agent, [golden("You want the weather.")])
    assert len(agent.calls) == 1


def test_the_stand_in_for_the_simulator_model_says_that_it_is_none(ann: str) -> None:
    user, agent = twin_user(talking_twin(ann)[0]), Agent()
    simulator = ConversationSimulator(model_callback=agent.reply, simulation_graph=user.graph, simulator_model=user.model)
    with pytest.raises(UsageError, match="has only a twin"):  # DeepEval's own controller asks it for the expected outcome
        simulator.simulate([golden("You want the weather.", expected_outcome="The weather is told.")])
