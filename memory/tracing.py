"""OpenTelemetry spans by the GenAI semantic conventions 0.1.0, for programs that set a tracer provider.

Spans hold names, counts and identifiers. What people, twins, agents and models say is left out, errors' texts too, unless
`USERTWIN_TRACE_CONTENT=1` is set or `TraceSettings.content` is true.

Design: OpenTelemetry is never imported here. A program that traces has imported it, so its module is found in `sys.modules`; a
program that does not trace pays for a lookup.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from usertwin.personas.secrets import mask

_CONTENT_VARIABLE = "USERTWIN_TRACE_CONTENT"


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """How the current work is traced.

    Attributes:
        provider: the OpenTelemetry tracer provider; None for the one of the process.
        content: whether spans hold what is said; None if the environment says so.
        conversation_id: the conversation that the work belongs to; "" for none.
    """

    provider: Any = None
    content: bool | None = None
    conversation_id: str = ""


_settings: ContextVar[TraceSettings] = ContextVar("usertwin_trace_settings", default=TraceSettings())  # noqa: B039 - frozen


class Span:
    """The span of an operation; without a tracer, nothing.

    Args:
        span: the OpenTelemetry span, or None.
        content: whether it may hold what is said.
    """

    __slots__ = ("_span", "content")

    def __init__(self, span: Any = None, *, content: bool = False) -> None:
        self._span, self.content = span, content

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes; those without a value are left out."""
        if self._span is not None:
            self._span.set_attributes(_present(attributes))

    def set_input(self, messages: Iterable[tuple[str, str]]) -> None:
        """Add the (role, text) messages that the operation gets, if spans hold what is said."""
        if self._span is not None and self.content:
            self._span.set_attribute("gen_ai.input.messages", _json([_message(*message) for message in messages]))

    def set_output(self, texts: Iterable[str], finish_reasons: Iterable[str]) -> None:
        """Add the texts that the operation returns, if spans hold what is said."""
        if self._span is not None and self.content:
            pairs = zip(texts, finish_reasons, strict=True)
            messages = [_message("assistant", text) | {"finish_reason": reason} for text, reason in pairs]
            self._span.set_attribute("gen_ai.output.messages", _json(messages))

    def fail(self, error_type: str, text: str = "") -> None:
        """Record that the operation failed: the kind of error, and its text if spans hold what is said."""
        if self._span is not None:
            trace: Any = sys.modules["opentelemetry.trace"]
            self._span.set_attribute("error.type", error_type)
            self._span.set_status(trace.Status(trace.StatusCode.ERROR, mask(text) if self.content and text else None))


_NOTHING = Span()


@contextmanager
def trace_settings(**changes: Any) -> Generator[None]:
    """Change the settings for the work in the block, in its tasks and threads too."""
    token = _settings.set(replace(_settings.get(), **changes))
    try:
        yield
    finally:
        _settings.reset(token)


@contextmanager
def span(
    operation: str, subject: str, attributes: Mapping[str, Any] | None = None, *, is_client: bool = False
) -> Generator[Span]:
    """The span of an operation on a model, an agent or a data source; an exception marks it as failed.

    Args:
        operation: one of the conventions' names, such as "chat".
        subject: the rest of the span's name, such as that of the model.
        attributes: what a sampler may need, beside the operation and the conversation.
        is_client: whether another process usually does the work.
    """
    tracer, settings = _tracer(), _settings.get()
    if tracer is None:
        yield _NOTHING
        return
    kinds: Any = sys.modules["opentelemetry.trace"].SpanKind
    conversation = settings.conversation_id or None
    given = _present({
        "gen_ai.operation.name": operation, "gen_ai.conversation.id": conversation, **(attributes or {})
    })  # fmt: skip
    with tracer.start_as_current_span(
        f"{operation} {subject}".rstrip(), kind=kinds.CLIENT if is_client else kinds.INTERNAL, attributes=given,
        record_exception=False, set_status_on_exception=False,
    ) as started:  # fmt: skip
        content = os.environ.get(_CONTENT_VARIABLE) == "1" if settings.content is None else settings.content
        current = Span(started, content=content)
        try:
            yield current
        except BaseException as error:
            current.fail(type(error).__name__, str(error))
            raise


def is_traced() -> bool:
    """Return whether spans are recorded."""
    return _tracer() is not None


def set_on_current_span(attributes: Mapping[str, Any]) -> None:
    """Add attributes to the span of the operation that is going on; without a tracer, nothing."""
    if _tracer() is not None:
        trace: Any = sys.modules["opentelemetry.trace"]
        trace.get_current_span().set_attributes(_present(attributes))


def usage_attributes(usages: Iterable[Any]) -> dict[str, int]:
    """Return the attributes for the sum of token counts (`Usage`)."""
    rows: Sequence[Any] = list(usages)
    cached = sum(usage.cached_tokens for usage in rows)
    return {
        "gen_ai.usage.input_tokens": sum(usage.input_tokens for usage in rows),
        "gen_ai.usage.output_tokens": sum(usage.output_tokens for usage in rows),
    } | ({"gen_ai.usage.cache_read.input_tokens": cached} if cached else {})


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _json(messages: list[dict[str, Any]]) -> str:
    """Return messages as JSON; keys and passwords in them are masked."""
    return mask(json.dumps(messages, ensure_ascii=False))


def _present(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


_made: tuple[Any, Any] = (None, None)


def _tracer() -> Any:
    """Return the tracer; None if no provider is set."""
    global _made
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = _settings.get().provider or trace.get_tracer_provider()
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    if _made[0] is not provider:
        _made = provider, provider.get_tracer("usertwin", version("usertwin"))
    return _made[1]
