"""Sampling from chat models: `ChatModel`, `sample` (the only place that calls a model), and the ledger of tokens and cost.

A `ChatModel` is a LangChain chat model plus facts that its type does not give: name, prompt style, supported options, price and
completion cache.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, astuple, dataclass, field, replace
from functools import partial
from operator import add
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

from usertwin.memory.concurrency import gather
from usertwin.memory.text.completions import without_reasoning
from usertwin.memory.text.control_tokens import without_control_tokens
from usertwin.memory.tracing import set_on_current_span
from usertwin.personas import ModelError, UsertwinError
from usertwin.personas.conversation import replace_lone_surrogates
from usertwin.personas.secrets import mask, remember, without_secrets

from .chat_trace import counted_once, traced_call

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.runnables import RunnableConfig

    from .completion_cache import CompletionCache
    from .token_writer import NextToken, TokenWriter, WrittenTokens

T = TypeVar("T")
#: "transcript": the prompt is text to be continued, for base and small models. "instruction": the prompt is an instruction.
PromptStyle = Literal["transcript", "instruction"]
#: (role, text) pairs with the roles "system", "user" and "assistant".
Messages = Sequence[tuple[str, str]]
#: Completions of `sample_readable`.
_ATTEMPTS = 3
#: Tokens of a completion that is written token by token, without a limit of ours.
_MOST_TOKENS = 4096
#: How endpoints refuse a token limit that is larger than what is left of their context, or than their own limit.
_LIMIT_REFUSED = re.compile(r"max_(?:completion_)?tokens|maximum context length", re.IGNORECASE)


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
        control_tokens: texts that the engine would read as control tokens; `sample` makes them inert.
        context_tokens: the tokens of prompt and completion together; None if unknown.
        count_tokens: returns the number of tokens of a prompt; None if unknown.
        token_writer: writes token by token with probabilities of ours; None if the model cannot.
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
    control_tokens: Sequence[str] = ()
    context_tokens: int | None = None
    count_tokens: Callable[[str], int] | None = None
    token_writer: TokenWriter | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for value in getattr(self.chat, "__dict__", {}).values():
            if hasattr(value, "get_secret_value"):  # pydantic's SecretStr: a key that was passed in
                remember(str(value.get_secret_value()))


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


#: A completion in the cache: its text, its token counts, and whether it ended at the limit of tokens.
_Cached: TypeAlias = tuple[str, tuple[int, ...]] | tuple[str, tuple[int, ...], bool]


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion without reasoning, cut at the first stop sequence.

    `at_limit` tells that it ended at the limit of tokens, unfinished. `defect` tells why the text is not one whole answer (see
    memory/text/completions.py); "" if it is.
    """

    text: str
    usage: Usage
    at_limit: bool = False
    defect: str = ""


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


@traced_call
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
    readable: Callable[[str], bool] = lambda text: True,
    next_token: NextToken | None = None,
    ledger: Ledger | None = None,
    config: RunnableConfig | None = None,
) -> list[Sample]:
    """Return n completions of at most `max_tokens` tokens each (None: no limit of ours); `ledger` gets their number and cost.

    A model that supports sampling parameters encodes the prompt once for all completions. In single requests, completion i gets
    seed + i. Stop sequences are also applied here, for models that do not take them. `bypass_cache` ignores the model's prompt
    cache (see `ChatModel.bypass_cache`), `schema` is a JSON schema for the output of models that support one, and `config`
    carries LangChain's callbacks. Control tokens in the messages are made inert, and reasoning in a completion is left out.
    Completions that are not `readable` are neither kept in the completion cache nor taken from it, and neither are those that
    the model's token writer writes from the probabilities of `next_token`.

    Raises:
        ModelError: the model does not answer; the message names it.
    """
    messages = [(role, without_control_tokens(text, model.control_tokens)) for role, text in messages]
    prompt = "\n".join(text for _, text in messages)
    options: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    if model.supports_sampling_params:
        options |= {"temperature": temperature, "stop": list(stop) or None}
    if bypass_cache:
        options |= model.bypass_cache
    if schema is not None and model.structured:
        options["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}
    request = [model.name, model.identity, [list(message) for message in messages], n, seed, options]
    ledger = Ledger() if ledger is None else ledger
    if next_token is not None and model.token_writer is not None:
        written = await model.token_writer.write(
            messages, next_token, n=n, seed=seed, max_tokens=max_tokens or _MOST_TOKENS, temperature=temperature, stop=stop,
            use_cache=not bypass_cache,
        )  # fmt: skip
        samples = [_answer(_written_sample(completion), stop, prompt) for completion in written]
        ledger.record(model, samples)
        return samples
    cached = (model.cache and model.cache.get(request, list[_Cached])) or ()
    known = [_answer(Sample(text, Usage(*counts[:3]), *at_limit), stop, prompt) for text, counts, *at_limit in cached]
    if known and all(readable(answer.text) for answer in known):
        ledger.cache_hits += len(known)
        set_on_current_span({"usertwin.cache_hit": True})
        return known
    try:
        completions = list[Sample]()
        for start in range(0, n, model.max_n):
            completions += await _complete(model, messages, min(model.max_n, n - start), seed + start, options, config)
    except UsertwinError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f'the model "{model.name}" did not answer: {reason}') from without_secrets(error)
    samples = [_answer(completion, stop, prompt) for completion in completions]
    if model.cache is not None and all(_is_answered(answer) and readable(answer.text) for answer in samples):
        model.cache.put(request, [(c.text, astuple(c.usage), *([True] if c.at_limit else [])) for c in completions])
    ledger.record(model, samples)
    return samples


