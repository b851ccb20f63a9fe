"""From a model's name to the model: chat models, scorers and embedders.

    local                 SmolLM2-135M in this process, fetched once (the default)
    local:small           Qwen2.5-Coder-1.5B in this process, fetched once (1.1 GB)
    local:/path.gguf      any GGUF file, in this process
    hf:OWNER/REPO/x.gguf  a GGUF file of the Hugging Face hub, fetched once into its own cache
    transformers:DIR      a folder with a transformers model, in this process by torch
    BASE+ADAPTER          any of these with a LoRA adapter: local+DIR, local:small+DIR, transformers:DIR+DIR
    openai:NAME           OpenAI's model of that name (OPENAI_API_KEY, OPENAI_BASE_URL)
    openai:NAME@URL       any OpenAI-compatible endpoint: vLLM, Ollama, a proxy
    scripted:FILE         answers from a file; fake: as a scorer or embedder

The one design choice: building models happens here and nowhere else; every other part is given what it needs, so it runs with
a fake as well. With USERTWIN_ONLY_SCRIPTED set, everything that is not scripted or fake is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

from usertwin.memory import ChatModel, Embedder, Scorer
from usertwin.memory.models.chat import FREE, Price, Style
from usertwin.memory.models.embedding import CachedEmbedder, FakeEmbedder, SentenceTransformerEmbedder
from usertwin.memory.models.score_cache import CachedScorer
from usertwin.memory.models.scoring import FakeScorer, Precision
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.personas import ModelError, UsageError

from .downloads import FetchProgress, cache_folder
from .llama_cpp import SLOTS, engine_url
from .lora_adapter import Adapter, check_fits, read_adapter
from .lora_to_gguf import kept_as_gguf
from .model_files import has_chat_template, layers_of
from .model_name import split_adapter
from .weights import (
    PRESENT,
    WEIGHTED,
    check_folder,
    dequantized,
    existing_file,
    gguf_file,
    load_transformers,
    on_fastest,
    refuse_unscripted,
)

DEFAULT_MODEL = "local"
_KNOWN = (
    '"local", "local:small", "local:/path.gguf", "hf:OWNER/REPO/FILE.gguf", "transformers:DIR", each of these with "+ADAPTER" '
    'behind it, "openai:NAME", "openai:NAME@URL", "scripted:FILE"'
)
#: How many texts a transformers model writes at once: each holds the keys and values of the whole prompt.
_ROWS = 16
#: Hosted models that reason on their own refuse temperature and stop texts; others take them.
_NO_CONTROLS = ("gpt-5", "o1", "o3", "o4")


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    style: Style | None = None,
    price: Price | None = None,
    progress: FetchProgress | None = None,
) -> ChatModel:
    """The chat model of that name (the list is at the top of this file).

    Args:
        name: which model.
        style: how to prompt it; by default local models continue transcripts and others follow instructions.
        price: what a hosted model costs, if that is to be reckoned; local ones are free.
        progress: is told how far a download is.

    Raises:
        UsageError: no model has such a name.
        ModelError: the model cannot be had; the message says what to do.
    """
    kind, _, rest = name.partition(":")
    if kind == "scripted" and rest:
        from .scripted import scripted_model

        return ChatModel(name, scripted_model(rest), style or "transcript", price=FREE)
    base, folder = split_adapter(name)
    if base.partition(":")[0] in PRESENT and base not in {"hf:", "transformers:"}:
        refuse_unscripted(name)
        adapter = None if folder is None else read_adapter(folder)
        if base.startswith("transformers:"):
            return _transformers_chat(name, Path(base.partition(":")[2]).expanduser(), adapter, style)
        return _engine_chat(name, base, adapter, style, progress)
    if kind == "openai" and rest:
        refuse_unscripted(name)
        model, _, url = rest.partition("@")
        if not url and not os.environ.get("OPENAI_API_KEY"):
            raise ModelError(
                f'the model "{name}" needs a key: set OPENAI_API_KEY, or name an endpoint: openai:{model}@http://…'
            )
        controls = not model.startswith(_NO_CONTROLS)
        return ChatModel(name, _openai_chat(model, url or None), style or "instruction", controls, structured=True, price=price)
    raise _unknown(name)


def _engine_chat(
    name: str, base: str, adapter: Adapter | None, style: Style | None, progress: FetchProgress | None
) -> ChatModel:
    """A GGUF file in llama.cpp, with an adapter or without."""
    style = style or (adapter and adapter.style) or "transcript"
    file = gguf_file(base, progress)
    lora = None if adapter is None else kept_as_gguf(adapter, file, base)
    chat = _openai_chat("local", engine_url(file, style, lora))
    afresh = {"extra_body": {"cache_prompt": False}}
    identity = _identity(file, adapter)
    return ChatModel(name, chat, style, True, afresh, style == "instruction", identity, FREE, max_n=SLOTS)


def _transformers_chat(name: str, folder: Path, adapter: Adapter | None, style: Style | None) -> ChatModel:
    """A transformers folder in torch, with an adapter or without; its weights are loaded when the first text is asked for."""
    from .transformers_chat import TransformersChat

    style = _transformers_prompt_style(folder, adapter, style)
    check_folder(folder, adapter)

    def load() -> tuple[Any, Any]:
        model, tokenizer = load_transformers(folder, "float32", adapter)
        return on_fastest(model.eval()), tokenizer

    chat = TransformersChat(called=name, load=load, style=style)
    return ChatModel(name, chat, style, identity=_identity(folder, adapter), price=FREE, max_n=_ROWS)


def _transformers_prompt_style(folder: Path, adapter: Adapter | None, style: Style | None) -> Style:
    """How a transformers folder is prompted. UsageError if that takes a chat template, and it has none."""
    templated = has_chat_template(folder)
    style = style or (adapter and adapter.style) or ("instruction" if templated else "transcript")
    if style == "instruction" and not templated and folder.is_dir():
        raise UsageError(f"{folder}: this model has no chat template, so it cannot be told what to do; use --style transcript")
    return style


def _unknown(name: str) -> UsageError:
    return UsageError(f'"{name}" is no model\'s name; there are {_KNOWN}')


def prompt_style_of(name: str, style: Style | None = None) -> tuple[Style, bool]:
    """How a model of that name is prompted, and whether one reading of a prompt serves several texts; nothing is loaded.

    Raises:
        UsageError: no model has such a name, or it has no chat template to be told what to do by.
        ModelError: it is to run with an adapter, and that cannot be read, or does not fit to what is here already.
    """
    base, folder = split_adapter(name)
    adapter = None if folder is None else read_adapter(folder)
    kind, _, rest = base.partition(":")
    if kind != "local" and (kind not in {*PRESENT, "openai", "scripted"} or not rest):
        raise _unknown(name)
    if kind == "transformers":
        return _transformers_prompt_style(Path(rest).expanduser(), adapter, style), True
    if adapter is not None and kind == "local" and (file := existing_file(rest)) is not None:
        check_fits(adapter, layers_of(file), base)
    hosted = kind == "openai"
    usual = (adapter and adapter.style) or ("instruction" if hosted else "transcript")
    return style or usual, kind in PRESENT or (hosted and not rest.startswith(_NO_CONTROLS))


def _openai_chat(model: str, url: str | None) -> Any:
    from langchain_openai import ChatOpenAI

    key = os.environ.get("OPENAI_API_KEY") or "none"
    # A connection kept alive belongs to the event loop that opened it, and callers of the sync door have a new one each time.
    closing = {"Connection": "close"}
    return ChatOpenAI(model=model, base_url=url, api_key=lambda: key, default_headers=closing, timeout=300, max_retries=2)


def load_scorer(
    name: str = DEFAULT_MODEL, precision: Precision = "float32", *, progress: FetchProgress | None = None
) -> Scorer:
    """The scorer of that name, with a cache on disk; its weights are loaded when the first new text is scored.

    Args:
        name: "local", "local:small", "local:/path.gguf", "hf:OWNER/REPO/FILE.gguf", "transformers:DIR", any of these with an
            adapter, or "fake:".
        precision: what it reckons in; scores in "bfloat16" come under a name of their own, and are cached apart.
        progress: is told how far a download is.

    Raises:
        UsageError: no model has such a name, or it gives no likelihoods; or no such precision.
        ModelError: the model cannot be had.
    """
    if precision not in get_args(Precision):
        raise UsageError(f'"{precision}" is no precision of a scorer; there are {", ".join(get_args(Precision))}')
    if name == "fake:":
        return FakeScorer()
    base, folder = split_adapter(name)
    kind, _, rest = base.partition(":")
    if kind not in PRESENT or (kind != "local" and not rest):
        raise UsageError(f'"{name}" cannot score texts; a scorer is {WEIGHTED}, each perhaps with "+ADAPTER" behind it')
    refuse_unscripted(name)
    adapter = None if folder is None else read_adapter(folder)
    path = Path(rest).expanduser() if kind == "transformers" else gguf_file(base, progress)
    if not path.exists():
        raise ModelError(f"{path}: there is no such model; name a file or folder that exists")
    if adapter is not None:
        check_fits(adapter, layers_of(path), base)

    def load() -> tuple[Any, Any]:
        return load_transformers(path if kind == "transformers" else dequantized(path), precision, adapter)

    scorer = TransformersScorer(name, load, precision)
    return CachedScorer(scorer, cache_folder() / "scores.sqlite", _identity(path, adapter))


def _identity(path: Path, adapter: Adapter | None = None) -> str:
    """What tells a model's file, or those of its folder, from others that may once be at the same place; its adapter too."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    told = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return " ".join([*told, *([] if adapter is None else [f"+{adapter.identity}"])])


def load_embedder(name: str | None = None) -> Embedder:
    """The embedding model of that name: a sentence-transformers model or folder, or "fake:"; the built-in one if None.

    It computes no embedding twice, as long as it remembers the text: one moment is looked up several times in a turn.
    """
    if name is not None and name.startswith("fake:"):
        size = name[5:] or "256"
        if not (size.isdecimal() and int(size)):
            raise UsageError(f'"{name}" is no embedder\'s name; after "fake:" comes the length of a vector, or nothing')
        return CachedEmbedder(FakeEmbedder(int(size)))
    embedder = SentenceTransformerEmbedder() if name is None else SentenceTransformerEmbedder(name)
    refuse_unscripted(embedder.name)
    return CachedEmbedder(embedder)
