"""What the files of a model say: its layers, its GGUF header, and whether it has a chat template."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from usertwin.personas import ModelError

#: What llama.cpp calls the architecture of a transformers model type.
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}  # fmt: skip


_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Layers:
    """What an adapter must fit to.

    Attributes:
        architecture: as llama.cpp calls it; "" if it has no name there that we know.
        blocks: how many blocks of layers.
        heads: attention heads of a block.
        key_heads: of these, how many have keys of their own.
        shapes: the (outputs, inputs) of each layer: by llama.cpp's name of its tensor, or by transformers' of its module.
        modules: whether the shapes are by transformers' names.
    """

    architecture: str
    blocks: int
    heads: int
    key_heads: int
    shapes: Mapping[str, tuple[int, int]]
    modules: bool

    @cached_property
    def _names(self) -> Any:
        import gguf

        found = [one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture]
        return gguf.get_tensor_name_map(found[0], self.blocks) if found else None

    def tensor_of(self, module: str) -> str | None:
        """What llama.cpp calls the tensor of a module; None if it has none such."""
        name = None if self._names is None else self._names.get_name(module)
        return None if name is None else f"{name}.weight"

    def shape_of(self, module: str) -> tuple[int, int] | None:
        """The (outputs, inputs) of a module; None if there is none such."""
        return self.shapes.get(module if self.modules else self.tensor_of(module) or "")


def layers_of(base: Path) -> Layers:
    """The layers of a GGUF file or of a transformers folder; no weights are loaded.

    Raises:
        ModelError: there is no such model, or it cannot be read.
    """
    if base.is_dir():
        return _layers_of_folder(base)
    if not base.is_file():
        raise ModelError(f"{base}: there is no such model file; name a GGUF file that exists")
    try:
        with base.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            facts, shapes = _Header(data).read()
    except (ValueError, struct.error, IndexError, KeyError, OverflowError):
        raise ModelError(f"{base}: is not a GGUF file that can be read; fetch it again, or name another") from None
    name = str(facts.get("general.architecture", ""))
    keys = ("block_count", "attention.head_count", "attention.head_count_kv")
    blocks, heads, key_heads = (
        int(facts.get(f"{name}.{key}") or 0) for key in keys
    )  # a list of them, one a block, is left out
    return Layers(name, blocks, heads, key_heads or heads, shapes, False)


def _layers_of_folder(base: Path) -> Layers:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config: Any = AutoConfig.from_pretrained(base, local_files_only=True)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise ModelError(f"{base}: transformers cannot load this model ({error})") from error
    shapes = dict[str, tuple[int, int]]()
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() == 2:
            out, inner = weight.shape
            shapes[name] = (inner, out) if type(module).__name__ == "Conv1D" else (out, inner)  # GPT-2's are turned
    heads = int(getattr(config, "num_attention_heads", 0))
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    architecture = ARCHITECTURES.get(str(config.model_type), "")
    return Layers(architecture, int(getattr(config, "num_hidden_layers", 0)), heads, key_heads, shapes, True)


class _Header:
    """The header of a GGUF file, read in order: its facts without those that are lists, and the shapes of its matrices."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def read(self) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
        """The facts and the (outputs, inputs) by name. ValueError, struct.error, KeyError if it is no header."""
        if self._data[:4] != b"GGUF":
            raise ValueError("no GGUF file")
        self._at = 4
        version, tensors, facts = self._next("I"), self._next("Q"), self._next("Q")
        if version not in {2, 3}:
            raise ValueError("another version")
        told = {self._text(): self._value(self._next("I")) for _ in range(facts)}
        shapes = dict[str, tuple[int, int]]()
        for _ in range(tensors):
            name, sizes = self._text(), [self._next("Q") for _ in range(self._next("I"))]
            self._at += 12  # the type and the place of the numbers
            if len(sizes) == 2:
                shapes[name] = (sizes[1], sizes[0])
        return told, shapes

    def _next(self, form: str) -> Any:
        found = struct.unpack_from(f"<{form}", self._data, self._at)[0]
        self._at += struct.calcsize(f"<{form}")
        return found

    def _text(self) -> str:
        length = self._next("Q")
        start, self._at = self._at, self._at + length
        return self._data[start : self._at].decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._next(_FORMS[kind])
        inner, count = self._next("I"), self._next("Q")
        if inner in _FORMS:
            self._at += count * struct.calcsize(f"<{_FORMS[inner]}")
        else:
            for _ in range(count):
                self._value(inner)
        return None


def has_chat_template(folder: Path) -> bool:
    """Whether a transformers folder says how to write a chat; its small files are looked at, nothing is loaded."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        told: object = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and bool(cast("dict[str, object]", told).get("chat_template"))
