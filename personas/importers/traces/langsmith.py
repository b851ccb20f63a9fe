"""Importer of LangSmith runs: JSON lines or a list of runs, as its bulk export and `Client.list_runs` write them.

Runs of one thread (metadata session_id, thread_id or conversation_id) are a conversation, else those of one trace. Of a trace
the outermost runs that hold messages count. Source: https://docs.langchain.com/langsmith/run-data-format.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from usertwin.personas.conversation import Turn

from ..records import records
from ..source import Source
from ..thread import Tally, Thread, as_object, as_text, time_of
from .messages import add_call, messages_in, turn_of

_THREAD = ("session_id", "thread_id", "conversation_id")


def recognises(source: Source) -> bool:
    """Return whether the first object is a run."""
    return {"run_type", "inputs"} <= source.record.keys() or {"run_type", "inputs", "trace_id"} <= source.keys


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the conversations, in the order of their first runs."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name in source.names:
        for _, record in records(source, name, tally):
            runs = record["runs"] if isinstance(record.get("runs"), list) else [record]
            for run in map(as_object, runs):
                groups[_thread_of(run)].append(run)
    for key, runs in groups.items():
        held = [run for run in runs if messages_in(run.get("inputs"), "user")]
        ids = {as_text(run.get("id")) for run in held}
        outer = [run for run in held if as_text(run.get("parent_run_id")) not in ids and run.get("run_type") != "tool"]
        turns: list[Turn] = []
        for run in sorted(outer, key=lambda run: as_text(run.get("start_time"))):
            add_call(turns, _turns(run, tally), tally)
        yield Thread(turns=turns, name=key or None)


def _thread_of(run: dict[str, Any]) -> str:
    metadata = as_object(as_object(run.get("extra")).get("metadata")) or as_object(run.get("metadata"))
    named = next((text for key in _THREAD if (text := as_text(metadata.get(key)))), "")
    return named or as_text(run.get("trace_id")) or as_text(run.get("id"))


def _turns(run: dict[str, Any], tally: Tally) -> list[Turn]:
    """Return the messages of a run; the last one of the input has the time at which it started."""
    given = messages_in(run.get("inputs"), "user")
    answer = messages_in(run.get("outputs"), "assistant")
    answer = answer[len(given) :] if answer[: len(given)] == given else answer
    started, ended = time_of(run.get("start_time")), time_of(run.get("end_time"))
    times = [*[None] * (len(given) - 1), started, *[ended] * len(answer)]
    pairs = zip([*given, *answer], times, strict=True)
    return [turn for message, time in pairs if (turn := turn_of(message, tally, time=time)) is not None]
