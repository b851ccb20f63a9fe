"""Any HTTP endpoint as an agent, by a TOML file: what to send where, and where in the answer the reply is.

url = "https://desk.example/chat"       # may hold {thread_id}
reply = "answer.text"                   # JMESPath, or a JSON pointer such as "/answer/text"

[headers]
Authorization = "Bearer ${DESK_KEY}"    # from the environment

[body]
text = "{message}"                      # also {messages}, {history}, {thread_id}

[keep]                                  # sent back from the second turn on, in the body as {session}
session = "session_id"
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote, urlsplit

from usertwin.personas import AgentError, UsageError
from usertwin.personas.reading import STRICT, as_type, decoded, parse_json, parse_toml, read_file
from usertwin.personas.secrets import basic_authorization, login_of, mask, remember, take_logins

from .arguments import Moment
from .call import AgentCall, Returned
from .turn import Message, clean

if TYPE_CHECKING:
    import httpx

_WAY_OUT = "docs/agents.md shows such a file"
_ENVIRONMENT = re.compile(r"\$\{(\w+)\}")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_PLACEHOLDERS = ("message", "messages", "history", "thread_id")
#: Headers whose values are masked wherever they would be shown.
_SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)
#: Attempts of a request that the server refuses since it is busy, the longest wait between them in seconds, and characters of a
#: refusal in our error and of a streamed reply.
_ATTEMPTS, _MAX_WAIT, _SHOWN, _MAX_CHARACTERS = 6, 60.0, 300, 10_000_000
_BUSY = {429, 503}
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpMapping:
    """The contents of the file.

    Attributes:
        url: where to send the request; placeholders in it are percent-encoded.
        method: the HTTP method.
        headers: names and values of the headers.
        body: the JSON of the request. A text that is only a placeholder becomes its value, such as the list of messages.
        reply: where the reply is in the JSON of the answer, or of each piece of a stream; "" for an answer that is plain text.
        state: where the state of the conversation is in the answer; "" for none.
        stream: how a stream is divided: into "lines" of JSON, server-sent events ("sse"), or pieces of "text". Server-sent
            events are recognised by their type, too.
        keep: names of further placeholders, and where their values are in the answer. Before the first answer, fields of the
            body that hold them are left out.
    """

    __pydantic_config__ = STRICT

    url: str
    method: Literal["POST", "PUT", "PATCH", "GET"] = "POST"
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: dict[str, Any] | list[Any] | None = None
    reply: str = ""
    state: str = ""
    stream: Literal["lines", "sse", "text"] | None = None
    keep: dict[str, str] = field(default_factory=dict[str, str])


def http_agent(file: str | Path) -> AgentCall:
    """Return the HTTP endpoint that a TOML file describes as an agent.

    Raises:
        UsageError: the file cannot be read, or a value in it is wrong; the message names the line.
    """
    path = Path(file).expanduser()
    mapping, text = read_file(path, lambda raw: _parsed(path, raw), way_out=_WAY_OUT, error=UsageError)
    kept = dict[str, dict[str, Any]]()
    call = _Http(mapping, _headers(mapping), kept, {key: _extractor(path, text, key, where) for key, where in _places(mapping)})
    return AgentCall(call, ours=True, end=lambda thread_id: kept.pop(thread_id, None))


# The file ---------------------------------------------------------------------------------------------------------------


def _parsed(path: Path, raw: bytes) -> tuple[HttpMapping, str]:
    """Return the checked contents of the file, with the values of environment variables, and its text."""
    text = decoded(raw)
    try:
        mapping = as_type(HttpMapping, parse_toml(text))
    except ValueError as error:
        place = re.search(r"at line (\d+)", str(error))
        name = re.match(r"[\w.-]+(?=: )", str(error))
        line = int(place[1]) if place else _line_of(text, name[0].rpartition(".")[2] if name else "")
        raise _error(path, line, str(error)) from None
    known = {*_PLACEHOLDERS, *mapping.keep}
    for key, value in (("url", mapping.url), ("headers", mapping.headers), ("body", mapping.body)):
        for name in _names(_PLACEHOLDER, _without_environment(value)):
            if name not in known:
                way_out = f"use {', '.join(f'{{{placeholder}}}' for placeholder in sorted(known))}"
                raise _error(path, _line_of(text, f"{{{name}}}", key), f'"{{{name}}}" is not a placeholder; {way_out}')
        for name in _names(_ENVIRONMENT, value):
            if not os.environ.get(name):
                raise _error(path, _line_of(text, f"${{{name}}}", key), f"the environment variable {name} is not set; set it")
    if twice := set(_PLACEHOLDERS) & mapping.keep.keys():
        raise _error(
            path, _line_of(text, min(twice)), f'[keep] names "{min(twice)}", which is a placeholder of ours; rename it'
        )
    url = take_logins(_with_environment(mapping.url))
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).netloc:
        raise _error(path, _line_of(text, "url"), f'"{url}" is not a URL of http or https')
    body = _with_environment(mapping.body)
    return HttpMapping(
        url=url, method=mapping.method, headers=_with_environment(mapping.headers), body=body, reply=mapping.reply,
        state=mapping.state, stream=mapping.stream, keep=mapping.keep,
    ), text  # fmt: skip


def _error(path: Path, line: int, text: str) -> UsageError:
    return UsageError(f"{path}:{line}: {text}" + ("" if ";" in text else f"; {_WAY_OUT}"))


def _line_of(text: str, *words: str) -> int:
    """Return the number of the first line with one of the words, as a key if it is a name; 1 without one."""
    for word in filter(None, words):
        pattern = (
            rf"""^\s*(?:\[\s*)?["']?{re.escape(word)}["']?\s*(?:=|\])""" if word.replace("-", "_").isidentifier() else None
        )
        for number, line in enumerate(text.splitlines(), 1):
            if re.match(pattern, line) if pattern else word in line.partition("#")[0]:
                return number
    return 1


def _names(pattern: re.Pattern[str], value: Any) -> list[str]:
    return [name for text in _texts(value) for name in pattern.findall(text)]


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in cast("Mapping[str, Any]", value).values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in cast("list[Any]", value) for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def _mapped(change: Callable[[str], Any], value: Any) -> Any:
    """Return a JSON value with each of its texts changed; fields that become `_ABSENT` are left out."""
    if isinstance(value, Mapping):
        fields = {key: _mapped(change, item) for key, item in cast("Mapping[str, Any]", value).items()}
        return {key: item for key, item in fields.items() if item is not _ABSENT}
    if isinstance(value, list):
        return [item for item in (_mapped(change, item) for item in cast("list[Any]", value)) if item is not _ABSENT]
    return change(value) if isinstance(value, str) else value


def _without_environment(value: Any) -> Any:
    return _mapped(lambda text: _ENVIRONMENT.sub("", text), value)


def _with_environment(value: Any) -> Any:
    """Return a value with environment variables filled in; they are masked from now on."""

    def fill(match: re.Match[str]) -> str:
        secret = os.environ[match[1]].strip()
        remember(secret)
        return secret

    return _mapped(lambda text: _ENVIRONMENT.sub(fill, text), value)


def _headers(mapping: HttpMapping) -> dict[str, str]:
    for name, value in mapping.headers.items():
        if _SECRET_HEADER.search(name):
            remember(value, value.rpartition(" ")[2])
    login = login_of(mapping.url)
    authorization = {} if login is None else {"Authorization": basic_authorization(login)}
    return authorization | mapping.headers


def _places(mapping: HttpMapping) -> list[tuple[str, str]]:
    named = [("reply", mapping.reply), ("state", mapping.state), *mapping.keep.items()]
    return [(name, where) for name, where in named if where]


def _extractor(path: Path, text: str, key: str, where: str) -> Callable[[Any], Any]:
    """Return what finds a value in JSON, None if it is not there. UsageError if the expression is wrong."""
    if where.startswith("/"):
        from jsonpointer import JsonPointer, JsonPointerException

        try:
            pointer = JsonPointer(where)
        except JsonPointerException as error:
            raise _error(path, _line_of(text, key), f'{key}: "{where}" is not a JSON pointer ({error})') from None
        return lambda value: pointer.resolve(value, None)
    import jmespath
    from jmespath.exceptions import JMESPathError

    try:
        return jmespath.compile(where).search
    except JMESPathError as error:
        reason = " ".join(str(error).split())
        raise _error(path, _line_of(text, key), f'{key}: "{where}" is not a JMESPath expression ({reason})') from None


# The requests -----------------------------------------------------------------------------------------------------------


class _Http:
    """Sends the requests. A client keeps its connections, which belong to one event loop."""

    def __init__(
        self, mapping: HttpMapping, headers: dict[str, str], kept: dict[str, dict[str, Any]],
        places: Mapping[str, Callable[[Any], Any]],
    ) -> None:  # fmt: skip
        self.mapping, self.headers, self.kept, self.places = mapping, headers, kept, places
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = weakref.WeakKeyDictionary()

    async def __call__(self, messages: list[Message], thread_id: str) -> Returned:
        moment = Moment(messages, thread_id)
        values: dict[str, Any] = {
            "message": moment.text, "messages": messages, "history": moment.value("history"), "thread_id": thread_id,
            **dict.fromkeys(self.mapping.keep, _ABSENT), **self.kept.get(thread_id, {}),
        }  # fmt: skip
        body = _mapped(lambda text: _filled(text, values), self.mapping.body)
        url = _PLACEHOLDER.sub(lambda match: quote(_written(values[match[1]]), safe=""), self.mapping.url)
        headers = {name: _written(_filled(text, values)) for name, text in self.headers.items()}
        answers, is_stream = await self._answers(url, headers, body)
        found = [self._reply_of(answer) for answer in answers]
        last = next((answer for answer in reversed(answers) if not isinstance(answer, str)), None)
        for name in self.mapping.keep:
            for answer in answers:
                if not isinstance(answer, str) and (value := self.places[name](answer)) is not None:
                    self.kept.setdefault(thread_id, {})[name] = value
        state = self.places["state"](last) if self.mapping.state and last is not None else None
        if is_stream:
            return Returned(iter([piece for piece in found if piece is not None]), state)
        if found == [None]:
            keys = f"; it has {', '.join(last)}" if isinstance(last, dict) else ""
            raise AgentError(clean(f'the answer of {self.mapping.url} has nothing at reply = "{self.mapping.reply}"{keys}'))
        return Returned(found[0], state)

    def _reply_of(self, answer: Any) -> Any:
        if "reply" not in self.places:
            return answer
        found = None if isinstance(answer, str) else self.places["reply"](answer)
        return str(found) if isinstance(found, int | float) else found

    async def _answers(self, url: str, headers: dict[str, str], body: Any) -> tuple[list[Any], bool]:
        """Return the answer, or the pieces of a stream, and whether it was one. AgentError if the server does not answer."""
        import httpx
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        retrying = AsyncRetrying(
            retry=retry_if_exception_type((_BusyError, httpx.ConnectError)), stop=stop_after_attempt(_ATTEMPTS), wait=_wait,
            reraise=True,
        )  # fmt: skip
        try:
            return await retrying(self._request, url, headers, body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            name = type(error).__name__
            raise AgentError(clean(f"{self.mapping.url} did not answer: {name}: {mask(str(error))}".rstrip(": "))) from None

    async def _request(self, url: str, headers: dict[str, str], body: Any) -> tuple[list[Any], bool]:
        sent = {} if body is None else {"json": body}
        async with self._client().stream(self.mapping.method, url, headers=headers, **sent) as response:
            if response.status_code >= 400:
                text = (await response.aread()).decode("utf-8", "replace")
                said = f"{self.mapping.url} answered {response.status_code} {response.reason_phrase}: {mask(text)[:_SHOWN]}"
                if response.status_code in _BUSY:
                    raise _BusyError(clean(said), response.headers.get("Retry-After"))
                raise AgentError(clean(said))
            is_sse = response.headers.get("Content-Type", "").startswith("text/event-stream")
            stream = "sse" if self.mapping.stream is None and is_sse else self.mapping.stream
            if stream is not None:
                return await _pieces(response, stream), True
            text = (await response.aread()).decode("utf-8", "replace")
        return [_answer(text, must_be_json="reply" in self.places, url=self.mapping.url)], False

    def _client(self) -> httpx.AsyncClient:
        import httpx

        loop = asyncio.get_running_loop()
        if loop not in self._clients:  # the conversation has the limit of time
            self._clients[loop] = httpx.AsyncClient(
                timeout=None, follow_redirects=True, limits=httpx.Limits(max_connections=None)
            )
        return self._clients[loop]


class _BusyError(AgentError):
    """The server is busy, and may say for how many seconds."""

    def __init__(self, text: str, seconds: str | None) -> None:
        super().__init__(text)
        self.seconds = float(seconds) if seconds is not None and re.fullmatch(r"\d+(\.\d+)?", seconds) else None


def _wait(state: Any) -> float:
    """Return the seconds before the next attempt: those that the server asks for, or ever more."""
    from tenacity import wait_exponential_jitter

    error = state.outcome.exception()
    asked = getattr(error, "seconds", None)
    return min(asked, _MAX_WAIT) if asked is not None else wait_exponential_jitter(initial=0.5, max=_MAX_WAIT)(state)


async def _pieces(response: httpx.Response, stream: str) -> list[Any]:
    """Return the pieces of a stream: texts, or JSON values. AgentError if it does not end."""
    pieces, characters = list[Any](), 0
    lines = response.aiter_text() if stream == "text" else response.aiter_lines()
    async for line in lines:
        characters += len(line) + 10
        if characters > _MAX_CHARACTERS:
            raise AgentError("the agent returned a stream that is too long or does not end")
        if stream == "sse":
            if not line.startswith("data:"):
                continue
            line = line.removeprefix("data:").removeprefix(" ")
            if line.strip() == "[DONE]":
                break
        if stream == "text" or line.strip():
            pieces.append(line if stream == "text" else _json_or_text(line))
    return pieces


def _answer(text: str, *, must_be_json: bool, url: str) -> Any:
    try:
        value = parse_json(text)
    except ValueError as error:
        if must_be_json:
            raise AgentError(clean(f"the answer of {url} is no JSON: {error}: {text[:_SHOWN]}")) from None
        return text
    return value if must_be_json or isinstance(value, dict | list | str) else text


def _json_or_text(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _filled(text: str, values: Mapping[str, Any]) -> Any:
    """Return a text with its placeholders filled in; the value itself if the text is only a placeholder."""
    if (only := _PLACEHOLDER.fullmatch(text)) is not None:
        return values[only[1]]
    return _PLACEHOLDER.sub(lambda match: _written(values[match[1]]), text)


def _written(value: Any) -> str:
    return "" if value is _ABSENT else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
