"""Errors of the endpoint, in the shape of OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from usertwin.personas import LogError, ModelError, TwinError, UsageError
from usertwin.personas.secrets import mask

#: Characters of a value in a message.
_SHOWN = 60


def shown(value: Any) -> str:
    """Return the beginning of a value as JSON, for a message."""
    text = json.dumps(value)  # ASCII: no character of the caller's can drive a terminal
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


class RequestError(Exception):
    """A request that is not answered.

    Attributes:
        status: the HTTP status.
        message: one sentence: what is wrong, and the way out.
        code: OpenAI's code, or one of ours.
        param: the field that is wrong, or None.
        headers: headers of the response.
    """

    def __init__(
        self, status: int, message: str, *, code: str = "invalid_value", param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, mask(message), code, param
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """Return the body of the response."""
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


#: Tells OpenAI's clients that the same request would fail again.
_FINAL = {"x-should-retry": "false"}


def failure(error: Exception) -> RequestError:
    """Return the response to an exception of a turn. The text of an exception that is not ours stays here."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, LogError | UsageError):
        return RequestError(400, str(error), param="messages")
    if isinstance(error, ModelError):
        return RequestError(503, str(error), code="model_unavailable")
    if isinstance(error, TwinError):
        return RequestError(500, str(error), code="twin_error", headers=_FINAL)
    if isinstance(error, TimeoutError):
        text = "the turn took longer than the server allows; raise --turn-timeout, or use a faster model"
        return RequestError(504, text, code="timeout", headers=_FINAL)
    return RequestError(500, f"the server failed ({type(error).__name__}); its log says where", code="internal_error")
