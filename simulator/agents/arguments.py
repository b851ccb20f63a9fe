"""Which arguments an agent's function gets: by the name, the annotation and the position of its parameters.

A function can take the whole conversation, the history and the new message apart, the new message as a text or as a message,
and the thread id. An annotation decides between text, message and messages; without one the name does.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cached_property, partial
from typing import Any, Literal, Union, cast, get_args, get_origin

from usertwin.personas import UsageError
from usertwin.personas.reading import field_sentence

from .turn import Message, clean

Kind = Literal["messages", "history", "message", "text", "state", "thread_id"]

#: Parameters that are given by name, also if they have a default.
_NAMES: dict[str, Kind] = {
    "messages": "messages", "message": "message", "input": "text", "thread_id": "thread_id", "session_id": "thread_id",
    "conversation_id": "thread_id", "history": "history", "chat_history": "history", "message_history": "history",
}  # fmt: skip
#: Names that say what a required parameter is; with a default they may be anything else.
_REQUIRED_NAMES: dict[str, Kind] = {
    **_NAMES, "conversation": "messages", "inputs": "message", "state": "state", "chat_id": "thread_id", "thread": "thread_id",
    "text": "text", "question": "text", "query": "text", "prompt": "text", "msg": "text", "utterance": "text",
    "content": "text", "new_message": "text", "user_input": "text", "user_message": "text", "user_query": "text",
    "user_text": "text", "user_prompt": "text", "last_message": "text", "task": "text",
}  # fmt: skip
#: Parameters that a function of `**kwargs` alone gets.
_ALL = ("messages", "message", "input", "thread_id")
SHAPES = (
    "(messages), (message: str), (message, history), (inputs, *, thread_id), or any of messages, message, input, history, "
    "thread_id by name"
)


@dataclass(frozen=True)
class Moment:
    """What an agent can be given in one turn: the conversation, and what was said since its last reply."""

    messages: list[Message]
    thread_id: str

    @cached_property
    def _split(self) -> int:
        """The number of messages before those that the user said last."""
        return max((i + 1 for i, message in enumerate(self.messages) if message["role"] != "user"), default=0)

    @property
    def text(self) -> str:
        """What the user said since the agent's last reply; "" if the agent opens the conversation."""
        return "\n".join(str(message["content"]) for message in self.messages[self._split :])

    def value(self, kind: Kind) -> Any:
        """Return the value of an argument."""
        match kind:
            case "messages":
                return self.messages
            case "history":
                return self.messages[: self._split]
            case "message":
                return {"role": "user", "content": self.text}
            case "text":
                return self.text
            case "state":
                return {"messages": self.messages}
            case "thread_id":
                return self.thread_id


#: A turn with which it is tried whether a class can be made.
_SAMPLE = Moment([{"role": "user", "content": "hello"}], "thread")
#: Makes the value of one argument.
Maker = Callable[[Moment], Any]


@dataclass(frozen=True, slots=True)
class Arguments:
    """Makes the arguments of a call: those by position, in order, and those by name."""

    positional: tuple[Maker, ...]
    named: Mapping[str, Maker]

    def bind(self, function: Callable[..., Any], moment: Moment) -> Callable[[], Any]:
        """Return the call of a function without arguments."""
        named = {name: make(moment) for name, make in self.named.items()}
        return partial(function, *(make(moment) for make in self.positional), **named)


