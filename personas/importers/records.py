"""The records of JSON files: JSON lines, one JSON list, or one object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .source import Source, parse_json
from .thread import Tally, as_list


def records(source: Source, name: str, tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file with the number of their line or item; JSON lines are read one by one.

    Raises:
        LogError: a line is no JSON object, unless bad records are skipped; or the file is neither JSON lines nor a list.
    """
    lines = source.lines(name)
    first = next(lines, None)
    if first is None:
        return
    value = parse_json(first[1])
    if isinstance(value, dict):
        yield first[0], value
        for number, line in lines:
            value = parse_json(line)
            if isinstance(value, dict):
                yield number, value
            elif isinstance(value, json.JSONDecodeError):
                tally.refuse(source.place(name), number, f"not JSON ({value.msg} at column {value.colno})")
            else:
                tally.refuse(source.place(name), number, "is no JSON object")
        return
    if next(lines, None) is not None or isinstance(value, json.JSONDecodeError):
        value = source.json(name)
    if isinstance(value, dict):
        yield 1, value
    for number, item in enumerate(as_list(value), 1):
        if isinstance(item, dict):
            yield number, item
        else:
            tally.refuse(source.place(name), number, "is no JSON object", "item")
