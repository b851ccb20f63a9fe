"""Importer of Langfuse exports: traces or observations, as JSON lines or a JSON list.

Traces of one session are a conversation, and the user of a trace is the speaker. Source:
https://langfuse.com/docs/api-and-data-platform and the schema of its public API.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from usertwin.personas.conversation import Turn

from ..records import records
from ..source import Source
from ..thread import Tally, Thread, as_list, as_object, as_text, time_of
from .messages import add_call, messages_in, turn_of

_CALLS = {"GENERATION", "SPAN", "AGENT", "CHAIN", ""}


def recognises(source: Source) -> bool:
    """Return whether the first object is a trace or an observation."""
    keys = source.record.keys() or source.keys
    trace = {"sessionId", "userId", "input", "output"} <= keys
    return trace or ({"input", "output", "type"} <= keys and bool({"traceId", "trace_id"} & keys)) or "htmlPath" in keys


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the sessions, in the order of their first traces."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name in source.names:
        for _, record in records(source, name, tally):
            items = map(as_object, as_list(record.get("data"))) if isinstance(record.get("data"), list) else [record]
            for item in items:
                keys = ("sessionId", "session_id", "traceId", "trace_id", "id")
                groups[next((text for key in keys if (text := as_text(item.get(key)))), "")].append(item)
    for key, items in groups.items():
        held = [
            item for item in items if as_text(item.get("type")).upper() in _CALLS and messages_in(item.get("input"), "user")
        ]
        ids = {as_text(item.get("id")) for item in held}
        outer = [item for item in held if as_text(item.get("parentObservationId")) not in ids - {""}]
        turns: list[Turn] = []
        for item in sorted(outer, key=lambda item: _started(item) or ""):
            add_call(turns, _turns(item, tally), tally)
        yield Thread(turns=turns, name=key or None)


def _started(item: dict[str, Any]) -> str | None:
    return time_of(item.get("startTime") or item.get("start_time") or item.get("timestamp") or item.get("createdAt"))


def _turns(item: dict[str, Any], tally: Tally) -> list[Turn]:
    given, answer = messages_in(item.get("input"), "user"), messages_in(item.get("output"), "assistant")
    answer = answer[len(given) :] if answer[: len(given)] == given else answer
    times = [*[None] * (len(given) - 1), _started(item), *[time_of(item.get("endTime"))] * len(answer)]
    user = as_text(item.get("userId") or item.get("user_id")) or None
    pairs = zip([*given, *answer], times, strict=True)
    return [turn for message, time in pairs if (turn := turn_of(message, tally, time=time, user=user)) is not None]
