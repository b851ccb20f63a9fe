"""LoRA adapters: small trained weights, named after a model as "BASE+FOLDER".

Design: an adapter is checked against a base by the shapes of its layers, not by the base's name. Folders move and models have
several names, but weights of another shape never fit.
"""

from __future__ import annotations

import hashlib
import os.path
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.training.user_model import TWIN
from usertwin.memory.twin.consent import adapter_may_load
from usertwin.personas import ModelError, UsageError
from usertwin.personas.reading import parse_json

if TYPE_CHECKING:
    from .model_files import Layers

CONFIG, WEIGHTS, FACTS = "adapter_config.json", "adapter_model.safetensors", "usertwin.json"
_PREFIX = "base_model.model."  # peft prepends it to every module name


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter in peft's format.

    Attributes:
        base: the name of the model it was trained on, as on the command line; None if usertwin did not train it.
        style: the prompt style it was trained with; None if unknown.
        proposal_mode: how it proposes traces ("backward", "forward"); None if unknown.
        method: how it was trained, such as "sft"; None if unknown.
        rank: the rank of its matrices, unless a layer has its own.
        trained_on: the folder or hub name of the base in peft's config; "" if missing.
        layers: the (outputs, inputs) of each adapted module, by transformers' module name.
        others: its other tensors: embeddings, whole layers, magnitudes.
        of_twin: whether it is a part of the twin in whose folder it lies; then nothing made of it lies elsewhere.
    """

    folder: Path
    base: str | None
    style: PromptStyle | None
    proposal_mode: str | None
    method: str | None
    rank: int
    trained_on: str
    layers: Mapping[str, tuple[int, int]]
    others: tuple[str, ...]
    config: Mapping[str, Any]
    of_twin: bool = False

    @property
    def identity(self) -> str:
        """A hash of its config and weights, in hex."""
        hashes = (hashlib.sha256((self.folder / name).read_bytes()).digest() for name in (CONFIG, WEIGHTS))
        return hashlib.sha256(b"".join(hashes)).hexdigest()

    @property
    def origin(self) -> str:
        """The model it was trained on, for messages."""
        return f'"{self.base or self.trained_on}"' if self.base or self.trained_on else "another model"


def read_adapter(folder: str | Path) -> Adapter:
    """Return the adapter in a folder. Its weights are not loaded.

    Raises:
        ModelError: there is no such folder, or it holds no LoRA adapter in the safetensors format.
    """
    folder = Path(os.path.expanduser(folder))
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such adapter; name a folder with {CONFIG} and {WEIGHTS}")
    missing = next((name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()), None)
    if missing == WEIGHTS and (folder / "adapter_model.bin").exists():
        raise ModelError(
            f"{folder}: its weights are a pickle (adapter_model.bin), which can run code and is never read; "
            f"save the adapter again with peft's save_pretrained, which writes {WEIGHTS}"
        )
    if missing is not None:
        raise ModelError(f"{folder}: is not an adapter, {missing} is missing; name a folder from `usertwin train` or peft")
    config = _read_object(folder / CONFIG)
    facts = _read_object(folder / FACTS) if (folder / FACTS).is_file() else {}
    kind, rank, style = config.get("peft_type"), config.get("r"), facts.get("style")
    if kind != "LORA" or not isinstance(rank, int):
        raise ModelError(f"{folder / CONFIG}: peft_type is {kind!r}; only LoRA adapters are supported")
    if facts and facts.get("format") != 1:
        raise ModelError(f"{folder / FACTS}: format is {facts.get('format')!r}, this version reads 1; update usertwin")
    if style is not None and style not in get_args(PromptStyle):
        raise ModelError(f'{folder / FACTS}: style is "{style}"; it must be {" or ".join(get_args(PromptStyle))}')
    layers, others = _layers(folder / WEIGHTS)
    return Adapter(
        folder=folder, base=_text(facts.get("base")), style=style, method=_text(facts.get("method")), rank=rank,
        proposal_mode=_text(facts.get("proposal_mode", facts.get("how"))),  # "how" in snapshots before 0.1.0
        trained_on=str(config.get("base_model_name_or_path") or ""), layers=layers, others=others, config=config,
        of_twin=facts.get("kind") == TWIN,
    )  # fmt: skip


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        raw = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); copy the adapter again") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: is not a JSON object; copy the adapter again")
    return cast("dict[str, Any]", raw)


def _layers(path: Path) -> tuple[dict[str, tuple[int, int]], tuple[str, ...]]:
    """Return the (outputs, inputs) of each module with both LoRA matrices, and the names of all other tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with cast("Any", safe_open)(path, framework="np") as file:
            shapes: dict[str, list[int]] = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: cannot be read as safetensors ({error}); copy the adapter again") from None
    layers, used = dict[str, tuple[int, int]](), set[str]()
    for key in [key for key in shapes if key.endswith(".lora_A.weight")]:
        module = key.removesuffix(".lora_A.weight")
        a, b = shapes[key], shapes.get(f"{module}.lora_B.weight", [])
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise ModelError(f"{path}: the shapes of the two matrices of {module} do not match; copy the adapter again")
        layers[module.removeprefix(_PREFIX)] = (b[0], a[1])
        used |= {key, f"{module}.lora_B.weight"}
    if not layers:
        raise ModelError(f"{path}: contains no LoRA matrices; name the folder of an adapter")
    return layers, tuple(key for key in shapes if key not in used)


