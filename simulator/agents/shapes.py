"""The agent under test: every accepted shape becomes one async call.

An agent's shape and signature are checked before the first turn, so a wrong callback fails at once. A later failure of the
agent, such as an empty reply, is an `AgentError`. `turn.py` runs the call.
"""

from __future__ import annotations

import importlib.util
import inspect
import os.path
import sys
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

from usertwin.memory import ChatModel
from usertwin.memory.models.chat import limit_error, sample
from usertwin.personas import AgentError, UsageError

from ..backends.model_name import ModelName, kind_of
from .replies import as_replies, collect
from .turn import Message, clean, describe, in_thread, name_of

#: (messages so far, thread id) -> whatever the agent returns.
Function = Callable[[list[Message], str], Awaitable[Any]]

#: Parameter names of a plain function, and so the arguments that it can get.
_ARGUMENTS = ("messages", "message", "input", "thread_id")
#: Kinds of models that can be named as an agent.
_MODEL_KINDS = {"local", "hf", "transformers", "openai", "scripted"}
#: Awaitables that may be nested in what a function returns.
_MAX_AWAITS = 10
#: Tokens of a reply of a model in this process: enough to reason, and an end for one that finds none.
_MAX_TOKENS = 8192
_HELP = (
    "use a function (sync or async) of the messages, a LangChain runnable, a LangGraph graph, "
    '"module:attribute", "demo", or a model such as "openai:NAME@URL"'
)


class AgentCall:
    """An agent as one async call: (messages so far, thread id) -> its new messages.

    Attributes:
        ours: whether it runs no code of the agent's in this process.
        own_loop: whether `run_turn` runs it in the event loop that agents have behind synchronous functions.
    """

    def __init__(self, function: Function, *, ours: bool = False) -> None:
        self.function, self.ours, self.own_loop = function, ours, False

    async def __call__(self, messages: Sequence[Message], thread_id: str) -> list[Message]:
        """Return the new messages. AgentError if what the agent returned cannot be read; what it raises is passed on."""
        given = [dict(message) for message in messages]  # an agent may change its copy
        copies = tuple(given)
        returned = await self.function(given, thread_id)
        if type(returned) is str:
            return as_replies(returned)  # plain text needs no thread to be read in
        if isinstance(returned, AsyncIterable):
            returned = await collect(cast("AsyncIterable[Any]", returned))
        return await in_thread(partial(as_replies, returned, () if self.ours else messages, copies))

    def in_own_loop(self) -> AgentCall:
        """Return the same call for a synchronous function."""
        if self.ours:
            return self
        call = AgentCall(self.function)
        call.own_loop = True
        return call

    async def begin(self) -> None:
        """Prepare for the next conversation."""

    def close(self) -> None:
        """End what was begun."""


def as_agent(agent: Any) -> AgentCall:
    """Return an agent of any accepted shape as an async call.

    An agent is a function of `messages` (or of any of `message`, `input`, `thread_id`, by name), a LangChain runnable or
    LangGraph graph, a `ChatModel`, or a string: see `load_agent`.

    Raises:
        UsageError: the agent has another shape, or is a function with unknown parameters.
    """
    if isinstance(agent, AgentCall):
        return agent
    if isinstance(agent, str):
        return AgentCall(_model(load_agent(agent)), ours=True) if _is_model(agent) else as_agent(load_agent(agent))
    if isinstance(agent, ChatModel):
        return AgentCall(_model(agent))
    try:
        if hasattr(agent, "ainvoke"):
            return AgentCall(_graph(agent) if hasattr(agent, "checkpointer") else _runnable(agent))
        if callable(agent):
            return AgentCall(_function(agent))
        shown = repr(agent)
    except UsageError:
        raise
    except Exception as error:  # code of the agent's
        raise UsageError(f"an agent of the class {name_of(agent)} cannot be used: {describe(error)}") from error
    raise UsageError(f"{clean(shown)} is not an agent; {_HELP}")


