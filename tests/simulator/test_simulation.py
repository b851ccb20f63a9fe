"""One conversation: its course, its stop reasons, and whom a failure is charged to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from desk_talk import TALK, Desk, scripted_twin
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from conftest import function_model, small_conversation
from usertwin.memory import ChatModel, Settings
from usertwin.personas import AgentError, ModelError, UsageError, as_conversation
from usertwin.simulator import Exchange, SimulatedUser, Simulation, asimulate, simulate, simulate_many
from usertwin.simulator.backends.scripted import ScriptedChatModel
from usertwin.simulator.records import AGENT_FAULTS, TWIN_FAULTS


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    with scripted_twin(ann) as user:
        yield user


# The course of a conversation -------------------------------------------------------------------------------------------


def test_twin_and_agent_alternate_until_max_turns(user: SimulatedUser) -> None:
    desk = Desk("For which day?", "It rains.")
    simulation = simulate(user, desk, max_turns=2)
    assert simulation.stop_reason == "max_turns"
    assert simulation.error is None
    assert [(m["role"], m["content"]) for m in simulation.messages] == [
        ("user", "hi, the weather in Oslo please"),
        ("assistant", "For which day?"),
        ("user", "tomorrow please"),
        ("assistant", "It rains."),
    ]
    assert [exchange.answer.reasoning for exchange in simulation.exchanges] == ["wants the weather", "is in a hurry"]
    assert [exchange.replies[0]["content"] for exchange in simulation.exchanges] == ["For which day?", "It rains."]
    assert desk.calls == [simulation.messages[:1], simulation.messages[:3]]
    assert simulation.usage.output_tokens == sum(len(text.split()) for text in TALK[:4])


def test_an_agent_may_reply_with_several_messages(user: SimulatedUser) -> None:
    simulation = simulate(user, lambda messages: ["One moment.", "It rains."], max_turns=1)
    assert [m["content"] for m in simulation.messages[1:]] == ["One moment.", "It rains."]
    assert len(simulation.exchanges[0].replies) == 2


def test_the_agent_may_open_the_conversation(user: SimulatedUser) -> None:
    simulation = simulate(user, "demo", max_turns=1, agent_first=True)
    assert [m["role"] for m in simulation.messages] == ["assistant", "user", "assistant"]
    assert "help desk" in simulation.messages[0]["content"]


def test_a_conversation_can_continue_earlier_messages(user: SimulatedUser) -> None:
    start = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello, what is it?"}]
    desk = Desk()
    simulation = simulate(user, desk, max_turns=1, start=start)
    assert simulation.messages[:2] == start == desk.calls[0][:2]
    assert len(start) == 2  # the argument is not modified


def test_an_agent_cannot_modify_earlier_messages(user: SimulatedUser) -> None:
    def vandal(messages: list[dict[str, Any]]) -> str:
        messages[-1]["content"] = "something else"
        messages.clear()
        return "For which day?"

    assert simulate(user, vandal, max_turns=1).messages[0]["content"] == "hi, the weather in Oslo please"


def test_on_exchange_gets_each_exchange(user: SimulatedUser) -> None:
    shown: list[Exchange] = []
    simulation = simulate(user, Desk(), max_turns=2, on_exchange=shown.append)
    assert shown == simulation.exchanges


def test_each_conversation_has_its_own_thread_id(user: SimulatedUser) -> None:
    threads: list[str] = []

    def agent(thread_id: str) -> str:
        threads.append(thread_id)
        return "For which day?"

    first, second = [simulate(user, agent, max_turns=2) for _ in range(2)]
    assert threads == [first.thread_id] * 2 + [second.thread_id] * 2
    assert first.thread_id != second.thread_id


def test_simulate_works_inside_a_running_event_loop(user: SimulatedUser) -> None:
    async def notebook() -> Simulation:
        return simulate(user, Desk(), max_turns=1)

    assert asyncio.run(notebook()).stop_reason == "max_turns"


def test_conversations_can_run_concurrently_on_one_event_loop(ann: str) -> None:
    async def both() -> list[Simulation]:
        with scripted_twin(ann) as one, scripted_twin(ann) as other:
            return await asyncio.gather(asimulate(one, Desk(), max_turns=2), asimulate(other, Desk(), max_turns=2))

    first, second = asyncio.run(both())
    assert [m["content"] for m in first.messages] == [m["content"] for m in second.messages]


@pytest.mark.parametrize("max_turns", [0, -1])
def test_max_turns_below_one_is_refused(user: SimulatedUser, max_turns: int) -> None:
    with pytest.raises(UsageError, match=rf"max_turns is {max_turns}; it must be at least 1"):
        simulate(user, Desk(), max_turns=max_turns)


def test_an_invalid_agent_is_refused_before_the_first_turn(user: SimulatedUser) -> None:
    with pytest.raises(UsageError, match="takes no arguments"):
        simulate(user, lambda: "hi")
    assert user.model.chat.prompts == []  # pyright: ignore


# The seed ----------------------------------------------------------------------------------------------------------------


def test_the_seed_is_that_of_the_conversation_and_the_twin_has_none(ann: str) -> None:
    model, chat = function_model(lambda prompt, seed: f"turn with seed {seed}")
    with SimulatedUser.load(ann, model=model, settings=Settings(reasons=False)) as user:
        before = dict(vars(user))
        simulations = [simulate(user, Desk(), max_turns=2, seed=seed) for seed in (7, 8, 7)]
        assert vars(user) | {"_graph": None} == before | {"_graph": None}
    assert [simulation.seed for simulation in simulations] == [7, 8, 7]
    seeds = [seed for _, seed in chat.requests]
    assert seeds[:4] == [7 * 7919, 7 * 7919 + 2, 8 * 7919, 8 * 7919 + 2]  # the formula that earlier versions used, too
    assert seeds[4:] == seeds[:2]
    assert simulations[0].messages == simulations[2].messages != simulations[1].messages


def test_conversations_that_share_a_twin_at_once_keep_their_seeds(ann: str) -> None:
    model, _ = function_model(lambda prompt, seed: f"turn with seed {seed}")

    async def run_all(user: SimulatedUser) -> list[Simulation]:
        return await asyncio.gather(*(asimulate(user, Desk(), max_turns=2, seed=seed) for seed in (1, 2, 3)))

    with SimulatedUser.load(ann, model=model, settings=Settings(reasons=False)) as user:
        simulations = asyncio.run(run_all(user))
        alone = [simulate(user, Desk(), max_turns=2, seed=seed) for seed in (1, 2, 3)]
    assert [simulation.messages for simulation in simulations] == [simulation.messages for simulation in alone]
    assert len({simulation.messages[0]["content"] for simulation in simulations}) == 3


# The goal ---------------------------------------------------------------------------------------------------------------


def test_the_agent_never_sees_the_goal(user: SimulatedUser) -> None:
    desk = Desk()
    simulation = simulate(user, desk, max_turns=2, goal="You want a window seat.")
    assert "window seat" not in json.dumps([desk.calls, simulation.messages])
    assert all("window seat" in prompt for prompt in user.model.chat.prompts)  # pyright: ignore
    assert simulation.goal == "You want a window seat."


@pytest.mark.parametrize("role", ["instruction", "system"])
def test_private_turns_become_the_goal_and_never_reach_the_agent(user: SimulatedUser, role: str) -> None:
    desk = Desk()
    start = [{"role": role, "content": "You want a window seat."}, {"role": "assistant", "content": "Hello."}]
    simulation = simulate(user, desk, max_turns=1, start=start, goal="Be quick.")
    assert "window seat" not in json.dumps([desk.calls, simulation.messages])
    assert all("(My goal: Be quick. You want a window seat.)" in prompt for prompt in user.model.chat.prompts)  # pyright: ignore
    assert simulation.goal == "Be quick.\nYou want a window seat."


def test_private_turns_never_reach_an_agent_that_opens_the_conversation(user: SimulatedUser) -> None:
    desk = Desk()
    simulate(user, desk, max_turns=1, agent_first=True, start=[{"role": "system", "content": "You want a window seat."}])
    assert desk.calls[0] == []


# Stop reasons -----------------------------------------------------------------------------------------------------------


def test_user_stop_when_the_person_leaves_and_the_agent_gets_no_further_call(ann: str) -> None:
    desk = Desk()
    so_far = [turn for turn in small_conversation(0).turns if turn.role != "instruction"][:-1]
    start = [{"role": "user" if turn.speaker == "Ann" else "assistant", "content": turn.text} for turn in so_far]
    with scripted_twin(ann, "is done", "no thats all thank you bye") as user:
        simulation = simulate(user, desk, start=start)
    assert simulation.stop_reason == "user_stop"
    assert simulation.exchanges[-1].answer.done
    assert simulation.exchanges[-1].replies == ()
    assert desk.calls == []


def test_goal_reached_when_the_callback_returns_true(user: SimulatedUser) -> None:
    desk = Desk("For which day?", "Booked!", "Anything else?")
    simulation = simulate(user, desk, max_turns=5, goal_reached=lambda messages: messages[-1]["content"] == "Booked!")
    assert simulation.stop_reason == "goal_reached"
    assert len(simulation.exchanges) == 2


class Stubborn:
    """An agent that does not return until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def wait(self, messages: list[dict[str, Any]]) -> str:
        self.released.wait(60)
        return "too late"

    async def wait_async(self, messages: list[dict[str, Any]]) -> str:
        await asyncio.sleep(60)
        return "too late"


