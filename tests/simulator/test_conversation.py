"""A conversation ends with a reason that says whose doing it was, and a run's folder keeps all of it and no secrets."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import scripted, small_conversation
from usertwin.memory import ChatModel
from usertwin.personas import AgentError, ModelError, UsageError, as_conversation
from usertwin.simulator import Exchange, SimulatedUser, Simulation, asimulate, simulate, simulate_many
from usertwin.simulator.backends.scripted import ScriptedChatModel
from usertwin.simulator.batch import RunFolder
from usertwin.simulator.simulation import AGENT_FAULTS, TWIN_FAULTS

#: A thought, a turn, a thought, a turn, ...
TALK = ("wants the weather", "hi, the weather in Oslo please", "is in a hurry", "tomorrow please", "is done", "and Rome?")


def twin(ann: str, *answers: str, **options: Any) -> SimulatedUser:
    """Ann with a script that never runs out."""
    return SimulatedUser.load(ann, model=scripted(*(answers or TALK)), **options)


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    with twin(ann) as found:
        yield found


class Desk:
    """An agent that remembers what it was shown."""

    def __init__(self, *replies: str) -> None:
        self.replies, self.heard = replies or ("For which day?",), list[list[dict[str, Any]]]()

    def __call__(self, messages: list[dict[str, Any]]) -> str:
        self.heard.append(messages)
        return self.replies[(len(self.heard) - 1) % len(self.replies)]


# How a conversation goes -------------------------------------------------------------------------------------------------


def test_twin_and_agent_take_turns_until_there_are_no_more(user: SimulatedUser) -> None:
    desk = Desk("For which day?", "It rains.")
    found = simulate(user, desk, turns=2)
    assert found.stop_reason == "max_turns"
    assert found.error is None
    assert [(m["role"], m["content"]) for m in found.messages] == [
        ("user", "hi, the weather in Oslo please"),
        ("assistant", "For which day?"),
        ("user", "tomorrow please"),
        ("assistant", "It rains."),
    ]
    assert [exchange.answer.reasoning for exchange in found.exchanges] == ["wants the weather", "is in a hurry"]
    assert [exchange.replies[0]["content"] for exchange in found.exchanges] == ["For which day?", "It rains."]
    assert desk.heard == [found.messages[:1], found.messages[:3]]
    assert found.usage.output_tokens == sum(len(text.split()) for text in TALK[:4])


def test_an_agent_may_say_several_messages_at_once(user: SimulatedUser) -> None:
    found = simulate(user, lambda messages: ["One moment.", "It rains."], turns=1)
    assert [m["content"] for m in found.messages[1:]] == ["One moment.", "It rains."]
    assert len(found.exchanges[0].replies) == 2


def test_the_agent_may_begin(user: SimulatedUser) -> None:
    found = simulate(user, "demo", turns=1, agent_first=True)
    assert [m["role"] for m in found.messages] == ["assistant", "user", "assistant"]
    assert "help desk" in found.messages[0]["content"]


def test_a_conversation_can_go_on_from_messages_said_before(user: SimulatedUser) -> None:
    start = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello, what is it?"}]
    desk = Desk()
    found = simulate(user, desk, turns=1, start=start)
    assert found.messages[:2] == start == desk.heard[0][:2]
    assert len(start) == 2  # what was given is not written to


def test_an_agent_cannot_change_what_was_said(user: SimulatedUser) -> None:
    def vandal(messages: list[dict[str, Any]]) -> str:
        messages[-1]["content"] = "something else"
        messages.clear()
        return "For which day?"

    assert simulate(user, vandal, turns=1).messages[0]["content"] == "hi, the weather in Oslo please"


def test_each_exchange_is_shown_as_it_is_complete(user: SimulatedUser) -> None:
    shown: list[Exchange] = []
    found = simulate(user, Desk(), turns=2, on_exchange=shown.append)
    assert shown == found.exchanges


def test_each_conversation_has_a_thread_of_its_own(user: SimulatedUser) -> None:
    threads: list[str] = []

    def agent(thread_id: str) -> str:
        threads.append(thread_id)
        return "For which day?"

    found = [simulate(user, agent, turns=2) for _ in range(2)]
    assert threads == [found[0].thread_id] * 2 + [found[1].thread_id] * 2
    assert found[0].thread_id != found[1].thread_id


def test_simulate_works_where_an_event_loop_is_running_already(user: SimulatedUser) -> None:
    async def notebook() -> Simulation:
        return simulate(user, Desk(), turns=1)

    assert asyncio.run(notebook()).stop_reason == "max_turns"


def test_several_conversations_can_run_at_once_on_one_event_loop(ann: str) -> None:
    async def both() -> list[Simulation]:
        with twin(ann) as one, twin(ann) as other:
            return await asyncio.gather(asimulate(one, Desk(), turns=2), asimulate(other, Desk(), turns=2))

    first, second = asyncio.run(both())
    assert [m["content"] for m in first.messages] == [m["content"] for m in second.messages]


@pytest.mark.parametrize("turns", [0, -1])
def test_a_conversation_has_at_least_one_turn(user: SimulatedUser, turns: int) -> None:
    with pytest.raises(UsageError, match="at least one"):
        simulate(user, Desk(), turns=turns)


def test_what_is_no_agent_is_refused_before_the_twin_speaks(user: SimulatedUser) -> None:
    with pytest.raises(UsageError, match="wants nothing"):
        simulate(user, lambda: "hi")
    assert user.model.chat.prompts == []  # pyright: ignore


# What only the twin knows ------------------------------------------------------------------------------------------------


def test_the_agent_never_sees_the_goal(user: SimulatedUser) -> None:
    desk = Desk()
    found = simulate(user, desk, turns=2, goal="You want a window seat.")
    assert "window seat" not in json.dumps([desk.heard, found.messages])
    assert all("window seat" in prompt for prompt in user.model.chat.prompts)  # pyright: ignore
    assert found.goal == "You want a window seat."


@pytest.mark.parametrize("role", ["instruction", "system"])
def test_private_turns_become_the_goal_and_never_reach_the_agent(user: SimulatedUser, role: str) -> None:
    desk = Desk()
    start = [{"role": role, "content": "You want a window seat."}, {"role": "assistant", "content": "Hello."}]
    found = simulate(user, desk, turns=1, start=start, goal="Be quick.")
    assert "window seat" not in json.dumps([desk.heard, found.messages])
    assert all("(My goal: Be quick. You want a window seat.)" in prompt for prompt in user.model.chat.prompts)  # pyright: ignore
    assert found.goal == "Be quick.\nYou want a window seat."


def test_private_turns_do_not_reach_an_agent_that_begins(user: SimulatedUser) -> None:
    desk = Desk()
    simulate(user, desk, turns=1, agent_first=True, start=[{"role": "system", "content": "You want a window seat."}])
    assert desk.heard[0] == []


# Stop reasons ------------------------------------------------------------------------------------------------------------


def test_user_stop_when_the_person_leaves_and_the_agent_is_not_asked_again(ann: str) -> None:
    desk = Desk()
    so_far = [turn for turn in small_conversation(0).turns if turn.role != "instruction"][:-1]
    start = [{"role": "user" if turn.speaker == "Ann" else "assistant", "content": turn.text} for turn in so_far]
    with twin(ann, "is done", "no thats all thank you bye") as user:
        found = simulate(user, desk, start=start)
    assert found.stop_reason == "user_stop"
    assert found.exchanges[-1].answer.done
    assert found.exchanges[-1].replies == ()
    assert desk.heard == []


def test_goal_reached_when_the_caller_says_so_of_all_messages(user: SimulatedUser) -> None:
    desk = Desk("For which day?", "Booked!", "Anything else?")
    found = simulate(user, desk, turns=5, goal_reached=lambda messages: messages[-1]["content"] == "Booked!")
    assert found.stop_reason == "goal_reached"
    assert len(found.exchanges) == 2


class Stubborn:
    """An agent that never comes back, until it is let go."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def wait(self, messages: list[dict[str, Any]]) -> str:
        self.free.wait(60)
        return "too late"

    async def wait_async(self, messages: list[dict[str, Any]]) -> str:
        await asyncio.sleep(60)
        return "too late"


