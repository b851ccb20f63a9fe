"""Benchmark of a run on Ray: two workers on this machine against one process, with the same jobs and the same files.

Each round runs the jobs on both sides. The workers begin once; the time of that is a figure of its own.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usertwin.evals.cli.demo import ROBIN
from usertwin.memory import Recipe, alearn
from usertwin.memory.event_loop import run_sync
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.simulator import Scenario, load_embedder
from usertwin.simulator.runs.jobs import Job, jobs_of
from usertwin.simulator.runs.local import Twins
from usertwin.simulator.runs.many import RunOptions, arun
from usertwin.simulator.runs.on_ray import RayExecutor
from usertwin.simulator.runs.runner import Executor

from ..figures import Figure, figure, ratios, single_figure

#: Seconds that the agent waits, as a model behind an endpoint lets wait.
_WAIT = 0.2
_TURNS, _WORKERS = 5, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleOutSizes:
    """How much is run: conversations of a round, those at a time, and rounds for each of the two agents."""

    conversations: int = 24
    concurrency: int = 12
    rounds: int = 4


async def waiting_agent(messages: list[dict[str, Any]]) -> str:
    """Return a question after a while."""
    await asyncio.sleep(_WAIT)
    return f"Which number would you like? ({len(messages)})"


def quick_agent(messages: list[dict[str, Any]]) -> str:
    """Return a question at once."""
    return f"Which number would you like? ({len(messages)})"


def scale_out_part(sizes: ScaleOutSizes | None = None) -> Iterator[tuple[str, Figure]]:
    """Yield the throughput of two workers against one process, the time to begin, and whether the files are the same."""
    sizes = sizes or ScaleOutSizes()
    with tempfile.TemporaryDirectory() as folder:
        yield from run_sync(_measure(sizes, Path(folder)))


async def _measure(sizes: ScaleOutSizes, folder: Path) -> Sequence[tuple[str, Figure]]:
    model = await _twin(folder)
    scenario = Scenario(name="numbers", twins=("bench",), max_turns=_TURNS)
    jobs = jobs_of([(scenario, "bench", number) for number in range(sizes.conversations)], 0)
    figures, starts, same = list[tuple[str, Figure]](), list[float](), list[bool]()
    with Twins(folder, model) as twins:
        for name, agent in (("ray_vs_local", "waiting_agent"), ("ray_vs_local_without_waiting", "quick_agent")):
            spec, here, there = f"{__name__}:{agent}", list[float](), list[float]()
            options = RunOptions(concurrency=sizes.concurrency)
            started = time.perf_counter()
            async with RayExecutor(spec, Twins(folder, model), options, workers=_WORKERS) as executor:
                starts.append(time.perf_counter() - started)
                for number in range(-1, sizes.rounds):  # the first one opens the twins
                    out = folder / f"{agent}-{number}"
                    sides = [(here, None, out / "here"), (there, executor, out / "ray")]
                    for seconds, place, where in sides if number % 2 else reversed(sides):
                        seconds.append(await _seconds(jobs, spec, twins, sizes, place, where))
                    same.append(_conversations(out / "here") == _conversations(out / "ray"))
            against = f"one process, {sizes.conversations} conversations of {_TURNS} turns, {sizes.concurrency} at a time"
            figures.append((f"simulate.{name}", figure(ratios(here[1:], there[1:]), "ratio", f"throughput of {against}")))
            rate = [sizes.conversations / seconds for seconds in there[1:]]
            figures.append((f"simulate.{name}_rate", figure(rate, "conversations/s", f"{_WORKERS} workers; {against}")))
    start = figure(starts, "s", f"to connect with Ray and to begin {_WORKERS} workers")
    files = single_figure(sum(same) / len(same), "share", "runs on Ray whose conversations equal the local ones", len(same))
    return [*figures, ("simulate.ray_start_s", start), ("simulate.ray_same_files", files)]


async def _twin(folder: Path) -> str:
    """Learn a twin without traces and return the name of its scripted model."""
    log, embedder = load_chitchat(), load_embedder("fake:")
    recipe = Recipe(
        source="chitchat", speaker=ROBIN.speaker, method="none", candidates=1, max_triples=200, max_traces=None, window=6,
        embedder=embedder.name, model=None, scorer=None, seed=0,
    )  # fmt: skip
    await alearn("bench", log, recipe, embedder=embedder, home=folder)
    script = folder / "script.txt"
    script.write_text('{"when": "", "say": "I would like number four, please"}\n', "utf-8")
    return f"scripted:{script}"


async def _seconds(
    jobs: Sequence[Job], agent: str, twins: Twins, sizes: ScaleOutSizes, executor: Executor | None, out: Path
) -> float:
    started = time.perf_counter()
    await arun(jobs, agent, twins, RunOptions(concurrency=sizes.concurrency, out=out), executor=executor)
    return time.perf_counter() - started


def _conversations(folder: Path) -> bytes:
    return (folder / "conversations.jsonl").read_bytes()
