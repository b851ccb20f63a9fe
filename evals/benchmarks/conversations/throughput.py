"""Conversations per second beside openevals, with an endpoint that answers after a fixed time."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from usertwin.memory import Embedder
from usertwin.personas import ModelError
from usertwin.simulator import SimulatedUser, Simulation, asimulate, load_embedder, load_model

from ..figures import Figure, figure, run_alternately
from .endpoint import fake_endpoint
from .twins import large_twin

#: Runs this many conversations of this many turns between a twin and an agent concurrently, and returns their records.
RunMany = Callable[[SimulatedUser, Any, int, int], Awaitable[list[Simulation]]]
QUESTION = "Which one would you like?"
_GOAL = "You want to buy something."


@dataclass(kw_only=True, frozen=True, slots=True)
class ThroughputSizes:
    """Sizes of the benchmark; the test uses small ones, which only show that it runs."""

    conversations: int = 200
    turns: int = 5
    triples: int = 10_000
    delay: float = 0.2
    rounds: int = 5


async def run_many(user: SimulatedUser, agent: Any, count: int, turns: int) -> list[Simulation]:
    """Run conversations concurrently in the caller's event loop."""
    return await asyncio.gather(*(asimulate(user, agent, max_turns=turns, seed=seed, goal=_GOAL) for seed in range(count)))


def throughput_part(
    sizes: ThroughputSizes | None = None, embedder: Embedder | None = None, run: RunMany = run_many
) -> Iterator[tuple[str, Figure]]:
    """Yield the conversations per second of both, and their ratio. One call of the model is made for a turn on either side."""
    sizes = sizes or ThroughputSizes()
    with tempfile.TemporaryDirectory() as home, fake_endpoint(sizes.delay) as url, asyncio.Runner() as runner:
        user = large_twin(home, load_model(f"openai:fake@{url}"), embedder or load_embedder(), sizes.triples)
        theirs = openevals_conversations(url)
        with user:

            def rate(work: Callable[[], Coroutine[Any, Any, Any]]) -> float:
                start = time.perf_counter()
                runner.run(work())  # in one event loop, since openevals' client keeps its connections
                return sizes.conversations / (time.perf_counter() - start)

            ours, baseline = run_alternately(
                sizes.rounds + 1,
                lambda _: rate(lambda: run_twins(user, run, sizes)),
                lambda _: rate(lambda: theirs(sizes.conversations, sizes.turns)),
            )
    ours, baseline = ours[1:], baseline[1:]  # after warm-up
    against = f"openevals, {sizes.conversations} conversations of {sizes.turns} turns at once, {sizes.delay} s a call"
    yield "simulate.vs_openevals", figure([a / b for a, b in zip(ours, baseline, strict=True)], "ratio", f"{against} (bar: 1)")
    yield "simulate.conversations_per_s", figure(ours, "1/s", f"recall from {sizes.triples} triples included")
    yield "simulate.openevals_conversations_per_s", figure(baseline, "1/s", "without a memory")


async def run_twins(user: SimulatedUser, run: RunMany, sizes: ThroughputSizes) -> None:
    """Run our side. ModelError if a conversation did not take its course, or took more calls than turns."""

    async def agent(messages: list[dict[str, Any]]) -> str:
        return QUESTION

    for simulation in await run(user, agent, sizes.conversations, sizes.turns):
        discarded = sum(exchange.answer.discarded for exchange in simulation.exchanges)
        if simulation.stop_reason != "max_turns" or len(simulation.exchanges) != sizes.turns or discarded:
            raise ModelError(
                f"a conversation ended with {simulation.stop_reason} after {len(simulation.exchanges)} turns "
                f"({simulation.error}), {discarded} discarded replies"
            )


def openevals_conversations(url: str) -> Callable[[int, int], Coroutine[Any, Any, None]]:
    """Return what runs conversations of openevals' simulated user concurrently. ModelError if openevals is missing."""
    os.environ.setdefault("LANGSMITH_TRACING", "false")
    try:
        from openevals.simulators import create_async_llm_simulated_user, run_multiturn_simulation_async
    except ImportError:
        raise ModelError("the benchmark simulate.vs_openevals needs openevals; run: pip install openevals") from None

    async def app(message: Any, **_: Any) -> dict[str, str]:
        return {"role": "assistant", "content": QUESTION}

    async def run(count: int, turns: int) -> None:
        from langchain_openai import ChatOpenAI

        client: Any = ChatOpenAI(model="fake", base_url=url, api_key=lambda: "none", max_retries=2)
        user: Any = create_async_llm_simulated_user(system=_GOAL, client=client)
        await asyncio.gather(*(run_multiturn_simulation_async(app=app, user=user, max_turns=turns) for _ in range(count)))

    return run