@pytest.mark.parametrize("shape", ["wait", "wait_async"])
def test_agent_timeout_of_an_agent_that_hangs(user: SimulatedUser, shape: str) -> None:
    stubborn = Stubborn()
    try:
        found = simulate(user, getattr(stubborn, shape), agent_timeout=0.05)
        assert not stubborn.free.is_set()  # it hangs still, and nobody waited for it
    finally:
        stubborn.free.set()
    assert found.stop_reason == "agent_timeout"
    assert found.error == "the agent took longer than 0.05 seconds"
    assert [m["role"] for m in found.messages] == ["user"]  # nothing was put into the agent's mouth
    assert len(found.exchanges) == 1


def raising(error: BaseException) -> Any:
    """An agent that raises this."""

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
        (lambda messages: "", "the agent said nothing"),
        (lambda messages: 7, "the agent returned int, which is no message"),
    ],
)
def test_agent_error_says_what_the_agent_did(user: SimulatedUser, agent: Any, error: str) -> None:
    found = simulate(user, agent)
    assert found.stop_reason == "agent_error"
    assert found.error is not None
    assert error in found.error
    assert len(found.exchanges) == 1  # what the twin said is kept
    assert found.exchanges[0].replies == ()


def test_an_async_agents_own_timeout_is_an_agent_error_and_no_agent_timeout(user: SimulatedUser) -> None:
    async def agent(messages: list[dict[str, Any]]) -> str:
        async with asyncio.timeout(0):
            await asyncio.sleep(60)
        return "never"

    found = simulate(user, agent, agent_timeout=60)
    assert found.stop_reason == "agent_error"
    assert "TimeoutError" in str(found.error)


