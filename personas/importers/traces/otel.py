"""Importer of OpenTelemetry spans of model calls: OTLP JSON of the collector, and spans of the SDK's console exporter.

Read are the GenAI conventions of all versions (attributes `gen_ai.input.messages`, events `gen_ai.user.message`, the indexed
`gen_ai.prompt.0.content` of OpenLLMetry) and OpenInference. Spans of one `gen_ai.conversation.id` are a conversation, else
those of one trace. Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/ and https://opentelemetry.io/docs/specs/otlp/.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from usertwin.personas.conversation import Turn

from ..records import records
from ..source import Source
from ..thread import Tally, Thread, as_list, as_object, as_text, time_of
from .messages import add_call, messages_in, turn_of

_CONVERSATION = ("gen_ai.conversation.id", "session.id", "conversation.id", "thread.id", "langfuse.session.id")
_INDEXED = re.compile(
    r"(?:gen_ai\.(prompt|completion)|llm\.(input|output)_messages)\.(\d{1,6})\.(?:message\.)?(role|content)$"
)  # fmt: skip
_EVENT = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message$")
_MARKS = ("gen_ai.", "llm.input_messages", "resourceSpans", "resource_spans")


def recognises(source: Source) -> bool:
    """Return whether there are spans in it."""
    keys = source.keys
    spans = bool({"resourceSpans", "resource_spans"} & keys) or ({"trace_id", "attributes"} <= keys and "events" in keys)
    return spans or ("traceId" in keys and any(mark in source.text for mark in _MARKS[:2]))


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the conversations, in the order of their first spans."""
    groups: dict[str, list[tuple[str, list[Turn]]]] = defaultdict(list)
    for name in source.names:
        for _, record in records(source, name, tally):
            for span in _spans(record):
                attributes = _attributes(span.get("attributes"))
                started = time_of(as_text(span.get("startTimeUnixNano") or span.get("start_time") or span.get("startTime")))
                ended = time_of(as_text(span.get("endTimeUnixNano") or span.get("end_time") or span.get("endTime")))
                given, answer = _messages(span, attributes)
                times = [*[None] * (len(given) - 1), *[started] * bool(given), *[ended] * len(answer)]
                pairs = zip([*given, *answer], times, strict=True)
                user = as_text(attributes.get("user.id") or attributes.get("enduser.id")) or None
                turns = [turn for item, time in pairs if (turn := turn_of(item, tally, time=time, user=user)) is not None]
                if turns:
                    groups[_conversation(span, attributes)].append((started or "", turns))
    for key, calls in groups.items():
        turns = []
        for _, call in sorted(calls, key=lambda item: item[0]):
            add_call(turns, call, tally)
        yield Thread(turns=turns, name=key or None)


def _conversation(span: dict[str, Any], attributes: dict[str, Any]) -> str:
    named = next((text for key in _CONVERSATION if (text := as_text(attributes.get(key)))), "")
    context = as_object(span.get("context"))
    return named or as_text(span.get("traceId") or span.get("trace_id") or context.get("trace_id") or context.get("traceId"))


def _spans(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the spans of a line: all that a request of OTLP holds, or the line itself."""
    resources = as_list(record.get("resourceSpans") or record.get("resource_spans"))
    if not resources:
        yield record
    for resource in map(as_object, resources):
        scopes = as_list(
            resource.get("scopeSpans") or resource.get("scope_spans") or resource.get("instrumentationLibrarySpans")
        )
        for scope in map(as_object, scopes):
            yield from map(as_object, as_list(scope.get("spans")))


def _attributes(value: Any) -> dict[str, Any]:
    """Return attributes as an object; OTLP writes them as a list of keys and typed values."""
    if isinstance(value, dict):
        return as_object(value)
    return {as_text(item.get("key")): _plain(item.get("value")) for item in map(as_object, as_list(value))}


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a typed value of OTLP, such as {"stringValue": ...}, as JSON."""
    item = as_object(value)
    if depth > 20 or len(item) != 1:
        return value
    [(kind, inner)] = item.items()
    if kind == "arrayValue":
        return [_plain(one, depth + 1) for one in as_list(as_object(inner).get("values"))]
    if kind == "kvlistValue":
        pairs = map(as_object, as_list(as_object(inner).get("values")))
        return {as_text(pair.get("key")): _plain(pair.get("value"), depth + 1) for pair in pairs}
    return inner if kind.endswith("Value") else value


def _messages(span: dict[str, Any], attributes: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the messages that a call got, and those that it answered."""
    system = messages_in(attributes.get("gen_ai.system_instructions"), "system") or [
        {"role": "system", "parts": parts}
        for parts in [attributes.get("gen_ai.system_instructions")]
        if isinstance(parts, list)
    ]
    given = messages_in(attributes.get("gen_ai.input.messages"), "user")
    answer = messages_in(attributes.get("gen_ai.output.messages"), "assistant")
    indexed: dict[tuple[bool, int], dict[str, Any]] = defaultdict(dict)
    for key, value in attributes.items():
        if match := _INDEXED.match(key):
            is_answer = "completion" in match.groups() or "output" in match.groups()
            indexed[is_answer, int(match[3])][match[4]] = value
    for (is_answer, _), message in sorted(indexed.items(), key=lambda item: item[0]):
        (answer if is_answer else given).append({"role": "assistant" if is_answer else "user", **message})
    for event in map(as_object, as_list(span.get("events"))):
        name, body = as_text(event.get("name")), _attributes(event.get("attributes"))
        body = {**as_object(event.get("body")), **body}
        if match := _EVENT.match(name):
            given.append({"role": match[1], "content": body.get("content")})
        elif name == "gen_ai.choice":
            answer += messages_in(body.get("message"), "assistant") or messages_in(body.get("content"), "assistant")
        elif name == "gen_ai.client.inference.operation.details":
            given += messages_in(body.get("gen_ai.input.messages"), "user")
            answer += messages_in(body.get("gen_ai.output.messages"), "assistant")
        elif name in {"gen_ai.content.prompt", "gen_ai.content.completion"}:
            text = body.get("gen_ai.prompt") or body.get("gen_ai.completion")
            found = messages_in(text, "user" if name.endswith("prompt") else "assistant")
            (given if name.endswith("prompt") else answer).extend(found)
    return system + given, answer