@pytest.mark.parametrize("shape", ["wait", "wait_async"])
def test_agent_timeout_of_an_agent_that_hangs(user: SimulatedUser, shape: str) -> None:
    stubborn = Stubborn()
    try:
        simulation = simulate(user, getattr(stubborn, shape), agent_timeout=0.05)
        assert not stubborn.released.is_set()  # it still hangs; the simulation did not wait for it
    finally:
        stubborn.released.set()
    assert simulation.stop_reason == "agent_timeout"
    assert simulation.error == "the agent took longer than 0.05 seconds"
    assert [m["role"] for m in simulation.messages] == ["user"]  # no fallback text
    assert len(simulation.exchanges) == 1


def raising(error: BaseException) -> Any:
    """Return an agent that raises this error."""

    def agent(messages: list[dict[str, Any]]) -> str:
        raise error

    return agent


@pytest.mark.parametrize(
    ("agent", "error"),
    [
        (raising(ValueError("no such order")), "the agent raised ValueError: no such order"),
        (raising(TimeoutError("the shop's database")), "the agent raised TimeoutError: the shop's database"),
        (raising(StopIteration("over")), "StopIteration: over"),
        (raising(AgentError("the agent is tired")), "the agent is tired"),
        (raising(ModelError("the agent's own model is gone")), "the agent's own model is gone"),
        (lambda messages: None, "the agent returned None instead of a reply"),
        (lambda messages: "", "the agent returned an empty reply"),
        (lambda messages: 7, "the agent returned int, which is not a message"),
    ],
)
def test_agent_error_describes_the_failure(user: SimulatedUser, agent: Any, error: str) -> None:
    simulation = simulate(user, agent)
    assert simulation.stop_reason == "agent_error"
    assert simulation.error is not None
    assert error in simulation.error
    assert len(simulation.exchanges) == 1  # the twin's turn is kept
    assert simulation.exchanges[0].replies == ()


