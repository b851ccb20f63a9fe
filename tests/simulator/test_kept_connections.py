"""Agents with one async client for their whole life, which works in one event loop only, in conversations of every door."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_runner import output_of, write_script
from desk_talk import scripted_twin

from conftest import Endpoint
from usertwin.memory.models.chat import ChatModel
from usertwin.simulator import SimulatedUser, Simulation, simulate, simulate_many


@pytest.fixture
def server(endpoint: Endpoint) -> Endpoint:
    """An endpoint that keeps its connections open."""
    endpoint.server.RequestHandlerClass.protocol_version = "HTTP/1.1"  # pyright: ignore[reportAttributeAccessIssue]
    endpoint.server.daemon_threads = True  # each serves a connection that nobody closes
    return endpoint


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    with scripted_twin(ann) as user:
        yield user


def http_agent(server: Endpoint) -> Callable[..., Any]:
    client = httpx.AsyncClient(trust_env=False)

    async def agent(messages: list[dict[str, Any]]) -> str:
        response = await client.post(f"{server.url}/chat/completions", json={"model": "m", "messages": messages})
        return response.json()["choices"][0]["message"]["content"]

    return agent


def chat_openai(server: Endpoint) -> Any:
    from langchain_openai import ChatOpenAI

    # The limit tells this test's shared client of langchain-openai from those of other tests.
    return ChatOpenAI(model="m", base_url=server.url, api_key="none", max_retries=0, timeout=60)  # pyright: ignore


def chat_model(server: Endpoint) -> ChatModel:
    return ChatModel("own", chat_openai(server))


def react_agent(server: Endpoint) -> Any:
    from langgraph.prebuilt import create_react_agent

    return create_react_agent(chat_openai(server), [])


def connection_holder(server: Endpoint) -> Callable[..., Any]:
    """An agent with a lock and a background task, as a session of MCP has."""
    lock, kept = asyncio.Lock(), list[asyncio.Task[None]]()

    async def agent(messages: list[dict[str, Any]]) -> str:
        async with lock:
            kept[:] = kept or [asyncio.ensure_future(asyncio.sleep(3600))]
            assert not kept[0].done()
            assert kept[0].get_loop() is asyncio.get_running_loop()
        return "Which city?"

    return agent


def stop_reasons(simulations: list[Simulation]) -> set[tuple[str, str | None]]:
    return {(simulation.stop_reason, simulation.error) for simulation in simulations}


AGENTS = [http_agent, chat_openai, chat_model, react_agent, connection_holder]
WELL = {("max_turns", None)}


@pytest.mark.filterwarnings("ignore:create_react_agent")
@pytest.mark.parametrize("make", AGENTS)
def test_a_kept_connection_works_in_every_conversation(
    user: SimulatedUser, server: Endpoint, make: Callable[[Endpoint], Any]
) -> None:
    agent = make(server)

    async def notebook() -> Simulation:
        return simulate(user, agent, max_turns=2)

    simulations = [simulate(user, agent, max_turns=2) for _ in range(3)]
    simulations += simulate_many(user, agent, count=3, max_turns=2)
    with ThreadPoolExecutor(4) as pool:
        simulations += pool.map(lambda seed: simulate(user, agent, max_turns=2, seed=seed), range(8))
    simulations.append(asyncio.run(notebook()))
    assert stop_reasons(simulations) == WELL


def test_a_kept_connection_works_in_every_conversation_of_the_command_line(
    ann: str, server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept_agent.py").write_text(
        "import httpx\nclient = httpx.AsyncClient(trust_env=False)\n"
        "async def reply(messages):\n"
        f"    response = await client.post('{server.url}/chat/completions', json={{'model': 'm', 'messages': messages}})\n"
        "    return response.json()['choices'][0]['message']['content']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    script = write_script(tmp_path, "in Oslo please", "and in Rome", "in Lima then")
    output = output_of("simulate", ann, "--agent", "kept_agent:reply", "--model", script, "--count", "4", "--max-turns", "2")
    assert [f"conversation {number}: 2 turns, max_turns" in output for number in range(1, 5)] == [True] * 4


# Callbacks ------------------------------------------------------------------------------------------------------------


def test_callbacks_run_in_the_callers_thread_without_a_loop(user: SimulatedUser) -> None:
    """As connections to databases and Django's ORM need, and so that they may ask another twin."""
    threads = list[threading.Thread]()

    def is_reached(messages: list[dict[str, Any]]) -> bool:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        threads.append(threading.current_thread())
        return not user.respond(messages).action

    simulation = simulate(
        user, lambda messages: "Which city?", max_turns=2, goal_reached=is_reached,
        on_exchange=lambda _: threads.append(threading.current_thread()),
    )  # fmt: skip
    assert stop_reasons([simulation]) == WELL
    assert threads == [threading.current_thread()] * 4


def test_an_async_agent_may_call_a_synchronous_function_of_ours(user: SimulatedUser) -> None:
    async def agent(messages: list[dict[str, Any]]) -> str:
        return f"Do you mean {user.respond(messages).action}?"

    assert stop_reasons([simulate(user, agent, max_turns=2) for _ in range(2)]) == WELL
