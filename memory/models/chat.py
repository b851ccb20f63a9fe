"""Sampling from chat models: `ChatModel`, `sample` (the only place that calls a model), and the ledger of tokens and cost.

A `ChatModel` is a LangChain chat model plus facts that its type does not give: name, prompt style, supported options, price and
completion cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, astuple, dataclass, field, replace
from operator import add
from typing import TYPE_CHECKING, Any, Literal, cast

from usertwin.personas import ModelError, UsertwinError
from usertwin.personas.conversation import replace_lone_surrogates
from usertwin.personas.secrets import mask, without_secrets

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.runnables import RunnableConfig

    from .completion_cache import CompletionCache

#: "transcript": the prompt is text to be continued, for base and small models. "instruction": the prompt is an instruction.
PromptStyle = Literal["transcript", "instruction"]
#: (role, text) pairs with the roles "system", "user" and "assistant".
Messages = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A chat model and how to prompt it.

    Attributes:
        name: the name it was loaded by, such as "local" or "openai:gpt-5-mini".
        supports_sampling_params: whether it takes temperature, seed, stop and n (hosted reasoning models do not).
        bypass_cache: options that make it ignore its prompt cache. A cached prefix was computed in batches of another size, so
            rounding differs and a seed does not reproduce its completion.
        structured: whether it supports a JSON schema for its output.
        identity: tells its weights from other weights of the same name.
        price: None if unknown.
        max_n: the most completions of one request; more take several requests.
    """

    name: str
    chat: BaseChatModel = field(repr=False)  #: its repr may hold a login
    style: PromptStyle = "instruction"
    _: KW_ONLY
    supports_sampling_params: bool = True
    bypass_cache: Mapping[str, Any] = field(default_factory=dict[str, Any])
    structured: bool = False
    identity: str = ""
    price: Price | None = None
    cache: CompletionCache | None = None
    max_n: int = 64


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million input tokens and a million output tokens."""

    input: float
    output: float

    def cost_of(self, usage: Usage) -> float:
        """Return the cost in US dollars; cached tokens count at full price."""
        return (usage.input_tokens * self.input + usage.output_tokens * self.output) / 1e6


#: The price of a local model.
FREE = Price(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts: input, the part of it from the prompt cache, and output."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion, cut at the first stop sequence; `at_limit` tells that it ended at the limit of tokens, unfinished."""

    text: str
    usage: Usage
    at_limit: bool = False


