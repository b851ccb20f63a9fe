"""memory/models/chat.py: whatever the model takes, n texts come back, cut, counted, and with the seed in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from openai import ContentFilterFinishReasonError

from conftest import Endpoint, scripted
from usertwin.memory import ChatModel
from usertwin.memory.models.answer_cache import CompletionCache
from usertwin.memory.models.chat import FREE, Ledger, Price, Sample, Usage, sample
from usertwin.personas import ModelError, UsageError
from usertwin.simulator import load_model


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
    ask(ChatModel("m", chat, supports_sampling_params=False), n=2, seed=3, temperature=0.1, max_tokens=5, stop=["\n"])
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


# What it cost ------------------------------------------------------------------------------------------------------------


def test_a_price_is_for_a_million_tokens_and_cached_ones_cost_as_much() -> None:
    assert Price(2.0, 10.0).of(Usage(1_000_000, 900_000, 500_000)) == pytest.approx(7.0)
    assert FREE.of(Usage(5, 5, 5)) == 0.0


def test_a_ledger_adds_up_what_several_models_wrote() -> None:
    cheap, dear = ChatModel("a", Recording(), price=Price(1.0, 1.0)), ChatModel("b", Recording(), price=Price(0.0, 5.0))
    ledger = Ledger()
    ledger.note(cheap, [Sample("x", Usage(100, 10, 50)), Sample("y", Usage(0, 0, 50))])
    ledger.note(dear, [Sample("z", Usage(1, 0, 100))])
    assert (ledger.calls, ledger.repeated, ledger.usage) == (3, 0, Usage(101, 10, 200))
    assert ledger.dollars == pytest.approx((200 + 500) / 1e6)
    assert json.loads(json.dumps(ledger.to_json())) == {
        "calls": 3, "repeated": 0, "input_tokens": 101, "cached_tokens": 10, "output_tokens": 200,
        "dollars": pytest.approx(7e-4),
    }  # fmt: skip


def test_dollars_are_unknown_as_soon_as_one_price_is_and_stay_so() -> None:
    ledger = Ledger()
    ledger.note(ChatModel("a", Recording(), price=Price(1.0, 1.0)), [Sample("x", Usage(1, 0, 1))])
    assert ledger.dollars is not None
    ledger.note(ChatModel("b", Recording()), [Sample("x", Usage(1, 0, 1))])
    assert ledger.dollars is None
    ledger.note(ChatModel("a", Recording(), price=FREE), [Sample("x", Usage(1, 0, 1))])
    assert (ledger.dollars, ledger.calls, ledger.to_json()["dollars"]) == (None, 3, None)


def test_a_call_is_noted_where_it_is_made() -> None:
    ledger = Ledger()
    ask(replace(scripted("good day to you"), price=Price(1.0, 2.0)), n=2, ledger=ledger)
    assert (ledger.calls, ledger.usage) == (2, Usage(8, 0, 8))
    assert ledger.dollars == pytest.approx((8 + 16) / 1e6)
    with pytest.raises(ModelError):
        ask(ChatModel("m", Recording(error=ValueError("no"))), ledger=ledger)
    assert ledger.calls == 2


# Held to a schema --------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"felt": {"type": "string"}}, "required": ["felt"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


def test_a_schema_is_passed_on_only_to_models_that_can_be_held_to_one() -> None:
    able, unable, unasked = Recording(), Several(), Recording()
    ask(ChatModel("m", able, structured=True), schema=SCHEMA)
    ask(ChatModel("m", unable), schema=SCHEMA, n=2)
    ask(ChatModel("m", unasked, structured=True))
    assert able.calls[0]["response_format"] == FORMAT
    assert not any("response_format" in call for call in (*unable.calls, *unasked.calls))


# Kept --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[CompletionCache]:
    cache = CompletionCache(tmp_path / "answers.sqlite")
    yield cache
    cache.close()


def test_what_was_asked_is_not_asked_again_and_comes_with_what_it_took_then(answers: CompletionCache) -> None:
    model, ledger = replace(scripted("one;tail", "two", "three"), cache=answers), Ledger()
    first = ask(model, n=2, stop=[";"], ledger=ledger)
    assert [one.text for one in first] == ["one", "two"]
    assert ask(model, n=2, stop=[";"], ledger=ledger) == first
    assert ask(replace(model, chat=scripted("other").chat), n=2, stop=[";"], ledger=ledger) == first
    assert (ledger.calls, ledger.repeated, ledger.usage) == (2, 4, first[0].usage + first[1].usage)


def test_an_answer_from_before_costs_nothing_even_if_the_price_is_not_known(answers: CompletionCache) -> None:
    model = replace(scripted("one"), cache=answers)
    ask(model)
    ledger = Ledger()
    ask(model, ledger=ledger)
    assert ledger == Ledger(repeated=1)
    assert ledger.dollars == 0.0


@pytest.mark.parametrize(
    ("told", "model"),
    [
        ({"seed": 1}, {}),
        ({"temperature": 0.1}, {}),
        ({"max_tokens": 7}, {}),
        ({"stop": ["\n"]}, {}),
        ({"n": 2}, {}),
        ({"schema": SCHEMA}, {"structured": True}),
        ({"afresh": True}, {"afresh": {"extra_body": {"cache_prompt": False}}}),
        ({}, {"name": "other"}),
        ({}, {"identity": "other weights"}),
    ],
)
def test_whatever_may_change_an_answer_makes_another_question(
    answers: CompletionCache, told: dict[str, Any], model: dict[str, Any]
) -> None:
    chat = Recording()
    ask(ChatModel("m", chat, cache=answers))
    ask(replace(ChatModel("m", chat, cache=answers), **model), **told)
    asked = len(chat.calls)
    assert asked == 1 + told.get("n", 1)
    ask(replace(ChatModel("m", chat, cache=answers), **model), **told)
    ask(ChatModel("m", chat, cache=answers))
    assert len(chat.calls) == asked


def test_another_prompt_or_role_is_another_question(answers: CompletionCache) -> None:
    chat = Recording()
    prompts: Sequence[list[tuple[str, str]]] = [
        [("user", "ab")], [("system", "ab")], [("user", "a"), ("user", "b")], [("user", "ab"), ("user", "")]
    ]  # fmt: skip
    for prompt in (*prompts, *prompts):
        asyncio.run(sample(ChatModel("m", chat, cache=answers), prompt))
    assert len(chat.calls) == 4


def test_a_price_or_a_control_that_is_not_passed_on_makes_no_other_question(answers: CompletionCache) -> None:
    chat = Recording()
    model = ChatModel("m", chat, supports_sampling_params=False, cache=answers)
    ask(model, temperature=0.1, stop=["x"], schema=SCHEMA)
    ask(replace(model, price=FREE), temperature=0.9, stop=[])
    assert len(chat.calls) == 1


def test_what_could_not_be_answered_is_not_kept(answers: CompletionCache) -> None:
    chat = Recording(error=ValueError("busy"))
    with pytest.raises(ModelError):
        ask(ChatModel("m", chat, cache=answers))
    chat.error = None
    assert ask(ChatModel("m", chat, cache=answers))[0].text == "0/0"
    assert len(chat.calls) == 2


@given(text=st.text(max_size=20))
def test_any_text_is_the_same_when_it_is_taken_from_where_it_was_kept(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = CompletionCache(tmp_path_factory.mktemp("answers") / "answers.sqlite")
    model = replace(scripted(text), cache=cache)
    assert ask(model) == ask(model) == [Sample(text, Usage(4, 0, len(text.split())))]
    cache.close()


@pytest.mark.parametrize(
    ("text", "found"),
    [("so \ud83d", "so \ufffd"), ("\ude00 so", "\ufffd so"), ("\ud83d\ude00 \x00", "😀 \x00"), ("\ufeffa", "\ufeffa")],
)
def test_half_a_character_is_marked_so_that_the_text_can_be_written(answers: CompletionCache, text: str, found: str) -> None:
    model = replace(scripted(text), cache=answers)
    assert [one.text for one in ask(model)] == [one.text for one in ask(model)] == [found]
    assert found.encode()


# OpenAI's own client ------------------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint(endpoint: Endpoint) -> Endpoint:
    """The shared one, which answers with an object here."""
    endpoint.content = '{"felt": "tired"}'
    return endpoint


@pytest.mark.parametrize(("n", "usage"), [(1, Usage(100, 40, 10)), (3, Usage(100, 40, 30))])
@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_openais_client_asks_once_for_all_and_the_tokens_count_once(
    endpoint: Endpoint, n: int, usage: Usage, schema: dict[str, Any] | None
) -> None:
    ledger = Ledger()
    model = load_model(f"openai:m@{endpoint.url}", price=Price(1.0, 10.0))
    found = ask(model, n=n, seed=7, temperature=0.3, max_tokens=50, stop=[";"], schema=schema, ledger=ledger)
    assert [one.text for one in found] == ['{"felt": "tired"}'] * n
    assert (ledger.calls, ledger.usage) == (n, usage)
    assert sum((one.usage for one in found), Usage()) == usage
    assert ledger.dollars == pytest.approx((100 + 10 * usage.output_tokens) / 1e6)
    [asked] = endpoint.asked
    assert (asked["seed"], asked["temperature"], asked["stop"]) == (7, 0.3, [";"])
    assert asked.get("max_completion_tokens", asked.get("max_tokens")) == 50
    assert asked.get("n") == (3 if n == 3 else None)
    assert asked.get("response_format") == (None if schema is None else FORMAT)
    assert [(m["role"], m["content"]) for m in asked["messages"]] == [("system", "be kind"), ("user", "hello there")]


def test_a_hosted_model_that_reasons_on_its_own_is_asked_one_by_one_without_controls(endpoint: Endpoint) -> None:
    ledger = Ledger()
    ask(load_model(f"openai:gpt-5-mini@{endpoint.url}"), n=3, seed=7, stop=["\n"], schema=SCHEMA, ledger=ledger)
    assert len(endpoint.asked) == 3
    assert all(asked["response_format"] == FORMAT for asked in endpoint.asked)
    assert not any({"seed", "temperature", "stop"} & asked.keys() for asked in endpoint.asked)
    assert (ledger.calls, ledger.usage, ledger.dollars) == (3, Usage(300, 120, 30), None)


def test_an_endpoint_that_gives_one_choice_for_three_is_asked_twice_more(endpoint: Endpoint) -> None:
    endpoint.most = 1
    found = ask(load_model(f"openai:m@{endpoint.url}"), n=3, seed=7)
    assert endpoint.asked[0]["seed"] == 7
    assert sorted(asked["seed"] for asked in endpoint.asked[1:]) == [8, 9]
    assert sum((one.usage for one in found), Usage()) == Usage(300, 120, 30)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("reason", "content", "text"),
    [("length", '{"felt": "tir', '{"felt": "tir'), ("content_filter", None, ""), ("stop", None, ""), ("stop", "  ", "  ")],
)
def test_an_answer_that_was_cut_short_or_withheld_is_an_answer_and_is_paid_for(
    endpoint: Endpoint, n: int, reason: str, content: str | None, text: str
) -> None:
    endpoint.reason, endpoint.content = reason, content
    ledger = Ledger()
    found = ask(load_model(f"openai:m@{endpoint.url}"), n=n, schema=SCHEMA, ledger=ledger)
    assert [one.text for one in found] == [text] * n
    assert ledger.calls == n
    if reason != "content_filter" or hasattr(ContentFilterFinishReasonError(), "completion"):  # older clients do not tell
        assert (ledger.usage, len(endpoint.asked)) == (Usage(100, 40, 10 * n), 1)


def test_an_endpoint_that_is_not_there_is_a_model_that_does_not_answer(endpoint: Endpoint) -> None:
    model = load_model("openai:m@http://127.0.0.1:1/v1")
    model = replace(model, chat=model.chat.model_copy(update={"max_retries": 0}))
    with pytest.raises(ModelError, match=r'the model "openai:m@http://127\.0\.0\.1:1/v1" did not answer'):
        ask(model, schema=SCHEMA)
    assert endpoint.asked == []


def test_a_ledger_includes_another_ones_sums() -> None:
    one, other = Ledger(2, 1, Usage(10, 4, 3), 0.5), Ledger(5, 0, Usage(1, 1, 1), 0.25)
    one.include(other.to_json())
    assert one == Ledger(7, 1, Usage(11, 5, 4), 0.75)
    one.include(Ledger(1, 0, Usage(), None).to_json())
    assert (one.calls, one.dollars) == (8, None)
