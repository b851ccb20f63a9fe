"""Sampling from chat models: options, seeds, stops, usage, cost, schemas and the completion cache."""

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
from usertwin.memory.models.chat import FREE, Ledger, Price, Sample, Usage, sample
from usertwin.memory.models.completion_cache import CompletionCache
from usertwin.personas import ModelError, UsageError
from usertwin.simulator import load_model


class Recording(BaseChatModel):
    """A chat model that records the options of each call and replies with its seed."""

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


class MultiChoice(Recording):
    """A recording model with a field `n`, as models with several choices for a prompt have."""

    n: int | None = None


class SingleChoice(MultiChoice):
    """A model that ignores `n`, as some endpoints do."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        result = super()._generate(messages, stop, run_manager, **options)
        return ChatResult(generations=result.generations[:1])


def complete(model: ChatModel, **options: Any) -> list[Sample]:
    return asyncio.run(sample(model, [("system", "be kind"), ("user", "hello there")], **options))


def test_completion_has_text_and_usage() -> None:
    model = scripted("good day to you")
    assert complete(model) == [Sample("good day to you", Usage(4, 0, 4))]


def test_single_requests_use_consecutive_seeds() -> None:
    chat = Recording()
    assert {item.text for item in complete(ChatModel("m", chat), n=3, seed=7)} == {"7/0", "8/0", "9/0"}
    assert [item.text for item in complete(ChatModel("m", chat), n=3, seed=7)] == ["7/0", "8/0", "9/0"]


def test_model_with_n_gets_one_request() -> None:
    chat = MultiChoice()
    assert [item.text for item in complete(ChatModel("m", chat), n=3, seed=7)] == ["7/0", "7/1", "7/2"]
    (call,) = chat.calls
    assert (call["n"], call["seed"]) == (3, 7)
    assert call["messages"] == [("system", "be kind"), ("human", "hello there")]


def test_missing_choices_are_requested_one_by_one() -> None:
    chat = SingleChoice()
    assert [item.text for item in complete(ChatModel("m", chat), n=3, seed=7)] == ["7/0", "8/0", "9/0"]


def test_sampling_parameters_are_sent_only_to_models_that_support_them() -> None:
    chat = MultiChoice()
    complete(ChatModel("m", chat), seed=3, temperature=0.1, max_tokens=5, stop=["\n"])
    complete(ChatModel("m", chat, supports_sampling_params=False), n=2, seed=3, temperature=0.1, max_tokens=5, stop=["\n"])
    sent, *unsent = [{key: value for key, value in call.items() if key != "messages"} for call in chat.calls]
    assert sent == {"seed": 3, "temperature": 0.1, "max_tokens": 5, "stop": ["\n"]}
    assert unsent == [{"max_tokens": 5, "stop": None}] * 2


@given(st.text("ab\n;", max_size=20), st.lists(st.sampled_from(["\n", ";", "ab", "b\n"]), max_size=3))
def test_completion_is_cut_at_the_first_stop_sequence(text: str, stop: list[str]) -> None:
    (completion,) = complete(scripted(text), stop=stop)
    assert text.startswith(completion.text)
    assert not any(sequence in completion.text for sequence in stop)
    assert completion.text == text or any(text[len(completion.text) :].startswith(sequence) for sequence in stop)


def test_error_names_the_model() -> None:
    with pytest.raises(ModelError, match=r'the model "openai:x" did not answer: ValueError: no such key'):
        complete(ChatModel("openai:x", Recording(error=ValueError("no such key"))))
    with pytest.raises(ModelError, match="did not answer: TimeoutError"):
        complete(ChatModel("openai:x", MultiChoice(error=TimeoutError())), n=2)


def test_usertwin_errors_are_not_wrapped() -> None:
    with pytest.raises(UsageError, match=r"^mine$"):
        complete(ChatModel("m", Recording(error=UsageError("mine"))))


def test_missing_usage_counts_as_zero_and_cached_tokens_are_read() -> None:
    assert complete(ChatModel("m", Recording()))[0].usage == Usage()

    class Cached(Recording):
        def _generate(self, *args: Any, **options: Any) -> ChatResult:
            usage = {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11, "input_token_details": {"cache_read": 8}}
            return ChatResult(generations=[ChatGeneration(message=AIMessage("yes", usage_metadata=usage))])

    assert complete(ChatModel("m", Cached()))[0].usage == Usage(9, 8, 2)


def test_usage_can_be_summed() -> None:
    assert sum([Usage(1, 2, 3), Usage(10, 20, 30)], Usage()) == Usage(11, 22, 33)


@pytest.mark.parametrize("chat", [Recording(), MultiChoice(), SingleChoice()], ids=["no n", "n", "n ignored"])
def test_config_reaches_the_call_of_several_completions(chat: Recording) -> None:
    from langchain_core.callbacks import BaseCallbackHandler

    class Recorder(BaseCallbackHandler):
        def __init__(self) -> None:
            self.starts: list[tuple[Any, Any]] = []
            self.ends = 0

        def on_chat_model_start(self, *args: Any, tags: Any = None, metadata: Any = None, **options: Any) -> None:
            self.starts.append((tags, (metadata or {}).get("run")))

        def on_llm_end(self, *args: Any, **options: Any) -> None:
            self.ends += 1

    recorder = Recorder()
    complete(ChatModel("m", chat), n=3, config={"callbacks": [recorder], "tags": ["here"], "metadata": {"run": 7}})
    assert recorder.starts
    assert set(map(str, recorder.starts)) == {"(['here'], 7)"}
    assert recorder.ends == len(recorder.starts)


def test_several_completions_come_in_the_order_of_the_requests() -> None:
    for _ in range(20):
        assert [item.text for item in complete(scripted("one", "two"), n=3)] == ["one", "two", "one"]


# Reasoning and limits ------------------------------------------------------------------------------------------------


class Reasoner(Recording):
    """A model that reasons, in its text or beside it, and may be cut off or refuse a limit."""

    text: str = ""
    finish: str = "stop"
    most: int = 10**6

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        super()._generate(messages, stop, run_manager, **options)
        if options.get("max_tokens", 0) > self.most:
            raise ValueError(f"'max_tokens' is too large: {options['max_tokens']}; at most {self.most}")
        beside: dict[str, Any] = {"additional_kwargs": {"reasoning_content": "SECRET"}}
        message = AIMessage(self.text, response_metadata={"finish_reason": self.finish}, **beside)
        return ChatResult(generations=[ChatGeneration(message=message)])


def test_reasoning_is_no_part_of_a_completion_and_stops_apply_after_it() -> None:
    [item] = complete(ChatModel("m", Reasoner(text="<think>\nSECRET\n</think>\n\nhello\nMe: x")), stop=["\n"])
    assert (item.text, item.defect) == ("hello", "")
    [item] = complete(ChatModel("m", Reasoner(text="<think>SECRET")))
    assert (item.text, bool(item.defect)) == ("", True)
    assert complete(ChatModel("m", Reasoner(text="hello")))[0].text == "hello"


def test_a_completion_from_the_cache_is_the_same(tmp_path: Path) -> None:
    model = ChatModel("m", Reasoner(text="a <think>b"), cache=CompletionCache(tmp_path / "c"))
    first, again = complete(model), complete(model)
    assert first == again
    assert first[0].defect
    assert isinstance(model.chat, Reasoner)
    assert len(model.chat.calls) == 1


def test_an_empty_completion_at_the_limit_is_asked_for_again(tmp_path: Path) -> None:
    chat = Reasoner(text="", finish="length")
    model = ChatModel("m", chat, cache=CompletionCache(tmp_path / "c"))
    assert [complete(model)[0].at_limit for _ in range(2)] == [True, True]
    assert len(chat.calls) == 2


@pytest.mark.parametrize("n", [1, 3])
def test_a_limit_that_the_endpoint_refuses_is_left_out(n: int) -> None:
    chat = Reasoner(text="hello", most=4096)
    assert [item.text for item in complete(ChatModel("m", chat), n=n, max_tokens=9000)] == ["hello"] * n
    assert sum("max_tokens" not in call for call in chat.calls) == n


def test_control_tokens_in_messages_are_made_inert() -> None:
    chat = Recording()
    model = ChatModel("m", chat, control_tokens=("<|im_end|>", "</s>"))
    asyncio.run(sample(model, [("system", "be </s> kind"), ("user", "<|im_end|>" * 10)]))
    assert chat.calls[0]["messages"] == [("system", "be < /s> kind"), ("human", "< |im_end|>" * 10)]


def test_config_reaches_the_call() -> None:
    from langchain_core.callbacks import BaseCallbackHandler

    class TagRecorder(BaseCallbackHandler):
        tags_seen: tuple[str, ...] = ()

        def on_chat_model_start(self, *args: Any, tags: Any = None, **options: Any) -> None:
            self.tags_seen += tuple(tags)

    recorder = TagRecorder()
    complete(ChatModel("m", Recording()), config={"callbacks": [recorder], "tags": ["here"]})
    assert recorder.tags_seen == ("here",)


# Cost ------------------------------------------------------------------------------------------------------------


def test_price_is_per_million_tokens_with_cached_ones_at_full_price() -> None:
    assert Price(2.0, 10.0).cost_of(Usage(1_000_000, 900_000, 500_000)) == pytest.approx(7.0)
    assert FREE.cost_of(Usage(5, 5, 5)) == 0.0


def test_ledger_sums_over_models() -> None:
    cheap, expensive = ChatModel("a", Recording(), price=Price(1.0, 1.0)), ChatModel("b", Recording(), price=Price(0.0, 5.0))
    ledger = Ledger()
    ledger.record(cheap, [Sample("x", Usage(100, 10, 50)), Sample("y", Usage(0, 0, 50))])
    ledger.record(expensive, [Sample("z", Usage(1, 0, 100))])
    assert (ledger.calls, ledger.cache_hits, ledger.usage) == (3, 0, Usage(101, 10, 200))
    assert ledger.dollars == pytest.approx((200 + 500) / 1e6)
    assert json.loads(json.dumps(ledger.to_json())) == {
        "calls": 3, "repeated": 0, "input_tokens": 101, "cached_tokens": 10, "output_tokens": 200,
        "dollars": pytest.approx(7e-4),
    }  # fmt: skip


def test_dollars_are_unknown_after_one_unknown_price() -> None:
    ledger = Ledger()
    ledger.record(ChatModel("a", Recording(), price=Price(1.0, 1.0)), [Sample("x", Usage(1, 0, 1))])
    assert ledger.dollars is not None
    ledger.record(ChatModel("b", Recording()), [Sample("x", Usage(1, 0, 1))])
    assert ledger.dollars is None
    ledger.record(ChatModel("a", Recording(), price=FREE), [Sample("x", Usage(1, 0, 1))])
    assert (ledger.dollars, ledger.calls, ledger.to_json()["dollars"]) == (None, 3, None)


def test_sample_records_its_calls_in_the_ledger() -> None:
    ledger = Ledger()
    complete(replace(scripted("good day to you"), price=Price(1.0, 2.0)), n=2, ledger=ledger)
    assert (ledger.calls, ledger.usage) == (2, Usage(8, 0, 8))
    assert ledger.dollars == pytest.approx((8 + 16) / 1e6)
    with pytest.raises(ModelError):
        complete(ChatModel("m", Recording(error=ValueError("no"))), ledger=ledger)
    assert ledger.calls == 2


# Schemas --------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"felt": {"type": "string"}}, "required": ["felt"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


def test_schema_is_sent_only_to_models_that_support_one() -> None:
    supported, unsupported, unused = Recording(), MultiChoice(), Recording()
    complete(ChatModel("m", supported, structured=True), schema=SCHEMA)
    complete(ChatModel("m", unsupported), schema=SCHEMA, n=2)
    complete(ChatModel("m", unused, structured=True))
    assert supported.calls[0]["response_format"] == FORMAT
    assert not any("response_format" in call for call in (*unsupported.calls, *unused.calls))


# The completion cache ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[CompletionCache]:
    cache = CompletionCache(tmp_path / "cache.sqlite")
    yield cache
    cache.close()


def test_repeated_request_is_answered_from_the_cache_with_its_usage(cache: CompletionCache) -> None:
    model, ledger = replace(scripted("one;tail", "two", "three"), cache=cache), Ledger()
    first = complete(model, n=2, stop=[";"], ledger=ledger)
    assert [item.text for item in first] == ["one", "two"]
    assert complete(model, n=2, stop=[";"], ledger=ledger) == first
    assert complete(replace(model, chat=scripted("other").chat), n=2, stop=[";"], ledger=ledger) == first
    assert (ledger.calls, ledger.cache_hits, ledger.usage) == (2, 4, first[0].usage + first[1].usage)


def test_cached_completion_costs_nothing_even_if_the_price_is_unknown(cache: CompletionCache) -> None:
    model = replace(scripted("one"), cache=cache)
    complete(model)
    ledger = Ledger()
    complete(model, ledger=ledger)
    assert ledger == Ledger(cache_hits=1)
    assert ledger.dollars == 0.0


@pytest.mark.parametrize(
    ("options", "model"),
    [
        ({"seed": 1}, {}),
        ({"temperature": 0.1}, {}),
        ({"max_tokens": 7}, {}),
        ({"stop": ["\n"]}, {}),
        ({"n": 2}, {}),
        ({"schema": SCHEMA}, {"structured": True}),
        ({"bypass_cache": True}, {"bypass_cache": {"extra_body": {"cache_prompt": False}}}),
        ({}, {"name": "other"}),
        ({}, {"identity": "other weights"}),
    ],
)
def test_every_option_that_can_change_a_completion_is_part_of_the_cache_key(
    cache: CompletionCache, options: dict[str, Any], model: dict[str, Any]
) -> None:
    chat = Recording()
    complete(ChatModel("m", chat, cache=cache))
    complete(replace(ChatModel("m", chat, cache=cache), **model), **options)
    count = len(chat.calls)
    assert count == 1 + options.get("n", 1)
    complete(replace(ChatModel("m", chat, cache=cache), **model), **options)
    complete(ChatModel("m", chat, cache=cache))
    assert len(chat.calls) == count


def test_prompt_and_role_are_part_of_the_cache_key(cache: CompletionCache) -> None:
    chat = Recording()
    prompts: Sequence[list[tuple[str, str]]] = [
        [("user", "ab")], [("system", "ab")], [("user", "a"), ("user", "b")], [("user", "ab"), ("user", "")]
    ]  # fmt: skip
    for prompt in (*prompts, *prompts):
        asyncio.run(sample(ChatModel("m", chat, cache=cache), prompt))
    assert len(chat.calls) == 4


def test_price_and_unsent_options_are_not_part_of_the_cache_key(cache: CompletionCache) -> None:
    chat = Recording()
    model = ChatModel("m", chat, supports_sampling_params=False, cache=cache)
    complete(model, temperature=0.1, stop=["x"], schema=SCHEMA)
    complete(replace(model, price=FREE), temperature=0.9, stop=[])
    assert len(chat.calls) == 1


def test_failed_call_is_not_cached(cache: CompletionCache) -> None:
    chat = Recording(error=ValueError("busy"))
    with pytest.raises(ModelError):
        complete(ChatModel("m", chat, cache=cache))
    chat.error = None
    assert complete(ChatModel("m", chat, cache=cache))[0].text == "0/0"
    assert len(chat.calls) == 2


@given(text=st.text(max_size=20))
def test_any_text_is_unchanged_by_the_cache(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = CompletionCache(tmp_path_factory.mktemp("cache") / "cache.sqlite")
    model = replace(scripted(text), cache=cache)
    assert complete(model) == complete(model) == [Sample(text, Usage(4, 0, len(text.split())))]
    cache.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("so \ud83d", "so \ufffd"), ("\ude00 so", "\ufffd so"), ("\ud83d\ude00 \x00", "😀 \x00"), ("\ufeffa", "\ufeffa")],
)
def test_lone_surrogate_is_replaced(cache: CompletionCache, text: str, expected: str) -> None:
    model = replace(scripted(text), cache=cache)
    assert [item.text for item in complete(model)] == [item.text for item in complete(model)] == [expected]
    assert expected.encode()


# OpenAI's own client ------------------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint(endpoint: Endpoint) -> Endpoint:
    """The shared endpoint, with a JSON object as its content."""
    endpoint.content = '{"felt": "tired"}'
    return endpoint


@pytest.mark.parametrize(("n", "usage"), [(1, Usage(100, 40, 10)), (3, Usage(100, 40, 30))])
@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_openai_client_sends_one_request_and_usage_counts_once(
    endpoint: Endpoint, n: int, usage: Usage, schema: dict[str, Any] | None
) -> None:
    ledger = Ledger()
    model = load_model(f"openai:m@{endpoint.url}", price=Price(1.0, 10.0))
    samples = complete(model, n=n, seed=7, temperature=0.3, max_tokens=50, stop=[";"], schema=schema, ledger=ledger)
    assert [item.text for item in samples] == ['{"felt": "tired"}'] * n
    assert (ledger.calls, ledger.usage) == (n, usage)
    assert sum((item.usage for item in samples), Usage()) == usage
    assert ledger.dollars == pytest.approx((100 + 10 * usage.output_tokens) / 1e6)
    [request] = endpoint.requests
    assert (request["seed"], request["temperature"], request["stop"]) == (7, 0.3, [";"])
    assert request.get("max_completion_tokens", request.get("max_tokens")) == 50
    assert request.get("n") == (3 if n == 3 else None)
    assert request.get("response_format") == (None if schema is None else FORMAT)
    assert [(m["role"], m["content"]) for m in request["messages"]] == [("system", "be kind"), ("user", "hello there")]


def test_hosted_reasoning_model_gets_single_requests_without_sampling_parameters(endpoint: Endpoint) -> None:
    ledger = Ledger()
    complete(load_model(f"openai:gpt-5-mini@{endpoint.url}"), n=3, seed=7, stop=["\n"], schema=SCHEMA, ledger=ledger)
    assert len(endpoint.requests) == 3
    assert all(request["response_format"] == FORMAT for request in endpoint.requests)
    assert not any({"seed", "temperature", "stop"} & request.keys() for request in endpoint.requests)
    assert (ledger.calls, ledger.usage, ledger.dollars) == (3, Usage(300, 120, 30), None)


def test_endpoint_with_one_choice_gets_two_more_requests(endpoint: Endpoint) -> None:
    endpoint.max_choices = 1
    samples = complete(load_model(f"openai:m@{endpoint.url}"), n=3, seed=7)
    assert endpoint.requests[0]["seed"] == 7
    assert sorted(request["seed"] for request in endpoint.requests[1:]) == [8, 9]
    assert sum((item.usage for item in samples), Usage()) == Usage(300, 120, 30)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("reason", "content", "text"),
    [("length", '{"felt": "tir', '{"felt": "tir'), ("content_filter", None, ""), ("stop", None, ""), ("stop", "  ", "  ")],
)
def test_truncated_or_filtered_reply_is_a_completion_and_counts(
    endpoint: Endpoint, n: int, reason: str, content: str | None, text: str
) -> None:
    endpoint.finish_reason, endpoint.content = reason, content
    ledger = Ledger()
    samples = complete(load_model(f"openai:m@{endpoint.url}"), n=n, schema=SCHEMA, ledger=ledger)
    assert [item.text for item in samples] == [text] * n
    assert ledger.calls == n
    if reason != "content_filter" or hasattr(ContentFilterFinishReasonError(), "completion"):  # older clients do not report it
        assert (ledger.usage, len(endpoint.requests)) == (Usage(100, 40, 10 * n), 1)


def test_missing_endpoint_is_a_model_error(endpoint: Endpoint) -> None:
    model = load_model("openai:m@http://127.0.0.1:1/v1")
    model = replace(model, chat=model.chat.model_copy(update={"max_retries": 0}))
    with pytest.raises(ModelError, match=r'the model "openai:m@http://127\.0\.0\.1:1/v1" did not answer'):
        complete(model, schema=SCHEMA)
    assert endpoint.requests == []


def test_ledger_adds_another_ledger() -> None:
    first, second = Ledger(2, 1, Usage(10, 4, 3), 0.5), Ledger(5, 0, Usage(1, 1, 1), 0.25)
    first.add(second.to_json())
    assert first == Ledger(7, 1, Usage(11, 5, 4), 0.75)
    first.add(Ledger(1, 0, Usage(), None).to_json())
    assert (first.calls, first.dollars) == (8, None)
