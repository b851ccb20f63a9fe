"""From a model name to the model: chat models, scorers and embedders. `model_name.py` lists the names.

Models are built here only; all other code receives them as arguments, so it also runs with fakes. If the environment variable
USERTWIN_ONLY_SCRIPTED is set, every model that is not scripted or fake is refused.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, get_args

from usertwin.memory import ChatModel, Embedder
from usertwin.memory.models.chat import FREE, Price, PromptStyle
from usertwin.memory.models.embedding import CachedEmbedder, FakeEmbedder, SentenceTransformerEmbedder
from usertwin.memory.models.embedding_batches import BatchedEmbedder
from usertwin.memory.models.score_cache import CachedScorer
from usertwin.memory.models.scoring import FakeScorer, Precision, TokenScorer
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.memory.text.control_tokens import COMMON
from usertwin.personas import ModelError, UsageError
from usertwin.personas.secrets import take_logins

from .downloads import FetchProgress, cache_folder
from .endpoint import hosted_chat, openai_chat
from .llama_cpp import SLOT_TOKENS, SLOTS, count_tokens, shared_engine
from .llama_token_writer import LlamaTokenWriter
from .lora_adapter import Adapter, check_fits, read_adapter
from .lora_to_gguf import cached_gguf_adapter
from .model_files import context_of, gguf_vocabulary, has_chat_template, layers_of
from .model_name import ModelName, fake_dimension
from .weights import (
    check_folder,
    dequantized,
    existing_file,
    gguf_file,
    load_transformers,
    refuse_unscripted,
    to_gpu,
    transformers_tokenizer,
)

DEFAULT_MODEL = "local"
#: Samples of one prompt that a transformers model writes in one batch; each holds keys and values of the whole prompt.
_MAX_BATCH = 16


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    style: PromptStyle | None = None,
    price: Price | None = None,
    progress: FetchProgress | None = None,
) -> ChatModel:
    """Return the chat model with this name; `model_name.py` lists the forms.

    Args:
        name: the model.
        style: how to prompt it; by default the style of its adapter, if it has one. Else hosted models and transformers folders
            with a chat template follow instructions, and all other models continue transcripts.
        price: the price of a hosted model, for cost reports; local models are free.
        progress: callback for download progress.

    Raises:
        UsageError: the name is not that of a chat model.
        ModelError: the model cannot be loaded; the message names the way out.
    """
    parsed, name = ModelName.parse(name), take_logins(name)
    if parsed.kind == "scripted":
        from .scripted import scripted_model

        return ChatModel(name=name, chat=scripted_model(parsed.path), style=style or parsed.default_style, price=FREE)
    refuse_unscripted(name)
    if parsed.kind == "openai":
        return ChatModel(
            name=name, chat=hosted_chat(parsed), style=style or parsed.default_style,
            supports_sampling_params=parsed.supports_sampling_params, structured=True, price=price,
            control_tokens=COMMON if parsed.url else (),  # OpenAI's own endpoint reads them as text
        )  # fmt: skip
    adapter = None if parsed.adapter is None else read_adapter(parsed.adapter)
    if parsed.kind == "transformers":
        return _transformers_chat(name, parsed.path, adapter, style)
    style = style or (adapter and adapter.style) or parsed.default_style
    file = gguf_file(parsed, progress)
    lora = None if adapter is None else cached_gguf_adapter(adapter, file, parsed.base)
    engine, (control, context) = shared_engine(file, style, lora), gguf_vocabulary(file)
    chat = openai_chat("local", engine.url)
    object.__setattr__(chat, "_engine", engine)  # the server runs while the chat model or `count_tokens` is in use
    return ChatModel(
        name=name, chat=chat, style=style, structured=style == "instruction",
        bypass_cache={"extra_body": {"cache_prompt": False}}, identity=_identity(file, adapter), price=FREE, max_n=SLOTS,
        control_tokens=control, context_tokens=min(SLOT_TOKENS, context or SLOT_TOKENS),
        count_tokens=partial(count_tokens, engine), token_writer=LlamaTokenWriter(engine, style),
    )  # fmt: skip


def _transformers_chat(name: str, folder: Path, adapter: Adapter | None, style: PromptStyle | None) -> ChatModel:
    """Return a transformers folder in torch, with or without an adapter; its weights are loaded at the first call."""
    from .transformers_chat import TransformersChat

    style = _transformers_prompt_style(folder, adapter, style)
    check_folder(folder, adapter)

    def load() -> tuple[Any, Any]:
        model, tokenizer = load_transformers(folder, "float32", adapter)
        return to_gpu(model.eval()), tokenizer

    chat = TransformersChat(model_name=name, load=load, style=style)
    identity = _identity(folder, adapter)
    return ChatModel(
        name=name, chat=chat, style=style, identity=identity, price=FREE, max_n=_MAX_BATCH,
        context_tokens=context_of(folder), count_tokens=chat.count_tokens, token_writer=chat,
    )  # fmt: skip


def _transformers_prompt_style(folder: Path, adapter: Adapter | None, style: PromptStyle | None) -> PromptStyle:
    """Return the prompt style of a transformers folder. UsageError if it needs a chat template that the model lacks."""
    has_template = has_chat_template(folder)
    style = style or (adapter and adapter.style) or ("instruction" if has_template else "transcript")
    if style == "instruction" and not has_template and folder.is_dir():
        raise UsageError(f"{folder}: the model has no chat template, so it cannot follow instructions; use --style transcript")
    return style


def prompt_style_of(name: str, style: PromptStyle | None = None) -> tuple[PromptStyle, bool]:
    """Return the prompt style of a model, by default its own, and whether it encodes a prompt once for several samples.

    Nothing is loaded.

    Raises:
        UsageError: the name is not that of a chat model, or the style needs a chat template that the model lacks.
        ModelError: the adapter cannot be read, or does not fit a base that is on this machine.
    """
    parsed = ModelName.parse(name)
    adapter = None if parsed.adapter is None else read_adapter(parsed.adapter)
    if parsed.kind == "transformers":
        return _transformers_prompt_style(parsed.path, adapter, style), True
    if adapter is not None and parsed.kind == "local" and (file := existing_file(parsed)) is not None:
        check_fits(adapter, layers_of(file), parsed.base)
    several = parsed.supports_sampling_params and parsed.kind != "scripted"
    return style or (adapter and adapter.style) or parsed.default_style, several


def load_scorer(
    name: str = DEFAULT_MODEL, precision: Precision = "float32", *, progress: FetchProgress | None = None
) -> TokenScorer:
    """Return the scorer with this name, with a cache on disk; its weights are loaded when the first new text is scored.

    The name is that of a local model with or without an adapter, or "fake:"; `model_name.py` lists the forms. The precision is
    the data type of weights and activations; "bfloat16" scores have their own name and cache entries.

    Raises:
        UsageError: the name is not that of a model with log-probabilities, or the precision is unknown.
        ModelError: the model cannot be loaded.
    """
    if precision not in get_args(Precision):
        raise UsageError(f'"{precision}" is not a precision of a scorer; use {" or ".join(get_args(Precision))}')
    parsed = ModelName.parse(name, "scorer")
    if parsed.kind == "fake":
        return FakeScorer()
    refuse_unscripted(name)
    adapter = None if parsed.adapter is None else read_adapter(parsed.adapter)
    path = gguf_file(parsed, progress) if parsed.is_gguf else parsed.path
    if not path.exists():
        raise ModelError(f"{path}: there is no such model; name an existing file or folder")
    if adapter is not None:
        check_fits(adapter, layers_of(path), parsed.base)

    def load() -> tuple[Any, Any]:
        return load_transformers(dequantized(path) if parsed.is_gguf else path, precision, adapter)

    def load_tokenizer() -> Any:
        return transformers_tokenizer(dequantized(path) if parsed.is_gguf else path)

    scorer = TransformersScorer(name, load, precision, load_tokenizer)
    return CachedScorer(scorer, cache_folder() / "scores.sqlite", _identity(path, adapter))


def _identity(path: Path, adapter: Adapter | None = None) -> str:
    """Return what distinguishes a model's files, and its adapter, from later ones at the same path."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    parts = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return " ".join([*parts, *([] if adapter is None else [f"+{adapter.identity}"])])


def load_embedder(name: str | None = None) -> Embedder:
    """Return an embedding model with an in-memory cache: a sentence-transformers model or folder, "fake:" or "fake:N".

    Texts of concurrent callers are embedded together.
    """
    if name is not None and (dimension := fake_dimension(name)) is not None:
        return CachedEmbedder(FakeEmbedder(dimension))
    embedder = SentenceTransformerEmbedder() if name is None else SentenceTransformerEmbedder(name)
    refuse_unscripted(embedder.name)
    return CachedEmbedder(BatchedEmbedder(embedder))
