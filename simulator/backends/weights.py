"""Local weights: from a model's name to the files that hold it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from usertwin.memory.models.scoring import Precision
from usertwin.personas import ModelError, UsageError

from .downloads import SMALL, TINY, FetchProgress, cache_folder, fetch
from .lora_adapter import Adapter, check_fits, with_adapter
from .model_files import layers_of

WEIGHTED = '"local", "local:small", "local:/path.gguf", "hf:OWNER/REPO/FILE.gguf" or "transformers:DIR"'


_BUILT_IN = {"": TINY, "small": SMALL}


PRESENT = ("local", "hf", "transformers")


def check_folder(folder: Path, adapter: Adapter | None) -> None:
    """ModelError if there is no model in a folder, or an adapter does not fit to it; no weights are loaded."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: there is no transformers model; name a folder with a config.json and its weights")
    if adapter is not None:
        check_fits(adapter, layers_of(folder), f"transformers:{folder}")


def existing_file(rest: str) -> Path | None:
    """The GGUF file of a local model, if it need not be fetched first."""
    path = cache_folder() / "models" / _BUILT_IN[rest].filename if rest in _BUILT_IN else Path(rest).expanduser()
    return path if path.is_file() else None


def local_file(rest: str, progress: FetchProgress | None = None) -> Path:
    """The GGUF file of a local model: "" and "small" are built in and fetched, anything else is a path."""
    return fetch(_BUILT_IN[rest], progress) if rest in _BUILT_IN else Path(rest).expanduser()


def gguf_file(base: str, progress: FetchProgress | None = None) -> Path:
    """Return the GGUF file that a model name stands for."""
    """The file of a "local" or "hf:" model. UsageError or ModelError if it cannot be had."""
    kind, _, rest = base.partition(":")
    if kind == "local":
        return local_file(rest, progress)
    owner, _, file = rest.partition("/")
    repository, _, file = file.partition("/")
    if not (owner and repository and file.endswith(".gguf")):
        raise UsageError(f'"{base}" is no file on the hub; write hf:OWNER/REPOSITORY/FILE.gguf')
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise ModelError(
            f'"{base}" is not in the cache of the Hugging Face hub and could not be fetched ({type(error).__name__}: {said}); '
            "connect once and try again, or name a file that is here: local:/path/to/model.gguf"
        ) from error


def weights_folder(name: str, progress: FetchProgress | None = None) -> Path:
    """The folder with the transformers weights of a model: its own, or those made of a GGUF file once, in float32.

    Args:
        name: "local", "local:small", "local:/path.gguf", "hf:OWNER/REPO/FILE.gguf" or "transformers:DIR".
        progress: is told how far a download is.

    Raises:
        UsageError: no such model has weights here.
        ModelError: the model cannot be had.
    """
    check_weighted(name)
    kind, _, rest = name.partition(":")
    refuse_unscripted(name)
    if kind != "transformers":
        return dequantized(gguf_file(name, progress))
    folder = Path(rest).expanduser()
    check_folder(folder, None)
    return folder


def check_weighted(name: str) -> None:
    """UsageError if a model of that name, such as a hosted one, never has weights here."""
    kind, _, rest = name.partition(":")
    if kind not in PRESENT or (kind != "local" and not rest):
        raise UsageError(f'"{name}" has no weights here; there are {WEIGHTED}')


def known_weights(name: str) -> tuple[Path | None, int]:
    """The folder of a model's transformers weights, None if they are not here yet, and their size in float32, in bytes.

    Nothing is fetched or made. The size is 0 where it is not known.
    """
    kind, _, rest = name.partition(":")
    folder = Path(rest).expanduser() if kind == "transformers" else None
    if kind == "local" and (file := existing_file(rest)) is not None:
        folder = _float32_folder(file)
    if folder is None or not (folder / "config.json").is_file():
        return None, 0
    return folder, sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def refuse_unscripted(name: str) -> None:
    """Raise ModelError if USERTWIN_ONLY_SCRIPTED forbids this model."""
    if os.environ.get("USERTWIN_ONLY_SCRIPTED"):
        raise ModelError(
            f'"{name}" is not a scripted model, and USERTWIN_ONLY_SCRIPTED forbids all others; unset it, or use scripted:FILE'
        )


def _float32_folder(gguf: Path) -> Path:
    """Where the weights of a GGUF file are kept for transformers, once they were made."""
    stat = gguf.stat()
    return cache_folder() / "float32" / f"{gguf.stem}-{stat.st_size}-{int(stat.st_mtime)}"


def dequantized(gguf: Path) -> Path:
    """A folder with the weights of a GGUF file in float32 for transformers; made once, since that takes a while."""
    if not gguf.is_file():
        raise ModelError(f"{gguf}: there is no such model file; name a GGUF file that exists")
    target = _float32_folder(gguf)
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


def load_transformers(folder: Path, precision: Precision, adapter: Adapter | None = None) -> tuple[Any, Any]:
    """A model and its tokenizer; an adapter is merged into weights in float32, as its small changes would be rounded away."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    kept = torch.float32 if adapter is not None else getattr(torch, precision)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=kept, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder}: transformers cannot load this model ({error})") from error
    return (model if adapter is None else with_adapter(model, adapter)), tokenizer


def on_fastest(model: Any) -> Any:
    """A model on the graphics card if there is one, in bfloat16 then, or else as it is."""
    import torch

    return model.to("cuda", torch.bfloat16) if torch.cuda.is_available() else model