def test_a_timeout_error_of_an_async_agent_is_an_agent_error(user: SimulatedUser) -> None:
    async def agent(messages: list[dict[str, Any]]) -> str:
        async with asyncio.timeout(0):
            await asyncio.sleep(60)
        return "never"

    simulation = simulate(user, agent, agent_timeout=60)
    assert simulation.stop_reason == "agent_error"
    assert "TimeoutError" in str(simulation.error)


def test_an_agent_that_fails_to_open_ends_the_conversation_before_the_twins_turn(user: SimulatedUser) -> None:
    simulation = simulate(user, raising(ValueError("closed today")), agent_first=True)
    assert simulation.stop_reason == "agent_error"
    assert simulation.messages == simulation.exchanges == []


def test_an_agent_that_fails_later_keeps_the_earlier_messages(user: SimulatedUser) -> None:
    def agent(messages: list[dict[str, Any]]) -> str:
        if len(messages) > 1:
            raise RuntimeError("out of memory")
        return "For which day?"

    simulation = simulate(user, agent)
    assert [m["role"] for m in simulation.messages] == ["user", "assistant", "user"]
    assert simulation.stop_reason == "agent_error"


class Unreachable(ScriptedChatModel):
    """A model whose endpoint is unreachable."""

    def _generate(self, *arguments: Any, **named: Any) -> Any:
        raise ConnectionError("connection refused")


def test_model_unavailable_when_the_twins_model_does_not_answer(ann: str) -> None:
    model = ChatModel("openai:gone", Unreachable(answers=[]), "transcript")
    with SimulatedUser.load(ann, model=model) as user:
        simulation = simulate(user, Desk())
    assert simulation.stop_reason == "model_unavailable"
    assert simulation.error == 'the model "openai:gone" did not answer: ConnectionError: connection refused'
    assert simulation.messages == []


def test_twin_error_when_the_twins_model_writes_nothing(ann: str) -> None:
    desk = Desk()
    with scripted_twin(ann, "") as user:
        simulation = simulate(user, desk)
    assert simulation.stop_reason == "twin_error"
    assert "wrote nothing" in str(simulation.error)
    assert simulation.messages == desk.calls == []  # no fallback text


