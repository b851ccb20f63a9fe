"""Benchmark of hostile agents: each must end its conversation with the right stop reason, and the run must go on.

Every agent talks in two conversations, each followed by one of a well-behaved agent in the same process.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import click

from usertwin.evals.cli.demo import ROBIN
from usertwin.memory import ChatModel, Recipe, alearn
from usertwin.memory.event_loop import run_sync
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.simulator import SimulatedUser, Simulation, asimulate, load_embedder, simulate

from ..figures import Figure, single_figure
from .errors import raising
from .hostile import Hostile, good
from .processes import ENDING
from .surroundings import ACTING
from .values import returning

AGENTS: tuple[Hostile, ...] = (*raising(), *returning(), *ACTING, *ENDING)


async def _good_async(messages: list[dict[str, Any]]) -> str:
    await asyncio.sleep(0)
    return good(messages)


def talk(user: SimulatedUser, hostile: Hostile) -> list[Simulation]:
    """Return the conversations of a hostile and of a well-behaved agent, in turn, each two times."""
    options: dict[str, Any] = {"max_turns": 1, "agent_timeout": hostile.timeout, "agent_process": hostile.own_process}

    async def in_caller() -> list[Simulation]:
        simulations = list[Simulation]()
        for _ in range(2):
            simulations.append(await asimulate(user, hostile.agent, **options))
            simulations.append(await asimulate(user, _good_async, max_turns=1))
        return simulations

    if hostile.in_caller:
        return asyncio.run(in_caller())
    simulations = list[Simulation]()
    for _ in range(2):
        simulations.append(simulate(user, hostile.agent, **options))
        simulations.append(simulate(user, _good_async, max_turns=1))
    return simulations


def mistakes(user: SimulatedUser, hostile: Hostile) -> list[str]:
    """Return what is wrong with the conversations of an agent; [] if all is right."""
    try:
        simulations = talk(user, hostile)
    except BaseException as error:
        return [f"{hostile.name}: the run ended with {type(error).__name__}"]
    wrong = list[str]()
    for simulation, reason, says in zip(simulations, [hostile.reason, "max_turns"] * 2, [hostile.says, ""] * 2, strict=True):
        error = simulation.error or ""
        if simulation.stop_reason != reason or says not in error or (reason != "max_turns") != bool(error):
            wrong.append(f"{hostile.name}: {simulation.stop_reason} ({error}), not {reason}")
        wrong += [f"{hostile.name}: an error of {len(error)} characters"] if len(error) > 3000 else []
    return wrong


def hostile_part() -> Iterator[tuple[str, Figure]]:
    """Yield the share of hostile agents that are recorded rightly, and the longest time beyond a deadline."""
    from usertwin.simulator.backends.scripted import ScriptedChatModel

    chat = ScriptedChatModel(answers=[f"I would like number {i}, please" for i in range(50)])
    with tempfile.TemporaryDirectory() as home:
        log, embedder = load_chitchat(), load_embedder("fake:")
        recipe = Recipe(
            source="chitchat", speaker=ROBIN.speaker, method="none", candidates=1, max_triples=50, max_traces=None,
            window=6, embedder=embedder.name, model=None, scorer=None, seed=0,
        )  # fmt: skip
        run_sync(alearn("bench", log, recipe, embedder=embedder, home=home))
        with SimulatedUser.load("bench", home=home, model=ChatModel("scripted:bench", chat), embedder=embedder) as user:
            user.last_turn = user.abandonment = None
            right, late = 0, list[float]()
            for hostile in AGENTS:
                started = time.perf_counter()
                wrong = mistakes(user, hostile)
                right += not wrong
                for sentence in wrong:
                    click.echo(sentence, err=True)
                if hostile.reason == "agent_timeout" and not hostile.in_caller and not hostile.own_process:
                    late.append((time.perf_counter() - started) / 2 - hostile.timeout)
    yield (
        "hostile.right_share",
        single_figure(right / len(AGENTS), "share", "reason and side; the run goes on", len(AGENTS)),
    )
    yield "hostile.late_s", single_figure(max(late, default=0.0), "s", "conversations beyond their deadlines", len(late))
