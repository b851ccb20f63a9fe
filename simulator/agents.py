"""The agent under test, in whatever shape its developer has it, as one asynchronous call.

The one design choice: an agent's shape is settled, and its signature checked, before the first turn, so that a wrong
callback costs nothing; what it raises or fails to say later is an `AgentError`, and never anybody else's fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from usertwin.memory import ChatModel
from usertwin.memory.models.chat import sample
from usertwin.personas import AgentError, UsageError, as_conversation

#: An OpenAI-style message.
Message = dict[str, Any]
#: What everything that can be an agent becomes: (messages so far, thread id) -> the agent's new messages.
AgentCall = Callable[[list[Message], str], Awaitable[list[Message]]]

#: What a plain function may ask for by the names of its parameters.
_OFFERED = ("messages", "message", "input", "thread_id")
_HELP = (
    "an agent is a function (sync or async) of the messages, a LangChain runnable, a LangGraph graph, "
    '"module:attribute", "demo", or a model such as "openai:NAME@URL"'
)


def as_agent(agent: Any) -> AgentCall:
    """Make one asynchronous call of an agent.

    Args:
        agent: a function of `messages` (or of any of `message`, `input`, `thread_id`, by name), a LangChain runnable or
            LangGraph graph, a `ChatModel`, or a string: see `load_agent`.

    Raises:
        UsageError: it is none of these, or a function that wants arguments nobody has.
    """
    if isinstance(agent, str):
        return as_agent(load_agent(agent))
    if isinstance(agent, ChatModel):
        return _model(agent)
    if hasattr(agent, "ainvoke"):
        return _graph(agent) if hasattr(agent, "checkpointer") else _runnable(agent)
    if callable(agent):
        return _function(agent)
    raise UsageError(f"{agent!r} cannot be an agent; {_HELP}")


def load_agent(spec: str) -> Any:
    """The agent that a string names: "demo", "module:attribute" (also of a file in this folder), or a model's name.

    Raises:
        UsageError: there is no such module or attribute.
        ModelError: the model cannot be had.
    """
    if spec == "demo":
        from .demo_agent import help_desk

        return help_desk
    if spec.partition(":")[0] in {"openai", "local", "scripted"}:
        from .backends.load import load_model

        return load_model(spec, style="instruction" if spec.startswith("local") else None)
    module_name, _, attribute = spec.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        raise UsageError(f'"{spec}" is no agent; {_HELP}')
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # so that agent.py beside you can be named, as with python -m
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(f'"{spec}": there is no module "{error.name}" here; run this where it can be imported') from None
    except Exception as error:
        raise UsageError(f'"{spec}": the module cannot be imported: {type(error).__name__}: {error}') from error
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise UsageError(f'"{spec}": the module "{module_name}" has no "{attribute}"') from None
    return found


def _function(function: Callable[..., Any]) -> AgentCall:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = {"messages": inspect.Parameter("messages", inspect.Parameter.POSITIONAL_OR_KEYWORD)}
    plain = [p for p in parameters.values() if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    named = [p.name for p in plain if p.name in _OFFERED and p.kind != p.POSITIONAL_ONLY]
    unknown = [p.name for p in plain if p.name not in named and p.default is p.empty]
    by_place = [p.name for p in plain if p.default is p.empty and p.kind != p.KEYWORD_ONLY]
    positional = not named and len(unknown) == 1 and unknown == by_place
    if (unknown and not positional) or not (
        named or positional or any(p.kind == p.VAR_POSITIONAL for p in parameters.values())
    ):
        wants = ", ".join(unknown) or "nothing"
        raise UsageError(
            f"the agent {getattr(function, '__name__', function)!s} wants {wants}; "
            f"it is given its one argument, or what it names of {', '.join(_OFFERED)}"
        )

    async def call(messages: list[Message], thread_id: str) -> list[Message]:
        last = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
        offered = {"messages": messages, "message": {"role": "user", "content": last}, "input": last, "thread_id": thread_id}
        arguments = {name: offered[name] for name in named}
        positionals = () if named else (messages,)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
            return as_replies(await function(*positionals, **arguments))
        said = await _in_thread(lambda: function(*positionals, **arguments))
        return as_replies(await said if inspect.isawaitable(said) else said)

    return call


async def _in_thread(work: Callable[[], Any]) -> Any:
    """Run a blocking function on a thread of its own, one that does not keep the program alive if it never returns."""
    loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except (StopIteration, SystemExit, KeyboardInterrupt, asyncio.CancelledError) as error:
            failed = AgentError(f"the agent raised {type(error).__name__}: {error}")  # a future would take these for its own
        except BaseException as error:  # whatever it is, it belongs to whoever called the agent
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, daemon=True, name="usertwin-agent").start()
    return await future


def _runnable(runnable: Any) -> AgentCall:
    wants_state = "messages" in _input_fields(runnable)

    async def call(messages: list[Message], thread_id: str) -> list[Message]:
        given: Any = {"messages": messages} if wants_state else messages
        return as_replies(await runnable.ainvoke(given, {"configurable": {"thread_id": thread_id}}))

    return call


def _input_fields(runnable: Any) -> Mapping[str, Any]:
    try:
        return cast("Mapping[str, Any]", runnable.get_input_jsonschema().get("properties", {}))
    except Exception:  # a runnable need not be able to describe its input
        return {}


def _graph(graph: Any) -> AgentCall:
    """A LangGraph graph over `messages`. One that remembers (has a checkpointer) is told only what is new."""

    async def call(messages: list[Message], thread_id: str) -> list[Message]:
        new = messages
        if graph.checkpointer:
            last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
            new = messages[last + 1 :]
        config = {"configurable": {"thread_id": thread_id}}
        before = len((await graph.aget_state(config)).values.get("messages", [])) if graph.checkpointer else 0
        state = await graph.ainvoke({"messages": new}, config)
        if not isinstance(state, Mapping) or "messages" not in state:
            raise AgentError('the agent\'s graph returned no "messages"')
        said = cast("Sequence[Any]", state["messages"])
        if any(map(_is_user, new)):  # what stands after it is the reply, also of a graph that forgets or keeps only its own
            said = said[max((i + 1 for i, message in enumerate(said) if _is_user(message)), default=0) :]
        else:
            said = said[before + len(new) :]
        return as_replies([message for message in said if getattr(message, "type", "ai") == "ai"])

    return call


def _is_user(message: Any) -> bool:
    return (message.get("role") if isinstance(message, Mapping) else getattr(message, "type", None)) in {"user", "human"}


def _model(model: ChatModel) -> AgentCall:
    async def call(messages: list[Message], thread_id: str) -> list[Message]:
        asked = [("system", "You are a helpful assistant. Answer briefly."), *((m["role"], m["content"]) for m in messages)]
        [answer] = await sample(model, asked, max_tokens=200)
        return as_replies(answer.text.strip())

    return call


def as_replies(said: Any) -> list[Message]:
    """The agent's messages from whatever it returned: text, a message, a list of either, or {"messages": [...]}.

    Raises:
        AgentError: it returned None, nothing but silence, or something that is no message.
    """
    if said is None:
        raise AgentError("the agent returned None instead of a reply")
    if isinstance(said, Mapping):
        found = cast("Mapping[str, Any]", said)
        said = found.get("messages", [{"role": "assistant", **found}])
    if isinstance(said, str | bytes) or not isinstance(said, Sequence):
        said = [said]
    texts: list[str] = []
    for item in cast("Sequence[Any]", said):
        try:
            turns = as_conversation([{"role": "assistant", "content": item} if isinstance(item, str) else item]).turns
        except ValueError:
            raise AgentError(f"the agent returned {type(item).__name__}, which is no message") from None
        texts += [turn.text for turn in turns if turn.text.strip() and turn.role == "assistant"]
    if not texts:
        raise AgentError("the agent said nothing")
    return [{"role": "assistant", "content": text} for text in texts]
