"""What a conversation leaves behind can be read again, whatever the agent's state is; turns and goals are counted as such."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desk_talk import Desk

from conftest import scripted
from usertwin.memory.event_loop import run_sync
from usertwin.personas import UsageError
from usertwin.simulator import Scenario, SimulatedUser, as_agent, simulate, simulate_many
from usertwin.simulator.runs.jobs import jobs_of
from usertwin.simulator.runs.local import Twins
from usertwin.simulator.runs.many import RunOptions, arun
from usertwin.simulator.runs.run_folder import read_run

LONG = "what is the weather in Oslo and in Rome tomorrow morning"


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    with SimulatedUser.load(ann, model=scripted(LONG)) as user:
        yield user


def nested(depth: int) -> dict[str, Any]:
    state: dict[str, Any] = {"cart": []}
    for _ in range(depth):
        state = {"inner": [state]}
    return state


def circular() -> dict[str, Any]:
    state: dict[str, Any] = {"cart": ["a bell"]}
    state["self"], state["both"] = state, {"again": state}
    return state


STATES: dict[str, Any] = {
    "circular": circular(), "nested deeply": nested(80), "nested too deeply for Python": nested(2_000),
    "a number of 400 digits": {"big": 10**400, "list": [1, 10**400]}, "a number of 5,000 digits": {"big": 10**5_000},
}  # fmt: skip


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_run_whose_agent_has_an_odd_state_can_be_read(user: SimulatedUser, tmp_path: Path, state: Any) -> None:
    def agent(messages: list[dict[str, Any]]) -> dict[str, Any]:
        return {"reply": "For which day?", "step": len(messages), "odd": state}

    [simulation] = simulate_many(user, agent, max_turns=2, out=tmp_path / "run")
    assert (simulation.stop_reason, simulation.final_state["step"]) == ("max_turns", 3)


def test_an_empty_field_of_a_state_is_kept(user: SimulatedUser) -> None:
    simulation = simulate(user, lambda messages: {"reply": "Yes.", "order": None, "open": object}, max_turns=1)
    assert simulation.final_state == {"order": None} | {
        key: value for key, value in simulation.final_state.items() if key == "open"
    }


def test_the_state_after_each_turn_is_read_back(user: SimulatedUser, tmp_path: Path) -> None:
    def agent(messages: list[dict[str, Any]]) -> dict[str, Any]:
        return {"reply": "For which day?", "step": len(messages)}

    simulate_many(user, agent, max_turns=2, out=tmp_path / "run")
    [simulation] = read_run(tmp_path / "run").simulations
    assert [exchange.state for exchange in simulation.exchanges] == [{"step": 1}, {"step": 3}]


def test_a_turn_of_two_messages_counts_once_for_min_turns(user: SimulatedUser) -> None:
    scenario = Scenario(name="x", min_turns=3, max_turns=4, until=("booked",), modifiers=("interrupts",))
    counts = set[int]()
    for seed in range(12):
        simulation = simulate(user, Desk("Booked."), scenario=scenario, seed=seed)
        assert (simulation.stop_reason, len(simulation.exchanges)) == ("goal_reached", 3)
        counts.add(sum(message["role"] == "user" for message in simulation.messages))
    assert max(counts) > 3


def test_a_call_of_a_tool_without_a_text_says_no_phrase(user: SimulatedUser) -> None:
    start = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "tool_calls": []})
    simulation = simulate(user, Desk("Hello."), scenario=Scenario(name="x", start=start, max_turns=1, until=("none",)))
    assert simulation.stop_reason == "max_turns"


@pytest.mark.parametrize("content", [None, ["a", "b"], 5])
def test_a_given_message_without_a_text_is_refused_and_not_the_agents_fault(content: Any) -> None:
    start = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": content})
    with pytest.raises(UsageError, match='scenario "x": start: message 2 needs a "role" and a "content" that are texts'):
        Scenario(name="x", start=start)


@pytest.mark.parametrize("reached", [False, True])
def test_a_rule_of_the_goal_may_be_async(user: SimulatedUser, reached: bool) -> None:
    async def is_reached(messages: list[dict[str, Any]]) -> bool:
        messages.clear()  # its own copy
        return reached

    simulation = simulate(user, Desk(), max_turns=2, goal_reached=is_reached)  # pyright: ignore[reportArgumentType]
    assert simulation.stop_reason == ("goal_reached" if reached else "max_turns")
    assert len(simulation.messages) == (2 if reached else 4)


def test_a_rule_of_the_goal_that_fails_is_named(user: SimulatedUser) -> None:
    def is_reached(messages: list[dict[str, Any]]) -> bool:
        return messages[0]["booked"]

    scenario = Scenario(name="parcel", goal_reached=is_reached)
    with pytest.raises(UsageError, match=r'scenario "parcel": goal_reached failed .KeyError: .booked.*; mend the function'):
        simulate(user, Desk(), scenario=scenario)


def test_a_twin_is_not_given_a_conversation_that_it_remembers(user: SimulatedUser) -> None:
    scenario = Scenario(name="as in March", twins=("bob",), counterpart=user.record.corpus[0])
    message = "is in the memory of ann"
    with pytest.raises(UsageError, match=message):
        simulate(user, Desk(), scenario=scenario)
    work = arun(
        jobs_of([(scenario, "ann", 0)], 0), as_agent(Desk()), Twins(model=user.model, opened={"ann": user}), RunOptions()
    )
    with pytest.raises(UsageError, match=message):
        run_sync(work)


def test_timings_hold_the_thread_id(user: SimulatedUser, tmp_path: Path) -> None:
    [simulation] = simulate_many(user, Desk(), max_turns=1, out=tmp_path / "run")
    [timing] = map(json.loads, (tmp_path / "run" / "timings.jsonl").read_text("utf-8").splitlines())
    assert timing["thread_id"] == simulation.thread_id
