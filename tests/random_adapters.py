"""LoRA adapters with random weights, and files of models, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tiny_model import tiny_model

from usertwin.simulator.backends.model_files import layers_of

#: All linear layers of a Llama block.
ALL_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: The contents of usertwin.json.
FACTS = {"format": 1, "base": "local", "style": "transcript", "method": "dpo", "how": "backward"}


def random_adapter(base: Path, folder: Path, *, std: float = 0.3, facts: dict[str, Any] | None = None, **options: Any) -> Path:
    """Write an adapter with random weights, large enough to change the model's output, and return its folder."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(
            **({"r": 4, "lora_alpha": 16, "target_modules": ALL_LAYERS, "task_type": "CAUSAL_LM"} | options)
        )
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=std)
    model.save_pretrained(folder)
    if facts is not None:
        (folder / "usertwin.json").write_text(json.dumps(facts), "utf-8")
    return folder


def write_gguf(folder: Path, path: Path, architecture: str = "llama") -> Path:
    """Write a GGUF file with the header of a transformers model and zeros as weights, and return its path."""
    import gguf

    layers = layers_of(folder)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers.blocks)
    writer.add_head_count(layers.heads)
    writer.add_head_count_kv(layers.key_heads)
    writer.add_token_list(["a", "b", "ü"])
    writer.add_array("some.numbers", [1, 2, 3])
    for module, shape in layers.shapes.items():
        if (name := layers.tensor_of(module)) is not None:
            writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def resized_model(folder: Path, **options: Any) -> Path:
    """Write a Llama of another size into a folder and return the folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    small = tiny_model(folder)
    config = AutoConfig.from_pretrained(small, **options)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(small).save_pretrained(folder)
    return folder
