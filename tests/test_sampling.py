"""memory/sampling.py: whatever the model takes, n texts come back, cut, counted, and with the seed in them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from conftest import scripted
from usertwin.memory import ChatModel, Sample, Usage, sample
from usertwin.personas import ModelError, UsageError


class Recording(BaseChatModel):
    """Remembers the options of each call, and answers with the seed it was given."""

    calls: list[dict[str, Any]] = []  # noqa: RUF012 - a pydantic field
    error: BaseException | None = None

    model_config = {"arbitrary_types_allowed": True}  # noqa: RUF012 - likewise

    @property
    def _llm_type(self) -> str:
        return "recording"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        self.calls.append({"stop": stop, "messages": [(m.type, m.text) for m in messages]} | options)
        if self.error is not None:
            raise self.error
        several = range(options.get("n", 1))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(f"{options.get('seed')}/{i}")) for i in several])


class Several(Recording):
    """The same with a field `n`, as models have that give several answers to one prompt."""

    n: int | None = None


class Stingy(Several):
    """An endpoint that overlooks `n`, as some do."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        result = super()._generate(messages, stop, run_manager, **options)
        return ChatResult(generations=result.generations[:1])


def ask(model: ChatModel, **options: Any) -> list[Sample]:
    return asyncio.run(sample(model, [("system", "be kind"), ("user", "hello there")], **options))


def test_one_text_comes_with_what_it_took() -> None:
    model = scripted("good day to you")
    assert ask(model) == [Sample("good day to you", Usage(4, 0, 4))]


def test_several_texts_of_a_model_that_gives_one_have_seeds_of_their_own() -> None:
    chat = Recording()
    assert {one.text for one in ask(ChatModel("m", chat), n=3, seed=7)} == {"7/0", "8/0", "9/0"}
    assert [one.text for one in ask(ChatModel("m", chat), n=3, seed=7)] == ["7/0", "8/0", "9/0"]


def test_a_model_that_gives_several_reads_the_prompt_once() -> None:
    chat = Several()
    assert [one.text for one in ask(ChatModel("m", chat), n=3, seed=7)] == ["7/0", "7/1", "7/2"]
    (call,) = chat.calls
    assert (call["n"], call["seed"]) == (3, 7)
    assert call["messages"] == [("system", "be kind"), ("human", "hello there")]


def test_an_endpoint_that_overlooks_n_is_asked_for_the_rest() -> None:
    chat = Stingy()
    assert [one.text for one in ask(ChatModel("m", chat), n=3, seed=7)] == ["7/0", "8/0", "9/0"]


def test_controls_reach_a_model_that_takes_them_and_no_other() -> None:
    chat = Several()
    ask(ChatModel("m", chat), seed=3, temperature=0.1, max_tokens=5, stop=["\n"])
    ask(ChatModel("m", chat, controls=False), n=2, seed=3, temperature=0.1, max_tokens=5, stop=["\n"])
    told, *untold = [{key: value for key, value in call.items() if key != "messages"} for call in chat.calls]
    assert told == {"seed": 3, "temperature": 0.1, "max_tokens": 5, "stop": ["\n"]}
    assert untold == [{"max_tokens": 5, "stop": None}] * 2


@given(st.text("ab\n;", max_size=20), st.lists(st.sampled_from(["\n", ";", "ab", "b\n"]), max_size=3))
def test_a_text_ends_before_the_first_stop_even_if_the_model_takes_none(text: str, stop: list[str]) -> None:
    (found,) = ask(scripted(text), stop=stop)
    assert text.startswith(found.text)
    assert not any(mark in found.text for mark in stop)
    assert found.text == text or any(text[len(found.text) :].startswith(mark) for mark in stop)


def test_what_a_model_raises_names_the_model() -> None:
    with pytest.raises(ModelError, match=r'the model "openai:x" did not answer: ValueError: no such key'):
        ask(ChatModel("openai:x", Recording(error=ValueError("no such key"))))
    with pytest.raises(ModelError, match="did not answer: TimeoutError"):
        ask(ChatModel("openai:x", Several(error=TimeoutError())), n=2)


def test_our_own_errors_pass_as_they_are() -> None:
    with pytest.raises(UsageError, match=r"^mine$"):
        ask(ChatModel("m", Recording(error=UsageError("mine"))))


def test_an_answer_without_a_count_counts_nothing_and_cached_tokens_are_read() -> None:
    assert ask(ChatModel("m", Recording()))[0].usage == Usage()

    class Cached(Recording):
        def _generate(self, *args: Any, **options: Any) -> ChatResult:
            told = {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11, "input_token_details": {"cache_read": 8}}
            return ChatResult(generations=[ChatGeneration(message=AIMessage("yes", usage_metadata=told))])

    assert ask(ChatModel("m", Cached()))[0].usage == Usage(9, 8, 2)


def test_usage_adds_up() -> None:
    assert sum([Usage(1, 2, 3), Usage(10, 20, 30)], Usage()) == Usage(11, 22, 33)


def test_the_config_reaches_the_call() -> None:
    from langchain_core.callbacks import BaseCallbackHandler

    class Ear(BaseCallbackHandler):
        heard: tuple[str, ...] = ()

        def on_chat_model_start(self, *args: Any, tags: Any = None, **options: Any) -> None:
            self.heard += tuple(tags)

    ear = Ear()
    ask(ChatModel("m", Recording()), config={"callbacks": [ear], "tags": ["here"]})
    assert ear.heard == ("here",)
