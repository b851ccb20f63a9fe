"""llama.cpp as a token writer: one request for each token, which tells the probabilities of the likely ones."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection
from math import exp
from typing import Any
from urllib.parse import urlsplit

from usertwin.memory.concurrency import to_thread
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.models.token_writer import LIKELY_TOKENS, NextToken, WrittenTokens, sample_token
from usertwin.memory.text.transcript import action_completion
from usertwin.personas import ModelError

from .llama_cpp import Engine

_TIMEOUT = 300.0


class LlamaTokenWriter:
    """See `TokenWriter`.

    Args:
        engine: the server.
        style: "transcript" continues the text of the messages, "instruction" applies the model's chat template.
    """

    def __init__(self, engine: Engine, style: PromptStyle) -> None:
        self._engine, self._style = engine, style
        self._vocabulary_size = 0
        self._pieces: dict[int, str] = {}

    @property
    def vocabulary_size(self) -> int:
        """See `TokenWriter.vocabulary_size`."""
        if not self._vocabulary_size:
            with _Connection(self._engine) as server:
                self._vocabulary_size = int(server.get("/v1/models")["data"][0]["meta"]["n_vocab"])
        return self._vocabulary_size

    def encode(self, turns: Sequence[str]) -> list[list[int]]:
        """See `TokenWriter.encode`."""
        with _Connection(self._engine) as server:
            if self._style == "transcript":
                return [server.tokens(action_completion(turn)) for turn in turns]
            end = self._end_tokens(server)[:1]
            return [server.tokens(turn) + end for turn in turns]

    async def write(
        self, messages: Sequence[tuple[str, str]], next_token: NextToken, *, n: int, seed: int, max_tokens: int,
        temperature: float, stop: Sequence[str], use_cache: bool,
    ) -> list[WrittenTokens]:  # fmt: skip
        """See `TokenWriter.write`; the completions are written one after the other, since they share the prompt's cache."""

        def write_all() -> list[WrittenTokens]:
            with _Connection(self._engine) as server:
                prompt, ends = self._prompt(server, messages), self._end_tokens(server)
                return [
                    self._write(
                        server, prompt, ends, next_token, random.Random(seed + number), max_tokens=max_tokens,
                        temperature=temperature, stop=stop, use_cache=use_cache or number > 0,
                    )
                    for number in range(n)
                ]  # fmt: skip

        return await to_thread(write_all)

    def _write(
        self, server: _Connection, prompt: Sequence[int], ends: Sequence[int], next_token: NextToken, rng: random.Random, *,
        max_tokens: int, temperature: float, stop: Sequence[str], use_cache: bool,
    ) -> WrittenTokens:  # fmt: skip
        tokens, cached, ended, text = list[int](), 0, False, ""
        while not ended and len(tokens) < max_tokens:
            reply = server.next_token([*prompt, *tokens], use_cache=use_cache or bool(tokens))
            if not tokens:
                cached = len(prompt) - int(reply["timings"]["prompt_n"])
            token = sample_token(next_token(tokens, _probabilities(reply)), temperature, rng)
            if token in ends:
                ended = True
                break
            tokens.append(token)
            text += self._piece(server, token)
            ended = any(mark in text for mark in stop)
        return WrittenTokens(
            server.text(tokens), input_tokens=len(prompt), cached_tokens=max(0, cached), output_tokens=len(tokens),
            at_limit=not ended,
        )  # fmt: skip

    def _piece(self, server: _Connection, token: int) -> str:
        """Return the text of a token; of one that is part of a character, some text without stop marks."""
        if token not in self._pieces:
            self._pieces[token] = server.text([token])
        return self._pieces[token]

    def _prompt(self, server: _Connection, messages: Sequence[tuple[str, str]]) -> list[int]:
        if self._style == "transcript":
            return server.tokens("".join(text for _, text in messages))
        chat = [{"role": role, "content": text} for role, text in messages]
        return server.tokens(server.post("/apply-template", {"messages": chat})["prompt"], special=True)

    def _end_tokens(self, server: _Connection) -> list[int]:
        """Return the tokens that end a completion, the one that ends a turn of a chat first."""
        return server.tokens(server.get("/props")["eos_token"], special=True)


class _Connection:
    """A connection to the server, which stays open for many requests; ModelError if it does not answer."""

    def __init__(self, engine: Engine) -> None:
        self._connection = HTTPConnection(urlsplit(engine.url).netloc, timeout=_TIMEOUT)

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def tokens(self, text: str, *, special: bool = False) -> list[int]:
        """Return the token ids of a text; control tokens in it are read as such only if `special`."""
        return self.post("/tokenize", {"content": text, "parse_special": special})["tokens"]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.post("/detokenize", {"tokens": list(tokens)})["content"]

    def next_token(self, tokens: Sequence[int], *, use_cache: bool) -> dict[str, Any]:
        """Return the server's answer to a request for one token with the probabilities of likely ones."""
        return self.post(
            "/completion",
            {"prompt": list(tokens), "n_predict": 1, "n_probs": LIKELY_TOKENS, "cache_prompt": use_cache, "temperature": 0.0},
        )

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON answer to a request."""
        return self._request("POST", path, json.dumps(body))

    def get(self, path: str) -> Any:
        """Return the JSON answer to a request without a body."""
        return self._request("GET", path, None)

    def _request(self, method: str, path: str, body: str | None) -> Any:
        try:
            self._connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            raw = answer.read()
            if answer.status != 200:
                raise ValueError(f"HTTP status {answer.status}: {raw[:200].decode(errors='replace')}")
            return json.loads(raw)
        except (OSError, ValueError) as error:
            self._connection.close()
            raise ModelError(f"llama.cpp's server did not answer {path} ({error})") from error


def _probabilities(reply: Mapping[str, Any]) -> dict[int, float]:
    [choice] = reply["completion_probabilities"]
    return {int(token["id"]): exp(token["logprob"]) for token in choice["top_logprobs"]}
