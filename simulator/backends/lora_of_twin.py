"""The adapter of a twin: which model it belongs to, and that model with it.

Design: an adapter fits any weights of the same shapes, so shapes do not tell whether it belongs to a model. The checksum of the
model's weights does, whatever its name.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from usertwin.memory import ChatModel, TwinRecord
from usertwin.memory.atomic_files import checksum, file_checksum
from usertwin.memory.models.chat import Price, PromptStyle
from usertwin.memory.twin.record import ADAPTER_FOLDER, twin_command
from usertwin.personas import ModelError, UsageError

from .downloads import FetchProgress
from .load import load_model, prompt_style_of
from .lora_adapter import read_adapter
from .model_name import ModelName
from .weights import gguf_file, refuse_unscripted

#: The style of a twin's prompts that an adapter is trained on.
ADAPTED_STYLE: PromptStyle = "transcript"


def model_for_twin(
    record: TwinRecord, folder: Path, model: str | ChatModel, *, style: PromptStyle | None = None, price: Price | None = None,
    progress: FetchProgress | None = None,
) -> ChatModel:  # fmt: skip
    """Return the model that acts for a twin: the given one, with the twin's adapter if that was trained on its weights.

    Args:
        record: the twin's record.
        folder: the twin's folder.
        model: its name, or the loaded model.
        style: how to prompt a model that is named; by default its own style.
        price: of a hosted model that is named.
        progress: callback for the progress of a download.

    Raises:
        UsageError: the name is not that of a chat model.
        ModelError: the model or the adapter cannot be loaded.
    """
    given = model if isinstance(model, ChatModel) else None
    name, style = (model, style) if isinstance(model, str) else (model.name, model.style)
    adapter = adapter_for(record, folder, name, style=style, progress=progress)
    if adapter is None:
        return given or load_model(name, style=style, price=price, progress=progress)
    adapted = load_model(f"{name}+{adapter}", style=ADAPTED_STYLE, progress=progress)
    return adapted if given is None else replace(adapted, cache=given.cache)


def adapter_for(
    record: TwinRecord, folder: Path, name: str, *, style: PromptStyle | None = None, progress: FetchProgress | None = None
) -> Path | None:  # fmt: skip
    """Return the folder of a twin's adapter if it belongs to a named model, prompted in a style; None if it does not.

    Raises:
        ModelError: the adapter is damaged, or the model cannot be downloaded.
    """
    if record.adapter is None or not record.adapter.used:
        return None
    try:
        parsed = ModelName.parse(name)
        if not parsed.is_local or parsed.adapter is not None or prompt_style_of(name, style)[0] != ADAPTED_STYLE:
            return None
    except UsageError:  # a chat model of another origin, or one that cannot be prompted so
        return None
    if weights_checksum(name, progress) != record.adapter.weights:
        return None
    place = (folder / ADAPTER_FOLDER).absolute()
    if read_adapter(place).identity != record.adapter.identity:
        again = twin_command("learn", record.name, folder.parent, "--adapt")
        raise ModelError(f"{place}: is not the adapter that {record.name} was measured with; train another one: {again}")
    return place


def weights_checksum(name: str, progress: FetchProgress | None = None) -> str:
    """Return the checksum of the weights of a named model on this machine, which is downloaded if necessary.

    Raises:
        UsageError: the name is not that of a model with weights on this machine.
        ModelError: the model cannot be downloaded, is missing, or is forbidden.
    """
    parsed = ModelName.parse(ModelName.parse(name).base, "base")
    refuse_unscripted(name)
    path = gguf_file(parsed, progress) if parsed.is_gguf else parsed.path
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    try:
        facts = [(file, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    except OSError:
        raise ModelError(f"{path}: there is no such model; name an existing file or folder") from None
    sums = [_checksum(*fact) for fact in facts]
    return sums[0] if len(sums) == 1 else checksum(" ".join(sums).encode())


@lru_cache(maxsize=32)
def _checksum(file: Path, size: int, changed: int) -> str:
    """Return the checksum of a file; its size and the time of its change tell it from a later file of this path."""
    return file_checksum(file)
