"""Local weights: from a model name to the files that hold the weights, and to a loaded transformers model."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from usertwin.memory.concurrency import LOADING
from usertwin.memory.models.scoring import Precision
from usertwin.personas import ModelError
from usertwin.personas.files import private_folder

from .downloads import SMALL, TINY, FetchProgress, cache_folder, fetch
from .lora_adapter import Adapter, check_fits, with_adapter
from .model_files import layers_of
from .model_name import ModelName

_BUILT_IN = {"": TINY, "small": SMALL}


def check_folder(folder: Path, adapter: Adapter | None) -> None:
    """Raise ModelError if a folder holds no model, or the adapter does not fit it. No weights are loaded."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: there is no transformers model; name a folder with a config.json and weights")
    if adapter is not None:
        check_fits(adapter, layers_of(folder), f"transformers:{folder}")


def existing_file(name: ModelName) -> Path | None:
    """Return the GGUF file of a "local" model, None if it has to be downloaded first."""
    path = cache_folder() / "models" / _BUILT_IN[name.target].filename if name.is_built_in else name.path
    return path if path.is_file() else None


def gguf_file(name: ModelName, progress: FetchProgress | None = None) -> Path:
    """Return the GGUF file of a "local" or "hf" model, downloaded if necessary.

    Raises:
        ModelError: the file cannot be downloaded. A local path is not checked.
    """
    if name.kind == "local":
        return fetch(_BUILT_IN[name.target], progress) if name.is_built_in else name.path
    from huggingface_hub import hf_hub_download

    owner, repository, file = name.target.split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f'"{name.base}" is not in the cache of the Hugging Face hub and cannot be downloaded '
            f"({type(error).__name__}: {reason}); go online once and try again, or name a file on this machine: "
            "local:/path/to/model.gguf"
        ) from error


def weights_folder(text: str, progress: FetchProgress | None = None) -> Path:
    """Return the folder with the transformers weights of a named model; a GGUF file is converted to float32 once.

    Raises:
        UsageError: the name is not that of a model with weights on this machine.
        ModelError: the model cannot be loaded.
    """
    name = ModelName.parse(text, "base")
    refuse_unscripted(text)
    if name.is_gguf:
        return dequantized(gguf_file(name, progress))
    check_folder(name.path, None)
    return name.path


def known_weights(text: str) -> tuple[Path | None, int]:
    """Return the folder of a model's transformers weights, None if it does not exist yet, and their size in bytes.

    The size is that of the float32 weights; 0 if it is not known. Nothing is downloaded or converted.
    """
    name = ModelName.parse(text, "scorer")
    folder = name.path if name.kind == "transformers" else None
    if name.kind == "local" and (file := existing_file(name)) is not None:
        folder = _float32_folder(file)
    if folder is None or not (folder / "config.json").is_file():
        return None, 0
    return folder, sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def refuse_unscripted(name: str) -> None:
    """Raise ModelError if USERTWIN_ONLY_SCRIPTED forbids this model."""
    if os.environ.get("USERTWIN_ONLY_SCRIPTED"):
        way_out = "unset it, or use scripted:FILE"
        raise ModelError(f'"{name}" is not a scripted model, and USERTWIN_ONLY_SCRIPTED forbids all others; {way_out}')


def _float32_folder(gguf: Path) -> Path:
    """Return the cache folder for the float32 weights of a GGUF file."""
    stat = gguf.stat()
    return cache_folder() / "float32" / f"{gguf.stem}-{stat.st_size}-{int(stat.st_mtime)}"


def dequantized(gguf: Path) -> Path:
    """Return a folder with the weights of a GGUF file in float32 for transformers; the result is cached."""
    if not gguf.is_file():
        raise ModelError(f"{gguf}: there is no such model file; name an existing GGUF file")
    target = _float32_folder(gguf)
    if target.is_dir():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    private_folder(target.parent)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-"))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with LOADING:
            model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        model.hf_quantizer = None  # the weights are plain floats now; transformers would refuse to save them otherwise
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        partial.rename(target)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if target.is_dir():  # another process converted the file meanwhile
            return target
        raise ModelError(f"{gguf}: transformers cannot read this model ({error})") from error
    finally:
        logging.set_verbosity(verbosity)
    return target


def load_transformers(folder: Path, precision: Precision, adapter: Adapter | None = None) -> tuple[Any, Any]:
    """Return a model and its tokenizer. An adapter is merged into float32 weights: bfloat16 would round its changes away."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    dtype = torch.float32 if adapter is not None else getattr(torch, precision)
    with LOADING:
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise ModelError(f"{folder}: transformers cannot load this model ({error})") from error
        return (model if adapter is None else with_adapter(model, adapter)), tokenizer


def transformers_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a transformers folder. ModelError if it has none."""
    from transformers import AutoTokenizer

    try:
        with LOADING:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder}: transformers cannot load this tokenizer ({error})") from error


def to_gpu(model: Any) -> Any:
    """Return the model in bfloat16 on the GPU if there is one, else unchanged."""
    import torch

    return model.to("cuda", torch.bfloat16) if torch.cuda.is_available() else model
