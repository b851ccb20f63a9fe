"""Requests of the endpoint: the body of a chat completion or of a response, read strictly, as one request for a turn.

The caller's "assistant" messages are the agent's, "user" messages are what the twin said, and "system" messages are its goal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from usertwin.personas import LogError, as_conversation
from usertwin.personas.pairs import visible_turns
from usertwin.personas.reading import parse_json
from usertwin.personas.roles import is_user

from .errors import RequestError, shown

_ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
_SWAPPED = {"user": "assistant", "assistant": "user"}
#: Parts of a message that hold text.
_TEXT_PARTS = {"text", "input_text", "output_text", "refusal"}
#: Items of a response's input that no side said.
_SILENT_ITEMS = {"reasoning", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"}
#: Fields that are read, and those that change nothing when they have no value or one of these.
_READ = {"model", "messages", "input", "instructions", "metadata", "usertwin", "seed", "stream", "stream_options", "stop", "n"}
_HARMLESS: Mapping[str, Sequence[Any]] = {
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "logprobs": (False,), "modalities": (["text"],), "response_format": ({"type": "text"},),
    "text": ({"format": {"type": "text"}}, {}), "background": (False,), "previous_response_id": (), "conversation": (),
    "audio": (), "prompt": (), "prediction": (),
}  # fmt: skip
#: Why a field with another value is refused.
_REFUSED = {
    "previous_response_id": "the server keeps no conversations; send all messages in input",
    "conversation": "the server keeps no conversations; send all messages in input",
    "logprobs": "a turn has no log-probabilities to show; leave it out",
    "background": "turns are not written in the background; leave it out",
}
_MAX_STOPS, _MAX_INT = 4, 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """A request for one turn of a twin.

    Attributes:
        twin: the name of the twin.
        messages: the conversation; "user" is the twin.
        goal: what the twin wants, beside the system messages.
        seed: the seed of the conversation; None for the server's.
        stop: texts at which the turn is cut.
        stream: whether the answer is streamed.
        include_usage: whether a streamed chat completion ends with token counts.
        ignored: fields of the request that change nothing.
        instructions: the instructions of a response, which it repeats.
    """

    twin: str
    messages: tuple[dict[str, Any], ...]
    goal: str = ""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    ignored: tuple[str, ...] = ()
    instructions: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


def read_chat(raw: bytes) -> TurnRequest:
    """Return the request in the body of a chat completion. RequestError if it is not one."""
    body = _object(raw)
    if "messages" not in body:
        raise RequestError(400, "messages is missing; give the conversation, or [] to let the twin open it", param="messages")
    _refuse_choices(body)
    return _request(body, _messages(body["messages"], "messages"), _stops(body.get("stop")))


def read_response(raw: bytes) -> TurnRequest:
    """Return the request in the body of a response. RequestError if it is not one."""
    body = _object(raw)
    given = body.get("input", [])
    if isinstance(given, str):  # a text without a role is what the agent says, however roles are called
        items: tuple[dict[str, Any], ...] = ({"role": "agent", "content": given},) if given else ()
    else:
        items = _messages(given, "input")
    instructions = _typed(body, "instructions", str, None)
    if instructions:
        items = ({"role": "system", "content": instructions}, *items)
    return _request(body, items, (), instructions=instructions)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = parse_json(raw)
    except ValueError as error:
        raise RequestError(400, f"the body cannot be read: {error}; send a JSON object", code="invalid_json") from None
    if not isinstance(body, dict):
        raise RequestError(400, f"the body is {shown(body)}; send a JSON object", code="invalid_json")
    return cast("dict[str, Any]", body)


def _request(
    body: Mapping[str, Any], messages: tuple[dict[str, Any], ...], stop: tuple[str, ...], *, instructions: str | None = None
) -> TurnRequest:
    """Return the request that the fields of both kinds of bodies make."""
    if "model" not in body:
        raise RequestError(400, "model is missing; give the name of a twin (GET /v1/models lists them)", param="model")
    twin = _typed(body, "model", str, "")
    ignored = sorted(name for name, value in body.items() if name not in _READ and _changes_nothing(name, value))
    metadata = _typed(body, "metadata", dict, {})
    extra = {name: metadata[name] for name in ("goal", "seed", "twin_role") if name in metadata}
    extra |= _typed(body, "usertwin", dict, {})
    if unknown := sorted(set(extra) - {"goal", "seed", "twin_role"}):
        raise RequestError(
            400, f"usertwin: there is no field {shown(unknown[0])}; it has goal, seed and twin_role", param="usertwin"
        )
    goal = _typed(extra, "goal", str, "")
    role = _typed(extra, "twin_role", str, "user")
    if role not in _SWAPPED:
        raise RequestError(400, f'twin_role is {shown(role)}; it must be "user" or "assistant"', param="twin_role")
    if role == "assistant":
        messages = tuple({**message, "role": _SWAPPED.get(message["role"], message["role"])} for message in messages)
    _check_last(messages)
    options = _typed(body, "stream_options", dict, {})
    return TurnRequest(
        twin=twin, messages=messages, goal=goal, seed=_seed(body, extra), stop=stop, stream=_typed(body, "stream", bool, False),
        include_usage=_typed(options, "include_usage", bool, False), ignored=(*ignored, *_ignored_parts(messages)),
        instructions=instructions, metadata=metadata,
    )  # fmt: skip


def _changes_nothing(name: str, value: Any) -> bool:
    """Return whether a field that is not read may be ignored. RequestError if it asks for what a twin does not do."""
    if value is None or name not in _HARMLESS:
        return value is not None
    if value not in _HARMLESS[name]:
        why = _REFUSED.get(name, "a twin writes text and calls no tools; leave it out")
        raise RequestError(400, f"{name} is not supported: {why}", code="unsupported_parameter", param=name)
    return False


def _refuse_choices(body: Mapping[str, Any]) -> None:
    choices = _typed(body, "n", int, 1)
    if choices != 1:
        text = f"n is {shown(choices)}; a twin says one turn: send one request for each seed"
        raise RequestError(400, text, code="unsupported_value", param="n")


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if (
        not isinstance(stops, list)
        or len(stops) > _MAX_STOPS
        or not all(isinstance(text, str) for text in cast("list[Any]", stops))
    ):
        raise RequestError(400, f"stop is {shown(value)}; give a text, or at most {_MAX_STOPS} texts", param="stop")
    return tuple(text for text in cast("list[str]", stops) if text)


def _seed(body: Mapping[str, Any], extra: Mapping[str, Any]) -> int | None:
    """Return the seed; metadata hold it as a text, since OpenAI's client accepts nothing else there."""
    value = body.get("seed")
    value = extra.get("seed") if value is None else value
    if isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) < 20:
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or abs(value) >= _MAX_INT):
        raise RequestError(400, f"seed is {shown(value)}; give a whole number of at most 18 digits", param="seed")
    return value


