"""Adapters for llama.cpp: the layers of a base, as a GGUF file or a folder has them, and a peft adapter as a GGUF file.

The one design choice: of a GGUF file only the header is read, by a few lines of our own: the gguf package takes ten seconds for
one, because it makes an array of every word of the vocabulary, and the header is wanted before anything long starts.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from usertwin.personas import ModelError

from .downloads import cache_folder

if TYPE_CHECKING:
    from .lora_adapter import Adapter

#: What llama.cpp calls the architecture of a transformers model type.
_ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}  # fmt: skip
#: Of these the rows of the query and key layers stand in another order in a GGUF file, for another way to rotate them.
_PERMUTED = {"llama"}
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSION = 1  # of the conversion: a new one is not mixed up with files of an older


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
    architecture = _ARCHITECTURES.get(str(config.model_type), "")
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


def adapter_as_gguf(adapter: Adapter, target: str | Path, base: str | Path | None = None) -> Path:
    """Write an adapter in llama.cpp's format, to be served with `llama-server --lora`, Ollama and others.

    Args:
        adapter: which; see `read_adapter`.
        target: the file to write; it is there in whole or not at all.
        base: the model it belongs to, a GGUF file or a transformers folder; the folder that peft noted if None.

    Returns:
        The target.

    Raises:
        ModelError: the base cannot be had or is another, or the adapter holds what llama.cpp has no place for; or the file
            cannot be written.
    """
    from .lora_adapter import check_fits

    place = Path(base or adapter.trained_on or adapter.folder)
    layers = layers_of(place)
    check_fits(adapter, layers, str(place))
    _check_convertible(adapter, layers)
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".partial-", suffix=".gguf")
        os.close(handle)
        try:
            _write(adapter, layers, Path(partial))
            os.replace(partial, target)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)
    except OSError as error:
        raise ModelError(f"{target}: the adapter cannot be written there ({error.strerror or error}); make room") from None
    return target


def kept_as_gguf(adapter: Adapter, base: Path, name: str) -> Path:
    """The same in the cache, converted once for a base.

    Args:
        adapter: which.
        base: a GGUF file.
        name: what the user calls the base.
    """
    from .lora_adapter import check_fits

    layers = layers_of(base)
    check_fits(adapter, layers, name)
    facts = f"{layers.architecture}-{layers.blocks}-{layers.heads}-{layers.key_heads}"
    target = cache_folder() / "adapters" / f"{adapter.identity[:32]}-{facts}-{_VERSION}.gguf"
    return target if target.is_file() else adapter_as_gguf(adapter, target, base)


def _check_convertible(adapter: Adapter, layers: Layers) -> None:
    """ModelError if llama.cpp has no place for something of an adapter."""
    way_out = 'use it as "transformers:DIR+ADAPTER"'
    if layers.architecture not in _ARCHITECTURES.values():
        what = layers.architecture or "its architecture"
        raise ModelError(f'{adapter.folder}: adapters of "{what}" are not converted for llama.cpp; {way_out}')
    without = [module for module in adapter.layers if layers.tensor_of(module) is None]
    if found := [*without, *adapter.others]:
        raise ModelError(f"{adapter.folder}: llama.cpp has no place for {found[0]} of this adapter; {way_out}")
    if adapter.config.get("alora_invocation_tokens") or adapter.config.get("fan_in_fan_out"):
        raise ModelError(f"{adapter.folder}: llama.cpp has no place for this form of LoRA; {way_out}")


def _write(adapter: Adapter, layers: Layers, target: Path) -> None:
    import gguf

    alpha = float(adapter.config.get("lora_alpha") or 8)  # peft's own default
    writer = gguf.GGUFWriter(target, layers.architecture)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for module, (a, b) in _matrices(adapter).items():
            name = str(layers.tensor_of(module))
            # llama.cpp scales by alpha / rank, peft perhaps in another way or with another alpha for some layers.
            b = b * (_scaling(adapter.config, module, a.shape[0]) * a.shape[0] / alpha)
            if layers.architecture in _PERMUTED and name.endswith(("attn_q.weight", "attn_k.weight")):
                b = _permuted(b, layers.heads if name.endswith("attn_q.weight") else layers.key_heads)
            writer.add_tensor(f"{name}.lora_a", a)
            writer.add_tensor(f"{name}.lora_b", b.astype("float32"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _matrices(adapter: Adapter) -> dict[str, tuple[Any, Any]]:
    """The matrices A (rank, inputs) and B (outputs, rank) of each layer, in float32."""
    import torch
    from safetensors.torch import load_file

    held = load_file(adapter.folder / "adapter_model.safetensors")  # numpy has no bfloat16, so torch reads them

    def one(module: str, side: str) -> Any:
        keys = (f"base_model.model.{module}.lora_{side}.weight", f"{module}.lora_{side}.weight")
        return next(held[key] for key in keys if key in held).to(torch.float32).contiguous().numpy()

    return {module: (one(module, "A"), one(module, "B")) for module in adapter.layers}


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """By what peft multiplies the product of a layer's matrices."""
    patterns = cast("dict[str, float]", config.get("alpha_pattern") or {})
    matching = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
    alpha = float(matching[0] if matching else config.get("lora_alpha") or 8)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _permuted(rows: Any, heads: int) -> Any:
    """Rows of a query or key layer in the order of a GGUF file: the two halves of each head interleaved."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def has_chat_template(folder: Path) -> bool:
    """Whether a transformers folder says how to write a chat; its small files are looked at, nothing is loaded."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        told: object = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and bool(cast("dict[str, object]", told).get("chat_template"))
