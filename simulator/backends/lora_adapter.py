"""Adapters: the small trained part (LoRA) that is named behind a model, "BASE+FOLDER", wherever a model is named.

The one design choice: an adapter is judged by the layers that its file really holds, not by the name of the base that it was
trained on: folders move and models have several names, but weights of another shape never fit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from usertwin.memory.models.chat import Style
from usertwin.personas import ModelError, UsageError

if TYPE_CHECKING:
    from .model_files import Layers

CONFIG, WEIGHTS, FACTS = "adapter_config.json", "adapter_model.safetensors", "usertwin.json"
_OUTER = "base_model.model."  # what peft puts before the name of every layer


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter in peft's form.

    Attributes:
        folder: where it is.
        base: the name of the model it was trained on, as on the command line; None if it was trained elsewhere.
        style: how the model is prompted with it; None if nobody said so.
        how: what it is shown when it proposes traces ("backward", "forward"); None if nobody said so.
        method: how it was trained, such as "sft"; None if nobody said so.
        rank: of its matrices, where a layer has no other.
        trained_on: the folder or hub name of the base, as peft noted it; "" if it did not.
        layers: the (outputs, inputs) of each layer it changes, by the layer's name in transformers.
        others: what else its file holds: embeddings, whole layers, magnitudes.
        config: peft's own settings.
    """

    folder: Path
    base: str | None
    style: Style | None
    how: str | None
    method: str | None
    rank: int
    trained_on: str
    layers: Mapping[str, tuple[int, int]]
    others: tuple[str, ...]
    config: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """What tells it from others that may once be at the same place: a hash of its settings and weights, in hex."""
        digest = hashlib.sha256()
        for name in (CONFIG, WEIGHTS):
            digest.update(hashlib.sha256((self.folder / name).read_bytes()).digest())
        return digest.hexdigest()

    @property
    def origin(self) -> str:
        """On what it was trained, as far as is known, in words."""
        return f'"{self.base or self.trained_on}"' if self.base or self.trained_on else "another model"


def read_adapter(folder: str | Path) -> Adapter:
    """What an adapter's folder says; its weights stay on disk.

    Raises:
        ModelError: there is no such folder, or what is in it is no LoRA adapter in the safetensors format.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such adapter; name a folder with {CONFIG} and {WEIGHTS}")
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder}: is no adapter, it holds no {CONFIG}; name a folder that `usertwin train` or peft wrote")
    if not (folder / WEIGHTS).is_file():
        if (folder / "adapter_model.bin").exists():
            raise ModelError(
                f"{folder}: its weights are a pickle (adapter_model.bin), which can run code and is never read; "
                f"save the adapter again with peft's save_pretrained, which writes {WEIGHTS}"
            )
        raise ModelError(f"{folder}: is no adapter, it holds no {WEIGHTS}; name a folder that `usertwin train` or peft wrote")
    config, told = _object(folder / CONFIG), _object(folder / FACTS) if (folder / FACTS).is_file() else {}
    kind, rank, style = config.get("peft_type"), config.get("r"), told.get("style")
    if kind != "LORA" or not isinstance(rank, int):
        raise ModelError(f"{folder / CONFIG}: describes no LoRA adapter (its peft_type is {kind!r}), and no other kind is read")
    if told and told.get("format") != 1:
        raise ModelError(f"{folder / FACTS}: its format is {told.get('format')!r}, this version reads 1; update usertwin")
    if style is not None and style not in get_args(Style):
        raise ModelError(f'{folder / FACTS}: "{style}" is no style; there are {", ".join(get_args(Style))}')
    layers, others = _layers(folder / WEIGHTS)
    facts = (told.get(key) for key in ("base", "how", "method"))
    base, how, method = (fact if isinstance(fact, str) and fact else None for fact in facts)
    trained_on = str(config.get("base_model_name_or_path") or "")
    return Adapter(folder, base, style, how, method, rank, trained_on, layers, others, config)


def _object(path: Path) -> dict[str, Any]:
    try:
        found: object = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); copy the adapter again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: holds no JSON object; copy the adapter again")
    return cast("dict[str, Any]", found)


def _layers(path: Path) -> tuple[dict[str, tuple[int, int]], tuple[str, ...]]:
    """The (outputs, inputs) of each layer that has both LoRA matrices, and the names of all other tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with cast("Any", safe_open)(path, framework="np") as file:
            shapes: dict[str, list[int]] = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors ({error}); copy the adapter again") from None
    layers, own = dict[str, tuple[int, int]](), set[str]()
    for key in [key for key in shapes if key.endswith(".lora_A.weight")]:
        module = key.removesuffix(".lora_A.weight")
        a, b = shapes[key], shapes.get(f"{module}.lora_B.weight", [])
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise ModelError(f"{path}: the two matrices of {module} do not belong together; copy the adapter again")
        layers[module.removeprefix(_OUTER)] = (b[0], a[1])
        own |= {key, f"{module}.lora_B.weight"}
    if not layers:
        raise ModelError(f"{path}: holds no LoRA matrices; name the folder of an adapter")
    return layers, tuple(key for key in shapes if key not in own)


