"""The one place where a chat model is asked for text: a model with its name and manner, `sample`, and what it cost.

The one design choice: a model is any LangChain chat model plus the facts that its type does not tell: what to call it, in
which style to prompt it (a transcript to be continued, or an instruction), what it takes, what it costs, and where its
answers are kept so that nothing is asked twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from usertwin.personas import ModelError, UsertwinError
from usertwin.personas.conversation import replace_lone_surrogates

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.runnables import RunnableConfig

    from .completion_cache import CompletionCache

#: "transcript": the prompt is text to be continued, for base and small models. "instruction": the prompt says what to do.
PromptStyle = Literal["transcript", "instruction"]


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A chat model and how to prompt it.

    Attributes:
        name: as it was asked for, for example "local" or "openai:gpt-5-mini".
        chat: the LangChain model.
        style: how prompts for it are written.
        controls: whether it takes temperature, seed, stop and several samples at once (hosted reasoning models do not).
        afresh: options with which it computes a prompt from the start, whatever it has in its cache. A cached beginning is
            computed in other portions, rounds otherwise, and then the same seed says something else.
        structured: whether it can be held to a JSON schema.
        identity: what tells its weights from others that may come under the same name.
        price: what it costs; None if that is not known.
        answers: where its answers are kept and looked up; None if every call is to be made.
        together: how many texts it gives to one prompt at once; more are asked for in turn.
    """

    name: str
    chat: BaseChatModel
    style: PromptStyle = "instruction"
    supports_sampling_params: bool = True
    bypass_cache: Mapping[str, Any] = field(default_factory=dict[str, Any])
    structured: bool = False
    identity: str = ""
    price: Price | None = None
    cache: CompletionCache | None = None
    max_n: int = 64


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in US dollars for a million tokens read and written."""

    input: float
    output: float

    def cost_of(self, usage: Usage) -> float:
        """What so many tokens cost, in US dollars; cached ones at the full price."""
        return (usage.input_tokens * self.input + usage.output_tokens * self.output) / 1e6


#: What a model in this process costs.
FREE = Price(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens used: read, of these from a cache, and written."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """A text a model wrote, cut at the first stop, and the tokens it took."""

    text: str
    usage: Usage


@dataclass(slots=True)
class Ledger:
    """What was spent.

    Attributes:
        calls: texts that a model wrote.
        repeated: texts that were asked for again and taken from where they were kept.
        usage: the tokens of the calls.
        dollars: what they cost; None if some model's price is not known.
    """

    calls: int = 0
    cache_hits: int = 0
    usage: Usage = field(default_factory=Usage)
    dollars: float | None = 0.0

    def record(self, model: ChatModel, samples: Sequence[Sample]) -> None:
        """Note what a model has just written."""
        self.calls += len(samples)
        used = sum((one.usage for one in samples), Usage())
        self.usage += used
        if model.price is None or self.dollars is None:
            self.dollars = None
        else:
            self.dollars += model.price.cost_of(used)

    def add(self, other: Mapping[str, float | None]) -> None:
        """Include what another ledger noted, as its JSON object."""
        self.calls += int(other["calls"] or 0)
        self.cache_hits += int(other["repeated"] or 0)
        self.usage += Usage(*(int(other[key] or 0) for key in ("input_tokens", "cached_tokens", "output_tokens")))
        spent = other["dollars"]
        self.dollars = None if spent is None or self.dollars is None else self.dollars + spent

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"calls": self.calls, "repeated": self.cache_hits, **asdict(self.usage), "dollars": self.dollars}


async def sample(
    model: ChatModel,
    messages: Sequence[tuple[str, str]],
    *,
    n: int = 1,
    seed: int = 0,
    max_tokens: int = 100,
    temperature: float = 0.8,
    stop: Sequence[str] = (),
    bypass_cache: bool = False,
    schema: Mapping[str, Any] | None = None,
    ledger: Ledger | None = None,
    config: RunnableConfig | None = None,
) -> list[Sample]:
    """Ask a model for n texts.

    Args:
        model: whom to ask.
        messages: (role, text) pairs; roles are "system", "user" and "assistant".
        n: how many texts; a model that takes controls reads the prompt once for all of them.
        seed: where the model takes one; sample i of a model that cannot give several at once gets seed + i.
        max_tokens: the most a text may take.
        temperature: where the model takes one.
        stop: texts that end an answer; cut here too, for models that do not take them.
        afresh: whether nothing that was asked before may matter; see `ChatModel.afresh`.
        schema: a JSON schema to hold the answer to, for models that can be.
        ledger: where to note what it cost.
        config: LangChain's run config, so that callbacks see the call.

    Raises:
        ModelError: the model does not answer; the message names it.
    """
    options: dict[str, Any] = {"max_tokens": max_tokens}
    if model.supports_sampling_params:
        options |= {"temperature": temperature, "stop": list(stop) or None}
    if bypass_cache:
        options |= model.bypass_cache
    if schema is not None and model.structured:
        options["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}
    asked = [model.name, model.identity, [list(message) for message in messages], n, seed, options]
    known = None if model.cache is None else cast("list[Any] | None", model.cache.get(asked))
    if known is not None:
        if ledger is not None:
            ledger.cache_hits += len(known)
        return [Sample(text, Usage(*used)) for text, used in known]
    try:
        answers = list[tuple[str, Usage]]()
        for begun in range(0, n, model.max_n):
            answers += await _ask(model, messages, min(model.max_n, n - begun), seed + begun, options, config)
    except UsertwinError:
        raise
    except Exception as error:
        raise ModelError(f'the model "{model.name}" did not answer: {type(error).__name__}: {error}') from error
    samples = [Sample(_cut(text, stop), used) for text, used in answers]
    if model.cache is not None:
        model.cache.put(asked, [(one.text, astuple(one.usage)) for one in samples])
    if ledger is not None:
        ledger.record(model, samples)
    return samples


async def _ask(
    model: ChatModel,
    messages: Sequence[tuple[str, str]],
    n: int,
    seed: int,
    options: Mapping[str, Any],
    config: RunnableConfig | None,
) -> list[tuple[str, Usage]]:
    """What the model writes, and the tokens it took."""
    from langchain_core.messages import convert_to_messages

    together: list[AIMessage] = []
    if n > 1 and model.supports_sampling_params and hasattr(model.chat, "n"):
        prompt = [convert_to_messages(list(messages))]
        try:
            result = await model.chat.agenerate(prompt, n=n, seed=seed, **options)
            together = [cast("AIMessage", cast("Any", generation).message) for generation in result.generations[0]]
        except Exception as error:
            together = _cut_short(error)
    rest = range(len(together), n)  # all of them, or what an endpoint that overlooks "n" left out
    each: list[dict[str, Any]] = [{**options} | ({"seed": seed + i} if model.supports_sampling_params else {}) for i in rest]
    alone = await asyncio.gather(*(_ask_once(model, messages, one, config) for one in each))
    # Every message of one answer tells the tokens of the whole answer.
    used = [_usage(message) if number == 0 else Usage() for number, message in enumerate(together)] + list(map(_usage, alone))
    return [
        (replace_lone_surrogates(str(answer.text)), tokens) for answer, tokens in zip([*together, *alone], used, strict=True)
    ]


async def _ask_once(
    model: ChatModel, messages: Sequence[tuple[str, str]], options: Mapping[str, Any], config: RunnableConfig | None
) -> AIMessage:
    try:
        return await model.chat.ainvoke(list(messages), config, **options)
    except Exception as error:
        return _cut_short(error)[0]


def _cut_short(error: Exception) -> list[AIMessage]:
    """The answers in what OpenAI's client raises where one that is held to a schema was cut short; any other error again."""
    from langchain_core.messages import AIMessage
    from langchain_core.messages.ai import InputTokenDetails, UsageMetadata

    completion: Any = getattr(error, "completion", None)
    if completion is None and type(error).__name__ == "ContentFilterFinishReasonError":
        return [AIMessage("")]  # older clients do not tell what it took
    if completion is None or not completion.choices:
        raise error
    used, told = completion.usage, None
    if used is not None:
        cached = getattr(used.prompt_tokens_details, "cached_tokens", None) or 0
        told = UsageMetadata(
            input_tokens=used.prompt_tokens, output_tokens=used.completion_tokens, total_tokens=used.total_tokens,
            input_token_details=InputTokenDetails(cache_read=cached),
        )  # fmt: skip
    return [AIMessage(choice.message.content or "", usage_metadata=told) for choice in completion.choices]


def _cut(text: str, stop: Sequence[str]) -> str:
    ends = [place for place in (text.find(mark) for mark in stop) if place >= 0]
    return text[: min(ends)] if ends else text


def _usage(answer: AIMessage) -> Usage:
    told = answer.usage_metadata
    if told is None:
        return Usage()
    cached = told.get("input_token_details", {}).get("cache_read", 0)
    return Usage(told["input_tokens"], cached or 0, told["output_tokens"])
