"""Twins with a synthesizer, and the folder of a LoRA adapter, for tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from usertwin.memory import Settings, TwinRecord, existing_twin


def set_synthesizer(name: str, synthesizer: str | None, settings: Settings | None = None) -> None:
    """Change a twin's record as if it was learned with a synthesizer."""
    record = TwinRecord.load(existing_twin(name))
    recipe = replace(record.recipe, model=synthesizer or record.recipe.model, synthesizer=synthesizer)
    replace(record, recipe=recipe, settings=settings).save(existing_twin(name))


def adapter_folder(folder: Path, **facts: object) -> Path:
    """Write a LoRA adapter of one layer, with these facts in usertwin.json, and return its folder."""
    folder.mkdir()
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{layer}.lora_A.weight": np.zeros((2, 8), "f4"), f"{layer}.lora_B.weight": np.zeros((8, 2), "f4")},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}), "utf-8")
    (folder / "usertwin.json").write_text(json.dumps({"format": 1, "style": "transcript"} | facts), "utf-8")
    return folder
