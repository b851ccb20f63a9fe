"""Sampling from chat models: `ChatModel`, and `sample`, the only place that calls a model.

A `ChatModel` is a LangChain chat model plus facts that its type does not give (name, prompt style, supported options, price),
and what a run adds to it: completion cache, recording, ledger, limit of concurrent requests.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, astuple, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

from usertwin.memory.concurrency import gather
from usertwin.memory.text.completions import without_reasoning
from usertwin.memory.text.control_tokens import without_control_tokens
from usertwin.memory.tracing import set_on_current_span
from usertwin.personas import ModelError, UsageError, UsertwinError
from usertwin.personas.conversation import replace_lone_surrogates
from usertwin.personas.secrets import mask, remember, without_secrets

from .chat_trace import counted_once, traced_call
from .ledger import FREE as FREE
from .ledger import Ledger, Price, Sample, Usage
from .requests import ConcurrencyLimit, RetryPolicy

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.runnables import RunnableConfig

    from .completion_cache import CompletionCache
    from .recording import ModelRecording
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
        recording: where the completions are recorded, or replayed from; None for neither.
        ledger: gets the number and cost of all completions, beside the ledger of a call.
        limit: of concurrent requests; models of the same endpoint may share it. None for no limit.
        retries: how requests are repeated that a busy or unreachable endpoint did not answer.
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
    recording: ModelRecording | None = field(default=None, repr=False)
    ledger: Ledger | None = field(default=None, repr=False)
    limit: ConcurrencyLimit | None = field(default=None, repr=False)
    retries: RetryPolicy = field(default_factory=RetryPolicy, repr=False)

    def __post_init__(self) -> None:
        for value in getattr(self.chat, "__dict__", {}).values():
            if hasattr(value, "get_secret_value"):  # pydantic's SecretStr: a key that was passed in
                remember(str(value.get_secret_value()))


#: A completion in a cache or a recording: its text, its token counts, and whether it ended at the limit of tokens.
_Stored: TypeAlias = tuple[str, tuple[int, ...]] | tuple[str, tuple[int, ...], bool]


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
    ledgers = [book for book in (ledger, model.ledger) if book is not None]
    answer = partial(_answer, stop=stop, prompt=prompt)
    words = None if model.token_writer is None else next_token

    async def generate() -> list[Sample]:
        """Return the completions as the model wrote them."""
        if words is not None:
            written = await _write(
                model, messages, words, n=n, seed=seed, max_tokens=max_tokens or _MOST_TOKENS, temperature=temperature,
                stop=stop, use_cache=not bypass_cache,
            )  # fmt: skip
            _record(ledgers, model, written)
            return written
        known = _from_stored((model.cache and model.cache.get(request, list[_Stored])) or ())
        if known and all(readable(answer(completion).text) for completion in known):
            _record_hits(ledgers, known)
            set_on_current_span({"usertwin.cache_hit": True})
            return known
        completions = await _complete_all(model, messages, n, seed, options, config, _on_retry(ledgers))
        answers = list(map(answer, completions))
        if model.cache is not None and all(_is_answered(a) and readable(a.text) for a in answers):
            model.cache.put(request, _to_stored(completions))
        _record(ledgers, model, completions)
        return completions

    if model.recording is None:
        return list(map(answer, await generate()))
    question = {
        "identity": model.identity, "style": model.style, "prompts": dict(model.recording.prompts), "messages": messages,
        "n": n, "seed": seed, "options": options,
    } | ({} if words is None else _words_question(words, max_tokens, temperature, stop))  # fmt: skip

    async def ask() -> list[_Stored]:
        return _to_stored(await generate())

    stored, was_recorded = await model.recording.recording.ask("completion", model.name, question, ask)
    completions = _from_stored(stored)
    if was_recorded:
        _record_hits(ledgers, completions)
        set_on_current_span({"usertwin.cache_hit": True})
    return list(map(answer, completions))


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


def _record(ledgers: Sequence[Ledger], model: ChatModel, completions: Sequence[Sample]) -> None:
    for ledger in ledgers:
        ledger.record(model, completions)


def _record_hits(ledgers: Sequence[Ledger], completions: Sequence[Sample]) -> None:
    for ledger in ledgers:
        ledger.record_hits(len(completions))


def _on_retry(ledgers: Sequence[Ledger]) -> Callable[[], None]:
    def record() -> None:
        for ledger in ledgers:
            ledger.record_retry()

    return record


def _to_stored(completions: Sequence[Sample]) -> list[_Stored]:
    return [(c.text, astuple(c.usage), True) if c.at_limit else (c.text, astuple(c.usage)) for c in completions]


def _from_stored(stored: Sequence[_Stored]) -> list[Sample]:
    return [Sample(text, Usage(*counts[:3]), bool(at_limit)) for text, counts, *at_limit in stored]


def _words_question(words: NextToken, max_tokens: int | None, temperature: float, stop: Sequence[str]) -> dict[str, Any]:
    """Return what a recording knows a call of the token writer by. UsageError if the probabilities do not say what they are."""
    content = getattr(words, "content", None)
    if content is None:
        raise UsageError("the probabilities of the next token have no `content`, so their completions cannot be recorded")
    return {"words": content, "max_tokens": max_tokens, "temperature": temperature, "stop": list(stop)}


def _answer(completion: Sample, stop: Sequence[str], prompt: str) -> Sample:
    """Return a completion without its reasoning, cut at the first stop sequence."""
    text, defect = without_reasoning(completion.text, prompt)
    return replace(completion, text=_cut(text, stop), defect=defect)


def _written_sample(completion: WrittenTokens) -> Sample:
    usage = Usage(completion.input_tokens, completion.cached_tokens, completion.output_tokens)
    return Sample(mask(replace_lone_surrogates(completion.text)), usage, completion.at_limit)


def _is_answered(answer: Sample) -> bool:
    return bool(answer.text.strip()) or not answer.at_limit


async def _write(model: ChatModel, messages: Messages, words: NextToken, **options: Any) -> list[Sample]:
    """Return completions of the model's token writer."""
    assert model.token_writer is not None
    async with model.limit or nullcontext():
        return list(map(_written_sample, await model.token_writer.write(messages, words, **options)))


