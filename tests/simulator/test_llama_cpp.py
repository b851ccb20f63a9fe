"""The llama.cpp server in this process."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from usertwin.memory.models.chat import sample
from usertwin.personas import ModelError, UsertwinError
from usertwin.simulator import load_model
from usertwin.simulator.backends import llama_cpp, load
from usertwin.simulator.backends.downloads import TINY, fetch
from usertwin.simulator.backends.llama_cpp import cores, shared_engine


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow names of models that are not scripted; none of them is contacted."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")


@pytest.mark.parametrize("style", ["transcript", "instruction"])
def test_a_missing_file_and_another_format_are_refused(tmp_path: Path, style: Any) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 not a model")
    (tmp_path / "empty.gguf").write_bytes(b"")
    for name in ("none.gguf", "."):
        with pytest.raises(ModelError, match="there is no such model file"):
            shared_engine(tmp_path / name, style)
    for name in ("model.gguf", "empty.gguf"):
        with pytest.raises(ModelError, match="is not a GGUF file"):
            shared_engine(tmp_path / name, style)


@pytest.mark.usefixtures("real")
def test_load_model_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsertwinError, match="there is no such model file"):
        load_model(f"local:{tmp_path / 'none.gguf'}")


def test_cores_is_at_most_the_number_of_processors() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


@pytest.mark.slow
def test_a_broken_model_is_a_model_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF but no model")
    with pytest.raises(ModelError, match=r"broken\.gguf: llama\.cpp cannot run this model"):
        shared_engine(path, "transcript")


@pytest.mark.slow
def test_the_local_model_continues_text_and_is_reproducible_by_seed() -> None:
    model = load_model("local")

    def ask(prompt: str, **options: Any) -> str:  # each call has its own event loop, as in the synchronous API
        [completion] = asyncio.run(sample(model, [("user", prompt)], max_tokens=8, **options))
        assert 0 < completion.usage.output_tokens <= 8
        return completion.text

    counting = "one two three four five six seven eight\n" * 2 + "one two three four"
    assert ask(counting, temperature=0.0).split()[:2] == ["five", "six"]  # it continues the text and does not answer it
    story = "Me: what did you do at the weekend?\nThem:"
    first, again, *others = (ask(story, seed=seed) for seed in (1, 1, 2, 3))
    assert first == again
    assert {first} != {first, *others}
    assert shared_engine(fetch(TINY), "transcript") is shared_engine(fetch(TINY), "transcript")  # one server for all calls


class _Server:
    """A stand-in for llama.cpp's server, which stops when it is freed."""

    running = 0

    def __init__(self) -> None:
        _Server.running += 1
        self.listening_address = f"http://127.0.0.1:{_Server.running}"

    def __del__(self) -> None:
        _Server.running -= 1


def test_a_server_is_shared_and_stops_with_its_last_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "start_engine", lambda *_: _Server())
    monkeypatch.setattr(llama_cpp, "_post", lambda *_: {})
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    first, second = shared_engine(path, "transcript"), shared_engine(path, "transcript")
    other = shared_engine(path, "instruction")
    assert (first is second, first.url == other.url, _Server.running) == (True, False, 2)
    del first, other
    assert _Server.running == 1
    del second
    assert _Server.running == 0
    assert shared_engine(path, "transcript").url  # starts again


def test_a_server_that_does_not_answer_is_not_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeing a server that has not begun yet would wait for ever."""
    kept: list[Any] = []
    monkeypatch.setattr(llama_cpp, "start_engine", lambda *_: _Server())
    monkeypatch.setattr(llama_cpp, "_unresponsive", kept)
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    shared_engine(path, "transcript")  # nothing listens at its address
    assert (len(kept), _Server.running) == (1, 1)
    kept.clear()
    assert _Server.running == 0


def test_a_chat_model_keeps_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "_post", lambda *_: {})
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    monkeypatch.setattr(llama_cpp, "start_engine", lambda *_: _Server())
    monkeypatch.setattr(load, "gguf_vocabulary", lambda _: ((), None))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    model = load_model(f"local:{path}")
    chat = replace(model, style="instruction").chat
    del model
    gc.collect()
    assert _Server.running == 1
    del chat
    gc.collect()
    assert _Server.running == 0


@pytest.mark.slow
def test_the_threads_and_the_port_of_a_server_are_gone_with_its_last_user() -> None:
    engine = shared_engine(fetch(TINY), "transcript")
    address = urlsplit(engine.url)
    with socket.create_connection((address.hostname or "", address.port or 0), 5):
        pass
    del engine
    gc.collect()
    with pytest.raises(ConnectionRefusedError), socket.create_connection((address.hostname or "", address.port or 0), 5):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("style", ["transcript", "instruction"])
def test_control_tokens_in_a_prompt_are_read_as_characters(style: Any) -> None:
    model = load_model("local", style=style)
    tokens = [
        asyncio.run(sample(model, [("user", text)], max_tokens=1, bypass_cache=True))[0].usage.input_tokens
        for text in ("x", "<|im_end|>" * 10)
    ]
    assert tokens[1] - tokens[0] >= 40
    assert model.count_tokens is not None
    assert model.count_tokens("<|im_end|>" * 10) >= 40
    assert model.context_tokens == 4096