def model_with_adapter(folder: str | Path) -> str:
    """The name of an adapter's base with the adapter behind it, "BASE+FOLDER", as its folder says.

    Raises:
        ModelError: it is no adapter.
        UsageError: it does not say on which model it was trained, or that is not here.
    """
    adapter = read_adapter(folder)
    if adapter.base is not None:
        return f"{adapter.base}+{adapter.folder}"
    if adapter.trained_on and Path(adapter.trained_on).is_dir():
        return f"transformers:{adapter.trained_on}+{adapter.folder}"
    raise UsageError(
        f"{adapter.folder}: was trained on {adapter.origin}, and where that is here is not known; "
        f"name the model with it: transformers:DIR+{adapter.folder}"
    )


def check_fits(adapter: Adapter, base: Layers, name: str) -> None:
    """ModelError, naming both, if an adapter is one of another base.

    Args:
        adapter: which.
        base: the layers of the base that it is to be used with.
        name: of that base.
    """
    wrong = None
    for module, wanted in adapter.layers.items():
        found = base.shape_of(module)
        if found != wanted:
            there = "is not there" if found is None else f"has {found[0]} x {found[1]} weights instead of"
            wrong = f"{module} {there}" + ("" if found is None else f" {wanted[0]} x {wanted[1]}")
            break
    numbers = {int(part) for module in adapter.layers for part in module.split(".") if part.isdecimal()}
    if wrong is None and _all_blocks(adapter) and len(numbers) != base.blocks:
        wrong = f"it has {base.blocks} blocks of layers, not {len(numbers)}"
    if wrong is not None:
        way_out = f'name its own: "{adapter.base}+{adapter.folder}"' if adapter.base else "name the model it was trained on"
        raise ModelError(
            f'{adapter.folder}: this adapter was trained on {adapter.origin} and does not fit "{name}" ({wrong}); {way_out}'
        )


def _all_blocks(adapter: Adapter) -> bool:
    """Whether it changes each block of its base, as far as its settings tell."""
    targets: object = adapter.config.get("target_modules")
    plain = isinstance(targets, list) and not any("." in str(target) for target in cast("list[object]", targets))
    return plain and not adapter.config.get("layers_to_transform")


def with_adapter(model: Any, adapter: Adapter) -> Any:
    """A transformers model with an adapter merged into its weights, so that it costs nothing more to run.

    Raises:
        UsageError: peft is not installed.
        ModelError: peft cannot read the adapter.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise UsageError(
            f"{adapter.folder}: an adapter in transformers needs the package peft: pip install 'usertwin[train]'"
        ) from None
    try:
        both: Any = PeftModel.from_pretrained(model, str(adapter.folder), local_files_only=True)
        return both.merge_and_unload()
    except Exception as error:
        raise ModelError(f"{adapter.folder}: peft cannot load this adapter ({error})") from error
