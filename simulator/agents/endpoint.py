"""An OpenAI-compatible endpoint as an agent: chat completions or responses, whole or streamed.

The endpoint gets the conversation and nothing else: no system prompt, no sampling options and no token limit of ours.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

from usertwin.personas import AgentError, UsageError, UsertwinError
from usertwin.personas.secrets import mask, without_secrets

from ..backends.model_name import ModelName
from .call import AgentCall, Returned
from .replies import Replies, collect, read_replies
from .turn import Message, OnlyToolCalls, in_thread

Api = Literal["chat", "responses"]

_LOG = logging.getLogger("usertwin.simulator")
#: Ends of a URL that name the API.
_PATHS: dict[str, Api] = {"/chat/completions": "chat", "/responses": "responses"}
#: How servers and chat templates refuse roles that do not alternate, or a conversation that no user opens.
_ROLES_REFUSED = re.compile(
    r"alternat|(?:first|1st|start|begin|open)\w*\W+(?:\w+\W+){0,6}user|user\W+(?:\w+\W+){0,6}(?:first|start|begin)"
    r"|consecutive|no user (?:query|message|turn)|at least one (?:user )?message|roles? must|last message|same role"
    r"|(?:messages?|input)\W.{0,40}(?:empty|too short)",
    re.IGNORECASE | re.DOTALL,
)
_STREAM_NEEDED = re.compile(
    r"stream\w*\W+(?:\w+\W+){0,6}(?:true|required|must|only|enabled?)|(?:only|must)\W.{0,40}stream", re.I
)
#: What a user says in the place of a first message that a server wants and that nobody wrote.
_OPENING = "(The conversation begins.)"
#: Requests that are repeated after a connection error, a rate limit or an overloaded server, with the client's back-off.
_RETRIES = 5


def endpoint_agent(
    name: str, *, api: Api | None = None, stream: bool = False, options: Mapping[str, Any] | None = None
) -> AgentCall:
    """Return an OpenAI-compatible endpoint as an agent.

    Args:
        name: "openai:NAME", "openai:NAME@URL" or "openai:NAME@URL#KEY_VARIABLE". The URL may end with the path of the API.
        api: chat completions or responses; by default that of the URL's path, else chat completions.
        stream: whether the reply is asked for in pieces.
        options: further fields of each request, such as "temperature" or "tools".

    Raises:
        UsageError: the name or an argument is invalid.
        ModelError: there is no key.
    """
    from ..backends.endpoint import hosted_chat
    from ..backends.weights import refuse_unscripted

    if api is not None and api not in get_args(Api):
        raise UsageError(f'"{api}" is not an API of an endpoint; use {" or ".join(get_args(Api))}')
    parsed = ModelName.parse(name)
    if not parsed.is_hosted:
        raise UsageError(f'"{parsed}" is not an endpoint; use openai:NAME, openai:NAME@URL or openai:NAME@URL#KEY_VARIABLE')
    refuse_unscripted(str(parsed))
    for path, named in _PATHS.items():
        if parsed.url.rstrip("/").endswith(path):
            api, name = api or named, name.replace(path, "", 1)
    parsed = ModelName.parse(name)
    client = hosted_chat(parsed).root_async_client.with_options(timeout=None, max_retries=_RETRIES)
    return AgentCall(_Endpoint(parsed, client, api or "chat", stream, dict(options or {})), ours=True)


class _Endpoint:
    """Asks an endpoint, and adapts the conversation if the server refuses its roles."""

    def __init__(self, name: ModelName, client: Any, api: Api, stream: bool, options: dict[str, Any]) -> None:
        self.name, self.client, self.api, self.stream, self.options = name, client, api, stream, options
        self.alternates = False

    async def __call__(self, messages: list[Message], thread_id: str) -> Returned:
        try:
            replies = await self._reply(messages)
        except UsertwinError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {mask(str(error))}"
            raise AgentError(f'the endpoint "{self.name}" did not answer: {reason}') from without_secrets(error)
        return Returned(replies.messages, is_new=True)

    async def _reply(self, messages: list[Message]) -> Replies:
        try:
            completion = await self._request(alternating(messages) if self.alternates else messages)
        except Exception as error:
            if not self._adapt(error):
                raise
            return await self._reply(messages)
        try:
            return await in_thread(lambda: read_replies(completion))
        except AgentError as error:
            if not isinstance(error, OnlyToolCalls) and _is_cut(completion):
                raise AgentError(
                    f'the endpoint "{self.name}" stopped at a limit of the server before it answered; let it reason less, or '
                    "raise the limit of the server"
                ) from None
            raise

    async def _request(self, messages: Sequence[Message]) -> Any:
        options = self.options | ({"stream": True} if self.stream else {})
        if self.api == "responses":
            plain = [{"role": m["role"], "content": m["content"]} for m in messages if m["role"] != "tool" and m["content"]]
            answer = await self.client.responses.create(model=self.name.target, input=plain, **options)
        else:
            answer = await self.client.chat.completions.create(model=self.name.target, messages=list(messages), **options)
        if not isinstance(answer, AsyncIterable):
            return _masked(answer.model_dump() if hasattr(answer, "model_dump") else answer)
        pieces = (await collect(cast("AsyncIterable[Any]", answer))).pieces
        if not pieces:
            raise AgentError(f'the endpoint "{self.name}" ended its stream without a reply')
        if self.api == "responses":  # its last event holds the whole response
            last = getattr(pieces[-1], "response", None)
            if last is not None:
                return _masked(last.model_dump())
        return iter([_masked(piece.model_dump()) for piece in pieces])

    def _adapt(self, error: Exception) -> bool:
        """Change what is sent if the server's refusal says that it wants another form; False if it does not, or not again."""
        text = str(error)
        if not 400 <= int(getattr(error, "status_code", 0) or 0) <= 599:
            return False
        if not self.stream and _STREAM_NEEDED.search(text):
            self.stream, change = True, "the reply is streamed"
        elif not self.alternates and _ROLES_REFUSED.search(text):
            self.alternates = True
            change = "messages of one side in a row are merged, and a user message opens the conversation"
        else:
            return False
        _LOG.warning("%s refused the conversation as it is (%s); from now on %s", self.name, mask(text)[:200], change)
        return True


def alternating(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation in strict alternation, with a user message first; calls of tools are left out."""
    merged = list[Message]()
    for message in messages:
        if message["role"] not in {"user", "assistant"} or not message["content"]:
            continue
        if merged and merged[-1]["role"] == message["role"]:
            merged[-1]["content"] += f"\n\n{message['content']}"
        else:
            merged.append({"role": message["role"], "content": message["content"]})
    if not merged or merged[0]["role"] != "user":
        merged.insert(0, {"role": "user", "content": _OPENING})
    return merged


def _is_cut(completion: Any) -> bool:
    if not isinstance(completion, dict):
        return False
    fields = cast("dict[str, Any]", completion)
    choices: list[dict[str, Any]] = fields.get("choices") or []
    return fields.get("status") == "incomplete" or any(choice.get("finish_reason") == "length" for choice in choices)


def _masked(value: Any) -> Any:
    """Return a JSON value without known secrets, which a server may repeat."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, list):
        return [_masked(item) for item in cast("list[Any]", value)]
    return {key: _masked(item) for key, item in cast("dict[str, Any]", value).items()} if isinstance(value, dict) else value
