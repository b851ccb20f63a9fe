"""Conversion of LoRA adapters for llama.cpp: the converted adapter changes the model as peft's does."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_adapters import ALL_LAYERS, FACTS, random_adapter, write_gguf
from tiny_model import tiny_model

from usertwin.personas import ModelError, UsertwinError
from usertwin.simulator import load_model
from usertwin.simulator.backends.downloads import TINY, cache_folder, fetch
from usertwin.simulator.backends.load import prompt_style_of
from usertwin.simulator.backends.lora_adapter import model_with_adapter, read_adapter
from usertwin.simulator.backends.lora_to_gguf import adapter_as_gguf, cached_gguf_adapter
from usertwin.simulator.backends.model_files import layers_of
from usertwin.simulator.backends.weights import weights_folder

peft = pytest.importorskip("peft", reason="adapters need the extra: pip install 'usertwin[train]'")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama in a transformers folder whose name contains a plus."""
    return tiny_model(tmp_path_factory.mktemp("models") / "a+b", chat_template=True)


@pytest.fixture(scope="module")
def _adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapter(base, tmp_path_factory.mktemp("adapters") / "adapter", facts=FACTS)


@pytest.fixture
def adapter(_adapter: Path, tmp_path: Path) -> Path:
    """A copy of an adapter of that model, which a test may modify."""
    return Path(shutil.copytree(_adapter, tmp_path / "adapter"))


