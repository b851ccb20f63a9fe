"""A twin as the user of MLflow's conversation simulator, with the real package and a local store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twins import BYE, failing_twin, silent_twin, talking_twin, texts

pytest.importorskip("mlflow", reason="runs in an environment of its own: make integrations")

import mlflow

from usertwin.personas import ModelError
from usertwin.simulator import Scenario
from usertwin.simulator.integrations.mlflow import twin_simulator


@pytest.fixture(autouse=True, scope="module")
def _store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.chdir(tmp_path_factory.mktemp("mlflow"))  # where artefacts go, too
        mlflow.set_tracking_uri("sqlite:///store.db")
        yield


class Agent:
    """An agent that records the messages of its calls."""

    def __init__(self) -> None:
        self.calls = list[list[Any]]()

    def __call__(self, messages: list[Any], **_: Any) -> dict[str, Any]:
        self.calls.append(list(messages))
        return {"choices": [{"message": {"role": "assistant", "content": f"answer {len(messages)}"}}]}


def test_the_conversation_is_traced_and_ends_when_the_twin_leaves(ann: str) -> None:
    (user, chat), agent = talking_twin(ann, leaves_after=1), Agent()
    [traces] = twin_simulator(user, [{"goal": "You want the weather for Oslo."}], max_turns=6).simulate(agent)
    assert len(traces) == len(agent.calls) == 2
    assert texts(agent.calls[-1], "user")[-1] == BYE
    assert texts(agent.calls[-1], "assistant") == ["answer 1"]
    assert all("You want the weather for Oslo." in prompt for prompt in chat.prompts)
    assert BYE in json.dumps(traces[-1].data.spans[0].inputs)


def test_a_twin_that_leaves_without_a_word_sends_none(ann: str) -> None:
    agent = Agent()
    [traces] = twin_simulator(silent_twin(ann, after=2), [{"goal": "You want the weather."}], max_turns=6).simulate(agent)
    assert len(traces) == len(agent.calls) == 2
    assert all(text for call in agent.calls for text in texts(call, "user"))


def test_several_cases_are_kept_apart_and_a_scenario_ends_them(ann: str) -> None:
    agent = Agent()
    scenario = Scenario(name="s", opener="hello there", until=("answer 3",))
    cases = [{"goal": f"You want ticket {number}."} for number in range(4)]
    user, chat = talking_twin(ann)
    runs = twin_simulator(user, cases, max_turns=6, scenario=scenario).simulate(agent)
    assert [len(traces) for traces in runs] == [2] * 4
    assert all(call[0]["content"] == "hello there" for call in agent.calls)
    assert sorted(sum(f"ticket {number}" in prompt for prompt in chat.prompts) for number in range(4)) == [1] * 4


def test_evaluate_scores_the_twins_conversations(ann: str) -> None:
    @mlflow.genai.scorer
    def answered(outputs: Any) -> bool:
        return "answer" in json.dumps(outputs)

    simulator = twin_simulator(talking_twin(ann)[0], [{"goal": "You want the weather."}], max_turns=2)
    result = mlflow.genai.evaluate(data=simulator, predict_fn=Agent(), scorers=[answered])
    assert result.metrics["answered/mean"] == 1.0
    assert len(result.result_df) == 2


@pytest.mark.parametrize("after", [0, 1])
def test_the_twins_failure_is_raised_as_its_own(ann: str, after: int) -> None:
    agent = Agent()
    with pytest.raises(ModelError, match="the model does not answer"):
        twin_simulator(failing_twin(ann, after=after), [{"goal": "You want the weather."}]).simulate(agent)
    assert len(agent.calls) == after


def test_a_failure_of_the_agent_stays_mlflows_business(ann: str, tmp_path: Path) -> None:
    calls = list[int]()

    def broken(messages: list[Any], **_: Any) -> Any:
        calls.append(len(messages))
        raise ValueError("the agent is broken")

    with pytest.raises(mlflow.exceptions.MlflowException, match="Simulation produced no traces"):
        twin_simulator(talking_twin(ann)[0], [{"goal": "You want the weather."}]).simulate(broken)
    assert calls == [1]
