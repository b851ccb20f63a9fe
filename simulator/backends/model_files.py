"""Facts read from a model's files: its layers, its GGUF header, and whether it has a chat template.

Design: our own reader parses the GGUF header. The gguf package takes ten seconds per file, because it builds an array for
every token of the vocabulary, and the header is needed before any long work starts.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

from usertwin.memory.text.control_tokens import COMMON
from usertwin.personas import ModelError
from usertwin.personas.reading import parse_json

#: llama.cpp's architecture name for each transformers model type.
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}  # fmt: skip
#: The `struct` format of each scalar type of a GGUF header, and its two other types.
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
#: The vocabulary in a GGUF header, and two of llama.cpp's types of tokens.
_TOKENS, _TOKEN_TYPES, _CONTROL, _USER_DEFINED = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", 3, 4
_LIKE_CONTROL = re.compile(r"<\S+>|\[\S+\]")


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers of a base model, which an adapter must fit.

    Attributes:
        architecture: llama.cpp's name of it; "" if unknown.
        blocks: number of transformer blocks.
        heads: attention heads per block.
        key_heads: key-value heads per block.
        shapes: the (outputs, inputs) of each matrix, by llama.cpp's tensor name or by transformers' module name.
        modules: whether the shapes have transformers' module names.
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

        known = [arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture]
        return gguf.get_tensor_name_map(known[0], self.blocks) if known else None

    def tensor_of(self, module: str) -> str | None:
        """Return llama.cpp's tensor name for a transformers module, None if there is none."""
        name = None if self._names is None else self._names.get_name(module)
        return None if name is None else f"{name}.weight"

    def shape_of(self, module: str) -> tuple[int, int] | None:
        """Return the (outputs, inputs) of a transformers module, None if the model does not have it."""
        return self.shapes.get(module if self.modules else self.tensor_of(module) or "")


def layers_of(base: Path) -> Layers:
    """Return the layers of a GGUF file or of a transformers folder. No weights are loaded.

    Raises:
        ModelError: there is no such model, or it cannot be read.
    """
    if base.is_dir():
        return _layers_of_folder(base)
    if not base.is_file():
        raise ModelError(f"{base}: there is no such model file; name an existing GGUF file")
    metadata, shapes = _read_header(base)
    name = str(metadata.get("general.architecture", ""))
    keys = ("block_count", "attention.head_count", "attention.head_count_kv")
    blocks, heads, key_heads = (int(metadata.get(f"{name}.{key}") or 0) for key in keys)  # an array, one value a block, is 0
    return Layers(
        architecture=name, blocks=blocks, heads=heads, key_heads=key_heads or heads, shapes=shapes, modules=False
    )  # fmt: skip


def _read_header(base: Path, arrays: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    try:
        with base.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _HeaderReader(data, arrays).read()
    except (ValueError, struct.error, IndexError, KeyError, OverflowError):
        raise ModelError(f"{base}: is not a readable GGUF file; download it again, or name another") from None


@lru_cache(maxsize=8)
def gguf_vocabulary(path: Path) -> tuple[tuple[str, ...], int | None]:
    """Return the control tokens of a GGUF file, and the tokens of its context.

    A token that a user defined counts if it is written like a control token: llama.cpp reads it as one token in any text. Of a
    file that only llama.cpp can read, the control tokens are those of common chat templates.
    """
    try:
        metadata, _ = _read_header(path, (_TOKENS, _TOKEN_TYPES))
    except ModelError:
        return COMMON, None
    tokens, types = metadata.get(_TOKENS) or [], metadata.get(_TOKEN_TYPES) or []
    control = tuple(
        token for token, kind in zip(tokens, types, strict=False)
        if kind == _CONTROL or (kind == _USER_DEFINED and _LIKE_CONTROL.fullmatch(token))
    )  # fmt: skip
    context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return control, context if isinstance(context, int) else None


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
            rows, columns = weight.shape
            shapes[name] = (columns, rows) if type(module).__name__ == "Conv1D" else (rows, columns)  # GPT-2 transposes
    heads = int(getattr(config, "num_attention_heads", 0))
    return Layers(
        architecture=ARCHITECTURES.get(str(config.model_type), ""), blocks=int(getattr(config, "num_hidden_layers", 0)),
        heads=heads, key_heads=int(getattr(config, "num_key_value_heads", None) or heads), shapes=shapes, modules=True,
    )  # fmt: skip


class _HeaderReader:
    """Reads the header of a GGUF file from start to end."""

    def __init__(self, data: mmap.mmap, arrays: Collection[str] = ()) -> None:
        self._data, self._offset, self._arrays = data, 0, arrays

    def read(self) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
        """Return the metadata (None for arrays that were not named), and the (outputs, inputs) of each matrix by tensor name.

        Invalid data raises ValueError, struct.error, KeyError, IndexError or OverflowError.
        """
        if self._data[:4] != b"GGUF":
            raise ValueError("no GGUF file")
        self._offset = 4
        version, tensors, entries = self._next("I"), self._next("Q"), self._next("Q")
        if version not in {2, 3}:
            raise ValueError("another version")
        metadata = dict[str, Any]()
        for _ in range(entries):
            key = self._text()
            metadata[key] = self._value(self._next("I"), keep=key in self._arrays)
        shapes = dict[str, tuple[int, int]]()
        for _ in range(tensors):
            name, sizes = self._text(), [self._next("Q") for _ in range(self._next("I"))]
            self._offset += 12  # the type and the offset of the tensor's data
            if len(sizes) == 2:
                shapes[name] = (sizes[1], sizes[0])
        return metadata, shapes

    def _next(self, form: str) -> Any:
        value = struct.unpack_from(f"<{form}", self._data, self._offset)[0]
        self._offset += struct.calcsize(f"<{form}")
        return value

    def _text(self) -> str:
        length = self._next("Q")
        start, self._offset = self._offset, self._offset + length
        return self._data[start : self._offset].decode("utf-8", "replace")

    def _value(self, kind: int, *, keep: bool = False) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._next(_FORMATS[kind])
        item_kind, count = self._next("I"), self._next("Q")
        if keep and item_kind == _STRING:
            return [self._text() for _ in range(count)]
        if keep and item_kind in _FORMATS:
            form = f"<{count}{_FORMATS[item_kind]}"
            self._offset += struct.calcsize(form)
            return list(struct.unpack_from(form, self._data, self._offset - struct.calcsize(form)))
        if item_kind in _FORMATS:
            self._offset += count * struct.calcsize(f"<{_FORMATS[item_kind]}")
        else:
            for _ in range(count):
                self._value(item_kind)
        return None


def has_chat_template(folder: Path) -> bool:
    """Return whether a transformers folder has a chat template. Only its small files are read."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        raw = parse_json((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and bool(cast("dict[str, object]", raw).get("chat_template"))


def context_of(folder: Path) -> int | None:
    """Return the tokens of the context of a transformers folder, None if its config does not tell."""
    try:
        raw = parse_json((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    context = cast("dict[str, object]", raw).get("max_position_embeddings") if isinstance(raw, dict) else None
    return context if isinstance(context, int) else None
