"""Clients of OpenAI-compatible endpoints: which key goes to which URL.

OPENAI_API_KEY, and the headers that OpenAI's client takes from the environment, go to OpenAI, or to the URL in OPENAI_BASE_URL.
Any other URL gets only the key or login that is named for it.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from usertwin.personas import ModelError
from usertwin.personas.secrets import basic_authorization, login_of, remember, take_logins

from .model_name import ModelName

_OPENAI = "https://api.openai.com"
#: Headers that say whose key it is, and how the variables that set them begin.
_OWNER_HEADERS = {"OpenAI-Organization": "OPENAI_ORG", "OpenAI-Project": "OPENAI_PROJECT"}


def hosted_chat(name: ModelName) -> Any:
    """Return LangChain's client of a hosted model. ModelError if its key is missing."""
    own = _is_openai(name.url)
    variable = name.key_variable or ("OPENAI_API_KEY" if own else "")
    key = os.environ.get(variable, "")
    if variable and not key:
        endpoint = "" if name.url else f", or name an endpoint: openai:{name.target}@http://…"
        raise ModelError(f'the model "{name}" needs a key: set {variable}{endpoint}')
    return openai_chat(name.target, name.url or _base_url(), key, own=own)


def openai_chat(model: str, url: str, key: str = "", *, own: bool = False) -> Any:
    """Return LangChain's client of an endpoint; `own` endpoints get what the environment holds for OpenAI.

    A key with a colon, which no token has, is a login "user:password".
    """
    # A kept-alive connection belongs to the event loop that opened it, and the caller may use several, one after the other.
    headers = {"Connection": "close"} | ({} if own else dict.fromkeys(_environment_headers(), ""))
    login = login_of(url) if own or not key else key if ":" in key else None
    key = key or "none"  # OpenAI's client demands one
    remember(key)
    if login is not None:
        headers["Authorization"] = basic_authorization(login)
    elif "Authorization" in headers:
        headers["Authorization"] = f"Bearer {key}"
    # `sample` repeats requests: with retries of the client, too, they would multiply.
    # To connect, read, write and wait. LangChain shares one client between models of the same URL and the same timeout, and an
    # agent's model, which runs in another event loop, has a single number, if any.
    timeout: Any = (300.0,) * 4
    return _client_class()(
        model=model, base_url=url or None, api_key=lambda: key, default_headers=headers, timeout=timeout, max_retries=0
    )


@cache
def _client_class() -> type[Any]:
    """Return LangChain's client class, with messages that OpenAI's client sends as they are.

    LangChain has written them in the form of the endpoint. OpenAI's client compares each with every type of message all the
    same, which takes a third of the processor time of a request; it leaves out what is in `extra_body`.
    """
    from langchain_openai import ChatOpenAI

    class EndpointChat(ChatOpenAI):
        def _get_request_payload(self, input_: Any, *, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
            payload = super()._get_request_payload(input_, stop=stop, **kwargs)
            if "messages" in payload:
                payload["extra_body"] = {**(payload.get("extra_body") or {}), "messages": payload["messages"]}
                payload["messages"] = []
            return payload

    return EndpointChat


def _base_url() -> str:
    """Return the URL that the environment names in place of OpenAI's; "" without one."""
    return take_logins(os.environ.get("OPENAI_API_BASE") or os.environ.get("OPENAI_BASE_URL") or "")


def _is_openai(url: str) -> bool:
    parts = urlsplit(url)
    return not url or f"{parts.scheme}://{parts.netloc}".lower() == _OPENAI or url.rstrip("/") == _base_url().rstrip("/")


def _environment_headers() -> list[str]:
    """Return the names of the headers that OpenAI's client takes from the environment."""
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    names = [line.partition(":")[0].strip() for line in lines if ":" in line]
    names += [name for name, prefix in _OWNER_HEADERS.items() if any(key.startswith(prefix) for key in os.environ)]
    return ["Authorization" if name.lower() == "authorization" else name for name in names]