def arguments_of(function: Callable[..., Any], *, is_method: bool = False) -> Arguments:
    """Return what a function gets. The first parameter of a method that was chosen by its name may have any name and a default.

    Raises:
        UsageError: the function requires an argument that we do not have; the sentence shows its signature.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return Arguments((_plain("messages"),), {})
    types_of = _hints(function)
    bound: Collection[str] = function.keywords if isinstance(function, partial) else ()
    plain = [p for p in parameters if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD} and p.name not in bound]
    positional = [p for p in plain if p.kind != p.KEYWORD_ONLY]
    open_ended = any(p.kind in {p.VAR_POSITIONAL, p.VAR_KEYWORD} for p in parameters)
    required = [p for p in plain if p.default is p.empty]
    known = _known({p.name: p in required for p in plain})
    if is_method and not positional:
        known |= {p.name: _REQUIRED_NAMES[p.name] for p in plain if p.name in _REQUIRED_NAMES}
    first = next(iter(positional), None)
    if first is not None and not (first in required or is_method or first.name in known):
        first = None
    if first is not None and (first.name not in known or len(required) == 1 or known[first.name] in {"message", "history"}):
        rest: set[Kind] = {kind for name, kind in known.items() if name != first.name}
        has_thread = "thread_id" in rest or any(p.kind == p.VAR_KEYWORD for p in parameters)
        known[first.name] = _first_kind(first.name, known, rest, has_thread=has_thread, is_method=is_method)
    unknown = [p.name for p in required if p.name not in known]
    ambiguous = [name for name, kind in known.items() if kind == "text" and name not in _NAMES]
    try:
        makers = {p.name: _maker(known[p.name], types_of.get(p.name, p.annotation)) for p in plain if p.name in known}
    except ValueError as error:
        raise UsageError(f"the agent {_signature(function)}: {error}; it can take {SHAPES}") from None
    kinds = set(known.values())
    speaks = kinds - {"history", "thread_id"}
    if unknown or len(ambiguous) > 1 or not (speaks or open_ended or kinds == {"thread_id"}):
        names = [p.name for p in required if p.name in unknown or p.name not in _NAMES or not speaks]
        raise UsageError(
            f"the agent {_name(function)} takes {', '.join(names) or 'no arguments'}: its signature is {_signature(function)}; "
            f"it can take {SHAPES}"
        )
    if not speaks and open_ended:  # *arguments or **keywords only
        by_position = any(p.kind == p.VAR_POSITIONAL for p in parameters)
        names = () if by_position else _ALL
        makers |= {name: _plain(_NAMES[name]) for name in names}
        return Arguments((_plain("messages"),) if by_position else (), makers)
    leading = list[Maker]()
    for parameter in positional:  # by position as far as possible, since decorators may rename parameters
        if parameter.name not in makers:
            break
        leading.append(makers.pop(parameter.name))
    return Arguments(tuple(leading), makers)


def value_from_fields(properties: Collection[str], required: Collection[str]) -> Callable[[Moment], dict[str, Any]] | None:
    """Return what makes an input with these fields; None if a required one is unknown, or none holds what was said."""
    known: dict[str, Kind] = {
        name: _REQUIRED_NAMES[name] for name in properties if name in (_REQUIRED_NAMES if name in required else _NAMES)
    }
    if not set(required) <= set(known) or set(known.values()) <= {"thread_id", "history"}:
        return None
    return lambda moment: {name: moment.value(kind) for name, kind in known.items()}


def _known(fields: Mapping[str, bool]) -> dict[str, Kind]:
    """Return what fields or parameters hold whose names say it; `fields` tells for each whether it is required."""
    names = {True: _REQUIRED_NAMES, False: _NAMES}
    return {name: names[required][name] for name, required in fields.items() if name in names[required]}


def _first_kind(name: str, known: Mapping[str, Kind], rest: set[Kind], *, has_thread: bool, is_method: bool) -> Kind:
    """Return what the first parameter gets if its annotation does not tell."""
    kind = known.get(name) or (_REQUIRED_NAMES.get(name, "text") if is_method else None)
    if kind in {None, "message"} and ("history" in rest or is_method):
        return "text"
    if kind is not None and kind != "history":
        return kind
    return "message" if has_thread and kind is None else "messages"


def _plain(kind: Kind) -> Maker:
    return lambda moment: moment.value(kind)


# Annotations ------------------------------------------------------------------------------------------------------------


def _hints(function: Any) -> dict[str, Any]:
    """Return the types of the parameters; {} if they cannot be resolved."""
    target = function.func if isinstance(function, partial) else function
    target = target if inspect.isroutine(target) else getattr(target, "__call__", target)  # noqa: B004
    try:
        return typing.get_type_hints(inspect.unwrap(target))
    except Exception:  # names that exist for type checkers only
        return {}


def _maker(kind: Kind, annotation: Any) -> Maker:
    """Return what makes an argument of an annotated type. ValueError for a class that needs what we do not have."""
    if kind == "thread_id" or annotation in {Any, object} or annotation is inspect.Parameter.empty:
        return _plain(kind)
    options = [option for option in _options(annotation) if option is not type(None)]
    shapes = {_shape(option): option for option in reversed(options)}
    wanted = {"text": "text", "message": "fields", "state": "fields"}.get(kind, "list")
    shape = wanted if wanted in shapes else next((name for name in ("text", "list", "fields") if name in shapes), "")
    if shape == "text":
        return (lambda moment: _transcript(moment.value("history"))) if kind == "history" else _plain("text")
    if shape == "list":
        element = next(iter(get_args(shapes["list"])), None)
        return _list_maker("history" if kind == "history" else "messages", element)
    if not shape:
        return _plain(kind)
    return _fields_maker("state" if kind == "state" else "message", shapes["fields"])


def _options(annotation: Any) -> Sequence[Any]:
    """Return the members of a union, or the type itself; what a forward reference that cannot be resolved begins with."""
    if isinstance(annotation, str):
        words = [word.strip() for word in annotation.split("|")]
        plain = {"str": str, "list": list, "List": list, "Sequence": list, "dict": dict, "Dict": dict, "Mapping": dict}
        return [plain[name] for word in words if (name := word.split("[")[0].rpartition(".")[2]) in plain]
    if get_origin(annotation) is typing.Annotated:
        return _options(get_args(annotation)[0])
    is_union = get_origin(annotation) in {Union, types.UnionType}
    return [option for member in get_args(annotation) for option in _options(member)] if is_union else [annotation]


def _shape(option: Any) -> Literal["text", "list", "fields", ""]:
    kind = get_origin(option) or option
    if not isinstance(kind, type):
        return ""
    if issubclass(kind, str):
        return "text"
    if issubclass(kind, Mapping) or _is_typed_dict(kind) or is_dataclass(kind) or _is_pydantic(kind):
        return "fields"
    return "list" if issubclass(kind, list | tuple) or kind.__module__ == "collections.abc" else ""


def _is_typed_dict(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "__required_keys__")


def _is_pydantic(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "model_validate") and hasattr(kind, "model_fields")


def _is_langchain(kind: Any) -> bool:
    """Return whether a type is a message of LangChain, or a union of them."""
    members = [member for member in _options(kind) for member in (get_args(member)[:1] or [member])]
    return any(getattr(m, "__module__", "").startswith("langchain_core.messages") and m is not str for m in members)


def _list_maker(kind: Kind, element: Any) -> Maker:
    if element is not None and _is_langchain(element):
        return lambda moment: _langchain(moment.value(kind))
    if element is str:
        return lambda moment: [str(message["content"]) for message in moment.value(kind)]
    if get_origin(element) is tuple:
        return lambda moment: [(message["role"], str(message["content"])) for message in moment.value(kind)]
    if _is_pydantic(element) or (is_dataclass(element) and isinstance(element, type)):
        make = _fields_maker("message", element)
        return lambda moment: [make(Moment([message], moment.thread_id)) for message in moment.value(kind)]
    return _plain(kind)


def _fields_maker(kind: Kind, shape: Any) -> Maker:
    """Return what makes a mapping or an object with fields; ValueError if we do not have what it requires."""
    if _is_langchain(shape):
        return lambda moment: _langchain([moment.value("message")])[0]
    fields = _required_fields(shape)
    if fields is None:
        return _plain(kind)
    if {"role", "content"} <= fields.keys():
        return partial(_built, shape, lambda moment: _only_message(moment))
    if "messages" in fields and _is_typed_dict(shape):
        make = _maker("messages", typing.get_type_hints(shape)["messages"])
        return lambda moment: {"messages": make(moment)}
    known: dict[str, Kind] = {
        name: _REQUIRED_NAMES[name] for name in fields if name in (_REQUIRED_NAMES if fields[name] else _NAMES)
    }
    if unknown := [name for name, is_required in fields.items() if is_required and name not in known]:
        raise ValueError(f"the class {shape.__name__} needs {', '.join(unknown)}, which usertwin does not have")
    if not set(known.values()) - {"thread_id", "history"}:
        raise ValueError(f"the class {shape.__name__} has no field for what the user says, such as message or messages")
    as_text: dict[str, Kind] = {name: "text" if kind == "message" else kind for name, kind in known.items()}
    try:
        _built(shape, lambda moment: {name: moment.value(kind) for name, kind in as_text.items()}, _SAMPLE)
        known = as_text
    except ValueError:  # its message is no text
        _built(shape, lambda moment: {name: moment.value(kind) for name, kind in known.items()}, _SAMPLE)
    return partial(_built, shape, lambda moment: {name: moment.value(kind) for name, kind in known.items()})


def _only_message(moment: Moment) -> Message:
    message = moment.messages[-1] if len(moment.messages) == 1 else moment.value("message")
    return {"role": message["role"], "content": message["content"]}


def _required_fields(shape: Any) -> dict[str, bool] | None:
    """Return the fields of a class and whether each is required; None for a plain mapping."""
    if _is_typed_dict(shape):
        return {name: name in shape.__required_keys__ for name in shape.__annotations__}
    if _is_pydantic(shape):
        return {name: field.is_required() for name, field in shape.model_fields.items()}
    if is_dataclass(shape):
        parameters = inspect.signature(cast("Any", shape)).parameters.values()
        return {p.name: p.default is p.empty for p in parameters}
    return None


def _built(shape: Any, make: Maker, moment: Moment) -> Any:
    fields = make(moment)
    if _is_typed_dict(shape) or _required_fields(shape) is None:
        return fields
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(shape).validate_python(fields)
    except ValidationError as error:
        raise ValueError(f"the class {shape.__name__} refuses what it gets: {field_sentence(error)}") from None


def _langchain(messages: Sequence[Message]) -> list[Any]:
    from langchain_core.messages import convert_to_messages

    return convert_to_messages(list(messages))


def _transcript(messages: Sequence[Message]) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _name(function: Any) -> str:
    return clean(str(getattr(function, "__name__", type(function).__name__)))


def _signature(function: Any) -> str:
    return clean(f"{_name(function)}{inspect.signature(function)}")
