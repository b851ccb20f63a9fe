"""Which key goes to which endpoint, and that no key or password is stored, printed or raised."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import pytest
from pydantic import SecretStr

from conftest import Endpoint
from usertwin.memory import ChatModel
from usertwin.memory.models.chat import sample
from usertwin.personas import ModelError, UsageError
from usertwin.simulator import load_model
from usertwin.simulator.backends.endpoint import openai_chat

KEY, OTHER = "sk-canary-of-openai", "gsk-canary-of-another"
ELSEWHERE = "https://elsewhere.example/v1"
SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object", "properties": {}}}}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", OTHER)


def ask(model: ChatModel) -> str:
    [reply] = asyncio.run(sample(model, [("user", "hi")]))
    return reply.text


def authorization(endpoint: Endpoint, suffix: str = "", login: str = "") -> str:
    """Return the header that an endpoint gets from a model named with its URL."""
    ask(load_model(f"openai:m@{endpoint.url.replace('//', '//' + login)}{suffix}"))
    return endpoint.headers[-1]["authorization"]


def test_a_url_gets_no_key_that_is_not_named_for_it(endpoint: Endpoint) -> None:
    assert authorization(endpoint) == "Bearer none"
    assert KEY not in str(endpoint.headers)


def test_a_url_gets_the_key_that_is_named_for_it(endpoint: Endpoint) -> None:
    assert authorization(endpoint, "#OTHER_KEY") == f"Bearer {OTHER}"


def test_the_url_of_the_environment_gets_its_key(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url + "/")
    ask(load_model("openai:m"))
    assert endpoint.headers[-1]["authorization"] == f"Bearer {KEY}"
    assert authorization(endpoint) == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("url", "gets"),
    [
        ("https://api.openai.com/v1", True),
        ("https://API.openai.com/v1/", True),
        ("http://api.openai.com/v1", False),
        ("https://api.openai.com.evil.example/v1", False),
        ("https://api.openai.com@evil.example/v1", False),
        ("https://api.openai.com:8443/v1", False),
        ("https://evil.example/api.openai.com", False),
    ],
)
def test_openai_is_recognised_by_its_whole_host(url: str, gets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED", raising=False)
    chat = load_model(f"openai:m@{url}").chat
    assert (chat.openai_api_key() == KEY) is gets  # pyright: ignore


def test_headers_of_the_environment_are_for_openai_only(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-canary")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-canary")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Token: header-canary\nauthorization: Bearer header-canary")
    assert authorization(endpoint, "#OTHER_KEY") == f"Bearer {OTHER}"
    assert "canary" not in str(endpoint.headers).replace(OTHER, "")


@pytest.mark.parametrize("login", ["ann:p%40ss-canary@", "ann:p@ss-canary@"])
def test_a_login_in_a_url_works_and_stays_out_of_the_name(endpoint: Endpoint, login: str) -> None:
    assert authorization(endpoint, login=login) == "Basic YW5uOnBAc3MtY2FuYXJ5"
    model = load_model(f"openai:m@{endpoint.url.replace('//', '//' + login)}")
    assert model.name == f"openai:m@{endpoint.url}"
    assert "canary" not in repr(model)
    assert authorization(endpoint) == "Basic YW5uOnBAc3MtY2FuYXJ5"  # the stored name finds the login in the same process


def test_a_login_can_be_named_by_a_variable(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXY_LOGIN", "ann:p@ss-canary")
    assert authorization(endpoint, "#PROXY_LOGIN") == "Basic YW5uOnBAc3MtY2FuYXJ5"
    assert load_model(f"openai:m@{endpoint.url}#PROXY_LOGIN").name == f"openai:m@{endpoint.url}#PROXY_LOGIN"


def test_a_variable_that_is_not_set_is_an_error(endpoint: Endpoint) -> None:
    with pytest.raises(ModelError, match=r"needs a key: set NO_SUCH_KEY$"):
        load_model(f"openai:m@{endpoint.url}#NO_SUCH_KEY")


@pytest.mark.parametrize("name", ["openai:m@http://x/v1#", "openai:m@http://x/v1#A-B", "openai:m@http://x/v1#A#B"])
def test_only_a_variable_can_follow_the_url(name: str) -> None:
    with pytest.raises(UsageError, match='write its name after "#"'):
        load_model(name)


def test_a_server_that_repeats_the_key_does_not_reach_the_error(endpoint: Endpoint) -> None:
    endpoint.refusal = f"wrong key {OTHER} for https://ann:canary-pw@host/v1"
    with pytest.raises(ModelError, match=r"wrong key \*\*\* for https://host/v1") as caught:
        ask(load_model(f"openai:m@{endpoint.url}#OTHER_KEY"))
    text = "".join(traceback.format_exception(caught.value))
    assert "canary" not in text


def test_a_key_that_was_passed_in_is_masked_too(endpoint: Endpoint) -> None:
    from langchain_openai import ChatOpenAI

    key = SecretStr("canary passed in")
    chat = ChatOpenAI(model="m", base_url=endpoint.url, api_key=key, max_retries=0, default_headers={"Connection": "close"})
    endpoint.refusal = "wrong key canary passed in"
    with pytest.raises(ModelError, match=r"wrong key \*\*\*"):
        ask(ChatModel("mine", chat))


def test_an_error_without_a_secret_keeps_its_cause(endpoint: Endpoint) -> None:
    endpoint.refusal = "no such model"
    with pytest.raises(ModelError, match="no such model") as caught:
        ask(load_model(f"openai:m@{endpoint.url}"))
    assert caught.value.__cause__ is not None


def test_a_server_that_says_the_key_does_not_reach_the_text(endpoint: Endpoint) -> None:
    endpoint.content = f"your key is {OTHER}"
    assert ask(load_model(f"openai:m@{endpoint.url}#OTHER_KEY")) == "your key is ***"


def test_the_key_that_is_named_takes_the_place_of_an_earlier_login(endpoint: Endpoint) -> None:
    authorization(endpoint, login="ann:canary-pw@")
    assert authorization(endpoint, "#OTHER_KEY") == f"Bearer {OTHER}"


@pytest.mark.parametrize(
    "options", [{}, {"n": 2, "seed": 3, "extra_body": {"cache_prompt": False}}, {"response_format": SCHEMA}]
)
def test_a_request_is_that_of_langchains_own_client(endpoint: Endpoint, options: dict[str, Any]) -> None:
    from langchain_openai import ChatOpenAI

    messages = [("system", "Be Ann."), ("user", "hi ☃"), ("assistant", 'a "quote"'), ("user", "and <tags>")]
    plain = ChatOpenAI(model="m", base_url=endpoint.url, api_key=lambda: "none")
    for chat in (plain, openai_chat("m", endpoint.url)):
        asyncio.run(chat.ainvoke(messages, **options))
        chat.invoke(messages, **options)
    half = len(endpoint.requests) // 2
    assert endpoint.requests[:half] == endpoint.requests[half:]
    assert [len(request["messages"]) for request in endpoint.requests] == [4] * (2 * half)
