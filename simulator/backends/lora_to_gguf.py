"""Adapters for llama.cpp: the layers of a base, as a GGUF file or a folder has them, and a peft adapter as a GGUF file.

The one design choice: of a GGUF file only the header is read, by a few lines of our own: the gguf package takes ten seconds for
one, because it makes an array of every word of the vocabulary, and the header is wanted before anything long starts.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from usertwin.personas import ModelError

from .downloads import cache_folder
from .model_files import ARCHITECTURES, Layers, layers_of

if TYPE_CHECKING:
    from .lora_adapter import Adapter

#: Of these the rows of the query and key layers stand in another order in a GGUF file, for another way to rotate them.
_PERMUTED = {"llama"}
_VERSION = 1  # of the conversion: a new one is not mixed up with files of an older


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
    if layers.architecture not in ARCHITECTURES.values():
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
