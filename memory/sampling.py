"""The one place where a chat model is asked for text: a model with its name and manner, and `sample`.

The one design choice: a model is any LangChain chat model plus three facts that its type does not tell: what to call it, in
which style to prompt it (a transcript to be continued, or an instruction), and whether it takes sampling controls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from usertwin.personas import ModelError, UsertwinError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.runnables import RunnableConfig

#: "transcript": the prompt is text to be continued, for base and small models. "instruction": the prompt says what to do.
Style = Literal["transcript", "instruction"]


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
    """

    name: str
    chat: BaseChatModel
    style: Style = "instruction"
    controls: bool = True
    afresh: Mapping[str, Any] = field(default_factory=dict[str, Any])


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


async def sample(
    model: ChatModel,
    messages: Sequence[tuple[str, str]],
    *,
    n: int = 1,
    seed: int = 0,
    max_tokens: int = 100,
    temperature: float = 0.8,
    stop: Sequence[str] = (),
    afresh: bool = False,
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
        config: LangChain's run config, so that callbacks see the call.

    Raises:
        ModelError: the model does not answer; the message names it.
    """
    from langchain_core.messages import convert_to_messages

    options: dict[str, Any] = {"max_tokens": max_tokens}
    if model.controls:
        options |= {"temperature": temperature, "stop": list(stop) or None}
    if afresh:
        options |= model.afresh
    try:
        answers: list[AIMessage] = []
        if n > 1 and model.controls and hasattr(model.chat, "n"):
            prompt = [convert_to_messages(list(messages))]
            result = await model.chat.agenerate(prompt, n=n, seed=seed, **options)
            answers = [cast("AIMessage", cast("Any", generation).message) for generation in result.generations[0]]
        rest = range(len(answers), n)  # all of them, or what an endpoint that overlooks "n" left out
        each: list[dict[str, Any]] = [options | ({"seed": seed + i} if model.controls else {}) for i in rest]
        answers += await asyncio.gather(*(model.chat.ainvoke(list(messages), config, **cast("Any", one)) for one in each))
    except UsertwinError:
        raise
    except Exception as error:
        raise ModelError(f'the model "{model.name}" did not answer: {type(error).__name__}: {error}') from error
    return [Sample(_cut(str(answer.text), stop), _usage(answer)) for answer in answers]


def _cut(text: str, stop: Sequence[str]) -> str:
    ends = [place for place in (text.find(mark) for mark in stop) if place >= 0]
    return text[: min(ends)] if ends else text


def _usage(answer: AIMessage) -> Usage:
    told = answer.usage_metadata
    if told is None:
        return Usage()
    cached = told.get("input_token_details", {}).get("cache_read", 0)
    return Usage(told["input_tokens"], cached or 0, told["output_tokens"])
