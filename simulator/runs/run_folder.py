"""The folder of a run: its manifest, its scenarios, and each conversation as a line.

    manifest.json         everything needed to repeat the run, and no secrets
    scenarios.json        the scenarios
    conversations.jsonl   each conversation without times; in the order of the jobs once the run is finished
    timings.jsonl         seconds of each conversation and turn, and its thread id, which differ from run to run
    unfinished.jsonl      conversations that were stopped in the middle; they are run again when the run is continued
    summary.json          whether the run is finished

A conversation counts once its line is written, so a killed run loses only those that were going on, and the same call runs
these again. Equal runs write equal conversations, whatever the order in which they end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from usertwin.memory.jsonl import append_line, complete_lines, open_for_append, read_lines
from usertwin.personas import UsageError
from usertwin.personas.files import private_folder, refuse_links_in, replacement, write_private
from usertwin.personas.reading import as_type, parse_json, read_file
from usertwin.personas.secrets import mask

from ..records import Simulation
from .jobs import thread_id

_WAY_OUT = "name another folder with --out"
#: The version of the folder's format; folders without one are of 0.1.0 development snapshots.
_FORMAT = 2
#: What may differ between the manifests of a run and of its continuation.
_OF_ONE_START = {"started_at", "run_id", "budget"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that was read.

    Attributes:
        path: its folder.
        manifest: its manifest.
        scenarios: its scenarios as JSON objects.
        simulations: its complete conversations.
        is_finished: whether no conversation is missing.
    """

    path: Path
    manifest: Mapping[str, Any]
    scenarios: tuple[Mapping[str, Any], ...]
    simulations: tuple[Simulation, ...]
    is_finished: bool


