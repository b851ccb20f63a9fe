"""`tracing`: what the conversations in a block report to."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from usertwin.memory.tracing import trace_settings


@contextmanager
def tracing(
    *, callbacks: Sequence[Any] = (), tags: Sequence[str] = (), metadata: Mapping[str, Any] | None = None,
    tracer_provider: Any = None, content: bool | None = None,
) -> Generator[None]:  # fmt: skip
    """Trace the conversations and turns in the block, whatever function runs them, in tasks and threads too.

    LangSmith needs no block: set LANGSMITH_TRACING=true. Neither does OpenTelemetry, if the program has set a tracer provider.

    Args:
        callbacks: LangChain callback handlers. They get the runs of conversations, of turns of either side, and of model calls.
        tags: tags of these runs.
        metadata: metadata of these runs.
        tracer_provider: the OpenTelemetry tracer provider; by default that of the process.
        content: whether OpenTelemetry's spans hold what is said; by default only with USERTWIN_TRACE_CONTENT=1.
    """
    from langchain_core.runnables.config import RunnableConfig, merge_configs, var_child_runnable_config

    before = var_child_runnable_config.get()
    given = RunnableConfig(callbacks=list(callbacks), tags=list(tags), metadata=dict(metadata or {}))
    token = var_child_runnable_config.set(merge_configs(before, given))
    changes = {"provider": tracer_provider, "content": content}
    try:
        with trace_settings(**{name: value for name, value in changes.items() if value is not None}):
            yield
    finally:
        var_child_runnable_config.reset(token)