@dataclass(slots=True)
class Ledger:
    """Totals of completions, tokens and cost.

    Attributes:
        calls: completions that models generated; `usage` holds their tokens.
        cache_hits: completions that came from a completion cache.
        dollars: the cost of the calls; None if the price of a model is unknown.
    """

    calls: int = 0
    cache_hits: int = 0
    usage: Usage = field(default_factory=Usage)
    dollars: float | None = 0.0

    def record(self, model: ChatModel, samples: Sequence[Sample]) -> None:
        """Add the samples that a model generated."""
        self.calls += len(samples)
        usage = sum((sample.usage for sample in samples), Usage())
        self.usage += usage
        if model.price is None or self.dollars is None:
            self.dollars = None
        else:
            self.dollars += model.price.cost_of(usage)

    def add(self, other: Mapping[str, float | None]) -> None:
        """Add the totals of another ledger, given as its JSON object."""
        self.calls += int(other["calls"] or 0)
        self.cache_hits += int(other["repeated"] or 0)
        self.usage += Usage(*(int(other[key] or 0) for key in ("input_tokens", "cached_tokens", "output_tokens")))
        dollars = other["dollars"]
        self.dollars = None if dollars is None or self.dollars is None else self.dollars + dollars

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; its key for `cache_hits` is "repeated", as in development snapshots before 0.1.0."""
        return {"calls": self.calls, "repeated": self.cache_hits, **asdict(self.usage), "dollars": self.dollars}


async def sample(
    model: ChatModel,
    messages: Messages,
    *,
    n: int = 1,
    seed: int = 0,
    max_tokens: int | None = 100,
    temperature: float = 0.8,
    stop: Sequence[str] = (),
    bypass_cache: bool = False,
    schema: Mapping[str, Any] | None = None,
    ledger: Ledger | None = None,
    config: RunnableConfig | None = None,
) -> list[Sample]:
    """Return n completions of at most `max_tokens` tokens each (None: no limit of ours); `ledger` gets their number and cost.

    A model that supports sampling parameters encodes the prompt once for all completions. In single requests, completion i gets
    seed + i. Stop sequences are also applied here, for models that do not take them. `bypass_cache` ignores the model's prompt
    cache (see `ChatModel.bypass_cache`), `schema` is a JSON schema for the output of models that support one, and `config`
    carries LangChain's callbacks.

    Raises:
        ModelError: the model does not answer; the message names it.
    """
    options: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    if model.supports_sampling_params:
        options |= {"temperature": temperature, "stop": list(stop) or None}
    if bypass_cache:
        options |= model.bypass_cache
    if schema is not None and model.structured:
        options["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}
    request = [model.name, model.identity, [list(message) for message in messages], n, seed, options]
    ledger = Ledger() if ledger is None else ledger
    cached = None if model.cache is None else cast("list[Any] | None", model.cache.get(request))
    if cached is not None:
        ledger.cache_hits += len(cached)
        return [Sample(text, Usage(*counts), *at_limit) for text, counts, *at_limit in cached]
    try:
        completions = list[Sample]()
        for start in range(0, n, model.max_n):
            completions += await _complete(model, messages, min(model.max_n, n - start), seed + start, options, config)
    except UsertwinError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f'the model "{model.name}" did not answer: {reason}') from without_secrets(error)
    samples = [replace(sample, text=_cut(sample.text, stop)) for sample in completions]
    if model.cache is not None:
        model.cache.put(request, [(s.text, astuple(s.usage), *([True] if s.at_limit else [])) for s in samples])
    ledger.record(model, samples)
    return samples


async def _complete(
    model: ChatModel, messages: Messages, n: int, seed: int, options: Mapping[str, Any], config: RunnableConfig | None
) -> list[Sample]:
    """Return n completions, from one request with `n` if the model supports it."""
    from langchain_core.messages import convert_to_messages

    batched: list[AIMessage] = []
    if n > 1 and model.supports_sampling_params and hasattr(model.chat, "n"):
        prompt = [convert_to_messages(list(messages))]
        try:
            result = await model.chat.agenerate(prompt, n=n, seed=seed, **options)
            batched = [cast("AIMessage", cast("Any", generation).message) for generation in result.generations[0]]
        except Exception as error:
            batched = _truncated_replies(error)
    missing = range(len(batched), n)  # all of them, or the rest if the endpoint ignores "n"
    requests = [{**options, "seed": seed + i} if model.supports_sampling_params else options for i in missing]
    single = await asyncio.gather(*(_complete_once(model, messages, request, config) for request in requests))
    # Every message of a batched reply carries the usage of the whole reply.
    usages = [_usage(message) if i == 0 else Usage() for i, message in enumerate(batched)] + list(map(_usage, single))
    replies = [*batched, *single]
    texts = [mask(replace_lone_surrogates(str(message.text))) for message in replies]
    return list(map(Sample, texts, usages, map(_at_limit, replies)))


async def _complete_once(
    model: ChatModel, messages: Messages, options: Mapping[str, Any], config: RunnableConfig | None
) -> AIMessage:
    try:
        return await model.chat.ainvoke(list(messages), config, **options)
    except Exception as error:
        return _truncated_replies(error)[0]


def _truncated_replies(error: Exception) -> list[AIMessage]:
    """Return the replies in the exception that OpenAI's client raises for truncated schema output; raise any other error."""
    from langchain_core.messages import AIMessage
    from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

    completion: Any = getattr(error, "completion", None)
    if completion is None and type(error).__name__ == "ContentFilterFinishReasonError":
        return [AIMessage("")]  # older clients do not report the usage
    if completion is None or not completion.choices:
        raise error
    usage, metadata = completion.usage, None
    if usage is not None:
        cached = getattr(usage.prompt_tokens_details, "cached_tokens", None) or 0
        metadata = UsageMetadata(
            input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, total_tokens=usage.total_tokens,
            input_token_details=InputTokenDetails(cache_read=cached),
        )  # fmt: skip
    return [
        AIMessage(c.message.content or "", usage_metadata=metadata, response_metadata={"finish_reason": c.finish_reason})
        for c in completion.choices
    ]


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: min((end for end in map(text.find, stop) if end >= 0), default=len(text))]


def _at_limit(message: AIMessage) -> bool:
    """Return whether a message ended at the limit of tokens, under the names that providers give this."""
    metadata = message.response_metadata
    reason = metadata.get("finish_reason") or metadata.get("stop_reason") or metadata.get("done_reason")
    return str(reason).lower() in {"length", "max_tokens", "model_length"}


def _usage(message: AIMessage) -> Usage:
    if (metadata := message.usage_metadata) is None:
        return Usage()
    cached = metadata.get("input_token_details", {}).get("cache_read", 0)
    return Usage(metadata["input_tokens"], cached or 0, metadata["output_tokens"])
