"""Replies of the endpoint: a turn as a chat completion or as a response, whole or in pieces.

The twin's turn is checked before anybody sees it, so a stream begins when the turn is finished, and hands it out word by word.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

from ..state import Answer
from .requests import TurnRequest

_PIECE = re.compile(r"\s*\S+|\s+\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A turn of a twin as the answer to a request."""

    request: TurnRequest
    answer: Answer
    seed: int
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def text(self) -> str:
        """The turn, cut at the first stop text."""
        text = self.answer.action
        return text[: min((end for stop in self.request.stop if (end := text.find(stop)) >= 0), default=len(text))]

    @property
    def pieces(self) -> list[str]:
        """The turn in pieces of a word each."""
        return _PIECE.findall(self.text)

    @property
    def extra(self) -> dict[str, Any]:
        """The field "usertwin": what the protocol has no place for."""
        answer = self.answer
        return {
            "done": answer.done, "reasoning": answer.reasoning, "seed": self.seed,
            "recalled": [{"id": memory.triple.id, "similarity": round(memory.similarity, 6)} for memory in answer.recalled],
            "abandonment_rate": answer.abandonment_rate, "discarded": answer.discarded, "candidates": answer.candidates,
            "cut_turns": answer.cut_turns, "cut_recalled": answer.cut_recalled, "ignored": list(self.request.ignored),
        }  # fmt: skip

    # Chat completions -------------------------------------------------------------------------------------------------

    def completion(self) -> dict[str, Any]:
        """Return the chat completion."""
        message = {"role": "assistant", "content": self.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return self._chat("chat.completion", [choice]) | {"usage": self._chat_usage(), "usertwin": self.extra}

    def chunks(self) -> Iterator[str]:
        """Yield the chat completion as server-sent events; the last chunk with a choice holds "usertwin"."""
        for delta in ({"role": "assistant", "content": ""}, *({"content": piece} for piece in self.pieces)):
            yield _event(self._chunk(delta, None))
        yield _event(self._chunk({}, "stop") | {"usertwin": self.extra})
        if self.request.include_usage:
            yield _event(self._chat("chat.completion.chunk", []) | {"usage": self._chat_usage()})
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}
        return self._chat("chat.completion.chunk", [choice]) | ({"usage": None} if self.request.include_usage else {})

    def _chat(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": f"chatcmpl-{self.id}", "object": kind, "created": self.created, "model": self.request.twin}
        return head | {"choices": choices}

    def _chat_usage(self) -> dict[str, Any]:
        usage = self.answer.usage
        return {
            "prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }  # fmt: skip

    # Responses --------------------------------------------------------------------------------------------------------

    def response(self, status: str = "completed") -> dict[str, Any]:
        """Return the response."""
        usage, finished = self.answer.usage, status == "completed"
        counts = {
            "input_tokens": usage.input_tokens, "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.output_tokens, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }  # fmt: skip
        return {
            "id": f"resp_{self.id}", "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": None, "instructions": self.request.instructions, "model": self.request.twin,
            "output": [self._item(self.text)] if finished else [], "parallel_tool_calls": False, "tool_choice": "none",
            "tools": [], "temperature": None, "top_p": None, "max_output_tokens": None, "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None}, "store": False, "text": {"format": {"type": "text"}},
            "truncation": "auto", "usage": counts if finished else None, "metadata": dict(self.request.metadata),
        } | ({"usertwin": self.extra} if finished else {})  # fmt: skip

    def events(self) -> Iterator[str]:
        """Yield the response as server-sent events; the last one holds "usertwin"."""
        numbers, item, place = count(), f"msg_{self.id}", {"item_id": f"msg_{self.id}", "output_index": 0, "content_index": 0}

        def event(kind: str, **fields: Any) -> str:
            return f"event: {kind}\n" + _event({"type": kind, "sequence_number": next(numbers), **fields})

        started = self.response("in_progress")
        yield event("response.created", response=started)
        yield event("response.in_progress", response=started)
        empty = {"id": item, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        yield event("response.output_item.added", output_index=0, item=empty)
        yield event("response.content_part.added", part=_part(""), **place)
        for piece in self.pieces:
            yield event("response.output_text.delta", delta=piece, logprobs=[], **place)
        yield event("response.output_text.done", text=self.text, logprobs=[], **place)
        yield event("response.content_part.done", part=_part(self.text), **place)
        yield event("response.output_item.done", output_index=0, item=self._item(self.text))
        yield event("response.completed", response=self.response())

    def _item(self, text: str) -> dict[str, Any]:
        return {
            "id": f"msg_{self.id}", "type": "message", "status": "completed", "role": "assistant", "content": [_part(text)]
        }  # fmt: skip


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"  # ASCII: no line separator of Unicode can end an event