def test_an_agent_that_fails_to_begin_ends_the_conversation_before_the_twin_speaks(user: SimulatedUser) -> None:
    found = simulate(user, raising(ValueError("closed today")), agent_first=True)
    assert found.stop_reason == "agent_error"
    assert found.messages == found.exchanges == []


def test_an_agent_that_fails_later_leaves_what_was_said_before(user: SimulatedUser) -> None:
    def agent(messages: list[dict[str, Any]]) -> str:
        if len(messages) > 1:
            raise RuntimeError("out of memory")
        return "For which day?"

    found = simulate(user, agent)
    assert [m["role"] for m in found.messages] == ["user", "assistant", "user"]
    assert found.stop_reason == "agent_error"


class Unreachable(ScriptedChatModel):
    """A model behind a line that is cut."""

    def _generate(self, *arguments: Any, **named: Any) -> Any:
        raise ConnectionError("connection refused")


def test_model_unavailable_when_the_twins_model_does_not_answer(ann: str) -> None:
    model = ChatModel("openai:gone", Unreachable(answers=[]), "transcript")
    with SimulatedUser.load(ann, model=model) as user:
        found = simulate(user, Desk())
    assert found.stop_reason == "model_unavailable"
    assert found.error == 'the model "openai:gone" did not answer: ConnectionError: connection refused'
    assert found.messages == []


def test_twin_error_when_the_twins_model_writes_nothing(ann: str) -> None:
    desk = Desk()
    with twin(ann, "") as user:
        found = simulate(user, desk)
    assert found.stop_reason == "twin_error"
    assert "wrote nothing" in str(found.error)
    assert found.messages == desk.heard == []  # no text takes its place


def test_twin_error_when_the_twins_memory_fails(user: SimulatedUser) -> None:
    user.close()
    found = simulate(user, Desk())
    assert found.stop_reason == "twin_error"
    assert "memory" in str(found.error)


def test_twin_error_when_what_was_said_before_is_no_conversation(user: SimulatedUser) -> None:
    found = simulate(user, Desk(), start=[{"role": "user", "content": 3}])
    assert found.stop_reason == "twin_error"
    assert "content" in str(found.error)


def test_a_fault_belongs_to_one_side() -> None:
    assert frozenset({"agent_error", "agent_timeout"}) == AGENT_FAULTS
    assert frozenset({"twin_error", "model_unavailable"}) == TWIN_FAULTS


# What is kept ------------------------------------------------------------------------------------------------------------


def test_a_simulation_is_a_conversation_in_the_interchange_format(user: SimulatedUser) -> None:
    found = simulate(user, Desk(), turns=1)
    conversation = found.conversation()
    assert [(t.speaker, t.role) for t in conversation.turns] == [("ann", "user"), ("agent", "assistant")]
    assert as_conversation(json.loads(json.dumps(conversation.to_json()))) == conversation
    assert conversation.to_json()["stop_reason"] == "max_turns"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "conversations.jsonl").read_text("utf-8").splitlines()]


def test_a_run_is_written_conversation_by_conversation(user: SimulatedUser, tmp_path: Path) -> None:
    out, on_disk = tmp_path / "deep" / "run", list[int]()

    def agent(thread_id: str) -> str:
        path = out / "conversations.jsonl"
        on_disk.append(len(path.read_text("utf-8").splitlines()) if path.exists() else 0)
        return "Für welchen Tag?"

    found = simulate_many(user, agent, count=3, turns=1, out=out, goal="You want the weather.")
    assert on_disk == [0, 1, 2]  # each is there before the next one begins
    assert lines(out) == [json.loads(json.dumps(one.to_json())) for one in found]
    first = lines(out)[0]
    assert first["messages"][1]["content"] == "Für welchen Tag?"
    assert first["exchanges"][0]["answer"]["recalled"][0]["similarity"] > 0
    assert json.loads((out / "summary.json").read_text("utf-8")) == {"stop_reasons": {"max_turns": 3}}


