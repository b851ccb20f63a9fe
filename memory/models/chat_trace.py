"""Traces of model calls: a span for each call of `sample`, and LangChain runs with the right token counts.

LangChain reports the calls that it makes itself to its callbacks and to LangSmith. What a token writer writes is reported here.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from usertwin.memory.tracing import is_traced, span, usage_attributes

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManager
    from langchain_core.runnables import RunnableConfig

P = ParamSpec("P")
R = TypeVar("R")


def traced_call(sample: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Return `sample` with a span "chat MODEL" around each call, and a LangChain run around what a token writer writes."""
    signature = inspect.signature(sample)

    @wraps(sample)
    async def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        writes_tokens = kwargs.get("next_token") is not None
        if not writes_tokens and not is_traced():
            return await sample(*args, **kwargs)
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        model, messages = given["model"], given["messages"]
        async with _token_writer_run(model, messages, given["config"], is_used=writes_tokens) as written:
            with span("chat", name := model_name(model), _request(name, given), is_client=True) as current:
                current.set_input(messages)
                samples = await sample(*args, **kwargs)
                rows = cast("Sequence[Any]", samples)
                reasons = ["length" if row.at_limit else "stop" for row in rows]
                current.set(usage_attributes(row.usage for row in rows) | {"gen_ai.response.finish_reasons": reasons})
                current.set_output([row.text for row in rows], reasons)
                written(rows)
        return samples

    return traced


def model_name(model: Any) -> str:
    """Return the name by which a chat model's provider knows it; else the name that it was loaded by."""
    name: object = getattr(model.chat, "model_name", None) or getattr(model.chat, "model", None)
    return name if isinstance(name, str) else str(model.name)


def _request(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a request."""
    model, takes_options = given["model"], given["model"].supports_sampling_params
    return {
        "gen_ai.provider.name": provider_name(model.chat), "gen_ai.request.model": name,
        "gen_ai.request.choice.count": given["n"] if given["n"] != 1 else None,
        "gen_ai.request.max_tokens": given["max_tokens"],
        "gen_ai.request.seed": given["seed"] if takes_options else None,
        "gen_ai.request.temperature": given["temperature"] if takes_options else None,
        "gen_ai.output.type": "json" if given["schema"] is not None and model.structured else None,
    }  # fmt: skip


def provider_name(client: object) -> str:
    """Return the provider of a client: "openai" for one of `langchain_openai`, and so on."""
    return type(client).__module__.partition(".")[0].removeprefix("langchain_")


@asynccontextmanager
async def _token_writer_run(
    model: Any, messages: Sequence[tuple[str, str]], config: RunnableConfig | None, *, is_used: bool
) -> AsyncGenerator[Callable[[Sequence[Any]], None]]:
    """A LangChain run around what a token writer writes, for the callbacks in `config`; the block gives it the samples."""
    manager = _callbacks(config) if is_used and model.token_writer is not None else None
    if manager is None or not manager.handlers:
        yield lambda samples: None
        return
    from langchain_core.messages import AIMessage, convert_to_messages
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.outputs import ChatGeneration, LLMResult

    kind = {"ls_provider": provider_name(model.chat), "ls_model_name": model_name(model), "ls_model_type": "chat"}
    manager.add_metadata(kind, inherit=False)
    [run] = await manager.on_chat_model_start({}, [convert_to_messages(list(messages))], name="TokenWriter")
    samples: list[Any] = []
    try:
        yield samples.extend
    except BaseException as error:
        await run.on_llm_error(error)
        raise
    usages = [
        UsageMetadata(input_tokens=u.input_tokens, output_tokens=u.output_tokens, total_tokens=u.input_tokens + u.output_tokens)
        for u in (row.usage for row in samples)
    ]
    texts = [AIMessage(row.text, usage_metadata=usage) for row, usage in zip(samples, usages, strict=True)]
    await run.on_llm_end(LLMResult(generations=[[ChatGeneration(message=text) for text in texts]]))


def _callbacks(config: RunnableConfig | None) -> AsyncCallbackManager:
    from langchain_core.runnables.config import ensure_config, get_async_callback_manager_for_config

    return get_async_callback_manager_for_config(ensure_config(config))


def counted_once(config: RunnableConfig) -> Any:
    """Return the callbacks of a config, before which the token counts of a request with several choices are counted once.

    Each choice carries the counts of the whole request, and a tracer adds them up.
    """
    from langchain_core.callbacks import AsyncCallbackHandler, AsyncCallbackManager

    class CountedOnce(AsyncCallbackHandler):
        run_inline = True  # before the tracer's

        async def on_llm_end(self, response: Any, **kwargs: Any) -> None:
            for generation in response.generations[0][1:]:
                generation.message.usage_metadata = None

    manager = AsyncCallbackManager.configure(inheritable_callbacks=config.get("callbacks"))
    if manager.handlers:
        manager.handlers.insert(0, CountedOnce())
    return manager
