"""Importer of OpenAI files that hold more than messages: fine-tuning, batches, and recorded requests with their responses.

Read are {"prompt", "completion"} of the first fine-tuning, {"input": {"messages"}, "preferred_output"} of preferences, lines of
the batch API, and recorded requests of the chat and responses APIs. Source: https://platform.openai.com/docs/api-reference and
https://platform.openai.com/docs/guides/fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from usertwin.personas.conversation import as_conversation
from usertwin.personas.dates import find_date
from usertwin.personas.errors import LogError

from ..records import records
from ..source import Source
from ..thread import DAMAGED, TOOL, Tally, Thread, as_list, as_object, as_text


def recognises(source: Source) -> bool:
    """Return whether the first object is of one of these shapes."""
    return _messages(source.record) is not None


def read(source: Source, tally: Tally) -> Iterator[Thread]:
    """Yield the conversation of each line."""
    for name in source.names:
        for number, record in records(source, name, tally):
            messages = _messages(record)
            if messages is None:
                tally.refuse(source.place(name), number, "holds neither messages, nor a prompt and a completion")
                continue
            sentences: list[str] = []
            try:
                turns = list(as_conversation(messages, damaged=sentences).turns)
            except LogError as error:
                tally.refuse(source.place(name), number, str(error))
                continue
            lost = len(messages) - len(turns)
            damaged = min(lost, len(sentences))
            tally.drop(DAMAGED, f"{source.place(name)}:{number}: {sentences[0]}" if sentences else "", damaged)
            tally.drop(TOOL, count=lost - damaged)
            name_of = next((text for key in ("id", "custom_id", "response_id") if (text := as_text(record.get(key)))), None)
            yield Thread(turns=turns, name=name_of, started_at=find_date(record) or find_date(_answer(record)))


def _answer(record: dict[str, Any]) -> dict[str, Any]:
    """Return the response of a recorded request."""
    response = as_object(record.get("response"))
    return as_object(response.get("body")) or response or record


def _messages(record: dict[str, Any]) -> list[Any] | None:
    """Return the messages of a line, the reply last; None for another shape."""
    if isinstance(record.get("prompt"), str) and isinstance(record.get("completion"), str):
        return [{"role": "user", "content": record["prompt"]}, {"role": "assistant", "content": record["completion"].strip()}]
    request = as_object(record.get("request")) or as_object(record.get("body")) or as_object(record.get("input")) or record
    request = as_object(request.get("body")) or request
    given = request.get("messages", request.get("input"))
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        return None
    answer = _answer(record)
    choice = as_object(next(iter(as_list(answer.get("choices"))), None)).get("message")
    replies = [choice] if choice else as_list(answer.get("output")) or as_list(record.get("preferred_output"))
    system = [{"role": "system", "content": request["instructions"]}] if as_text(request.get("instructions")) else []
    return [*system, *map(_message, given), *map(_message, replies)]


def _message(item: Any) -> Any:
    """Return an item of the responses API as a message: calls and reasoning have a type in place of a role."""
    item = as_object(item)
    return item if "role" in item or "type" not in item else {**item, "role": item["type"]}