def read_gguf(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return a reader of a GGUF file, and its tensors by name."""
    import gguf

    reader = gguf.GGUFReader(path)
    return reader, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def weight_delta(tensors: dict[str, Any], alpha: float, name: str) -> Any:
    """Return what llama.cpp adds to a layer's weights."""
    a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
    return b @ a * (alpha / b.shape[1])


def peft_delta(base: Path, adapter: Path, module: str) -> Any:
    """Return what peft adds to them."""
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(base)
    weight = before.get_submodule(module).weight.detach().clone()
    both: Any = peft.PeftModel.from_pretrained(before, adapter).merge_and_unload()
    return (both.get_submodule(module).weight.detach() - weight).numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 6, "layers.1.mlp.up_proj": 40}},
        {"lora_alpha": 7, "r": 3},
    ],
)
def test_a_converted_adapter_adds_what_peft_adds(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    folder = random_adapter(base, tmp_path / "other", **options)
    path = adapter_as_gguf(read_adapter(folder), tmp_path / "deep" / "adapter.gguf")
    reader, tensors = read_gguf(path)
    alpha = float(reader.get_field("adapter.lora.alpha").contents())
    facts = [reader.get_field(key).contents() for key in ("general.type", "adapter.type", "general.architecture")]
    assert facts == ["adapter", "lora", "llama"]
    assert len(tensors) == 2 * 2 * len(ALL_LAYERS)
    for ours, module in (
        ("blk.1.ffn_down", "mlp.down_proj"),
        ("blk.1.ffn_up", "mlp.up_proj"),
        ("blk.1.attn_v", "self_attn.v_proj"),
    ):
        expected = peft_delta(base, folder, f"model.layers.1.{module}")
        np.testing.assert_allclose(weight_delta(tensors, alpha, f"{ours}.weight"), expected, atol=1e-5)
    # Row 1 of a head is, in a GGUF file of a Llama, the first of the second half: 4 heads of 8 rows, so row 4.
    expected = peft_delta(base, folder, "model.layers.0.self_attn.q_proj")
    delta = weight_delta(tensors, alpha, "blk.0.attn_q.weight")
    np.testing.assert_allclose(delta[[0, 1, 2, 3, 8, 9]], expected[[0, 4, 1, 5, 8, 12]], atol=1e-5)
    assert not list((tmp_path / "deep").glob(".partial-*"))


def test_rows_keep_their_order_for_other_architectures(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
                         num_key_value_heads=2)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    folder = random_adapter(tmp_path / "qwen", tmp_path / "adapter")
    reader, tensors = read_gguf(adapter_as_gguf(read_adapter(folder), tmp_path / "x.gguf"))
    assert reader.get_field("general.architecture").contents() == "qwen2"
    expected = peft_delta(tmp_path / "qwen", folder, "model.layers.0.self_attn.k_proj")
    np.testing.assert_allclose(weight_delta(tensors, 16.0, "blk.0.attn_k.weight"), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "does not support .*lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, r"does not support .*lm_head"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "does not support .*embed_tokens"),
    ],
)
def test_parts_that_llama_cpp_does_not_support_are_refused(
    base: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    adapter = read_adapter(random_adapter(base, tmp_path / "other", **options))
    with pytest.raises(ModelError, match=message):
        adapter_as_gguf(adapter, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_an_unsupported_architecture_is_refused(adapter: Path, base: Path, tmp_path: Path) -> None:
    file = write_gguf(base, tmp_path / "x.gguf", "stablelm")
    with pytest.raises(UsertwinError, match=r'adapters of "stablelm" are not converted.*transformers:DIR\+ADAPTER'):
        adapter_as_gguf(read_adapter(adapter), tmp_path / "y.gguf", file)


def test_an_adapter_is_converted_once_and_again_after_a_change(adapter: Path, base: Path, tmp_path: Path) -> None:
    file = write_gguf(base, tmp_path / "x.gguf")
    first = cached_gguf_adapter(read_adapter(adapter), file, "local:x")
    stamp = first.stat().st_mtime_ns
    assert first.parent == cache_folder() / "adapters"
    assert cached_gguf_adapter(read_adapter(adapter), file, "local:x") == first
    assert first.stat().st_mtime_ns == stamp
    random_adapter(base, adapter, std=0.5, facts=FACTS)
    assert cached_gguf_adapter(read_adapter(adapter), file, "local:x") != first
    assert len(list(first.parent.iterdir())) == 2


# With the default model -------------------------------------------------------------------------------------------------

PROMPTS = (
    "Me: what did you do at the weekend?\nThem:",
    "one two three four five six seven eight\none two three",
    "The capital of France is",
    "Them: Hello, this is the help desk.\nMe: hi, I need a train to Rome\n\nThem: Which day?\nMe:",
)


@pytest.fixture(scope="module")
def weights() -> Path:
    """The float32 weights of the default model."""
    return weights_folder("local")


def top_log_probabilities(name: str, prompt: str) -> dict[str, float]:
    """Return the log-probabilities of the 40 likeliest next tokens, computed by llama.cpp."""
    chat: Any = load_model(name).chat
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1, "logprobs": True, "top_logprobs": 40}
    url = f"{str(chat.openai_api_base).rstrip('/')}/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        first = json.load(answer)["choices"][0]["logprobs"]["content"][0]
    return {top["token"]: top["logprob"] for top in first["top_logprobs"]}


@pytest.mark.slow
@pytest.mark.parametrize(("modules", "std"), [(["q_proj", "k_proj"], 0.08), (ALL_LAYERS, 0.04)])
def test_llama_cpp_with_an_adapter_agrees_with_transformers(
    weights: Path, tmp_path: Path, modules: list[str], std: float
) -> None:
    """4-bit weights and 8-bit activations alone cause a difference of 0.1 nats, with the adapter and without."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = random_adapter(weights, tmp_path / "adapter", std=std, target_modules=modules, facts=FACTS)
    assert prompt_style_of(f"local+{folder}") == ("transcript", True)
    plain: Any = AutoModelForCausalLM.from_pretrained(weights)
    tokenizer: Any = AutoTokenizer.from_pretrained(weights)
    prompts = [torch.tensor([tokenizer(prompt).input_ids]) for prompt in PROMPTS]
    with torch.inference_mode():
        without = [plain(ids).logits[0, -1].log_softmax(-1) for ids in prompts]
        both: Any = peft.PeftModel.from_pretrained(plain, folder)
        adapted = [both(ids).logits[0, -1].log_softmax(-1) for ids in prompts]
    errors: dict[str, list[float]] = {"adapted": [], "base": []}
    for prompt, with_adapter, base in zip(PROMPTS, adapted, without, strict=True):
        for token, nats in top_log_probabilities(f"local+{folder}", prompt).items():
            ids = tokenizer(token, add_special_tokens=False).input_ids
            if len(ids) == 1:
                errors["adapted"].append(abs(nats - float(with_adapter[ids[0]])))
                errors["base"].append(abs(nats - float(base[ids[0]])))
    assert len(errors["adapted"]) > 100
    assert np.mean(errors["adapted"]) < 0.2
    assert np.mean(errors["adapted"]) < 0.4 * np.mean(errors["base"])


@pytest.mark.slow
def test_an_adapter_of_two_blocks_of_the_default_model_fits_it_by_name(weights: Path, tmp_path: Path) -> None:
    assert layers_of(fetch(TINY)).shape_of("model.layers.29.self_attn.q_proj") == (576, 576)
    cut = random_adapter(weights, tmp_path / "cut", target_modules=["q_proj"], layers_to_transform=[3, 7], facts=FACTS)
    assert prompt_style_of(model_with_adapter(cut)) == ("transcript", True)  # its config says that it changes two blocks only
