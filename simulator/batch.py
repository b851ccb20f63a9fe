"""A run's folder: what was run, and what came out, conversation by conversation.

The one design choice: a conversation is on disk before the next one begins, as a line of `conversations.jsonl`, so that a run
that is stopped loses nothing; the manifest beside it says everything needed to do it again, and no secrets.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from usertwin.personas import UsageError

from .agents import as_agent
from .prompts import prompt_versions
from .simulation import Exchange, Simulation, simulate
from .user import SimulatedUser

#: A name and password in a URL.
_LOGIN = re.compile(r"//[^/@\s\"]+@")


class RunFolder:
    """A folder that holds one run.

    Args:
        path: the folder; made if missing. UsageError if it holds a run already.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if (self.path / "manifest.json").exists():
            raise UsageError(f"{self.path}: holds a run already; name another folder with --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be made ({error.strerror}); name another folder with --out") from None

    def write_manifest(self, user: SimulatedUser, **arguments: Any) -> None:
        """Write what is run: the twin and how it was learned, models, prompt versions, package versions, arguments."""
        manifest = {
            "kind": "simulate",
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "twin": user.name,
            "learned_at": user.record.learned_at,
            "models": {
                "action": user.model.name,
                "style": user.model.style,
                **({} if user.reasoner is user.model else {"reasoner": user.reasoner.name}),
                "proposer": user.record.recipe.model,
                "scorer": user.record.recipe.scorer,
                "embedder": user.record.recipe.embedder,
            },
            "prompts": prompt_versions(user.model.style, user.reasoner.style),
            "k": user.k,
            "seed": user.seed,
            "arguments": arguments,
            "versions": {**user.record.versions, "usertwin": version("usertwin")},
        }
        text = _LOGIN.sub("//", json.dumps(manifest, indent=1, ensure_ascii=False, default=_called))
        (self.path / "manifest.json").write_text(text + "\n", "utf-8", errors="backslashreplace")

    def add(self, simulation: Simulation) -> None:
        """Write one conversation."""
        with (self.path / "conversations.jsonl").open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(simulation.to_json(), ensure_ascii=False) + "\n")

    def close(self, stop_reasons: Mapping[str, int]) -> None:
        """Write how the conversations ended, as `summary.json`."""
        (self.path / "summary.json").write_text(json.dumps({"stop_reasons": dict(stop_reasons)}, indent=1) + "\n", "utf-8")


def simulate_many(
    user: SimulatedUser,
    agent: Any,
    *,
    count: int = 1,
    out: str | Path | None = None,
    spec: str = "",
    on_exchange: Callable[[int, Exchange], None] | None = None,
    **options: Any,
) -> list[Simulation]:
    """Let a twin and an agent talk several times, each time with the next seed.

    Args:
        user: the twin; its seed is the first one.
        agent: the agent under test.
        count: how many conversations.
        out: a folder to write the run to.
        spec: how the agent was named, for the manifest.
        on_exchange: is shown each exchange, with the number of its conversation (from 1).
        options: for `simulate`.
    """
    if count < 1:
        raise UsageError(f"{count} conversations: at least one is needed")
    call = as_agent(agent)  # what cannot be an agent is not to leave a folder behind
    folder = RunFolder(out) if out is not None else None
    if folder is not None:
        folder.write_manifest(user, agent=spec or (agent if isinstance(agent, str) else _called(agent)), count=count, **options)
    first_seed, found = user.seed, list[Simulation]()
    try:
        for number in range(1, count + 1):
            user.seed = first_seed + number - 1
            shown = partial(on_exchange, number) if on_exchange is not None else None
            found.append(simulate(user, call, on_exchange=shown, **options))
            if folder is not None:
                folder.add(found[-1])
    finally:
        user.seed = first_seed
        if folder is not None:
            folder.close(Counter(simulation.stop_reason for simulation in found))
    return found


def _called(thing: Any) -> str:
    """What to call an object in a manifest: its name or its class's, since its representation may hold a key."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"
