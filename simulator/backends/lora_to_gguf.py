"""Conversion of a LoRA adapter from peft's format to a GGUF file for llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from usertwin.personas import ModelError
from usertwin.personas.files import private_folder, replacement

from .downloads import cache_folder
from .lora_adapter import Adapter, check_fits
from .model_files import ARCHITECTURES, Layers, layers_of

#: Architectures whose query and key rows have another order in GGUF files, because llama.cpp rotates them differently.
_PERMUTED = {"llama"}
_VERSION = 1  # of the conversion; part of the cache file's name


def adapter_as_gguf(adapter: Adapter, target: str | Path, base: str | Path | None = None) -> Path:
    """Write an adapter in llama.cpp's format, completely or not at all, and return the target.

    The base is a GGUF file or a transformers folder; by default the folder in peft's config. The result can be served with
    `llama-server --lora`, Ollama and others.

    Raises:
        ModelError: the base is missing or does not fit, llama.cpp does not support a part of the adapter, or the file cannot be
            written.
    """
    path = Path(base or adapter.trained_on or adapter.folder)
    layers = layers_of(path)
    check_fits(adapter, layers, str(path))
    _check_convertible(adapter, layers)
    target = Path(target)
    try:
        private_folder(target.parent)
        with replacement(target) as partial:
            _write(adapter, layers, partial)
    except OSError as error:
        reason = f"the adapter cannot be written ({error.strerror or error})"
        raise ModelError(f"{target}: {reason}; free space, or name another file") from None
    return target


def cached_gguf_adapter(adapter: Adapter, base: Path, name: str) -> Path:
    """Return the adapter as a GGUF file, converted once for each base, a GGUF file with a name for messages.

    The result lies in the cache; that of a twin's adapter lies beside it, so that forgetting deletes both.
    """
    layers = layers_of(base)
    check_fits(adapter, layers, name)
    facts = f"{layers.architecture}-{layers.blocks}-{layers.heads}-{layers.key_heads}"
    folder = adapter.folder if adapter.of_twin else cache_folder() / "adapters"
    target = folder / f"{adapter.identity[:32]}-{facts}-{_VERSION}.gguf"
    return target if target.is_file() else adapter_as_gguf(adapter, target, base)


def _check_convertible(adapter: Adapter, layers: Layers) -> None:
    """Raise ModelError if llama.cpp does not support a part of the adapter."""
    way_out = 'use it as "transformers:DIR+ADAPTER"'
    if layers.architecture not in ARCHITECTURES.values():
        architecture = layers.architecture or "its architecture"
        raise ModelError(f'{adapter.folder}: adapters of "{architecture}" are not converted for llama.cpp; {way_out}')
    unknown = [module for module in adapter.layers if layers.tensor_of(module) is None]
    if unsupported := [*unknown, *adapter.others]:
        raise ModelError(f"{adapter.folder}: llama.cpp does not support {unsupported[0]} of this adapter; {way_out}")
    if adapter.config.get("alora_invocation_tokens") or adapter.config.get("fan_in_fan_out"):
        raise ModelError(f"{adapter.folder}: llama.cpp does not support this variant of LoRA; {way_out}")


def _write(adapter: Adapter, layers: Layers, target: Path) -> None:
    import gguf

    alpha = float(adapter.config.get("lora_alpha") or 8)  # 8 is peft's default
    writer = gguf.GGUFWriter(target, layers.architecture)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for module, (a, b) in _matrices(adapter).items():
            name = str(layers.tensor_of(module))
            # llama.cpp scales by alpha / rank; peft may use another formula, or another alpha for some layers.
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
    """Return the float32 matrices A (rank, inputs) and B (outputs, rank) of each module."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(adapter.folder / "adapter_model.safetensors")  # with torch: numpy has no bfloat16

    def matrix(module: str, side: str) -> Any:
        keys = (f"base_model.model.{module}.lora_{side}.weight", f"{module}.lora_{side}.weight")
        return next(tensors[key] for key in keys if key in tensors).to(torch.float32).contiguous().numpy()

    return {module: (matrix(module, "A"), matrix(module, "B")) for module in adapter.layers}


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return the factor by which peft multiplies the product of a module's matrices."""
    patterns = cast("dict[str, float]", config.get("alpha_pattern") or {})
    matching = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
    alpha = float(matching[0] if matching else config.get("lora_alpha") or 8)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _permuted(rows: Any, heads: int) -> Any:
    """Return the rows of a query or key layer in the order of a GGUF file: the halves of each head interleaved."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
