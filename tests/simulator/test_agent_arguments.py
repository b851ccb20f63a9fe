"""Functions get what their parameters ask for: by name, annotation and position; others are refused with their signature."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Literal, Optional, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from langgraph.graph import MessagesState
from pydantic import BaseModel

from usertwin.personas import AgentError, UsageError
from usertwin.simulator import as_agent

TALK = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "a bell"},
    {"role": "user", "content": "please"},
]
TEXT, BEFORE = "a bell\nplease", TALK[:2]
MESSAGE = {"role": "user", "content": TEXT}


class Chat(BaseModel):
    """A request body, as of FastAPI."""

    message: str
    session_id: str
    history: list[dict[str, str]] = []
    temperature: float = 0.0


class Turn(BaseModel):
    """A message of somebody's own."""

    role: Literal["user", "assistant"]
    content: str


@dataclass
class Request:
    """A request as a dataclass."""

    messages: list[Turn]
    thread_id: str


class State(TypedDict):
    """A state as of a graph's node."""

    messages: list[Any]
    cart: list[str]


class Nested(BaseModel):
    """A request whose message is an object."""

    message: Turn


def heard(agent: Any) -> Any:
    """Return what a function got in `TALK`: it appends that to the list `got`, and says ok."""
    got.clear()
    replies = asyncio.run(as_agent(agent)(TALK, "t-7"))  # pyright: ignore[reportArgumentType]
    assert replies == [{"role": "assistant", "content": "ok"}]
    [value] = got
    return value


got = list[Any]()


def note(*values: Any) -> str:
    got.append(values[0] if len(values) == 1 else values)
    return "ok"


# Names and positions ----------------------------------------------------------------------------------------------------


def openevals_app(inputs, *, thread_id, **kwargs):
    return note(inputs, thread_id, kwargs)


def any_name(turn, *, thread_id):
    return note(turn, thread_id)


def opik_app(user_message: str, *, thread_id: str, **kwargs: Any) -> str:
    return note(user_message, thread_id)


async def deepeval_callback(input: str, turns: Any = None, thread_id: str | None = None) -> str:
    return note(input, turns, thread_id)


def gradio(message, history):
    return note(message, history)


def gradio_typed(message: str, history: list[dict[str, str]], system_prompt: str = "be kind") -> str:
    return note(message, history, system_prompt)


def any_name_with_history(words, chat_history):
    return note(words, chat_history)


def pairs(message: str, history: list[tuple[str, str]]) -> str:
    return note(message, history)


def transcript(question: str, history: str) -> str:
    return note(question, history)


def prompt_with_default(messages: list[Any], prompt: str = "You sell bells.") -> str:
    return note(messages, prompt)


def only_keywords(**kwargs: Any) -> str:
    return note(kwargs)


@pytest.mark.parametrize(
    ("agent", "value"),
    [
        (openevals_app, (MESSAGE, "t-7", {})),
        (any_name, (MESSAGE, "t-7")),
        (opik_app, (TEXT, "t-7")),
        (deepeval_callback, (TEXT, None, "t-7")),
        (gradio, (TEXT, BEFORE)),
        (gradio_typed, (TEXT, BEFORE, "be kind")),
        (any_name_with_history, (TEXT, BEFORE)),
        (pairs, (TEXT, [("user", "hello"), ("assistant", "yes?")])),
        (transcript, (TEXT, "user: hello\nassistant: yes?")),
        (prompt_with_default, (TALK, "You sell bells.")),
        (only_keywords, {"messages": TALK, "message": MESSAGE, "input": TEXT, "thread_id": "t-7"}),
        (lambda question: note(question), TEXT),
        (lambda history: note(history), TALK),
        (lambda whatever: note(whatever), TALK),
        (lambda message, session_id: note(message, session_id), (MESSAGE, "t-7")),
        (partial(gradio, history="fixed"), (MESSAGE, "fixed")),
    ],
)
def test_names_and_positions_decide(agent: Any, value: Any) -> None:
    assert heard(agent) == value


# Annotations ------------------------------------------------------------------------------------------------------------


def text_of_any_name(x: str) -> str:
    return note(x)


def optional_text(message: Optional[str]) -> str:  # noqa: UP045 - as many write it
    return note(message)


def either(input: str | list[dict[str, str]]) -> str:
    return note(input)


def messages_of_any_name(x: list[dict[str, str]]) -> str:
    return note(x)


def a_sequence(message: Sequence[Mapping[str, str]]) -> str:
    return note(message)


def texts(x: list[str]) -> str:
    return note(x)


def a_dict(x: dict[str, str]) -> str:
    return note(x)


def a_state(state: dict[str, Any]) -> str:
    return note(state)


def a_typed_state(x: State) -> str:
    return note(x)


def graph_node(state: MessagesState) -> str:
    return note([(message.type, message.content) for message in state["messages"]])


def langchain_messages(x: list[BaseMessage]) -> str:
    return note([type(message) for message in x])


def any_langchain_messages(x: Sequence[AnyMessage]) -> str:
    return note([type(message) for message in x])


def a_langchain_message(x: HumanMessage) -> str:
    return note(x.content)


def own_messages(messages: list[Turn]) -> str:
    return note([(turn.role, turn.content) for turn in messages])


def own_message(x: Turn) -> str:
    return note((x.role, x.content))


async def fastapi_handler(request: Chat) -> str:
    return note(request.message, request.session_id, request.history)


def a_dataclass(request: Request) -> str:
    return note([turn.content for turn in request.messages], request.thread_id)


def nested(request: Nested) -> str:
    return note(request.message.content)


