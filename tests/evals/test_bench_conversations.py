"""The benchmark of running conversations, in a small form: every figure, and conversations that take their course."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from usertwin.evals.benchmarks.conversations.embedding import embedding_part
from usertwin.evals.benchmarks.conversations.endpoint import fake_endpoint, reply_text
from usertwin.evals.benchmarks.conversations.engine import concurrency_figures
from usertwin.evals.benchmarks.conversations.first_token import serve_part
from usertwin.evals.benchmarks.conversations.processor_time import processor_part
from usertwin.evals.benchmarks.conversations.throughput import ThroughputSizes, run_many, throughput_part
from usertwin.evals.benchmarks.figures import Figure
from usertwin.memory import ChatModel
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.personas import ModelError
from usertwin.simulator import SimulatedUser, Simulation

SIZES = ThroughputSizes(conversations=3, turns=2, triples=30, delay=0.0, rounds=2)


def figures(part: Iterator[tuple[str, Figure]]) -> dict[str, Figure]:
    """Return the figures of a part, which are numbers with quartiles."""
    rows = dict(part)
    assert all(math.isfinite(row.value) and 0 < row.low <= row.value <= row.high for row in rows.values())
    return rows


def test_the_throughput_of_both_sides_is_measured_with_one_call_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openevals")
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)  # the endpoint is on this machine
    ran = list[Simulation]()

    async def run(user: SimulatedUser, agent: Any, count: int, turns: int) -> list[Simulation]:
        ran.extend(await run_many(user, agent, count, turns))
        return ran[-count:]

    rows = figures(throughput_part(SIZES, FakeEmbedder(), run))
    assert list(rows) == [
        "simulate.vs_openevals", "simulate.conversations_per_s", "simulate.openevals_conversations_per_s",
    ]  # fmt: skip
    assert rows["simulate.vs_openevals"].n == SIZES.rounds
    assert [len(simulation.exchanges) for simulation in ran] == [2] * (3 * (SIZES.rounds + 1))
    assert all(exchange.answer.recalled and exchange.answer.discarded == 0 for s in ran for exchange in s.exchanges)


def test_a_run_whose_conversations_fail_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openevals")
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)

    async def failing(user: SimulatedUser, agent: Any, count: int, turns: int) -> list[Simulation]:
        simulations = await run_many(user, agent, count, turns)
        simulations[1].stop_reason = "agent_error"
        return simulations

    with pytest.raises(ModelError, match="agent_error after 2 turns"):
        dict(throughput_part(SIZES, FakeEmbedder(), failing))


def test_processor_time_is_measured_beside_a_bare_graph() -> None:
    rows = figures(processor_part(conversations=2, rounds=2, triples=30))
    assert list(rows) == ["simulate.cpu_vs_langgraph", "simulate.cpu_turn_ms", "simulate.langgraph_turn_ms"]


def test_embeddings_together_are_measured_beside_single_ones() -> None:
    rows = figures(embedding_part(rounds=2, callers=4, embedder=FakeEmbedder()))
    assert list(rows) == ["simulate.batched_embedding_vs_single", "simulate.batched_embedding_ms"]


def test_the_first_token_of_the_endpoint_is_measured_beside_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)  # the endpoint is on this machine
    rows = dict(serve_part(rounds=2, delay=0.0, triples=30, embedder=FakeEmbedder()))
    assert list(rows) == ["serve.added_first_token_ms", "serve.first_token_ms"]
    assert rows["serve.first_token_ms"].low > 0


def test_conversations_at_once_are_measured_beside_one(twin: SimulatedUser) -> None:
    rows = figures(concurrency_figures(twin, rounds=2))
    assert list(rows) == ["twin.four_at_once_vs_one", "twin.tokens_per_s"]


@pytest.fixture
def twin(tmp_path: Any) -> Iterator[SimulatedUser]:
    from usertwin.evals.benchmarks.conversations.twins import large_twin
    from usertwin.simulator.backends.scripted import ScriptedChatModel

    chat = ScriptedChatModel(answers=[reply_text(number) for number in range(40)])
    with large_twin(tmp_path, ChatModel("scripted:bench", chat, "transcript"), FakeEmbedder(), 30) as user:
        yield user


def test_the_fake_endpoint_keeps_connections_closes_them_when_asked_and_answers_with_the_asked_form() -> None:
    request = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}

    async def ask(url: str) -> list[Any]:
        async with httpx.AsyncClient(base_url=url) as client:
            plain = await client.post("/chat/completions", json=request)
            schema = await client.post("/chat/completions", json=request | {"response_format": {}})
            closed = await client.post("/chat/completions", json=request, headers={"Connection": "close"})
            return [plain, schema, closed]

    with fake_endpoint(0.0) as url:
        plain, schema, closed = asyncio.run(ask(f"{url}"))
    texts = [reply.json()["choices"][0]["message"]["content"] for reply in (plain, schema, closed)]
    assert texts[0] == reply_text(0)
    assert '"reply": "' + reply_text(1) in texts[1]
    assert (plain.headers["connection"], closed.headers["connection"]) == ("keep-alive", "close")
