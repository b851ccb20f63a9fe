"""From a model's name to the model: chat models, scorers and embedders.

    local                 SmolLM2-135M in this process, fetched once (the default)
    local:small           Qwen2.5-Coder-1.5B in this process, fetched once (1.1 GB)
    local:/path.gguf      any GGUF file, in this process
    openai:NAME           OpenAI's model of that name (OPENAI_API_KEY, OPENAI_BASE_URL)
    openai:NAME@URL       any OpenAI-compatible endpoint: vLLM, Ollama, a proxy
    transformers:DIR      a folder with a transformers model; as a scorer only
    scripted:FILE         answers from a file; fake: as a scorer or embedder

The one design choice: building models happens here and nowhere else; every other part is given what it needs, so it runs with
a fake as well. With USERTWIN_ONLY_SCRIPTED set, everything that is not scripted or fake is refused.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, get_args

from usertwin.memory import (
    CachedEmbedder,
    CachedScorer,
    ChatModel,
    Embedder,
    FakeEmbedder,
    FakeScorer,
    Scorer,
    SentenceTransformerEmbedder,
    Style,
    TransformersScorer,
)
from usertwin.memory.sampling import FREE, Price
from usertwin.memory.scoring import Precision
from usertwin.personas import ModelError, UsageError

from .engine import SLOTS, engine_url
from .weights import SMALL, TINY, FetchProgress, cache_folder, fetch

DEFAULT_MODEL = "local"
_KNOWN = '"local", "local:small", "local:/path.gguf", "openai:NAME", "openai:NAME@URL", "scripted:FILE"'
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
    if kind == "local":
        _refuse_unscripted(name)
        style = style or "transcript"
        file = local_file(rest, progress)
        chat = _openai_chat("local", engine_url(file, style))
        afresh = {"extra_body": {"cache_prompt": False}}
        return ChatModel(name, chat, style, True, afresh, style == "instruction", _identity(file), FREE, together=SLOTS)
    if kind == "openai" and rest:
        _refuse_unscripted(name)
        model, _, url = rest.partition("@")
        if not url and not os.environ.get("OPENAI_API_KEY"):
            raise ModelError(
                f'the model "{name}" needs a key: set OPENAI_API_KEY, or name an endpoint: openai:{model}@http://…'
            )
        controls = not model.startswith(_NO_CONTROLS)
        return ChatModel(name, _openai_chat(model, url or None), style or "instruction", controls, structured=True, price=price)
    raise _unknown(name)


def _unknown(name: str) -> UsageError:
    return UsageError(f'"{name}" is no model\'s name; there are {_KNOWN}')


def manner_of(name: str, style: Style | None = None) -> tuple[Style, bool]:
    """How a model of that name is prompted, and whether one reading of a prompt serves several texts; nothing is loaded."""
    kind, _, rest = name.partition(":")
    if kind != "local" and (kind not in {"openai", "scripted"} or not rest):
        raise _unknown(name)
    hosted = kind == "openai"
    return style or ("instruction" if hosted else "transcript"), kind == "local" or (
        hosted and not rest.startswith(_NO_CONTROLS)
    )


def _openai_chat(model: str, url: str | None) -> Any:
    from langchain_openai import ChatOpenAI

    key = os.environ.get("OPENAI_API_KEY") or "none"
    # A connection kept alive belongs to the event loop that opened it, and callers of the sync door have a new one each time.
    closing = {"Connection": "close"}
    return ChatOpenAI(model=model, base_url=url, api_key=lambda: key, default_headers=closing, timeout=300, max_retries=2)


def local_file(rest: str, progress: FetchProgress | None = None) -> Path:
    """The GGUF file of a local model: "" and "small" are built in and fetched, anything else is a path."""
    built_in = {"": TINY, "small": SMALL}
    return fetch(built_in[rest], progress) if rest in built_in else Path(rest).expanduser()


def _refuse_unscripted(name: str) -> None:
    if os.environ.get("USERTWIN_ONLY_SCRIPTED"):
        raise ModelError(
            f'"{name}" is not a scripted model, and USERTWIN_ONLY_SCRIPTED forbids all others; unset it, or use scripted:FILE'
        )


def load_scorer(
    name: str = DEFAULT_MODEL, precision: Precision = "float32", *, progress: FetchProgress | None = None
) -> Scorer:
    """The scorer of that name, with a cache on disk; its weights are loaded when the first new text is scored.

    Args:
        name: "local", "local:small", "local:/path.gguf", "transformers:DIR" or "fake:".
        precision: what it reckons in; scores in "bfloat16" come under a name of their own, and are cached apart.
        progress: is told how far a download is.

    Raises:
        UsageError: no model has such a name, or it gives no likelihoods; or no such precision.
        ModelError: the model cannot be had.
    """
    if precision not in get_args(Precision):
        raise UsageError(f'"{precision}" is no precision of a scorer; there are {", ".join(get_args(Precision))}')
    kind, _, rest = name.partition(":")
    if name == "fake:":
        return FakeScorer()
    if kind not in {"local", "transformers"} or (kind == "transformers" and not rest):
        raise UsageError(
            f'"{name}" cannot score texts; a scorer is "local", "local:small", "local:/path.gguf" or "transformers:DIR"'
        )
    _refuse_unscripted(name)
    path = local_file(rest, progress) if kind == "local" else Path(rest).expanduser()
    if not path.exists():
        raise ModelError(f"{path}: there is no such model; name a file or folder that exists")

    def load() -> tuple[Any, Any]:
        return _load_transformers(_dequantized(path) if kind == "local" else path, precision)

    scorer = TransformersScorer(name, load, precision)
    return CachedScorer(scorer, cache_folder() / "scores.sqlite", _identity(path))


def _identity(path: Path) -> str:
    """What tells a model's file, or the files of its folder, from others that may once be at the same place."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return " ".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)


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
    _refuse_unscripted(embedder.name)
    return CachedEmbedder(embedder)


def _dequantized(gguf: Path) -> Path:
    """A folder with the weights of a GGUF file in float32 for transformers; made once, since that takes a while."""
    if not gguf.is_file():
        raise ModelError(f"{gguf}: there is no such model file; name a GGUF file that exists")
    stat = gguf.stat()
    target = cache_folder() / "float32" / f"{gguf.stem}-{stat.st_size}-{int(stat.st_mtime)}"
    if target.is_dir():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-"))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        model.hf_quantizer = None  # the weights are plain numbers now, and are to be saved as such
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        partial.rename(target)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if target.is_dir():  # somebody else was faster
            return target
        raise ModelError(f"{gguf}: transformers cannot read this model ({error})") from error
    finally:
        logging.set_verbosity(verbosity)
    return target


def _load_transformers(folder: Path, precision: Precision) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision), local_files_only=True)
        return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder}: transformers cannot load this model ({error})") from error
