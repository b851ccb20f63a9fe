"""llama.cpp in this process: xllamacpp's OpenAI-compatible HTTP server on a loopback port, one for each model file.

Design: a transcript model gets a chat template that is just the message text. So the same chat endpoint, and the same
LangChain class, continues plain text.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from urllib.request import ProxyHandler, Request, build_opener

from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import ModelError

_PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
#: Parallel requests of one server (also samples of one prompt), and the tokens that each may hold.
SLOTS, SLOT_TOKENS = 4, 4096
_lock = threading.Lock()


class Engine:
    """A running server, which stops when nothing uses it any more, and with the process.

    Attributes:
        url: the base URL of its OpenAI-compatible endpoint.
    """

    def __init__(self, server: Any) -> None:
        self.url = f"{server.listening_address}/v1"
        weakref.finalize(self, _stop, self.url, [server]).atexit = False


def _stop(url: str, only_reference: list[Any]) -> None:
    """Free a server, by which llama.cpp stops it, unless it does not answer.

    Freeing one whose loop has not begun yet waits for ever, so a completion first shows that it runs.
    """
    try:
        _post(f"{url}/completions", {"prompt": "a", "max_tokens": 1})
    except OSError:
        _unresponsive.extend(only_reference)
    only_reference.clear()


#: Servers that could not be stopped.
_unresponsive: list[Any] = []


_engines: weakref.WeakValueDictionary[tuple[Path, PromptStyle, Path | None], Engine] = weakref.WeakValueDictionary()


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_engine(path: Path, style: PromptStyle, adapter: Path | None = None) -> Engine:
    """Return the server for a GGUF file, the same one for all that use it at the same time.

    The style "transcript" continues text; "instruction" applies the model's own chat template. A LoRA adapter is a file in
    llama.cpp's format.

    Raises:
        ModelError: there is no such file, or llama.cpp cannot read it.
    """
    path = path.resolve()
    if not path.is_file():
        raise ModelError(f"{path}: there is no such model file; name an existing GGUF file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path}: is not a GGUF file; name a GGUF file, or an OpenAI-compatible endpoint")
    with _lock:
        key = (path, style, adapter)
        engine = _engines.get(key)
        if engine is None:
            engine = _engines[key] = Engine(start_engine(*key))
        return engine


def count_tokens(engine: Engine, text: str) -> int:
    """Return the number of tokens of a text, without control tokens."""
    return len(_post(f"{engine.url.removesuffix('/v1')}/tokenize", {"content": text, "parse_special": False})["tokens"])


def _post(url: str, body: dict[str, Any]) -> Any:
    """Return the JSON reply of a server to a request."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request, timeout=60) as reply:  # a loopback port, whatever proxies are set
        return json.loads(reply.read())


def start_engine(path: Path, style: PromptStyle, adapter: Path | None = None) -> Any:
    """Start and return a new server for a model file; `shared_engine` returns a shared one."""
    xllamacpp = cast("Any", import_module("xllamacpp"))  # it has no type annotations
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * SLOT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = cores()  # the default ignores CPU affinity
    params.cache_ram_mib = 256
    params.use_jinja = True
    params.verbosity = -1
    if style == "transcript":
        params.chat_template = _PLAIN_TEMPLATE
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    try:
        return xllamacpp.Server(params)
    except Exception as error:
        failed = "this model" if adapter is None else f"this model with the adapter {adapter}"
        raise ModelError(f"{path}: llama.cpp cannot run {failed} ({error})") from error