def test_twin_error_when_the_twins_memory_fails(user: SimulatedUser) -> None:
    user.close()
    simulation = simulate(user, Desk())
    assert simulation.stop_reason == "twin_error"
    assert "memory" in str(simulation.error)


def test_earlier_messages_that_are_malformed_are_refused_before_the_first_turn(user: SimulatedUser, tmp_path: Path) -> None:
    desk = Desk()
    for start in ([{"role": "user", "content": 3}], "hi", 7, None):
        with pytest.raises(UsageError, match=r"^start: "):
            simulate_many(user, desk, start=start, out=tmp_path / "run")
    assert desk.calls == []
    assert not (tmp_path / "run").exists()


# Given turns ------------------------------------------------------------------------------------------------------------


OPENER = {"role": "user", "content": "hi, do you have a bell?"}
ANSWER = {"role": "assistant", "content": "Yes."}


@pytest.mark.parametrize("agent_first", [False, True])
def test_the_agent_follows_given_turns_that_end_with_the_user(user: SimulatedUser, agent_first: bool) -> None:
    desk = Desk("Yes.", "For which day?")
    simulation = simulate(user, desk, max_turns=1, start=[OPENER], agent_first=agent_first)
    assert desk.calls[0] == [OPENER]
    assert [m["role"] for m in simulation.messages] == ["user", "assistant", "user", "assistant"]
    assert len(simulation.exchanges) == 1


def test_the_goal_may_be_reached_with_the_reply_to_a_given_turn(user: SimulatedUser) -> None:
    simulation = simulate(user, Desk("Booked!"), start=[OPENER], goal_reached=lambda messages: len(messages) == 2)
    assert (simulation.stop_reason, simulation.exchanges) == ("goal_reached", [])


def test_an_agent_that_fails_after_a_given_turn_ends_the_conversation(user: SimulatedUser) -> None:
    simulation = simulate(user, raising(ValueError("closed")), start=[OPENER])
    assert (simulation.stop_reason, simulation.messages) == ("agent_error", [OPENER])


@pytest.mark.parametrize(
    "start",
    [
        [OPENER, ANSWER],
        (OPENER, ANSWER),
        {"messages": [OPENER, ANSWER]},
        [HumanMessage(OPENER["content"]), AIMessage("Yes.")],
        [OPENER, {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}],
        [
            OPENER,
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
            {"role": "tool", "tool_call_id": "1", "content": "42"},
            ANSWER,
        ],
        {"turns": [{"speaker": "Ann", "role": "customer", "text": OPENER["content"]}, {"speaker": "d", "text": "Yes."}]},
        {"turns": [{"speaker": "Ann", "text": OPENER["content"]}, {"speaker": "d", "role": "agent", "text": "Yes."}]},
        as_conversation([OPENER, ANSWER]),
    ],
    ids=str,
)
def test_given_turns_may_have_every_shape_of_a_conversation(user: SimulatedUser, start: Any) -> None:
    desk = Desk()
    simulation = simulate(user, desk, max_turns=1, start=start)
    assert simulation.messages[:2] == [OPENER, ANSWER] == desk.calls[0][:2]
    assert [m["role"] for m in desk.calls[0]] == ["user", "assistant", "user"]


def test_instructions_among_given_turns_of_any_shape_become_the_goal(user: SimulatedUser, tmp_path: Path) -> None:
    start = [SystemMessage("You want a window seat."), HumanMessage("hi"), {"role": "developer", "content": "Be quick."}]
    [simulation] = simulate_many(user, Desk(), max_turns=1, start=start, out=tmp_path / "run")
    assert simulation.goal == "You want a window seat.\nBe quick."
    [scenario] = json.loads((tmp_path / "run" / "scenarios.json").read_text("utf-8"))
    assert [m["role"] for m in scenario["start"]] == ["system", "user", "system"]


def test_each_fault_belongs_to_one_side() -> None:
    assert frozenset({"agent_error", "agent_timeout"}) == AGENT_FAULTS
    assert frozenset({"twin_error", "model_unavailable"}) == TWIN_FAULTS


# The record -------------------------------------------------------------------------------------------------------------


def test_a_simulation_is_a_conversation_in_the_interchange_format(user: SimulatedUser) -> None:
    simulation = simulate(user, Desk(), max_turns=1)
    conversation = simulation.conversation()
    assert [(t.speaker, t.role) for t in conversation.turns] == [("ann", "user"), ("agent", "assistant")]
    assert as_conversation(json.loads(json.dumps(conversation.to_json()))) == conversation
    assert conversation.to_json()["stop_reason"] == "max_turns"
