"""The first token of a streamed answer of `usertwin serve`, beside the same request to the engine itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, cast

from usertwin.memory import Embedder
from usertwin.simulator import load_embedder, load_model

from ..figures import Figure, figure, run_alternately
from .endpoint import fake_endpoint
from .twins import large_twin

#: Questions of the agent, each asked once, so that no answer is known beforehand.
_QUESTION = "Which one would you like, number {}?"


def serve_part(
    rounds: int = 30, delay: float = 0.2, triples: int = 1_000, embedder: Embedder | None = None
) -> Iterator[tuple[str, Figure]]:
    """Yield how much later the first token of a twin comes than that of the engine; one engine call a turn on either side.

    A twin's turn is checked as a whole before any of it is sent, so its first token comes when the engine has finished.
    The engine therefore answers in one piece, too.
    """
    import httpx

    with tempfile.TemporaryDirectory() as home, fake_endpoint(delay) as url:
        large_twin(home, load_model(f"openai:fake@{url}"), embedder or load_embedder(), triples).close()
        with _served(home, url) as served, httpx.Client(timeout=60, trust_env=False) as client:

            def first_token(base: str, body: Mapping[str, Any]) -> Callable[[int], float]:
                def ask(number: int) -> float:
                    messages = [{"role": "assistant", "content": _QUESTION.format(number)}]
                    return _seconds_to_first_token(client, base, dict(body) | {"messages": messages})

                return ask

            ours, engine = run_alternately(
                rounds + 2, first_token(served, {"model": "bench", "stream": True}), first_token(url, {"model": "fake"})
            )
    added = [1000 * (a - b) for a, b in zip(ours[2:], engine[2:], strict=True)]  # after warm-up
    against = f"the engine itself, which takes {delay} s, recall among {triples:,} triples included (bar: 30)"
    yield "serve.added_first_token_ms", figure(added, "ms", against)
    yield "serve.first_token_ms", figure([1000 * seconds for seconds in ours[2:]], "ms", "streamed chat completion")


def _seconds_to_first_token(client: Any, base: str, body: Mapping[str, Any]) -> float:
    """Return the seconds from a request to the first text of the answer, which is streamed or whole."""
    start = time.perf_counter()
    with client.stream("POST", f"{base}/chat/completions", json=body) as response:
        response.raise_for_status()
        text = ""
        for piece in response.iter_text():
            text += piece
            if re.search(r'"content": ?"[^"]', text):
                return time.perf_counter() - start
    raise ValueError(f"no text in the answer: {text[:200]}")


@contextmanager
def _served(home: str, url: str) -> Generator[str]:
    """The base URL of the twin "bench" behind `usertwin serve`, with a model behind another endpoint."""
    command = [sys.executable, "-m", "usertwin.evals", "serve", "bench", "--home", home, "--model", f"openai:fake@{url}"]
    environment = os.environ | {"OPENAI_API_KEY": "none"}
    process = subprocess.Popen([*command, "--port", "0"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(cast("IO[str]", process.stderr).readline, "")
        yield next(found[0] for line in lines if (found := re.findall(r"http://127\.0\.0\.1:\d+/v1", line)))
    finally:
        process.kill()
        process.communicate()
