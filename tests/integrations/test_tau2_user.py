"""A twin as a registered user of tau2-bench, with the real package and its mock domain."""

from __future__ import annotations

from typing import Any

import pytest
from twins import BYE, failing_twin, silent_twin, talking_twin

pytest.importorskip("tau2.registry", reason="runs in an environment of its own: make integrations")

from tau2.agent.llm_agent import LLMAgent
from tau2.data_model.message import AssistantMessage
from tau2.evaluator.evaluator import EvaluationType
from tau2.registry import registry
from tau2.run import get_tasks, run_task

from usertwin.personas import ModelError, UsageError
from usertwin.simulator import Scenario
from usertwin.simulator.integrations.tau2 import register_twin


class ScriptedAgent(LLMAgent):
    """An agent that gives numbered answers and never calls a tool."""

    heard: list[str] = []  # noqa: RUF012 - tau2 makes the agent; the test reads what it heard

    def generate_next_message(self, message: Any, state: Any) -> Any:
        self.heard.append(message.content)
        reply = AssistantMessage(role="assistant", content=f"answer {len(self.heard)}", cost=0.0)
        state.messages += [message, reply]
        return reply, state


registry.register_agent(ScriptedAgent, "scripted_agent")


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedAgent, "heard", [])


def run(user: str, domain: str = "mock", **options: Any) -> Any:
    task = get_tasks(domain)[0]
    facts: dict[str, Any] = {"llm_agent": "none", "llm_args_agent": {}, "llm_args_user": {}, "max_steps": 8, "seed": 5}
    return run_task(
        domain=domain, task=task, agent="scripted_agent", user=user, evaluation_type=EvaluationType.ENV, **(facts | options)
    )  # fmt: skip


def texts(simulation: Any, role: str) -> list[str]:
    return [message.content for message in simulation.messages if message.role == role]


def test_the_twin_wants_what_the_task_says_and_leaves_with_the_stop_token(ann: str) -> None:
    user, chat = talking_twin(ann, leaves_after=1)
    simulation = run(register_twin(user, "leaves"))
    assert simulation.termination_reason == "user_stop"
    assert texts(simulation, "user")[-1] == f"{BYE} ###STOP###"
    assert len(ScriptedAgent.heard) == 1
    assert not any("###" in text for text in ScriptedAgent.heard)
    assert simulation.reward_info is not None
    instructions = str(get_tasks("mock")[0].user_scenario)
    assert all(" ".join(instructions.split()) in " ".join(prompt.split()) for prompt in chat.prompts)


def test_a_silent_twin_and_a_scenario_end_with_the_token_alone(ann: str) -> None:
    simulation = run(register_twin(silent_twin(ann, after=1), "silent"))
    assert texts(simulation, "user")[-1] == "###STOP###"
    scenario = Scenario(name="s", goal="You want a task.", opener="hello there", until=("answer 2",))
    simulation = run(register_twin(talking_twin(ann)[0], "scenario", scenario=scenario))
    assert texts(simulation, "user")[0] == "hello there"
    assert len(ScriptedAgent.heard) == 2
    assert simulation.termination_reason == "user_stop"


def test_the_trials_seed_reaches_the_sampler(ann: str) -> None:
    user, chat = talking_twin(ann)
    name = register_twin(user, "seeded")
    for seed in (1, 1, 2):
        run(name, seed=seed, max_steps=1)
    first, again, other = (seed for _, seed in chat.requests)
    assert first == again != other


def test_the_twins_failure_is_raised_as_its_own(ann: str) -> None:
    with pytest.raises(ModelError, match="the model does not answer"):
        run(register_twin(failing_twin(ann, after=1), "fails"))
    assert len(ScriptedAgent.heard) == 1


def test_a_task_whose_user_needs_tools_is_refused(ann: str) -> None:
    name = register_twin(talking_twin(ann)[0], "handless")
    with pytest.raises(UsageError, match="the user of this task has tools, which ann cannot use"):
        run(name, domain="telecom")


def test_a_name_is_registered_once(ann: str) -> None:
    user, _ = talking_twin(ann)
    assert register_twin(user, "once") == "once"
    with pytest.raises(ValueError, match="User once already registered"):
        register_twin(user, "once")