def test_each_conversation_of_a_run_has_the_next_seed(ann: str) -> None:
    with twin(ann, seed=5) as user:
        found = simulate_many(user, Desk(), count=3, turns=1)
        assert [one.seed for one in found] == [5, 6, 7]
        assert user.seed == 5


def test_exchanges_of_a_run_come_with_the_number_of_their_conversation(user: SimulatedUser) -> None:
    seen: list[int] = []
    simulate_many(user, Desk(), count=2, turns=2, on_exchange=lambda number, _: seen.append(number))
    assert seen == [1, 1, 2, 2]


def test_the_manifest_holds_what_is_needed_to_do_it_again(user: SimulatedUser, tmp_path: Path) -> None:
    simulate_many(user, Desk(), count=2, turns=1, out=tmp_path / "run", spec="my_agent:desk", goal="You want the weather.")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    assert manifest["kind"] == "simulate"
    assert manifest["twin"] == "ann"
    assert manifest["models"] == {
        "action": "scripted:test",
        "style": "transcript",
        "proposer": "scripted:test",
        "scorer": "fake:",
        "embedder": "fake:256",
    }
    assert manifest["arguments"] == {"agent": "my_agent:desk", "count": 2, "turns": 1, "goal": "You want the weather."}
    assert (manifest["k"], manifest["seed"]) == (user.k, 0)
    assert manifest["prompts"]
    assert {"usertwin", "langgraph"} <= manifest["versions"].keys()


def test_nothing_secret_is_in_a_runs_folder(user: SimulatedUser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret-key")

    def agent(api_key: str, messages: list[dict[str, Any]]) -> str:
        return "For which day?"

    simulate_many(user, functools.partial(agent, "sk-a-secret-key"), turns=1, out=tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        assert "sk-a-secret-key" not in path.read_text("utf-8"), path.name


def test_the_manifest_takes_arguments_that_json_cannot_hold(user: SimulatedUser, tmp_path: Path) -> None:
    def booked(messages: list[dict[str, Any]]) -> bool:
        return True

    [found] = simulate_many(user, Desk(), out=tmp_path / "run", goal_reached=booked)
    assert found.stop_reason == "goal_reached"
    assert "booked" in json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))["arguments"]["goal_reached"]


def test_a_folder_that_holds_a_run_is_refused(user: SimulatedUser, tmp_path: Path) -> None:
    simulate_many(user, Desk(), turns=1, out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=r"holds a run already.*--out") as caught:
        simulate_many(user, Desk(), turns=1, out=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=r"cannot be made.*--out"):
            RunFolder(path)


def test_what_is_no_agent_leaves_no_folder_behind(user: SimulatedUser, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="wants nothing"):
        simulate_many(user, lambda: "hi", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_stopped_keeps_what_was_said(user: SimulatedUser, tmp_path: Path) -> None:
    def stop_at_second(number: int, exchange: Exchange) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_many(user, Desk(), count=3, turns=1, out=tmp_path / "run", on_exchange=stop_at_second)
    assert len(lines(tmp_path / "run")) == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text("utf-8")) == {"stop_reasons": {"max_turns": 1}}
    assert user.seed == 0


def test_a_run_has_at_least_one_conversation(user: SimulatedUser) -> None:
    with pytest.raises(UsageError, match="at least one"):
        simulate_many(user, Desk(), count=0)


def test_a_run_goes_on_after_a_conversation_that_failed(user: SimulatedUser, tmp_path: Path) -> None:
    calls: list[int] = []

    def agent(messages: list[dict[str, Any]]) -> str:
        calls.append(len(calls))
        if len(calls) == 1:
            raise ValueError("not yet awake")
        return "For which day?"

    found = simulate_many(user, agent, count=2, turns=1, out=tmp_path / "run")
    assert [one.stop_reason for one in found] == ["agent_error", "max_turns"]
    assert [line["error"] for line in lines(tmp_path / "run")] == ["the agent raised ValueError: not yet awake", None]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=30), min_size=1, max_size=3))
def test_whatever_is_said_is_one_line_of_the_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    for text in texts:
        folder.add(Simulation("ann", text, 0, "t", [{"role": "user", "content": text}]))
    assert [line["goal"] for line in _json_lines(folder.path / "conversations.jsonl")] == texts


def _json_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]