async def sample_readable(
    model: ChatModel,
    messages: Messages,
    read: Callable[[str], T | None],
    *,
    seed: int,
    max_tokens: int | None,
    schema: Mapping[str, Any],
    ledger: Ledger | None = None,
) -> tuple[T | None, bool]:
    """Return what `read` makes of a completion, and whether all completions were empty at their limit of tokens.

    A completion of which it makes None is asked for again, with another seed and a higher temperature, and is not cached, so
    that a later call asks the model anew. The value is None after three such completions.

    Raises:
        ModelError: the model does not answer.
    """
    cut_off = 0
    for attempt in range(_ATTEMPTS):
        [answer] = await sample(
            model, messages, seed=seed + attempt, max_tokens=max_tokens, temperature=0.2 * attempt, schema=schema,
            readable=lambda text: read(text) is not None, ledger=ledger,
        )  # fmt: skip
        if (value := read(answer.text)) is not None:
            return value, False
        cut_off += answer.at_limit and not answer.text.strip()
    return None, cut_off == _ATTEMPTS


def limit_error(model: ChatModel, max_tokens: int | None) -> ModelError:
    """Return the error for a completion that is empty at its limit of tokens."""
    limit = "a limit of the server" if max_tokens is None else f"its limit of {max_tokens:,} tokens"
    way_out = "let it reason less, or use another model"
    return ModelError(f'the model "{model.name}" stopped at {limit} before it answered; {way_out}')


def _answer(completion: Sample, stop: Sequence[str], prompt: str) -> Sample:
    """Return a completion without its reasoning, cut at the first stop sequence."""
    text, defect = without_reasoning(completion.text, prompt)
    return replace(completion, text=_cut(text, stop), defect=defect)


def _written_sample(completion: WrittenTokens) -> Sample:
    usage = Usage(completion.input_tokens, completion.cached_tokens, completion.output_tokens)
    return Sample(mask(replace_lone_surrogates(completion.text)), usage, completion.at_limit)


def _is_answered(answer: Sample) -> bool:
    return bool(answer.text.strip()) or not answer.at_limit


async def _complete(
    model: ChatModel, messages: Messages, n: int, seed: int, options: Mapping[str, Any], config: RunnableConfig | None
) -> list[Sample]:
    """Return n completions, from one request with `n` if the model supports it."""
    batched: list[AIMessage] = []
    if n > 1 and model.supports_sampling_params and hasattr(model.chat, "n"):
        batched = await _ask(partial(_request_many, model, messages, config), {**options, "n": n, "seed": seed})
    missing = range(len(batched), n)  # all of them, or the rest if the endpoint ignores "n"
    requests = [{**options, "seed": seed + i} if model.supports_sampling_params else options for i in missing]
    single = await gather(*(_ask(partial(_request_one, model, messages, config), request) for request in requests))
    # Every message of a batched reply carries the usage of the whole reply.
    usages = [_usage(message) if i == 0 else Usage() for i, message in enumerate(batched)] + [_usage(m) for [m] in single]
    replies = [*batched, *(message for [message] in single)]
    texts = [mask(replace_lone_surrogates(str(message.text))) for message in replies]
    return list(map(Sample, texts, usages, map(_at_limit, replies)))


async def _ask(
    request: Callable[[Mapping[str, Any]], Awaitable[list[AIMessage]]], options: Mapping[str, Any]
) -> list[AIMessage]:
    """Return the replies to a request; it is repeated without a limit if the endpoint refuses ours as too large."""
    try:
        return await request(options)
    except Exception as error:
        if "max_tokens" in options and _LIMIT_REFUSED.search(str(error)):
            return await _ask(request, {name: value for name, value in options.items() if name != "max_tokens"})
        return _truncated_replies(error)


async def _request_one(
    model: ChatModel, messages: Messages, config: RunnableConfig | None, options: Mapping[str, Any]
) -> list[AIMessage]:
    return [await model.chat.ainvoke(list(messages), config, **options)]


async def _request_many(
    model: ChatModel, messages: Messages, config: RunnableConfig | None, options: Mapping[str, Any]
) -> list[AIMessage]:
    """Return the choices of one request, with the same callbacks and tracing as `ainvoke`."""
    from langchain_core.messages import convert_to_messages
    from langchain_core.runnables.config import ensure_config

    run = ensure_config(config)
    result = await model.chat.agenerate(
        [convert_to_messages(list(messages))], callbacks=counted_once(run), tags=run.get("tags"),
        metadata=run.get("metadata"), run_name=run.get("run_name"), run_id=run.get("run_id"), **options,
    )  # fmt: skip
    return [cast("AIMessage", cast("Any", generation).message) for generation in result.generations[0]]


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
