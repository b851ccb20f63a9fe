"""A LangChain run of our own: a parent for all runs in a block, for callbacks and for LangSmith."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManager
    from langchain_core.callbacks.manager import AsyncCallbackManagerForChainRun


class ChainRun:
    """A run that is going on. Its outputs are what it ends with; an error, as a text, makes it a failed one."""

    def __init__(self) -> None:
        self.outputs: dict[str, Any] = {}
        self.error = ""


@asynccontextmanager
async def chain_run(name: str, inputs: Mapping[str, Any], metadata: Mapping[str, Any]) -> AsyncGenerator[ChainRun]:
    """Report a run to the callbacks of the context, if there are any, and be the parent of the runs in the block.

    Design: `RunnableLambda` does this too, but in a task of its own, in which an agent that cancels tasks would hit its caller.
    """
    from langchain_core.runnables.config import (
        ensure_config,
        get_async_callback_manager_for_config,
        patch_config,
        var_child_runnable_config,
    )

    current, config = ChainRun(), ensure_config()
    config["metadata"] = {**(config.get("metadata") or {}), **metadata}
    manager = get_async_callback_manager_for_config(config)
    if not manager.handlers:
        yield current
        return
    run = await manager.on_chain_start(None, dict(inputs), name=name)
    child = run.get_child()
    token = var_child_runnable_config.set(patch_config(config, callbacks=child))
    try:
        with _langsmith_parent(child):
            yield current
    except BaseException as error:
        await run.on_chain_error(error)
        raise
    else:
        await _end(run, current)
    finally:
        var_child_runnable_config.reset(token)


async def _end(run: AsyncCallbackManagerForChainRun, current: ChainRun) -> None:
    if current.error:
        await run.on_chain_error(RuntimeError(current.error))
    else:
        await run.on_chain_end(current.outputs)


@contextmanager
def _langsmith_parent(child: AsyncCallbackManager) -> Generator[None]:
    """Be the parent of functions with LangSmith's `@traceable` in the block, too."""
    from langchain_core.tracers.langchain import LangChainTracer
    from langsmith.run_helpers import get_tracing_context, tracing_context

    tracer = next((handler for handler in child.handlers if isinstance(handler, LangChainTracer)), None)
    run = tracer.run_map.get(str(child.parent_run_id)) if tracer is not None else None
    if run is None:
        yield
    else:
        context: dict[str, Any] = {**get_tracing_context(), "parent": run}
        with tracing_context(**context):
            yield
