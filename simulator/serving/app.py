"""The endpoint as an ASGI application: routes, the token, limits, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from usertwin.personas import Pair, UsertwinError
from usertwin.personas.printable import printable

from ..user import SimulatedUser
from .errors import RequestError, failure, shown
from .limits import Gate, Limits, RateLimit
from .replies import Reply
from .requests import TurnRequest, read_chat, read_response

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

#: What reads a body, how the reply is sent whole, and in pieces.
_Kind = tuple[Callable[[bytes], TurnRequest], Callable[[Reply], dict[str, Any]], Callable[[Reply], Iterator[str]]]
_CHAT: _Kind = (read_chat, Reply.completion, Reply.chunks)
_RESPONSE: _Kind = (read_response, Reply.response, Reply.events)


class TwinServer:
    """Answers requests with turns of twins.

    Args:
        twins: the twins by name; they are open, and stay open.
        limits: what bounds the requests.
        seed: the seed of requests without one.
        token: what callers must send; "" for callers on this machine only, who need none.
        log: receives a line for each request, without anything that was said.
    """

    def __init__(
        self, twins: Mapping[str, SimulatedUser], limits: Limits, *, seed: int = 0, token: str = "",
        log: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self.twins, self.limits, self.seed, self._token, self._log = dict(twins), limits, seed, token, log
        self._gate, self._rate = Gate(limits), RateLimit(limits.per_minute)

    def app(self) -> Starlette:
        """Return the ASGI application."""
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route

        routes = [
            Route("/health", self._health, methods=["GET"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._model, methods=["GET"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/responses", self._responses, methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _http_error})

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        return await self._answered(request, self._listed)

    async def _model(self, request: Request) -> Response:
        async def find() -> Response:
            return _json(_model_of(name := request.path_params["name"], self._twin(name)))

        return await self._answered(request, find)

    async def _chat(self, request: Request) -> Response:
        return await self._answered(request, lambda: self._turn(request, _CHAT))

    async def _responses(self, request: Request) -> Response:
        return await self._answered(request, lambda: self._turn(request, _RESPONSE))

    async def _listed(self) -> Response:
        return _json({"object": "list", "data": [_model_of(name, user) for name, user in self.twins.items()]})

    async def _answered(self, request: Request, work: Callable[[], Any]) -> Response:
        """Return what the work returns, or its failure in OpenAI's shape, and log a line."""
        started = time.perf_counter()
        try:
            self._admit(request)
            response = await work()
        except Exception as error:
            if not isinstance(error, UsertwinError | RequestError | TimeoutError):
                self._log(_where(error))
            refused = failure(error)
            response = _json(refused.to_json(), refused.status, refused.headers)
        seconds = time.perf_counter() - started
        self._log(printable(f"{request.method} {request.url.path[:80]} {response.status_code} in {seconds:.2f} s"))
        return response

    def _admit(self, request: Request) -> None:
        """Raise RequestError if the caller may not ask: no token, too many requests, or a page of another site."""
        if self._token:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if not hmac.compare_digest(given, self._token.encode()):
                text = "the token is missing or wrong; send the server's as the API key (Authorization: Bearer ...)"
                raise RequestError(401, text, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        elif not is_loopback(request.url.hostname or ""):  # a name that a web page made point to this machine
            raise RequestError(403, "this server answers on loopback names only; use http://127.0.0.1", code="wrong_host")
        self._rate.take(request.client.host if request.client else "")

    async def _turn(self, request: Request, kind: _Kind) -> Response:
        from starlette.responses import StreamingResponse

        read, whole, pieces = kind
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(
                415, "the body is not declared as JSON; send Content-Type: application/json", code="invalid_type"
            )
        asked = read(await self._body(request))
        user = self._twin(asked.twin)
        seed = self.seed if asked.seed is None else asked.seed
        answer = await _unless_gone(request, self._answer(user, asked, seed))
        reply = Reply(request=asked, answer=answer, seed=seed)
        if not asked.stream:
            return _json(whole(reply))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(pieces(reply), media_type="text/event-stream", headers=headers)

    async def _answer(self, user: SimulatedUser, asked: TurnRequest, seed: int) -> Any:
        seconds = self.limits.turn_seconds
        async with self._gate.enter(), asyncio.timeout(None if seconds == inf else seconds):
            return await user.arespond(list(asked.messages), goal=asked.goal, seed=seed)

    async def _body(self, request: Request) -> bytes:
        """Return the body. RequestError if it is too large, or does not arrive in time."""
        limit, body = self.limits.body_bytes, bytearray()
        too_large = RequestError(
            413, f"the body is larger than {limit:,} bytes; send fewer or shorter messages", code="request_too_large"
        )
        if (
            request.headers.get("content-length", "0").isdecimal()
            and int(request.headers.get("content-length", "0")[:20]) > limit
        ):
            raise too_large
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise RequestError(408, "the body did not arrive in time; send it again", code="timeout") from None
        return bytes(body)

    def _twin(self, name: str) -> SimulatedUser:
        """Return a twin. RequestError if it is not served."""
        if name not in self.twins:
            known = ", ".join(self.twins)
            text = f"model {shown(name)} is not a twin of this server; its twins: {known}"
            raise RequestError(404, text, code="model_not_found", param="model")
        return self.twins[name]


def warm_up(user: SimulatedUser) -> None:
    """Load what a twin loads with its first turn: its graph and its embedding model."""
    _ = user.graph
    user.recall_many([Pair(speaker=user.name, context=(), action="", goal="", conversation_id="", position=0, when=inf)])


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address means this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


async def _unless_gone(request: Request, work: Any) -> Any:
    """Return what a coroutine returns; it is cancelled when the caller closes the connection."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestError(499, "the caller closed the connection", code="client_closed")
        return await working
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.wait({working, gone})


def _model_of(name: str, user: SimulatedUser) -> dict[str, Any]:
    """Return a twin as a model; it was created when it was learned."""
    from datetime import datetime

    try:
        created = int(datetime.fromisoformat(user.record.learned_at or "").timestamp())
    except ValueError:
        created = 0
    return {"id": name, "object": "model", "created": created, "owned_by": "usertwin"}


def _where(error: Exception) -> str:
    """Return the kind of an unexpected exception and its place, without its text, which may hold what was said."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return f"{type(error).__name__} at " + " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))


async def _http_error(request: Request, error: Any) -> Response:
    """Answer a request for an unknown path, or with another method than the path has."""
    texts = {
        404: "there is nothing at this path; the server has /v1/models, /v1/chat/completions and /v1/responses",
        405: "this path has another method; use GET for /v1/models and POST for the others",
    }
    refused = RequestError(error.status_code, texts.get(error.status_code, str(error.detail)), code="unknown_url")
    return _json(refused.to_json(), error.status_code, error.headers)


def _json(value: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(value, status, headers=dict(headers or {}))
