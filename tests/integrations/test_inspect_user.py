"""A twin as the user in an Inspect task, with the real package and its mock model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twins import BYE, GOAL, failing_twin, silent_twin, talking_twin

pytest.importorskip("inspect_ai", reason="runs in an environment of its own: make integrations")

import inspect_ai
from inspect_ai.agent import AgentState, agent
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.scorer import includes
from inspect_ai.solver import solver, system_message

from usertwin.simulator import Scenario
from usertwin.simulator.integrations.inspect_ai import twin_conversation


def run(solver: Any, sample: Any, tmp_path: Path, **options: Any) -> Any:
    """Return the log of an evaluation with a model that gives numbered answers."""
    answers = [ModelOutput.from_content("mockllm/model", f"answer {number}") for number in range(9)]
    for answer in answers:
        answer.usage = ModelUsage()  # or the mock model counts tokens with a vocabulary that it downloads
    model = get_model("mockllm/model", custom_outputs=answers)
    task = inspect_ai.Task(dataset=[sample], solver=solver, scorer=includes())
    [log] = inspect_ai.eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none", **options)
    return log


def said(sample: Any) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in sample.messages]


def test_the_input_is_the_twins_goal_and_the_agent_never_sees_it(ann: str, tmp_path: Path) -> None:
    user, chat = talking_twin(ann, leaves_after=1)
    log = run([system_message("SECRET of the agent"), twin_conversation(user)], Sample(input=GOAL, target="answer 0"), tmp_path)
    assert log.status == "success"
    [sample] = log.samples
    assert [role for role, _ in said(sample)] == ["system", "user", "assistant", "user"]
    assert said(sample)[-1] == ("user", BYE)
    assert not any(GOAL in text for _, text in said(sample))
    assert all(GOAL in prompt and "SECRET" not in prompt for prompt in chat.prompts)
    assert sample.store["usertwin"] == {"stop": "user_stop", "reasoning": ["", ""]}
    assert sample.scores["includes"].value == "C"


def test_a_goal_in_the_metadata_leaves_the_input_as_the_beginning(ann: str, tmp_path: Path) -> None:
    user, chat = talking_twin(ann)
    given = [ChatMessageUser(content="hi, it is me"), ChatMessageAssistant(content="Hello!"), ChatMessageUser(content="well")]
    log = run(twin_conversation(user, max_turns=2), Sample(input=given, target="x", metadata={"goal": GOAL}), tmp_path)
    [sample] = log.samples
    assert [text for role, text in said(sample) if role == "assistant"] == ["Hello!", "answer 0", "answer 1", "answer 2"]
    assert len(chat.requests) == 2
    assert all(GOAL in prompt for prompt in chat.prompts)


def test_the_agent_may_be_an_inspect_agent_or_a_solver(ann: str, tmp_path: Path) -> None:
    @agent
    def desk() -> Any:
        async def execute(state: AgentState) -> AgentState:
            state.messages.append(ChatMessageAssistant(content=f"from the agent, {len(state.messages)}"))
            return state

        return execute

    @solver
    def clerk() -> Any:
        async def solve(state: Any, generate: Any) -> Any:
            state.messages.append(ChatMessageSystem(content="a note"))
            return await generate(state)

        return solve

    sample = Sample(input=GOAL, target="x")
    [by_agent] = run(twin_conversation(talking_twin(ann)[0], desk(), max_turns=2), sample, tmp_path).samples
    assert [text for role, text in said(by_agent) if role == "assistant"] == ["from the agent, 1", "from the agent, 3"]
    [by_solver] = run(twin_conversation(talking_twin(ann)[0], clerk(), max_turns=2), sample, tmp_path).samples
    assert [role for role, _ in said(by_solver)] == ["user", "system", "assistant"] * 2


def test_a_scenario_or_a_silent_person_ends_the_conversation(ann: str, tmp_path: Path) -> None:
    scenario = Scenario(name="s", goal=GOAL, opener="hello there", until=("answer 1",))
    [sample] = run(twin_conversation(talking_twin(ann)[0], scenario=scenario), Sample(input="", target="x"), tmp_path).samples
    assert said(sample)[0] == ("user", "hello there")
    assert sample.store["usertwin"]["stop"] == "goal_reached"
    [sample] = run(twin_conversation(silent_twin(ann, after=1)), Sample(input=GOAL, target="x"), tmp_path).samples
    assert [role for role, _ in said(sample)] == ["user", "assistant"]
    assert sample.store["usertwin"]["stop"] == "user_stop"


def test_each_epoch_has_a_seed_of_its_own(ann: str, tmp_path: Path) -> None:
    user, chat = talking_twin(ann)
    log = run(twin_conversation(user, max_turns=1), Sample(input=GOAL, target="x"), tmp_path, epochs=3)
    assert len({seed for _, seed in chat.requests}) == len(log.samples) == 3


def test_the_twins_failure_is_an_error_of_the_sample_which_gets_no_score(ann: str, tmp_path: Path) -> None:
    log = run(twin_conversation(failing_twin(ann, after=1)), Sample(input=GOAL, target="x"), tmp_path, fail_on_error=False)
    [sample] = log.samples
    assert "the model does not answer" in sample.error.message
    assert not sample.scores
