"""llama.cpp in this process: xllamacpp's own OpenAI-compatible HTTP server on a loopback port, one for each model file.

The one design choice: for a model that is prompted with transcripts the server's chat template is nothing but the message's
text, so that the same chat endpoint, and the same LangChain class, continues plain text.
"""

from __future__ import annotations

import os
import threading
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from usertwin.memory.models.chat import Style
from usertwin.personas import ModelError

_PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
#: Conversations answered at once (and samples of one prompt), and the tokens each may hold.
SLOTS, SLOT_TOKENS = 4, 4096
_running: dict[tuple[Path, Style, Path | None], Any] = {}
_lock = threading.Lock()


def cores() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def engine_url(path: Path, style: Style, adapter: Path | None = None) -> str:
    """The base URL of a server for this model file, started if there is none yet. It ends with this process.

    Args:
        path: the model, a GGUF file.
        style: whether it continues text or is given its own chat template.
        adapter: a LoRA adapter in llama.cpp's format, if the model is to run with one.

    Raises:
        ModelError: there is no such file, or llama.cpp cannot read it.
    """
    path = path.resolve()
    if not path.is_file():
        raise ModelError(f"{path}: there is no such model file; name a GGUF file that exists")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path}: is not a GGUF file; usertwin runs GGUF files, or any OpenAI-compatible endpoint")
    with _lock:
        if (path, style, adapter) not in _running:
            _running[path, style, adapter] = start_engine(path, style, adapter)
        return f"{_running[path, style, adapter].listening_address}/v1"


def start_engine(path: Path, style: Style, adapter: Path | None = None) -> Any:
    """A server of its own for a model file; see `engine_url` for one that is shared."""
    xllamacpp = cast("Any", import_module("xllamacpp"))  # it carries no types
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = cores()  # it would take more than there are
    params.cache_ram_mib = 256
    params.use_jinja = True
    params.verbosity = -1
    if style == "transcript":
        params.chat_template = _PLAIN
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    try:
        return xllamacpp.Server(params)
    except Exception as error:
        what = "this model" if adapter is None else f"this model with the adapter {adapter}"
        raise ModelError(f"{path}: llama.cpp cannot run {what} ({error})") from error