def model_with_adapter(folder: str | Path) -> str:
    """Return the model name "BASE+FOLDER" for an adapter's folder; the base is the one that the adapter records.

    Raises:
        ModelError: the folder holds no adapter.
        UsageError: the adapter records no base, or one that the user did not choose: a stranger's adapter may name any file.
    """
    adapter = read_adapter(folder)
    base = adapter.base or (f"transformers:{adapter.trained_on}" if Path(adapter.trained_on).is_dir() else None)
    if base is not None and adapter_may_load(base, adapter.identity):
        return f"{base}+{adapter.folder}"
    raise UsageError(
        f"{adapter.folder}: was trained on {adapter.origin}, and a base that an adapter names is not loaded without your word; "
        f"name the base with it, such as transformers:DIR+{adapter.folder}"
    )


def check_fits(adapter: Adapter, base: Layers, name: str) -> None:
    """Raise ModelError, with the base's name, if an adapter does not fit the layers of a base."""
    if mismatch := _mismatch(adapter, base):
        way_out = f'use "{adapter.base}+{adapter.folder}"' if adapter.base else "name the model it was trained on"
        raise ModelError(
            f'{adapter.folder}: this adapter was trained on {adapter.origin} and does not fit "{name}" ({mismatch}); {way_out}'
        )


def _mismatch(adapter: Adapter, base: Layers) -> str | None:
    """Return the first difference between an adapter's layers and those of a base, None if the adapter fits."""
    for module, expected in adapter.layers.items():
        actual = base.shape_of(module)
        if actual is None:
            return f"{module} does not exist"
        if actual != expected:
            return f"{module} has {actual[0]} x {actual[1]} weights instead of {expected[0]} x {expected[1]}"
    blocks = {int(part) for module in adapter.layers for part in module.split(".") if part.isdecimal()}
    targets: object = adapter.config.get("target_modules")  # plain names of modules: the adapter changes every block
    plain = isinstance(targets, list) and not any("." in str(target) for target in cast("list[object]", targets))
    if plain and not adapter.config.get("layers_to_transform") and len(blocks) != base.blocks:
        return f"it has {base.blocks} blocks, not {len(blocks)}"
    return None


def with_adapter(model: Any, adapter: Adapter) -> Any:
    """Return a transformers model with the adapter merged into its weights, so that it runs as fast as without.

    Raises:
        UsageError: peft is not installed.
        ModelError: peft cannot load the adapter.
    """
    try:
        from peft import PeftModel
    except ImportError:
        need = "an adapter in transformers needs the package peft: pip install 'usertwin[train]'"
        raise UsageError(f"{adapter.folder}: {need}") from None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)  # of peft's own use
            adapted: Any = PeftModel.from_pretrained(model, str(adapter.folder), local_files_only=True)
        return adapted.merge_and_unload()
    except Exception as error:
        raise ModelError(f"{adapter.folder}: peft cannot load this adapter ({error})") from error
