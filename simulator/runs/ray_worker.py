"""A worker of a run on Ray: an actor that opens its own twins, model and agent, and runs conversations one beside the other.

What a worker takes and returns is JSON as text. This module does not import Ray, which makes an actor of the class `Worker`.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from usertwin.memory.concurrency import to_thread
from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import TwinError, UsertwinError

from ..agents import AgentProcess, as_agent
from ..conversation import ConversationStopped, TurnLimits
from ..prompts import prompt_versions
from ..records import Exchange, Simulation
from .jobs import Job, Spending
from .local import LocalExecutor, LocalSlot, Twins


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What a worker needs before its first conversation, as JSON values.

    Attributes:
        agent: the agent's name.
        agent_process: whether it runs in processes of its own.
        agent_timeout: seconds that the agent may take for a reply; inf for no limit.
        twin_timeout: seconds that a twin may take for a turn; inf for no limit.
        agent_concurrency: the most conversations of this worker that use the agent at a time; None for no limit.
        home: the folder of all twins.
        model: the name of the model that acts.
        style: how to prompt it; None for its default style.
        folder: the folder from which the agent is imported.
        path: where else modules are searched.
        environment: variables that the worker sets.
    """

    agent: str
    agent_process: bool
    agent_timeout: float
    twin_timeout: float
    agent_concurrency: int | None
    home: str
    model: str
    style: PromptStyle | None
    folder: str
    path: list[str]
    environment: dict[str, str]


def own_versions(style: PromptStyle) -> dict[str, str]:
    """Return the versions that all processes of a run must share."""
    prompts = ", ".join(sorted(prompt_versions(style, style).values()))
    return {"usertwin": version("usertwin"), "Python": platform.python_version(), "the prompts": prompts}


class Worker:
    """Runs conversations in a process of a cluster.

    Args:
        setup: a `WorkerSetup` as JSON.
    """

    def __init__(self, setup: str) -> None:
        self._setup = WorkerSetup(**json.loads(setup))
        self._spending, self._free = Spending(), list[LocalSlot]()
        self._executor: LocalExecutor | None = None

    async def begin(self) -> str:
        """Load the model and the agent; return {"versions": {...}}, or {"error": [class, text]}."""
        try:
            executor = await self._open()
        except UsertwinError as error:
            return json.dumps({"error": _raised(error)})
        return json.dumps({"versions": own_versions(executor.twins.style)})

    async def converse(self, request: str) -> AsyncIterator[str]:
        """Run the conversation {"job": ..., "simulation": ...} and yield each exchange, and then how it ended.

        That is {"exchange": ..., "messages": [...]} with the messages since the last one, and as the last {"simulation": ...},
        {"stopped": true}, or {"error": [class, text]}.
        """
        events = asyncio.Queue[dict[str, Any] | None]()
        running = asyncio.create_task(self._run(json.loads(request), events.put_nowait))
        running.add_done_callback(lambda _: events.put_nowait(None))
        while (event := await events.get()) is not None:
            yield json.dumps(event)
        await running

    async def stop(self) -> None:
        """End all conversations between two turns."""
        self._spending.stop()

    async def _open(self) -> LocalExecutor:
        setup = self._setup
        os.environ.update(setup.environment)
        if os.path.isdir(setup.folder):  # a model or an endpoint needs no folder
            os.chdir(setup.folder)
        sys.path += [path for path in setup.path if path not in sys.path]
        if not Path(setup.home).is_dir():
            raise TwinError(f"the folder of the twins, {setup.home}, is not there; share it between all nodes (--home)")
        twins = Twins(setup.home, setup.model, style=setup.style)
        await to_thread(lambda: twins.model)
        slots = None if setup.agent_concurrency is None else asyncio.Semaphore(setup.agent_concurrency)
        limits = TurnLimits(agent_timeout=setup.agent_timeout, twin_timeout=setup.twin_timeout, agent_slots=slots)
        shared = None if setup.agent_process else as_agent(setup.agent).in_own_loop()
        self._executor = LocalExecutor(
            twins=twins, new_call=partial(AgentProcess, setup.agent) if shared is None else lambda: shared,
            owns_call=shared is None, limits=limits,
        )  # fmt: skip
        slot = self._executor.slot()
        if slot.call is not None:
            await slot.call.begin()  # reports an invalid agent
        self._free.append(slot)
        return self._executor

    async def _run(self, request: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
        assert self._executor is not None
        job, simulation, sent = Job.from_json(request["job"]), Simulation.from_json(request["simulation"], ""), 0
        slot = self._free.pop() if self._free else self._executor.slot()

        def said(exchange: Exchange) -> None:
            nonlocal sent
            send({"exchange": exchange.to_json(), "messages": simulation.messages[sent:]})
            sent = len(simulation.messages)

        try:
            ended = await slot.run(job, simulation, self._spending, said)
        except ConversationStopped:
            send({"stopped": True})
        except UsertwinError as error:
            send({"error": _raised(error)})
        else:
            send({"simulation": ended.to_json()})
        finally:
            self._free.append(slot)


def _raised(error: UsertwinError) -> list[str]:
    return [type(error).__name__, str(error)]
