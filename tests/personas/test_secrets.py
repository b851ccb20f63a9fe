"""Keys and passwords: what is masked, and what is taken out of URLs."""

from __future__ import annotations

import html
import json

import pytest

from usertwin.personas import ModelError, UsageError, secrets
from usertwin.personas.secrets import basic_authorization, login_of, mask, remember, take_logins

NO_LOGIN = "no login: http://host/@ann, https://host?q=a@b, ann@host.org"
KEY = 'sk-canary/"<4f2a>&é'


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_remembered", set[str]())
    monkeypatch.setattr(secrets, "_logins", dict[str, str]())


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "GROQ_API_KEY_2", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "db_pass", "MY_SECRETS"]
)
def test_values_of_variables_with_the_name_of_a_secret_are_masked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "value-to-hide")
    assert mask("wrong key: value-to-hide!") == "wrong key: ***!"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "falsefalse"),
        ("KEYBOARD", "de-latin1"),
        ("A_KEY", "none"),
        ("SECRET_NAME", "production"),
        ("SSH_KEY", "/home/ann/.ssh/id"),
    ],
)
def test_other_values_are_not(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert mask(f"it is {value} here") == f"it is {value} here"


@pytest.mark.parametrize("write", [str, json.dumps, html.escape, lambda text: json.dumps(text, ensure_ascii=False)])
def test_a_secret_is_masked_as_files_write_it(write: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert callable(write)
    masked = mask(f"a {write(KEY)} b")
    assert "canary" not in masked
    assert masked.startswith("a ")
    assert masked.endswith(" b")


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("openai:m@http://ann:s3cret@host:8000/v1", "openai:m@http://host:8000/v1"),
        ("openai:m@https://token@host/v1 and http://a:b@c", "openai:m@https://host/v1 and http://c"),
        ("http://ann:p@ss@host/v1", "http://host/v1"),
        (NO_LOGIN, NO_LOGIN),
    ],
)
def test_logins_are_taken_out_of_urls(text: str, without: str) -> None:
    assert mask(text) == without
    assert take_logins(text) == without


def test_other_urls_lose_passwords_only() -> None:
    assert mask("postgres://ann:pw@db/x git+ssh://git@host/x") == "postgres://db/x git+ssh://git@host/x"


def test_a_login_is_found_again_for_its_host_only() -> None:
    take_logins("openai:m@http://ann:p%40ss-word@Host:8000/v1")
    assert login_of("http://host:8000/other") == "ann:p@ss-word"
    assert login_of("http://host/v1") is None
    assert login_of("https://host:8000/v1") is None
    assert basic_authorization("ann:p@ss") == "Basic YW5uOnBAc3M="


def test_a_taken_password_is_masked_in_every_form() -> None:
    take_logins("http://ann:p%40ss-word@host")
    header = basic_authorization("ann:p@ss-word")
    assert mask(f"401 for p@ss-word, p%40ss-word, {header}") == "401 for ***, ***, Basic ***"


def test_short_values_are_not_remembered() -> None:
    remember("test", "")
    assert mask("a test") == "a test"


def test_errors_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1")
    error = ModelError("401: wrong key sk-canary-1")
    assert (str(error), repr(error)) == ("401: wrong key ***", "ModelError('401: wrong key ***')")
    assert str(UsageError("http://ann:pw@host: no such file")) == "http://host: no such file"


@pytest.mark.parametrize("word", ["postgres", "password", "12345678"])
def test_words_and_numbers_in_the_environment_stay_in_texts(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("DB_PASSWORD", word)
    text = f'{{"text": "my {word}", "n": {word if word.isdigit() else 0}}}'
    assert mask(text) == text