def _messages(value: Any, name: str) -> tuple[dict[str, Any], ...]:
    """Return messages with the roles of the API; what a tool returned is left out."""
    if not isinstance(value, list):
        raise RequestError(400, f"{name} is {shown(value)}; give a list of messages", param=name)
    messages = list[dict[str, Any]]()
    for number, item in enumerate(cast("list[Any]", value)):
        place = f"{name}[{number}]"
        if not isinstance(item, dict):
            raise RequestError(400, f"{place} is {shown(item)}; give an object with role and content", param=place)
        message = cast("dict[str, Any]", item)
        if name == "input" and message.get("type") in _SILENT_ITEMS:
            continue
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            known = ", ".join(sorted(_ROLES))
            raise RequestError(400, f"{place}.role is {shown(role)}; it must be one of {known}", param=f"{place}.role")
        messages.append({key: message[key] for key in ("role", "content", "name", "refusal", "tool_calls") if key in message})
    return tuple(messages)


def _check_last(messages: Sequence[dict[str, Any]]) -> None:
    """Raise RequestError if a message has no text that can be read, or if the twin has just spoken."""
    try:
        turns = visible_turns(as_conversation(list(messages)).turns)
    except LogError as error:
        raise RequestError(400, str(error), param="messages") from None
    if turns and is_user(turns[-1][0].role):
        raise RequestError(
            400, "the last message is the twin's own (\"user\"), so there is nothing to answer; the agent's messages have the "
            'role "assistant". If you send them as "user", set "metadata": {"twin_role": "assistant"}', param="messages",
        )  # fmt: skip


def _ignored_parts(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Return the kinds of parts of messages that hold no text."""
    kinds = set[str]()
    for message in messages:
        if isinstance(parts := message.get("content"), list):
            kinds |= {
                str(cast("dict[str, Any]", part).get("type"))[:40]
                for part in cast("list[Any]", parts)
                if isinstance(part, dict)
            }
    return sorted(f"content: {kind}" for kind in kinds - _TEXT_PARTS)


def _typed(body: Mapping[str, Any], name: str, kind: type[Any], default: Any) -> Any:
    """Return a field of a type; the default if it is missing or null. RequestError if it has another type."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {str: "a text", int: "a whole number", bool: "true or false", dict: "an object"}
        raise RequestError(400, f"{name} is {shown(value)}; give {names[kind]}", code="invalid_type", param=name)
    return value