async def _complete_all(
    model: ChatModel, messages: Messages, n: int, seed: int, options: Mapping[str, Any], config: RunnableConfig | None,
    on_retry: Callable[[], None],
) -> list[Sample]:  # fmt: skip
    """Return n completions, from several requests if the model gives fewer at a time. ModelError if it does not answer."""
    completions = list[Sample]()
    try:
        for start in range(0, n, model.max_n):
            count = min(model.max_n, n - start)
            completions += await _complete(model, messages, count, seed + start, options, config, on_retry)
    except UsertwinError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f'the model "{model.name}" did not answer: {reason}') from without_secrets(error)
    return completions


async def _complete(
    model: ChatModel, messages: Messages, n: int, seed: int, options: Mapping[str, Any], config: RunnableConfig | None,
    on_retry: Callable[[], None],
) -> list[Sample]:  # fmt: skip
    """Return n completions, from one request with `n` if the model supports it."""

    async def send(request: Callable[..., Awaitable[list[AIMessage]]], options: Mapping[str, Any]) -> list[AIMessage]:
        async with model.limit or nullcontext():
            return await model.retries.run(partial(request, model, messages, config, options), on_retry)

    batched: list[AIMessage] = []
    if n > 1 and model.supports_sampling_params and hasattr(model.chat, "n"):
        batched = await _ask(partial(send, _request_many), {**options, "n": n, "seed": seed})
    missing = range(len(batched), n)  # all of them, or the rest if the endpoint ignores "n"
    requests = [{**options, "seed": seed + i} if model.supports_sampling_params else options for i in missing]
    single = await gather(*(_ask(partial(send, _request_one), request) for request in requests))
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
