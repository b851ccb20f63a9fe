"""Keys and passwords: taken out of URLs, and masked in everything that usertwin prints, raises or writes.

Known secrets are the values of environment variables with names like OPENAI_API_KEY, and those that `remember` was given. A
server may repeat a key in its error, so a text is masked where it leaves the process.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import threading
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote, unquote

MASK = "***"
_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|_PASS)S?_?\d*$", re.IGNORECASE)
#: Shorter values are words such as "none" or "test", which occur in any text.
_MIN_LENGTH, _MIN_REMEMBERED = 8, 5
#: So do words and numbers, such as the passwords "postgres" and "12345678" of a developer's database: to mask them would change
#: what people said, and the numbers in files. A key that is named for an endpoint is masked whatever it looks like.
_WORD = re.compile(r"[a-z]{1,12}|[0-9]{1,12}")
_PART = r"[^/?#\s\"'`<>\\]"
#: User name and password, or a token, before the host of a URL.
_LOGIN = re.compile(rf"(https?://){_PART}+@|([a-z][a-z0-9+.-]{{0,15}}://)[^/?#\s\"'`<>\\:@]*:{_PART}+@", re.IGNORECASE)
_LOGIN_AND_HOST = re.compile(rf"(https?://)({_PART}+)@((?:(?!@){_PART})+)", re.IGNORECASE)

_lock = threading.Lock()
_remembered: set[str] = set()
_logins: dict[str, str] = {}  # by scheme and host


def remember(*secrets: str) -> None:
    """Mask these values from now on."""
    with _lock:
        _remembered.update(secret for secret in secrets if len(secret) >= _MIN_REMEMBERED)


def take_logins(text: str) -> str:
    """Return a text without the logins in its http URLs; each is kept for its host until the process ends."""

    def take(match: re.Match[str]) -> str:
        scheme, login, host = match.groups()
        user, _, password = login.partition(":")
        remember(password or user)
        with _lock:
            _logins[(scheme + host).lower()] = f"{unquote(user)}:{unquote(password)}"
        return scheme + host

    return _LOGIN_AND_HOST.sub(take, text) if "@" in text else text


def login_of(url: str) -> str | None:
    """Return the login "user:password" that `take_logins` took out of a URL of this host; None if there was none."""
    host = re.match(r"https?://[^/?#]+", url, re.IGNORECASE)
    return None if host is None else _logins.get(host[0].lower())


def basic_authorization(login: str) -> str:
    """Return the value of the Authorization header for the login "user:password"; both are masked from now on."""
    encoded = base64.b64encode(login.encode()).decode()
    user, _, password = login.partition(":")
    remember(encoded, password or user)
    return f"Basic {encoded}"


def mask(text: str) -> str:
    """Return a text with known secrets replaced by `MASK`, and without the logins in its URLs."""
    if len(text) < _MIN_REMEMBERED:
        return text
    if "://" in text:
        text = _LOGIN.sub(lambda match: match[1] or match[2], text)
    pattern = _pattern(frozenset(_known_secrets()))
    return text if pattern is None else pattern.sub(MASK, text)


def without_secrets(error: BaseException) -> BaseException | None:
    """Return an error that may be the cause of another; None if its text, or that of its own causes, holds a secret."""
    cause: BaseException | None = error
    while cause is not None:
        if mask(str(cause)) != str(cause):
            return None
        cause = cause.__cause__ or cause.__context__
    return error


def _known_secrets() -> Iterator[str]:
    with _lock:
        yield from tuple(_remembered)
    for name, value in os.environ.items():
        if len(value) >= _MIN_LENGTH and _is_secret(name) and not (os.path.isabs(value) or _WORD.fullmatch(value.strip())):
            yield value.strip()


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    """Return whether an environment variable has the name of a secret."""
    return _SECRET_NAME.search(name) is not None


@lru_cache(maxsize=8)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """Return the pattern of the secrets as they are, and as JSON, HTML and URLs write them; None without secrets."""
    forms = {
        form
        for secret in secrets
        for form in (
            secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], html.escape(secret),
            quote(secret, safe=""),
        )
    }  # fmt: skip
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None
