"""Several conversations in a row, and the folder that a run is written to.

Each conversation is a line of `conversations.jsonl`, written before the next one begins, and the same call continues a stopped
run after the last of them. `summary.json` says whether the run is finished. The manifest holds everything needed to repeat the
run, and no secrets.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from math import isinf
from pathlib import Path
from typing import Any

from usertwin.memory.event_loop import run_sync
from usertwin.memory.jsonl import append_line, open_for_append, read_lines
from usertwin.memory.run_lock import exclusive_run
from usertwin.personas import UsageError
from usertwin.personas.files import private_folder, refuse_links_in, write_private
from usertwin.personas.reading import as_type, parse_json, read_file
from usertwin.personas.secrets import mask

from .agents import AgentCall, AgentProcess, Message, as_agent
from .prompts import prompt_versions
from .simulation import DEFAULT_AGENT_TIMEOUT, DEFAULT_MAX_TURNS, Exchange, Simulation, check_limits, opening, simulate
from .user import SimulatedUser

_WAY_OUT = "name another folder with --out"


class RunFolder:
    """A folder for one run, created if missing. UsageError if it cannot be, or holds a link."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()  # an agent may change the current folder
        refuse_links_in(self.path)
        try:
            private_folder(self.path)
        except OSError as error:
            raise UsageError(f"{self.path}: the folder cannot be created ({error.strerror}); {_WAY_OUT}") from None

    def begin(self, user: SimulatedUser, seed: int, **arguments: Any) -> list[Simulation]:
        """Write the manifest: the twin and its recipe, the models, the versions of prompts and packages, and the arguments.

        If the folder holds an unfinished run with the same manifest, return its conversations, to continue after them.

        Raises:
            UsageError: the folder holds a finished run, or another unfinished one.
        """
        recipe = user.record.recipe
        manifest = {
            "kind": "simulate",
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "twin": user.name,
            "learned_at": user.record.learned_at,
            "models": {
                "action": user.model.name, "style": user.model.style,
                **({} if user.reasoner is user.model else {"reasoner": user.reasoner.name}),
                "proposer": recipe.model, "scorer": recipe.scorer, "embedder": recipe.embedder,
            },
            "prompts": prompt_versions(user.model.style, user.reasoner.style),
            "k": user.k, "seed": seed, "arguments": arguments,
            "versions": {**user.record.versions, "usertwin": version("usertwin")},
        }  # fmt: skip
        text = json.dumps(manifest, indent=1, ensure_ascii=False, default=_qualified_name)
        path = self.path / "manifest.json"
        if not path.exists():
            write_private(path, text + "\n")
            return []
        if self._is_finished():
            raise UsageError(f"{self.path}: the folder holds a run already; {_WAY_OUT}")
        known, expected = self._read(path), parse_json(mask(text))
        differing = [f'"{key}"' for key in expected if key != "started_at" and known.get(key) != expected[key]]
        if differing:
            raise UsageError(f"{self.path}: holds an unfinished run with a different {', '.join(differing)}; {_WAY_OUT}")
        parse = partial(Simulation.from_json, speaker=user.record.recipe.speaker)
        return read_lines(self.path / "conversations.jsonl", parse, "conversation", _WAY_OUT)

    def _is_finished(self) -> bool:
        summary = self.path / "summary.json"
        return (
            summary.exists() and self._read(summary).get("finished") is not False
        )  # earlier versions wrote it at the end only

    def _read(self, path: Path) -> dict[str, Any]:
        return read_file(path, lambda content: as_type(dict[str, Any], parse_json(content)), way_out=_WAY_OUT, error=UsageError)

    def add(self, simulation: Simulation) -> None:
        """Append one conversation."""
        with open_for_append(self.path / "conversations.jsonl") as file:
            append_line(file, simulation.to_json())

    def summarize(self, simulations: Sequence[Simulation], *, finished: bool) -> None:
        """Write the number of conversations for each stop reason to `summary.json`, and whether the run is finished."""
        summary = {"finished": finished, "stop_reasons": Counter(simulation.stop_reason for simulation in simulations)}
        write_private(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")


def simulate_many(
    user: SimulatedUser, agent: Any, *, count: int = 1, max_turns: int = DEFAULT_MAX_TURNS, seed: int = 0, goal: str = "",
    agent_first: bool = False, agent_timeout: float = DEFAULT_AGENT_TIMEOUT, agent_process: bool = False, start: Any = (),
    goal_reached: Callable[[list[Message]], bool] | None = None, on_exchange: Callable[[int, Exchange], None] | None = None,
    out: str | Path | None = None, spec: str = "",
) -> list[Simulation]:  # fmt: skip
    """Run `count` conversations between a twin and an agent; conversation i (from 0) has the seed `seed + i`.

    `on_exchange` is called with the number of the conversation (from 1) and each complete exchange. The run is written to the
    folder `out`, if one is given; `spec` names the agent in its manifest. A run that was stopped is continued by the same call.
    The other arguments are those of `asimulate`.

    Raises:
        UsageError: an argument is invalid, the folder holds a finished or another run, or another process works on it.
    """
    check_limits(max_turns=max_turns, agent_timeout=agent_timeout, count=count)
    options: dict[str, Any] = {
        "max_turns": max_turns, "goal": goal, "agent_first": agent_first, "agent_timeout": agent_timeout,
        "agent_process": agent_process, "start": opening(start, user), "goal_reached": goal_reached,
    }  # fmt: skip
    call = AgentProcess(agent) if agent_process and not isinstance(agent, AgentCall) else as_agent(agent)
    simulations = list[Simulation]()
    with ExitStack() as stack:
        if call is not agent:
            stack.callback(call.close)
        run_sync(call.begin())  # before the folder is created: an invalid agent leaves no folder behind
        folder = RunFolder(out) if out is not None else None
        if folder is not None:
            stack.enter_context(exclusive_run(folder.path))
            name = spec or (agent if isinstance(agent, str) else _qualified_name(agent))
            limit = None if isinf(agent_timeout) else agent_timeout  # JSON has no infinity
            simulations = folder.begin(user, seed, agent=name, count=count, **options | {"agent_timeout": limit})
            folder.summarize(simulations, finished=len(simulations) == count)
        for number in range(len(simulations) + 1, count + 1):
            callback = partial(on_exchange, number) if on_exchange is not None else None
            simulations.append(simulate(user, call, seed=seed + number - 1, on_exchange=callback, **options))
            if folder is not None:
                folder.add(simulations[-1])
                folder.summarize(simulations, finished=number == count)
    return simulations


def _qualified_name(value: Any) -> str:
    """Return the module and name of an object, or of its class. Its repr is not used: it may contain a key."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"
