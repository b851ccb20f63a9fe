"""The file of joined runs: the figures of all their people, and each person's own values, without any text of people.

Design: the values stand in columns, a list for each arm and measure. As objects, like in result.json, those of forty people
would take several times the room. A person's own intervals are left out; they are in the result of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from usertwin.personas import UsageError
from usertwin.personas.reading import as_type, parse_json, read_file

from .measured_turns import RUN_FORMAT
from .result_shapes import ColumnShape, JoinedFile, RunResult
from .run_folder import write_atomically


def write_joined(path: Path, result: Mapping[str, Any]) -> None:
    """Write the result of `join_runs`, each of its parts on a line. UsageError if the file cannot be written."""
    labels: list[str] = list(result["people"])
    places = {label: place for place, label in enumerate(labels)}
    people, controls = result["people"], (result["discriminator"] or {}).get("people", {})
    columns = {
        "labels": labels,
        **{key: [own[key] for own in people.values()] for key in ("turns", "conversations")},
        **{
            section: {
                row: {name: _column(own[section].get(row, {}).get(name) for own in people.values()) for name in measures}
                for row, measures in result[section].items()
            }
            for section in ("arms", "paired")
        },
        "controls": {
            name: _column(controls.get(label, {}).get(name) for label in labels)
            for name in dict.fromkeys(chain.from_iterable(controls.values()))
        },
        "distances": {
            arm: [[places[first], places[second], real, replies] for first, second, real, replies in rows]
            for arm, row in result["spread"].items()
            if (rows := row["distances"])
        },
    }
    whole = {
        **result, "people": columns, "discriminator": result["discriminator"] and _without(result["discriminator"], "people"),
        "spread": {arm: _without(row, "distances") for arm, row in result["spread"].items()},
    }  # fmt: skip
    parts = (f"{json.dumps(key)}: {json.dumps(part, ensure_ascii=False, allow_nan=False)}" for key, part in whole.items())
    write_atomically(path, "{\n" + ",\n".join(parts) + "\n}\n")


def read_joined(path: Path) -> dict[str, Any]:
    """Return the result that `write_joined` wrote, but for intervals of single people. UsageError if the file is damaged."""
    return read_file(path, _parse, way_out="join the runs again", error=UsageError)


def _parse(content: bytes) -> dict[str, Any]:
    raw = parse_json(content)
    joined = as_type(JoinedFile, raw)
    if joined["format"] != RUN_FORMAT:
        raise ValueError(f"is of format {joined['format']}, but this version reads format {RUN_FORMAT}")
    columns = joined["people"]
    labels = columns["labels"]
    _check_lengths(labels, columns["turns"], columns["conversations"])
    people: dict[str, dict[str, Any]] = {
        label: {"turns": turns, "conversations": conversations, "arms": {}, "paired": {}}
        for label, turns, conversations in zip(labels, columns["turns"], columns["conversations"], strict=True)
    }
    for section in ("arms", "paired"):
        for row, measures in columns[section].items():
            for name, column in measures.items():
                for label, estimate in _estimates(labels, column):
                    people[label][section].setdefault(row, {})[name] = estimate
    controls: dict[str, dict[str, Any]] = {}
    for name, column in columns["controls"].items():
        for label, estimate in _estimates(labels, column):
            controls.setdefault(label, {})[name] = estimate
    try:
        distances = {
            arm: [[labels[first], labels[second], *values] for first, second, *values in rows]
            for arm, rows in columns["distances"].items()
        }
    except IndexError:
        raise ValueError("people.distances names a person who is not there") from None
    result = {
        **raw, "people": people, "discriminator": joined["discriminator"] and {**joined["discriminator"], "people": controls},
        "spread": {arm: {**row, "distances": distances.get(arm, [])} for arm, row in joined["spread"].items()},
    }  # fmt: skip
    as_type(RunResult, result)
    return result


def _column(estimates: Iterable[Mapping[str, float] | None]) -> dict[str, list[float | None]]:
    rows = list(estimates)
    return {
        "value": [None if row is None else row["value"] for row in rows],
        "n": [None if row is None else row["n"] for row in rows],
    }


def _estimates(labels: Sequence[str], column: ColumnShape) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the people with data and their estimates."""
    _check_lengths(labels, column["value"], column["n"])
    for label, value, n in zip(labels, column["value"], column["n"], strict=True):
        if value is not None and n is not None:
            yield label, {"value": value, "n": n}


def _check_lengths(labels: Sequence[str], *lists: Sequence[object]) -> None:
    """Raise ValueError if a list has not one value for each person."""
    if any(len(values) != len(labels) for values in lists):
        raise ValueError("people: lists of different lengths")


def _without(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}
