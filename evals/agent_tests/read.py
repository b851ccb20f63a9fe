"""Read the folder of a run of simulated conversations.

manifest.json          kind "simulate": agent, twins, models, versions of prompts and packages, seed, arguments
scenarios.json         the scenarios, a list of objects; missing in runs without scenarios
conversations.jsonl    one conversation a line
timings.jsonl          what differs between runs of the same seed: "id" of the conversation, "seconds", and for each
exchange "twin_seconds" and "agent_seconds"; missing where conversations.jsonl holds them
summary.json           whether the run is finished, and the summary
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from usertwin.memory.jsonl import read_lines
from usertwin.personas import UsageError
from usertwin.personas.files import refuse_links_in
from usertwin.personas.reading import as_type, parse_json, read_file
from usertwin.simulator.records import Simulation

from .summary import Summary, summarize

KIND = "simulate"
_MANIFEST, _SCENARIOS, _CONVERSATIONS = "manifest.json", "scenarios.json", "conversations.jsonl"
_TIMINGS, _SUMMARY = "timings.jsonl", "summary.json"
_WAY_OUT = "name the folder of another run, or run usertwin simulate again"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRun:
    """A run of simulated conversations.

    Attributes:
        folder: the run's folder.
        manifest: the content of its manifest.
        scenarios: its scenarios as JSON objects, by name.
        simulations: its conversations, in order.
        summary: the content of its summary.json; empty without one.
    """

    folder: Path
    manifest: Mapping[str, Any]
    scenarios: Mapping[str, Mapping[str, Any]]
    simulations: Sequence[Simulation]
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def agent(self) -> str:
        """The agent under test, as it was named."""
        return str(self.manifest.get("agent") or self.arguments.get("agent") or "unknown")

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the run."""
        arguments: Any = self.manifest.get("arguments")
        return cast("Mapping[str, Any]", arguments) if isinstance(arguments, Mapping) else {}

    @property
    def finished(self) -> bool:
        """Whether the run has all its conversations; earlier versions wrote a summary at the end only."""
        return bool(self.summary) and self.summary.get("finished") is not False


def is_agent_run(folder: Path) -> bool:
    """Return whether the folder's manifest is that of simulated conversations; False without a readable manifest."""
    try:
        manifest = parse_json((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and cast("dict[str, Any]", manifest).get("kind") == KIND


def read_agent_run(folder: Path) -> AgentRun:
    """Read a run of simulated conversations, finished or not.

    Raises:
        UsageError: the folder holds no such run, a damaged file, or a link.
    """
    refuse_links_in(folder)
    path = folder / _MANIFEST
    manifest = _read(path, f"{folder}: holds no run; name the folder of a run of usertwin simulate")
    if manifest.get("kind") != KIND:
        raise UsageError(f"{folder}: holds a run of another kind; name the folder of a run of usertwin simulate")
    parse = partial(Simulation.from_json, speaker="")
    simulations = read_lines(folder / _CONVERSATIONS, parse, "conversation", _WAY_OUT)
    scenarios = _scenarios(folder / _SCENARIOS)
    run = AgentRun(
        folder=folder, manifest=manifest, scenarios=scenarios, summary=_read(folder / _SUMMARY),
        simulations=_with_timings(_numbered(simulations), folder / _TIMINGS),
    )  # fmt: skip
    if not scenarios and run.arguments.get("goal_reached"):  # a run of one goal, whose rule is an argument
        return replace(run, scenarios={"": run.arguments})
    return run


def summary_of_run(run: AgentRun) -> Summary:
    """Return the summary of a run; cost, retries and closeness are those that the run itself noted."""
    noted = run.summary
    closeness, dollars, retries = noted.get("closeness"), noted.get("dollars"), noted.get("retries")
    return summarize(
        run.simulations, name=run.name, agent=run.agent, scenarios=run.scenarios, finished=run.finished,
        closeness=cast("dict[str, str | None]", closeness) if isinstance(closeness, dict) else None,
        dollars=float(dollars) if isinstance(dollars, int | float) else None,
        retries=retries if isinstance(retries, int) else None,
    )  # fmt: skip


def _read(path: Path, missing: str | None = None) -> dict[str, Any]:
    """Return the object in a JSON file; without a message for a missing one, it is empty."""
    if missing is None and not path.is_file():
        return {}
    return read_file(
        path, lambda content: as_type(dict[str, Any], parse_json(content)), way_out=_WAY_OUT, error=UsageError, missing=missing
    )


def _scenarios(path: Path) -> dict[str, Mapping[str, Any]]:
    if not path.is_file():
        return {}
    rows = read_file(
        path, lambda content: as_type(list[dict[str, Any]], parse_json(content)), way_out=_WAY_OUT, error=UsageError
    )
    return {str(row.get("name", "")): row for row in rows}


def _numbered(simulations: list[Simulation]) -> list[Simulation]:
    """Return conversations with the numbers of their repetitions, which earlier versions did not write."""
    if any(simulation.repeat for simulation in simulations):
        return simulations
    seen, numbered = Counter[tuple[str, str]](), list[Simulation]()
    for simulation in simulations:
        pair = (simulation.scenario, simulation.twin)
        numbered.append(replace(simulation, repeat=seen[pair]))
        seen[pair] += 1
    return numbered


def _with_timings(simulations: list[Simulation], path: Path) -> list[Simulation]:
    rows = read_lines(path, lambda raw: as_type(dict[str, Any], raw), "timing", _WAY_OUT)
    timings = {row.get("id"): row for row in rows}
    return [
        _timed(simulation, timings[simulation.id]) if simulation.id in timings else simulation for simulation in simulations
    ]


def _timed(simulation: Simulation, row: Mapping[str, Any]) -> Simulation:
    seconds, rows = row.get("seconds"), row.get("exchanges")
    timed = replace(simulation, seconds=float(seconds)) if isinstance(seconds, int | float) else simulation
    if not isinstance(rows, list) or len(cast("list[Any]", rows)) != len(timed.exchanges):
        return timed
    exchanges = [
        replace(exchange, **{name: float(own.get(name, 0.0)) for name in ("twin_seconds", "agent_seconds")})
        for exchange, own in zip(timed.exchanges, cast("list[dict[str, float]]", rows), strict=True)
    ]
    return replace(timed, exchanges=exchanges)
