"""The agent under test: every accepted shape becomes one async call.

An agent's shape and signature are checked before the first turn, so a wrong callback fails at once. A later failure of the
agent, such as an empty reply, is an `AgentError`.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from usertwin.memory import ChatModel
from usertwin.memory.models.chat import sample
from usertwin.personas import AgentError, UsageError, as_conversation

from .backends.model_name import kind_of

#: An OpenAI-style message.
Message = dict[str, Any]
#: (messages so far, thread id) -> the agent's new messages.
AgentCall = Callable[[list[Message], str], Awaitable[list[Message]]]

#: Parameter names of a plain function, and so the arguments that it can get.
_ARGUMENTS = ("messages", "message", "input", "thread_id")
#: Kinds of models that can be named as an agent. "transformers:NAME" is read as a module and its attribute.
_MODEL_KINDS = {"local", "hf", "openai", "scripted"}
_HELP = (
    "use a function (sync or async) of the messages, a LangChain runnable, a LangGraph graph, "
    '"module:attribute", "demo", or a model such as "openai:NAME@URL"'
)


def as_agent(agent: Any) -> AgentCall:
    """Return an agent of any accepted shape as an async call.

    An agent is a function of `messages` (or of any of `message`, `input`, `thread_id`, by name), a LangChain runnable or
    LangGraph graph, a `ChatModel`, or a string: see `load_agent`.

    Raises:
        UsageError: the agent has another shape, or is a function with unknown parameters.
    """
    if isinstance(agent, str):
        return as_agent(load_agent(agent))
    if isinstance(agent, ChatModel):
        return _model(agent)
    if hasattr(agent, "ainvoke"):
        return _graph(agent) if hasattr(agent, "checkpointer") else _runnable(agent)
    if callable(agent):
        return _function(agent)
    raise UsageError(f"{agent!r} is not an agent; {_HELP}")


def load_agent(spec: str) -> Any:
    """Return the agent that a string names: "demo", a model's name, or "module:attribute", also of a file in this folder.

    Raises:
        UsageError: there is no such module or attribute.
        ModelError: the model cannot be loaded.
    """
    if spec == "demo":
        from .demo_agent import help_desk

        return help_desk
    if (kind := kind_of(spec)) in _MODEL_KINDS:
        from .backends.load import load_model

        return load_model(spec, style="instruction" if kind in {"local", "hf"} else None)
    module_name, _, attribute = spec.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        raise UsageError(f'"{spec}" is not an agent; use module:attribute, demo, or a model such as openai:NAME@URL')
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as with python -m, so that agent.py in the current folder can be named
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        way_out = "run the command in a folder from which it can be imported"
        raise UsageError(f'"{spec}": there is no module "{error.name}"; {way_out}') from None
    except Exception as error:
        raise UsageError(f'"{spec}": the module cannot be imported: {type(error).__name__}: {error}') from error
    try:
        return attrgetter(attribute)(module)
    except AttributeError:
        raise UsageError(f'"{spec}": the module "{module_name}" has no "{attribute}"') from None


def _function(function: Callable[..., Any]) -> AgentCall:
    names = _argument_names(function)

    async def call(messages: list[Message], thread_id: str) -> list[Message]:
        last = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
        known = {"messages": messages, "message": {"role": "user", "content": last}, "input": last, "thread_id": thread_id}
        arguments = {name: known[name] for name in names}
        positionals = () if names else (messages,)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
            return as_replies(await function(*positionals, **arguments))
        reply = await _in_thread(lambda: function(*positionals, **arguments))
        return as_replies(await reply if inspect.isawaitable(reply) else reply)

    return call


def _argument_names(function: Callable[..., Any]) -> list[str]:
    """Return the known arguments that a function takes by name; [] if it takes the messages as its one positional argument.

    Raises:
        UsageError: the function requires other arguments.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = {"messages": inspect.Parameter("messages", inspect.Parameter.POSITIONAL_OR_KEYWORD)}
    plain = [p for p in parameters.values() if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    names = [p.name for p in plain if p.name in _ARGUMENTS and p.kind != p.POSITIONAL_ONLY]
    unknown = [p.name for p in plain if p.name not in names and p.default is p.empty]
    required = [p.name for p in plain if p.default is p.empty and p.kind != p.KEYWORD_ONLY]
    positional = not names and len(unknown) == 1 and unknown == required
    variadic = any(p.kind == p.VAR_POSITIONAL for p in parameters.values())
    if (unknown and not positional) or not (names or positional or variadic):
        raise UsageError(
            f"the agent {getattr(function, '__name__', function)!s} takes {', '.join(unknown) or 'no arguments'}; "
            f"give it one argument for the messages, or any of {', '.join(_ARGUMENTS)}"
        )
    return names


async def _in_thread(work: Callable[[], Any]) -> Any:
    """Run a blocking function on its own daemon thread, which does not keep the program alive if it never returns."""
    result: Future[Any] = Future()
    result.set_running_or_notify_cancel()  # a caller that is cancelled leaves the function running

    def run() -> None:
        try:
            result.set_result(work())
        except (StopIteration, SystemExit, KeyboardInterrupt, asyncio.CancelledError, CancelledError) as error:
            # asyncio's futures cannot hold these
            result.set_exception(AgentError(f"the agent raised {type(error).__name__}: {error}"))
        except BaseException as error:  # passed on to the caller
            result.set_exception(error)

    threading.Thread(target=run, daemon=True, name="usertwin-agent").start()
    return await asyncio.wrap_future(result)


def _runnable(runnable: Any) -> AgentCall:
    try:
        fields: Mapping[str, Any] = runnable.get_input_jsonschema().get("properties", {})
    except Exception:  # not every runnable can describe its input
        fields = {}

    async def call(messages: list[Message], thread_id: str) -> list[Message]:
        runnable_input: Any = {"messages": messages} if "messages" in fields else messages
        return as_replies(await runnable.ainvoke(runnable_input, {"configurable": {"thread_id": thread_id}}))

    return call


def _graph(graph: Any) -> AgentCall:
    """Return the call of a LangGraph graph over `messages`. A graph with a checkpointer gets only the new messages."""

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
        returned = cast("Sequence[Any]", state["messages"])
        if any(map(_is_user, new)):  # the reply follows the last user message, even if the graph drops or replaces messages
            returned = returned[max((i + 1 for i, message in enumerate(returned) if _is_user(message)), default=0) :]
        else:
            returned = returned[before + len(new) :]
        return as_replies([message for message in returned if getattr(message, "type", "ai") == "ai"])

    return call


def _is_user(message: Any) -> bool:
    return (message.get("role") if isinstance(message, Mapping) else getattr(message, "type", None)) in {"user", "human"}


def _model(model: ChatModel) -> AgentCall:
    async def call(messages: list[Message], thread_id: str) -> list[Message]:
        prompt = [("system", "You are a helpful assistant. Answer briefly."), *((m["role"], m["content"]) for m in messages)]
        [reply] = await sample(model, prompt, max_tokens=200)
        return as_replies(reply.text.strip())

    return call


def as_replies(returned: Any) -> list[Message]:
    """Return the agent's messages from what it returned: text, a message, a list of either, or {"messages": [...]}.

    Raises:
        AgentError: it returned None, no text, or a value that is not a message.
    """
    if returned is None:
        raise AgentError("the agent returned None instead of a reply")
    if isinstance(returned, Mapping):
        message = cast("Mapping[str, Any]", returned)
        returned = message.get("messages", [{"role": "assistant", **message}])
    if isinstance(returned, str | bytes) or not isinstance(returned, Sequence):
        returned = [returned]
    texts: list[str] = []
    for item in cast("Sequence[Any]", returned):
        try:
            turns = as_conversation([{"role": "assistant", "content": item} if isinstance(item, str) else item]).turns
        except ValueError:
            raise AgentError(f"the agent returned {type(item).__name__}, which is not a message") from None
        texts += [turn.text for turn in turns if turn.text.strip() and turn.role == "assistant"]
    if not texts:
        raise AgentError("the agent returned an empty reply")
    return [{"role": "assistant", "content": text} for text in texts]