def wrapped(function: Any) -> Any:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("agent", "value"),
    [
        (text_of_any_name, TEXT),
        (wrapped(text_of_any_name), TEXT),
        (optional_text, TEXT),
        (either, TEXT),
        (messages_of_any_name, TALK),
        (a_sequence, TALK),
        (texts, [m["content"] for m in TALK]),
        (a_dict, MESSAGE),
        (a_state, {"messages": TALK}),
        (a_typed_state, {"messages": TALK}),
        (graph_node, [("human", "hello"), ("ai", "yes?"), ("human", "a bell"), ("human", "please")]),
        (langchain_messages, [HumanMessage, AIMessage, HumanMessage, HumanMessage]),
        (any_langchain_messages, [HumanMessage, AIMessage, HumanMessage, HumanMessage]),
        (a_langchain_message, TEXT),
        (own_messages, [(m["role"], m["content"]) for m in TALK]),
        (own_message, ("user", TEXT)),
        (fastapi_handler, (TEXT, "t-7", BEFORE)),
        (a_dataclass, ([m["content"] for m in TALK], "t-7")),
        (nested, TEXT),
    ],
)
def test_annotations_decide(agent: Any, value: Any) -> None:
    assert heard(agent) == value


def test_annotations_that_cannot_be_resolved_are_read_as_text() -> None:
    def agent(x):
        return note(x)

    agent.__annotations__ = {"x": "str | NoSuchClass"}
    assert heard(agent) == TEXT
    agent.__annotations__ = {"x": "List[NoSuchClass]"}
    assert heard(agent) == TALK


# Objects and classes ----------------------------------------------------------------------------------------------------


class Adapter:
    """An object with a method, as of LangWatch's scenarios."""

    async def call(self, input):
        return note(input)


class Engine:
    """A chat engine with a synchronous and an asynchronous method."""

    def chat(self, message, temperature=0):
        raise AssertionError

    async def achat(self, message, temperature=0):
        return note(message)


class Runner:
    """An agent whose method has only optional parameters."""

    def run(self, task: str | None = None, max_steps: int = 3) -> str:
        return note(task)


class Replier:
    """An object that replies to messages."""

    def reply(self, messages: list[dict[str, str]]) -> str:
        return note(messages)


class NeedsAName(Replier):
    """A class whose objects need an argument."""

    def __init__(self, name: str) -> None:
        self.name = name


def test_objects_with_a_known_method_are_agents_and_so_are_their_classes() -> None:
    for kind, value in {Adapter: TEXT, Engine: TEXT, Runner: TEXT, Replier: TALK}.items():
        assert heard(kind()) == value
        assert heard(kind) == value
    with pytest.raises(UsageError, match="NeedsAName is a class that needs arguments; give an object of it"):
        as_agent(NeedsAName)
    with pytest.raises(UsageError, match="the class State is not an agent"):
        as_agent(State)


def test_generators_get_arguments_too() -> None:
    def pieces(message: str, history: list[Any]) -> Iterator[str]:
        yield from ("o", note(message)[1:])

    async def growing(message: str, history: list[Any]) -> AsyncIterator[str]:
        yield "o"
        yield note(message)

    assert heard(pieces) == heard(growing) == TEXT


# What is refused --------------------------------------------------------------------------------------------------------


class Order(BaseModel):
    """A request that needs what a conversation does not have."""

    message: str
    customer_number: int


class Form(BaseModel):
    """A request without a place for what the user says."""

    session_id: str


class Count(BaseModel):
    """A request whose message is a number."""

    message: int


def order(request: Order) -> str:
    raise AssertionError


def form(request: Form) -> str:
    raise AssertionError


def count(request: Count) -> str:
    raise AssertionError


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError


def with_database(message: str, history: list[Any], database: object) -> str:
    raise AssertionError


def two_texts(question: str, text: str) -> str:
    raise AssertionError


def two_texts_unannotated(question, text):
    raise AssertionError


def only_optional(mood: str = "calm") -> str:
    raise AssertionError


@pytest.mark.parametrize(
    ("agent", "complaint"),
    [
        (order, "the class Order needs customer_number, which usertwin does not have"),
        (form, "the class Form has no field for what the user says"),
        (count, "the class Count refuses what it gets: message: .*integer"),
        (asgi, r"takes scope, receive, send: its signature is asgi\(scope"),
        (with_database, r"takes database: its signature is with_database\(message: "),
        (two_texts, "takes question, text"),
        (two_texts_unannotated, "takes question, text"),
        (only_optional, "takes no arguments"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_the_shape_seen_and_those_offered(agent: Any, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        as_agent(agent)
    assert "it can take (messages), (message: str), (message, history)" in str(caught.value)


def test_a_coroutine_and_a_url_are_refused_with_a_way_out() -> None:
    coroutine = deepeval_callback("hi")
    with pytest.raises(UsageError, match=r"is not an agent .coroutine.; use a function"):
        as_agent(coroutine)
    coroutine.close()
    with pytest.raises(UsageError, match=r"is a URL, and does not say what to send there; .*http:FILE.toml"):
        as_agent("http://localhost:8000/chat")
    with pytest.raises(UsageError, match=r"is a URL"):
        as_agent("https://desk.example/chat")


def test_gradios_emptied_box_and_history_are_a_reply() -> None:
    def respond(message: str, history: list[dict[str, str]]) -> tuple[str, list[dict[str, str]]]:
        return "", [*history, {"role": "user", "content": message}, {"role": "assistant", "content": "ok"}]

    assert asyncio.run(as_agent(respond)(TALK, "t")) == [{"role": "assistant", "content": "ok"}]  # pyright: ignore
    with pytest.raises(AgentError, match="empty reply"):
        asyncio.run(as_agent(lambda messages: ("", []))(TALK, "t"))  # pyright: ignore