class RunFolder:
    """A folder for one run, created if missing. UsageError if it cannot be, or holds a link."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()  # an agent may change the current folder
        refuse_links_in(self.path)
        try:
            private_folder(self.path)
        except OSError as error:
            raise UsageError(f"{self.path}: the folder cannot be created ({error.strerror}); {_WAY_OUT}") from None

    def begin(self, manifest: Mapping[str, Any], scenarios: Sequence[Mapping[str, Any]] = ()) -> set[str]:
        """Write the manifest and the scenarios; return the ids of conversations that the folder holds already.

        Those are there if the folder holds an unfinished run with the same manifest, which is continued.

        Raises:
            UsageError: the folder holds a finished run, or another unfinished one.
        """
        started = {"started_at": datetime.now(UTC).isoformat(timespec="seconds"), "run_id": uuid4().hex}
        full = {"kind": "simulate", "format": _FORMAT, **started, **manifest}
        path = self.path / "manifest.json"
        if not path.exists():
            _write_json(self.path / "scenarios.json", list(scenarios))
            _write_json(path, full)
            return set()
        known, expected = _read(path), parse_json(mask(_json(full)))
        if known.get("format") != _FORMAT or _is_finished(self.path):
            raise UsageError(f"{self.path}: the folder holds a run already; {_WAY_OUT}")
        expected_scenarios = parse_json(mask(_json(list(scenarios))))
        differing = [f'"{key}"' for key in expected.keys() - _OF_ONE_START if known.get(key) != expected[key]]
        if _read_scenarios(self.path) != expected_scenarios:
            differing.append('"scenarios"')
        if differing:
            raise UsageError(
                f"{self.path}: holds an unfinished run with a different {', '.join(sorted(differing))}; {_WAY_OUT}"
            )
        return set(read_lines(self.path / "conversations.jsonl", _id_of, "conversation", _WAY_OUT))

    def add(self, simulation: Simulation) -> None:
        """Append a complete conversation."""
        row, timings = _without_times(simulation)
        with open_for_append(self.path / "timings.jsonl") as file:  # first: a conversation counts once its own line is there
            append_line(file, timings)
        with open_for_append(self.path / "conversations.jsonl") as file:
            append_line(file, row)

    def add_unfinished(self, simulation: Simulation) -> None:
        """Append a conversation that was stopped in the middle."""
        with open_for_append(self.path / "unfinished.jsonl") as file:
            append_line(file, _without_times(simulation)[0])

    def finish(self, order: Sequence[str]) -> None:
        """Put the conversations in the order of these ids, and drop those that were stopped and run again."""
        place = {name: index for index, name in enumerate(order)}
        for name in ("conversations.jsonl", "timings.jsonl"):
            path = self.path / name
            lines = {_id_of(parse_json(line)): line for line in complete_lines(path)}
            with replacement(path) as partial_file:
                partial_file.write_bytes(b"".join(lines[key] + b"\n" for key in sorted(lines, key=place.__getitem__)))
        (self.path / "unfinished.jsonl").unlink(missing_ok=True)

    def summarize(
        self, stop_reasons: Counter[str], *, finished: bool, dollars: float | None = None, stopped_by: str | None = None
    ) -> None:
        """Write whether the run is finished, what stopped it if it is not, its cost, and how many ended for each reason."""
        summary: dict[str, Any] = {"finished": finished, "stop_reasons": dict(sorted(stop_reasons.items()))}
        if dollars:  # local models cost nothing
            summary["dollars"] = round(dollars, 6)
        write_private(self.path / "summary.json", _json(summary | ({"stopped_by": stopped_by} if stopped_by else {})))

    def dollars(self) -> float:
        """Return what the run has cost so far, as far as its summary says."""
        path = self.path / "summary.json"
        known = _read(path).get("dollars") if path.exists() else None
        return float(known) if isinstance(known, int | float) else 0.0

    def simulations(self) -> Iterator[Simulation]:
        """Yield the complete conversations. UsageError for a line that is none."""
        yield from _simulations(self.path, _read(self.path / "manifest.json"))


def read_run(path: str | Path) -> Run:
    """Return the run in a folder, also one of an earlier version.

    Raises:
        UsageError: there is no run of `usertwin simulate`, or a file of it is damaged.
    """
    folder = Path(path)
    refuse_links_in(folder)
    if not (folder / "manifest.json").is_file():
        raise UsageError(f"{folder}: holds no run; name the folder that `usertwin simulate --out` wrote")
    manifest = _read(folder / "manifest.json")
    if manifest.get("kind") != "simulate":
        raise UsageError(f"{folder}: holds a run of another kind; name the folder that `usertwin simulate --out` wrote")
    return Run(
        path=folder, manifest=manifest, scenarios=tuple(_read_scenarios(folder)),
        simulations=tuple(_simulations(folder, manifest)), is_finished=_is_finished(folder),
    )  # fmt: skip


def _simulations(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Simulation]:
    speakers = {name: twin["speaker"] for name, twin in as_type(dict[str, Any], manifest.get("twins", {})).items()}
    run_id = str(manifest.get("run_id", ""))
    times = {_id_of(row): row for row in read_lines(folder / "timings.jsonl", _row, "timing", _WAY_OUT)}
    parse = partial(_simulation, speakers=speakers, run_id=run_id, times=times)
    yield from read_lines(folder / "conversations.jsonl", parse, "conversation", _WAY_OUT)


def _simulation(raw: Any, *, speakers: Mapping[str, str], run_id: str, times: Mapping[str, Any]) -> Simulation:
    row = _row(raw)
    twin = as_type(str, row.get("twin"))
    if "id" in row:
        timing = times.get(_id_of(row), {"seconds": 0.0, "turns": []})
        turns = as_type(list[tuple[float, float]], timing["turns"])
        exchanges = as_type(list[dict[str, Any]], row.get("exchanges"))
        turns += [(0.0, 0.0)] * (len(exchanges) - len(turns))
        exchanges = [
            exchange | {"twin_seconds": ours, "agent_seconds": theirs}
            for exchange, (ours, theirs) in zip(exchanges, turns, strict=False)
        ]
        thread = as_type(str, timing.get("thread_id", thread_id(run_id, _id_of(row))))  # earlier versions did not write it
        row = {key: value for key, value in row.items() if key != "id"}
        row |= {"exchanges": exchanges, "seconds": timing["seconds"], "thread_id": thread}
    return Simulation.from_json(row, speakers.get(twin, twin))


def _without_times(simulation: Simulation) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a conversation as a JSON object without what differs from run to run, and its times."""
    row: dict[str, Any] = {"id": simulation.id, **simulation.to_json()}
    for key in ("seconds", "thread_id"):
        del row[key]
    row["exchanges"] = [
        {key: value for key, value in exchange.items() if not key.endswith("_seconds")} for exchange in row["exchanges"]
    ]
    turns = [[exchange.twin_seconds, exchange.agent_seconds] for exchange in simulation.exchanges]
    about = {"id": simulation.id, "seconds": simulation.seconds, "thread_id": simulation.thread_id, "turns": turns}
    return row, about


def _id_of(raw: Any) -> str:
    return as_type(str, _row(raw).get("id"))


def _row(raw: Any) -> dict[str, Any]:
    return as_type(dict[str, Any], raw)


def _is_finished(folder: Path) -> bool:
    summary = folder / "summary.json"
    return summary.exists() and _read(summary).get("finished") is not False  # earlier versions wrote it at the end only


def _read(path: Path) -> dict[str, Any]:
    return read_file(path, lambda content: _row(parse_json(content)), way_out=_WAY_OUT, error=UsageError)


def _read_scenarios(folder: Path) -> list[dict[str, Any]]:
    path = folder / "scenarios.json"
    if not path.exists():
        return []
    parse = partial(as_type, list[dict[str, Any]])
    return read_file(path, lambda content: parse(parse_json(content)), way_out=_WAY_OUT, error=UsageError)


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _write_json(path: Path, value: Any) -> None:
    write_private(path, _json(value))
