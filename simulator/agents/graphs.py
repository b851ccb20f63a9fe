"""LangChain runnables and LangGraph graphs as agents: their input, config, context, state and interrupts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from usertwin.personas import AgentError, UsageError

from .arguments import Moment, value_from_fields
from .call import AgentCall, Function, Returned
from .turn import Message, in_thread, name_of

#: The key of a graph's result that holds its interrupts.
_INTERRUPTS = "__interrupt__"
#: Fields of an interrupt's value that hold its question.
_QUESTIONS = ("question", "message", "text", "content", "prompt", "query", "description", "action_requests")


def graph_agent(
    graph: Any,
    *,
    config: Mapping[str, Any] | None = None,
    context: Any = None,
    state: Mapping[str, Any] | None = None,
    input: str = "messages",
    output: str = "messages",
    resume: Callable[[str, Any], Any] | None = None,
) -> AgentCall:
    """Return a compiled LangGraph graph as an agent, with the config, context and state that it needs.

    Args:
        graph: the graph. With a checkpointer it gets only what is new; without one, the whole conversation.
        config: LangChain's config; its "thread_id" is that of the conversation.
        context: the context of the graph's runtime.
        state: further fields of the input: of the first one with a checkpointer, of each without one.
        input: the field of the input with the conversation. In a field of another name than "messages" it is the text of the
            user's turn.
        output: the field of the result with the reply.
        resume: makes the value with which an interrupt is answered from the user's text and the interrupt's value; by default
            it is the text.

    Raises:
        UsageError: it is not a compiled graph, or its input has no such field.
    """
    if not hasattr(graph, "ainvoke") or not hasattr(graph, "checkpointer"):
        raise UsageError(f"graph_agent got {name_of(graph)}; give it a compiled LangGraph graph: StateGraph(...).compile()")
    fields, _ = _input_fields(graph)
    if fields and input not in fields:
        raise UsageError(
            f'the input of the graph has no "{input}", only {", ".join(fields)}; name the field with the conversation and that '
            'with the reply: graph_agent(graph, input="question", output="answer")'
        )
    call = _Graph(
        graph, dict(config or {}), {} if context is None else {"context": context}, dict(state or {}), (input, output), resume
    )  # fmt: skip
    return AgentCall(call)


def runnable_function(runnable: Any) -> Function:
    """Return the call of a LangChain runnable: over a list of messages, a text, or the fields that its input has.

    Raises:
        UsageError: its input has a required field that we do not have.
    """
    fields, required = _input_fields(runnable)
    make = value_from_fields(fields, required)
    if fields and make is None and required:
        raise UsageError(
            f"the input of the runnable needs {', '.join(required)}; put a function before it: "
            "RunnableLambda(lambda messages: {...}) | runnable"
        )
    is_text = _input_schema(runnable).get("type") == "string"

    async def call(messages: list[Message], thread_id: str) -> Any:
        moment = Moment(messages, thread_id)
        value = moment.text if is_text else make(moment) if make is not None else messages
        return await runnable.ainvoke(value, {"configurable": {"thread_id": thread_id, "session_id": thread_id}})

    return call


class _Graph:
    """Calls a graph, and answers its interrupts."""

    def __init__(
        self, graph: Any, config: dict[str, Any], options: dict[str, Any], state: dict[str, Any], fields: tuple[str, str],
        resume: Callable[[str, Any], Any] | None,
    ) -> None:  # fmt: skip
        self.graph, self.config, self.options, self.state = graph, config, options, state
        (self.input, self.output), self.resume = fields, resume
        schema = {} if hasattr(graph, "builder") else _input_schema(graph)  # of an entrypoint function
        self.takes_list, self.is_function = schema.get("type") == "array", not hasattr(graph, "builder")
        self.in_thread = False  # for a checkpointer that has synchronous methods only

    async def __call__(self, messages: list[Message], thread_id: str) -> Returned:
        configurable = self.config.get("configurable") or {}
        config = self.config | {"configurable": {**configurable, "thread_id": thread_id}}
        snapshot = await self._snapshot(config) if self.graph.checkpointer else None
        before, pending = 0, ()
        if snapshot is not None:
            before = (
                len(cast("Sequence[Any]", snapshot.values.get(self.output) or ())) if self._has_output(snapshot.values) else 0
            )
            pending = tuple(getattr(snapshot, "interrupts", ()))
        moment = Moment(messages, thread_id)
        is_first = snapshot is None or not snapshot.values
        new = messages if is_first else messages[len(moment.value("history")) :]
        graph_input = self._resumed(moment.text, pending) if pending else self._input(new, moment.text, is_first=is_first)
        result = await self._invoke(graph_input, config)
        if not isinstance(result, Mapping) or not (self._has_output(result) or _INTERRUPTS in result or not self.is_function):
            return Returned(result)
        state = {key: value for key, value in cast("Mapping[str, Any]", result).items() if key != _INTERRUPTS}
        return Returned(self._said(result, before, has_new=bool(new) and not pending), state)

    def _has_output(self, values: Any) -> bool:
        return isinstance(values, Mapping) and self.output in values

    def _input(self, new: Sequence[Message], text: str, *, is_first: bool) -> Any:
        if self.takes_list:
            return list(new)
        state = self.state if is_first else {}
        if self.input != "messages":
            return {**state, self.input: text}
        return {**state, "messages": [*state.get("messages", ()), *new]}

    def _resumed(self, text: str, pending: Sequence[Any]) -> Any:
        """Return the command that answers the interrupts with the user's text."""
        from langgraph.types import Command

        if self.resume is None and any(isinstance(i.value, Mapping) and "action_requests" in i.value for i in pending):
            raise AgentError(
                "the graph wants decisions on calls of tools, and the user's words are none; give graph_agent a resume "
                'function that makes them: resume=lambda text, value: {"decisions": [...]}'
            )
        values = [text if self.resume is None else self.resume(text, interrupt.value) for interrupt in pending]
        ids = [getattr(interrupt, "id", None) for interrupt in pending]
        if len(pending) == 1 or None in ids:
            return Command(resume=values[0])
        return Command(resume=dict(zip(ids, values, strict=True)))

    def _said(self, result: Mapping[str, Any], before: int, *, has_new: bool) -> Any:
        """Return the reply in a result: the new messages, and the questions of its interrupts."""
        questions = [_question(interrupt.value) for interrupt in result.get(_INTERRUPTS) or ()]
        reply: Any = result.get(self.output)
        if reply is None and not questions:
            raise AgentError(f'the agent\'s graph returned no "{self.output}"')
        if self.output != "messages" or reply is None:
            return [*([] if reply is None else [reply]), *questions] if questions else reply
        listed = list(cast("Sequence[Any]", reply))
        if not has_new and len(listed) >= before:
            listed = listed[before:]
        # as_replies finds what follows the new messages, even if the graph drops or replaces messages
        return {"messages": [*listed, *({"role": "assistant", "content": question} for question in questions)]}

    async def _snapshot(self, config: dict[str, Any]) -> Any:
        if not self.in_thread:
            try:
                return await self.graph.aget_state(config)
            except NotImplementedError:
                self.in_thread = True
        return await in_thread(partial(self.graph.get_state, config))

    async def _invoke(self, graph_input: Any, config: dict[str, Any]) -> Any:
        if self.in_thread:
            return await in_thread(partial(self.graph.invoke, graph_input, config, **self.options))
        return await self.graph.ainvoke(graph_input, config, **self.options)


def _question(value: Any) -> str:
    """Return the text in the value of an interrupt: a text, or that of a field that holds the question, or JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "\n".join(map(_question, cast("Sequence[Any]", value)))
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        for name in _QUESTIONS:
            if fields.get(name):
                return _question(fields[name])
    return json.dumps(value, ensure_ascii=False, default=str)


def _input_schema(runnable: Any) -> Mapping[str, Any]:
    try:
        return runnable.get_input_jsonschema()
    except Exception:  # not every runnable can describe its input
        return {}


def _input_fields(runnable: Any) -> tuple[list[str], list[str]]:
    """Return the fields of the input of a runnable, and those that are required; [] if it cannot tell."""
    declared = getattr(getattr(runnable, "builder", None), "input_schema", None)
    named: Mapping[str, Any] = getattr(declared, "model_fields", None) or getattr(declared, "__annotations__", None) or {}
    if named:
        return list(named), []
    schema = _input_schema(runnable)
    while isinstance(schema.get("$ref"), str):
        schema = schema.get("$defs", {}).get(schema["$ref"].rpartition("/")[2], {})
    fields = list(schema.get("properties", {}))
    return ([], []) if fields == ["root"] else (fields, list(schema.get("required", ())))
