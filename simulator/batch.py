"""Several conversations in a row, and the folder that a run is written to.

Each conversation is a line of `conversations.jsonl`, written before the next one begins, so a stopped run loses nothing. The
manifest beside it holds everything needed to repeat the run, and no secrets.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from usertwin.personas import UsageError

from .agents import Message, as_agent
from .prompts import prompt_versions
from .simulation import DEFAULT_AGENT_TIMEOUT, DEFAULT_MAX_TURNS, Exchange, Simulation, simulate
from .user import SimulatedUser

#: A user name and password in a URL.
_LOGIN = re.compile(r"//[^/@\s\"]+@")


class RunFolder:
    """A folder for one run, created if missing. UsageError if it holds a run already."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if (self.path / "manifest.json").exists():
            raise UsageError(f"{self.path}: the folder holds a run already; name another folder with --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"the folder cannot be created ({error.strerror})"
            raise UsageError(f"{self.path}: {reason}; name another folder with --out") from None

    def write_manifest(self, user: SimulatedUser, seed: int, **arguments: Any) -> None:
        """Write the twin and its recipe, the models, the versions of prompts and packages, and the arguments."""
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
        text = _LOGIN.sub("//", json.dumps(manifest, indent=1, ensure_ascii=False, default=_qualified_name))
        (self.path / "manifest.json").write_text(text + "\n", "utf-8", errors="backslashreplace")

    def add(self, simulation: Simulation) -> None:
        """Append one conversation."""
        with (self.path / "conversations.jsonl").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(simulation.to_json(), ensure_ascii=False) + "\n")

    def close(self, stop_reasons: Mapping[str, int]) -> None:
        """Write the number of conversations for each stop reason to `summary.json`."""
        (self.path / "summary.json").write_text(json.dumps({"stop_reasons": dict(stop_reasons)}, indent=1) + "\n", "utf-8")


def simulate_many(
    user: SimulatedUser, agent: Any, *, count: int = 1, max_turns: int = DEFAULT_MAX_TURNS, seed: int = 0, goal: str = "",
    agent_first: bool = False, agent_timeout: float = DEFAULT_AGENT_TIMEOUT, start: Sequence[Message] = (),
    goal_reached: Callable[[list[Message]], bool] | None = None, on_exchange: Callable[[int, Exchange], None] | None = None,
    out: str | Path | None = None, spec: str = "",
) -> list[Simulation]:  # fmt: skip
    """Run `count` conversations between a twin and an agent; conversation i (from 0) has the seed `seed + i`.

    `on_exchange` is called with the number of the conversation (from 1) and each complete exchange. The run is written to the
    folder `out`, if one is given; `spec` names the agent in its manifest. The other arguments are those of `asimulate`.

    Raises:
        UsageError: an argument is invalid, or the folder holds a run already.
    """
    if count < 1:
        raise UsageError(f"count is {count}; it must be at least 1")
    call = as_agent(agent)  # before the folder is created: an invalid agent leaves no folder behind
    options: dict[str, Any] = {
        "max_turns": max_turns, "goal": goal, "agent_first": agent_first, "agent_timeout": agent_timeout, "start": start,
        "goal_reached": goal_reached,
    }  # fmt: skip
    folder = RunFolder(out) if out is not None else None
    if folder is not None:
        name = spec or (agent if isinstance(agent, str) else _qualified_name(agent))
        folder.write_manifest(user, seed, agent=name, count=count, **options)
    simulations = list[Simulation]()
    try:
        for number in range(1, count + 1):
            callback = partial(on_exchange, number) if on_exchange is not None else None
            simulations.append(simulate(user, call, seed=seed + number - 1, on_exchange=callback, **options))
            if folder is not None:
                folder.add(simulations[-1])
    finally:
        if folder is not None:
            folder.close(Counter(simulation.stop_reason for simulation in simulations))
    return simulations


def _qualified_name(value: Any) -> str:
    """Return the module and name of an object, or of its class. Its repr is not used: it may contain a key."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}:{named.__qualname__}"