def load_agent(spec: str) -> Any:
    """Return the agent that a string names: "demo", a model's name, or "module:attribute", also of a file in this folder.

    Raises:
        UsageError: there is no such module or attribute.
        ModelError: the model cannot be loaded.
    """
    if spec == "demo":
        from .demo_agent import help_desk

        return help_desk
    if _is_model(spec):
        return _load_model_agent(spec)
    module_name, _, attribute = spec.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        raise UsageError(f'"{spec}" is not an agent; use module:attribute, demo, or a model such as openai:NAME@URL')
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        way_out = "run the command in a folder from which it can be imported"
        raise UsageError(f'"{spec}": there is no module "{error.name}"; {way_out}') from None
    except (Exception, SystemExit) as error:
        raise UsageError(f'"{spec}": the module cannot be imported: {describe(error)}') from error
    try:
        return attrgetter(attribute)(module)
    except AttributeError:
        raise UsageError(f'"{spec}": the module "{module_name}" has no "{attribute}"') from None
    except Exception as error:  # a __getattr__ of the module
        raise UsageError(f'"{spec}": the attribute cannot be read: {describe(error)}') from error


def _is_model(spec: str) -> bool:
    """Return whether a string names a model, and no attribute of a module called like one, such as "local:answer"."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as with python -m, so that agent.py in the current folder can be named
    if (kind := kind_of(spec)) not in {"local", "transformers", "scripted"}:
        return kind in _MODEL_KINDS
    rest = spec.partition(":")[2]
    is_attribute = all(part.isidentifier() for part in rest.split(".")) and importlib.util.find_spec(kind) is not None
    return not is_attribute or rest == "small" or os.path.exists(os.path.expanduser(rest))


def _load_model_agent(spec: str) -> ChatModel:
    from ..backends.load import load_model
    from ..backends.model_files import has_chat_template

    parsed = ModelName.parse(spec)
    if parsed.kind == "transformers" and parsed.path.is_dir() and not has_chat_template(parsed.path):
        raise UsageError(f"{parsed.path}: the model has no chat template, so it cannot be an agent; name a model that has one")
    return load_model(spec, style="instruction" if parsed.is_local else None)


def _function(function: Callable[..., Any]) -> Function:
    names = _argument_names(function)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004

    async def call(messages: list[Message], thread_id: str) -> Any:
        last = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
        known = {"messages": messages, "message": {"role": "user", "content": last}, "input": last, "thread_id": thread_id}
        bound = partial(function, *(() if names else (messages,)), **{name: known[name] for name in names})
        returned = bound() if is_async else await in_thread(bound)
        for _ in range(_MAX_AWAITS):
            if not inspect.isawaitable(returned):
                return returned
            returned = await returned
        raise AgentError("the agent returned awaitables that return awaitables")

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


def _runnable(runnable: Any) -> Function:
    try:
        fields: Mapping[str, Any] = runnable.get_input_jsonschema().get("properties", {})
    except Exception:  # not every runnable can describe its input
        fields = {}

    async def call(messages: list[Message], thread_id: str) -> Any:
        runnable_input: Any = {"messages": messages} if "messages" in fields else messages
        return await runnable.ainvoke(runnable_input, {"configurable": {"thread_id": thread_id}})

    return call


def _graph(graph: Any) -> Function:
    """Return the call of a LangGraph graph over `messages`. A graph with a checkpointer gets only the new messages."""

    async def call(messages: list[Message], thread_id: str) -> Any:
        new = messages
        if graph.checkpointer:
            last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
            new = messages[last + 1 :]
        config = {"configurable": {"thread_id": thread_id}}
        before = len((await graph.aget_state(config)).values.get("messages", [])) if graph.checkpointer else 0
        state = await graph.ainvoke({"messages": new}, config)
        if not isinstance(state, Mapping) or "messages" not in state:
            raise AgentError('the agent\'s graph returned no "messages"')
        if new:  # as_replies finds what follows it, even if the graph drops or replaces messages
            return cast("Any", state)
        return cast("Sequence[Any]", state["messages"])[before:]

    return call


def _model(model: ChatModel) -> Function:
    limit = _MAX_TOKENS if kind_of(model.name) in {"local", "hf", "transformers"} else None

    async def call(messages: list[Message], thread_id: str) -> str:
        prompt = [("system", "You are a helpful assistant. Answer briefly."), *((m["role"], m["content"]) for m in messages)]
        [reply] = await sample(model, prompt, max_tokens=limit)
        if reply.at_limit and not reply.text.strip():
            raise limit_error(model, limit)
        return reply.text.strip()

    return call
