"""The agent under test: every accepted shape becomes one async call.

An agent's shape and signature are checked before the first turn, so a wrong callback fails at once. A later failure of the
agent, such as an empty reply, is an `AgentError`. `turn.py` runs the call.
"""

from __future__ import annotations

import importlib.util
import inspect
import os.path
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

from usertwin.memory import ChatModel
from usertwin.memory.models.chat import limit_error, sample
from usertwin.personas import AgentError, UsageError

from ..backends.model_name import ModelName, kind_of
from .arguments import Moment, arguments_of
from .call import AgentCall, Function, Returned
from .command import command_agent
from .endpoint import endpoint_agent
from .frameworks import framework_agent
from .graphs import graph_agent, runnable_function
from .http_file import http_agent
from .turn import Message, clean, describe, in_thread, name_of

#: Kinds of models that can be named as an agent.
_MODEL_KINDS = {"local", "hf", "transformers", "openai", "scripted"}
#: Methods by which an object that cannot be called is called, the asynchronous ones first.
_METHODS = (
    "acall", "call", "achat", "chat", "areply", "reply", "arespond", "respond", "aanswer", "answer", "aask", "ask", "arun",
    "run", "ainvoke", "invoke", "aquery", "query", "apredict", "predict", "acomplete", "complete", "asend_message",
    "send_message", "on_message", "handle_message", "handle", "process", "agenerate_reply", "generate_reply",
    "agenerate", "generate",
)  # fmt: skip
#: Awaitables that may be nested in what a function returns.
_MAX_AWAITS = 10
#: Tokens of a reply of a model in this process: enough to reason, and an end for one that finds none.
_MAX_TOKENS = 8192
_NAMED = (
    '"module:attribute", "demo", a model such as "openai:NAME@URL", "http:FILE.toml" for any HTTP endpoint, or '
    '"command:PROGRAM ARGUMENTS"'
)
_HELP = (
    "use a function (sync or async) of the messages or of the user's message, an object with a method such as chat or reply, "
    f"a LangChain runnable, a LangGraph graph, an agent of OpenAI's Agents SDK or Pydantic AI, {_NAMED}"
)


def as_agent(agent: Any) -> AgentCall:
    """Return an agent of any accepted shape as an async call.

    An agent is a function (see `arguments.py` for its arguments), an object with a method such as `chat`, a LangChain runnable
    or LangGraph graph, an agent of OpenAI's Agents SDK or Pydantic AI, a `ChatModel`, or a string: see `load_agent`.

    Raises:
        UsageError: the agent has another shape, or is a function with unknown parameters.
    """
    if isinstance(agent, AgentCall):
        return agent
    if isinstance(agent, str):
        return _named_agent(agent)
    if isinstance(agent, ChatModel):
        return AgentCall(_model(agent))
    try:
        if isinstance(agent, type):
            return as_agent(_instance(agent))
        if (call := framework_agent(agent)) is not None:
            return call
        if hasattr(agent, "ainvoke"):
            return graph_agent(agent) if hasattr(agent, "checkpointer") else AgentCall(runnable_function(agent))
        if callable(agent):
            return AgentCall(_function(agent))
        for name in _METHODS:
            if callable(method := getattr(agent, name, None)):
                return AgentCall(_function(method, is_method=True))
        shown = repr(agent)
    except UsageError:
        raise
    except Exception as error:  # code of the agent's
        raise UsageError(f"an agent of the class {name_of(agent)} cannot be used: {describe(error)}") from error
    if hasattr(agent, "compile") and hasattr(agent, "add_node"):
        raise UsageError(f"{name_of(agent)} is a graph that is not compiled; use its compile()")
    raise UsageError(f"{clean(shown)} is not an agent ({name_of(agent)}); {_HELP}")


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
    if spec.startswith(("http:", "command:")):
        return as_agent(spec)
    module_name, _, attribute = spec.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        raise UsageError(f'"{spec}" is not an agent; use {_NAMED}')
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


def _named_agent(spec: str) -> AgentCall:
    if spec.startswith("http:") or (spec.startswith("https:") and not spec.endswith(".toml")):
        rest = spec.partition(":")[2]
        if rest.startswith("//"):
            raise UsageError(
                f'"{spec}" is a URL, and does not say what to send there; for an OpenAI-compatible endpoint use '
                "openai:NAME@URL, for any other write a TOML file and use http:FILE.toml (docs/agents.md)"
            )
        return http_agent(rest)
    if spec.startswith("command:"):
        return command_agent(spec.partition(":")[2])
    if _is_model(spec):
        return endpoint_agent(spec) if kind_of(spec) == "openai" else AgentCall(_model(load_agent(spec)), ours=True)
    return as_agent(load_agent(spec))


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


def _instance(kind: type) -> Any:
    """Return an object of a class whose objects are agents. UsageError if it needs arguments, or they are none."""
    is_agent = "__call__" in dir(kind) and any("__call__" in vars(base) for base in kind.__mro__[:-1])
    if not is_agent and not any(hasattr(kind, name) for name in _METHODS):
        raise UsageError(f"the class {clean(kind.__name__)} is not an agent; {_HELP}")
    try:
        inspect.signature(kind).bind()
    except TypeError:
        raise UsageError(f"{clean(kind.__name__)} is a class that needs arguments; give an object of it") from None
    return kind()


def _function(function: Callable[..., Any], *, is_method: bool = False) -> Function:
    arguments = arguments_of(function, is_method=is_method)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004

    async def call(messages: list[Message], thread_id: str) -> Any:
        bound = arguments.bind(function, Moment(messages, thread_id))
        returned = bound() if is_async else await in_thread(bound)
        for _ in range(_MAX_AWAITS):
            if not inspect.isawaitable(returned):
                return returned
            returned = await returned
        raise AgentError("the agent returned awaitables that return awaitables")

    return call


def _model(model: ChatModel) -> Function:
    """Return the call of a model. One in this process, which may be small, is prompted as an assistant."""
    is_here = kind_of(model.name) in _MODEL_KINDS - {"openai"}
    limit = _MAX_TOKENS if kind_of(model.name) in {"local", "hf", "transformers"} else None
    prefix = [("system", "You are a helpful assistant. Answer briefly.")] if is_here else []

    async def call(messages: list[Message], thread_id: str) -> Any:
        prompt = [*prefix, *((m["role"], m["content"]) for m in messages if m["role"] != "tool" and m["content"])]
        [reply] = await sample(model, prompt, max_tokens=limit)
        text = reply.text.strip()
        if reply.at_limit and not text:
            raise limit_error(model, limit)
        message = {"role": "assistant", "content": text}
        return Returned(message | ({"finish_reason": "length"} if reply.at_limit else {}), is_new=True)

    return call
