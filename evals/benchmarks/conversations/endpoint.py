"""A fake chat endpoint on a loopback port, in a process of its own, that answers each request after a fixed time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from itertools import count
from typing import IO, cast

#: Words of the replies; any two of 1,000 successive replies differ.
_THINGS = ("the blue jacket", "a window seat", "two tickets", "the late train", "a smaller box", "my old number", "lunch")
_TAILS = ("if that is fine", "before Friday", "for my sister", "as we said", "in the morning", "without extras", "once more")


@contextmanager
def fake_endpoint(delay: float) -> Generator[str]:
    """Yield the base URL of an OpenAI-compatible chat endpoint that answers after `delay` seconds."""
    code = "import sys; from usertwin.evals.benchmarks.conversations.endpoint import serve; serve(float(sys.argv[1]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(delay)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield cast("IO[str]", process.stdout).readline().strip()
    finally:
        process.communicate()  # closes its standard input, by which it ends


def reply_text(number: int) -> str:
    """Return the text of a reply."""
    thing, tail = _THINGS[number % len(_THINGS)], _TAILS[number // len(_THINGS) % len(_TAILS)]
    return f"I would like {thing} {tail}, number {number}"


def structured_reply(number: int) -> str:
    """Return a reply with the thoughts behind it, in the JSON object that a twin asks for."""
    reply = {"noticed": "", "wants": f"I want number {number}", "still_open": "", "reply": reply_text(number), "done": False}
    return json.dumps(reply)


def serve(delay: float) -> None:
    """Print the base URL and answer requests until standard input ends; the program of the endpoint's process."""
    with suppress(asyncio.CancelledError):
        asyncio.run(_serve(delay))


async def _serve(delay: float) -> None:
    numbers = count()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):  # the last: the process ends
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.partition("content-length:")[2].partition("\r\n")[0] or 0)
                body = await reader.readexactly(length)
                await asyncio.sleep(delay)
                closes = "connection: close" in head
                writer.write(_response(body, next(numbers), closes))
                await writer.drain()
                if closes:
                    break
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    host, port = server.sockets[0].getsockname()
    print(f"http://{host}:{port}/v1", flush=True)  # noqa: T201 - how the parent process learns the port
    await asyncio.to_thread(sys.stdin.read)
    server.close()


def _response(request: bytes, number: int, closes: bool) -> bytes:
    """Return an HTTP response with a chat completion."""
    prompt_tokens, text = len(request) // 4, reply_text(number)
    if b'"response_format"' in request:  # a twin asks for its thoughts and its reply in one object
        text = structured_reply(number)
    completion = {
        "id": f"fake-{number}", "object": "chat.completion", "created": 0, "model": "fake",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 12, "total_tokens": prompt_tokens + 12},
    }  # fmt: skip
    body = json.dumps(completion).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: {'close' if closes else 'keep-alive'}\r\n\r\n".encode() + body
