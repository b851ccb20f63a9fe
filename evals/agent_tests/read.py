"""A run of simulated conversations with an agent, as `usertwin simulate` wrote it, and its summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from usertwin.personas import UsageError
from usertwin.personas.reading import as_type, parse_json, read_file
from usertwin.simulator.records import Simulation
from usertwin.simulator.runs.run_folder import read_run

from .summary import Summary, summarize

_MANIFEST, _SUMMARY = "manifest.json", "summary.json"
_WAY_OUT = "name the folder of another run, or run usertwin simulate again"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRun:
    """A run of simulated conversations.

    Attributes:
        folder: the run's folder.
        manifest: the content of its manifest.
        scenarios: its scenarios as JSON objects, by name.
        simulations: its complete conversations, in order.
        finished: whether no conversation is missing.
        summary: the content of its summary.json; empty without one.
    """

    folder: Path
    manifest: Mapping[str, Any]
    scenarios: Mapping[str, Mapping[str, Any]]
    simulations: Sequence[Simulation]
    finished: bool
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
        return _mapping(self.manifest.get("arguments"))

    @property
    def twins(self) -> Mapping[str, Mapping[str, Any]]:
        """What the manifest says of each twin, by name; empty for a run of an earlier version."""
        return {name: _mapping(twin) for name, twin in _mapping(self.manifest.get("twins")).items()}


def is_agent_run(folder: Path) -> bool:
    """Return whether the folder's manifest is that of simulated conversations; False without a readable manifest."""
    try:
        manifest = parse_json((folder / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return _mapping(manifest).get("kind") == "simulate"


def read_agent_run(folder: str | Path) -> AgentRun:
    """Read a run of simulated conversations, finished or not.

    Raises:
        UsageError: the folder holds no such run, a damaged file, or a link.
    """
    run = read_run(folder)
    path = run.path / _SUMMARY
    summary: dict[str, Any] = {}
    if path.is_file():
        summary = read_file(
            path, lambda content: as_type(dict[str, Any], parse_json(content)), way_out=_WAY_OUT, error=UsageError
        )
    scenarios = {str(scenario.get("name", "")): scenario for scenario in run.scenarios}
    arguments = _mapping(run.manifest.get("arguments"))
    if arguments.get("goal_reached"):  # an earlier version: a run of one goal, whose rule is an argument
        scenarios = scenarios or {"": arguments}
    return AgentRun(
        folder=run.path, manifest=run.manifest, scenarios=scenarios, simulations=_numbered(run.simulations),
        finished=run.is_finished, summary=summary,
    )  # fmt: skip


def summary_of_run(run: AgentRun) -> Summary:
    """Return the summary of a run; the closeness of its twins, its cost and its retries are those that the run noted."""
    closeness = {name: text for name, twin in run.twins.items() if isinstance(text := twin.get("closeness"), str)}
    dollars, retries = run.summary.get("dollars"), run.summary.get("retries")
    return summarize(
        run.simulations, name=run.name, agent=run.agent, scenarios=run.scenarios, finished=run.finished,
        closeness={**_mapping(run.summary.get("closeness")), **closeness},
        dollars=float(dollars) if isinstance(dollars, int | float) else None,
        retries=retries if isinstance(retries, int) else None,
    )  # fmt: skip


def _numbered(simulations: Sequence[Simulation]) -> list[Simulation]:
    """Return conversations with the numbers of their repetitions, which earlier versions did not write."""
    if any(simulation.repeat for simulation in simulations):
        return list(simulations)
    seen, numbered = Counter[tuple[str, str]](), list[Simulation]()
    for simulation in simulations:
        pair = (simulation.scenario, simulation.twin)
        numbered.append(replace(simulation, repeat=seen[pair]))
        seen[pair] += 1
    return numbered


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
