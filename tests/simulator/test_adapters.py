"""Adapters: read with care, refused by another base, merged in transformers, converted for llama.cpp to the same effect."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import tiny_model

from usertwin.evals.suites.config import read_suite
from usertwin.memory.models.chat import sample
from usertwin.memory.models.score_cache import CachedScorer
from usertwin.personas import ModelError, UsageError, UsertwinError
from usertwin.simulator import load_model, load_scorer
from usertwin.simulator.backends import load as naming
from usertwin.simulator.backends.downloads import TINY, cache_folder, fetch
from usertwin.simulator.backends.load import prompt_style_of
from usertwin.simulator.backends.lora_adapter import model_with_adapter, read_adapter
from usertwin.simulator.backends.lora_to_gguf import adapter_as_gguf, kept_as_gguf
from usertwin.simulator.backends.model_files import layers_of
from usertwin.simulator.backends.model_name import split_adapter
from usertwin.simulator.backends.weights import weights_folder

peft = pytest.importorskip("peft", reason="adapters need the extra: pip install 'usertwin[train]'")
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOLD = {"format": 1, "base": "local", "style": "transcript", "method": "dpo", "how": "backward"}


def trained(base: Path, folder: Path, *, std: float = 0.3, told: dict[str, Any] | None = None, **options: Any) -> Path:
    """An adapter of random weights that matter, in a folder."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(**({"r": 4, "lora_alpha": 16, "target_modules": EVERY, "task_type": "CAUSAL_LM"} | options))
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=std)
    model.save_pretrained(folder)
    if told is not None:
        (folder / "usertwin.json").write_text(json.dumps(told), "utf-8")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, as a transformers folder whose name holds a plus."""
    return tiny_model(tmp_path_factory.mktemp("models") / "a+b", chat_template=True)


@pytest.fixture(scope="module")
def _kept(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(base, tmp_path_factory.mktemp("adapters") / "kept", told=TOLD)


@pytest.fixture
def adapter(_kept: Path, tmp_path: Path) -> Path:
    """A folder with an adapter of that model, which a test may spoil."""
    return Path(shutil.copytree(_kept, tmp_path / "adapter"))


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this test name models that are not scripted."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")


def noted(folder: Path, **changes: Any) -> Path:
    """The adapter with other facts of ours; those that are None are left out."""
    path = folder / "usertwin.json"
    facts = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({key: fact for key, fact in facts.items() if fact is not None}), "utf-8")
    return folder


def configured(folder: Path, **changes: Any) -> Path:
    """The adapter with other settings of peft's."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
    return folder


# What a folder says --------------------------------------------------------------------------------------------------------


def test_an_adapter_says_on_what_and_how_it_was_trained(adapter: Path, base: Path) -> None:
    found = read_adapter(adapter)
    assert (found.base, found.style, found.method, found.how) == ("local", "transcript", "dpo", "backward")
    assert (found.rank, found.trained_on, found.others) == (4, str(base), ())
    assert found.layers["model.layers.1.self_attn.k_proj"] == (16, 32)
    assert found.layers["model.layers.0.mlp.down_proj"] == (32, 64)
    assert len(found.layers) == 2 * len(EVERY)


def test_an_adapter_that_was_trained_elsewhere_says_nothing_of_ours(adapter: Path) -> None:
    (adapter / "usertwin.json").unlink()
    found = read_adapter(adapter)
    assert (found.base, found.style, found.method, found.how) == (None, None, None, None)
    assert found.layers


def test_other_weights_are_another_identity_and_a_copy_is_the_same(adapter: Path, tmp_path: Path) -> None:
    before = read_adapter(adapter).identity
    assert read_adapter(shutil.copytree(adapter, tmp_path / "copy")).identity == before
    data = bytearray((adapter / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (adapter / "adapter_model.safetensors").write_bytes(data)
    assert read_adapter(adapter).identity != before


def _without(*names: str) -> Any:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _halved(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no such adapter; name a folder with adapter_config.json"),
        (_without("adapter_config.json"), "is no adapter, it holds no adapter_config.json"),
        (_without("adapter_model.safetensors"), "is no adapter, it holds no adapter_model.safetensors"),
        (_pickled, "a pickle .*can run code and is never read; save the adapter again"),
        (_halved, "cannot be read as safetensors"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json: cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "holds no JSON object"),
        (lambda folder: (folder / "usertwin.json").write_bytes(b"\xff"), "usertwin.json: cannot be read"),
        (lambda folder: configured(folder, peft_type="IA3"), "describes no LoRA adapter .*'IA3'"),
        (lambda folder: noted(folder, format=2), "its format is 2, this version reads 1"),
        (lambda folder: noted(folder, style="poem"), '"poem" is no style; there are transcript, instruction'),
    ],
)
def test_what_is_no_adapter_is_one_sentence_by_every_door(adapter: Path, spoil: Any, said: str) -> None:
    spoil(adapter)
    for call in (read_adapter, model_with_adapter, lambda folder: prompt_style_of(f"local+{folder}")):
        with pytest.raises(ModelError, match=said) as caught:
            call(adapter)
        assert str(adapter) in str(caught.value)
        assert "\n" not in str(caught.value)


# Names ---------------------------------------------------------------------------------------------------------------------


def test_an_adapters_folder_is_enough_where_it_knows_its_base(adapter: Path, base: Path) -> None:
    assert model_with_adapter(adapter) == f"local+{adapter}"
    assert model_with_adapter(noted(adapter, base=None)) == f"transformers:{base}+{adapter}"
    with pytest.raises(UsageError, match=r'trained on "org/model", and where that is here is not known.*transformers:DIR\+'):
        model_with_adapter(configured(adapter, base_model_name_or_path="org/model"))


@pytest.mark.parametrize("name", ["local", "local:small", "openai:a+b@http://x/+", "scripted:a+b", "fake:", "", "local:x"])
def test_most_names_have_no_adapter(name: str) -> None:
    assert split_adapter(name) == (name, None)


def test_a_name_is_split_at_the_last_plus_before_a_folder(tmp_path: Path) -> None:
    for folder in ("base", "a+b", "a", "b", "ba+se"):
        (tmp_path / folder).mkdir()
    at = str(tmp_path)
    assert split_adapter(f"local+{at}/a+b") == ("local", tmp_path / "a+b")
    assert split_adapter(f"local:small+{at}/a") == ("local:small", tmp_path / "a")
    assert split_adapter(f"transformers:{at}/base+{at}/a+b") == (f"transformers:{at}/base", tmp_path / "a+b")
    assert split_adapter(f"transformers:{at}/ba+se+{at}/b") == (f"transformers:{at}/ba+se", tmp_path / "b")
    assert split_adapter(f"transformers:{at}/ba+se") == (f"transformers:{at}/ba+se", None)
    assert split_adapter(f"hf:org/repo/x.gguf+{at}/a") == ("hf:org/repo/x.gguf", tmp_path / "a")


def test_an_adapter_that_is_not_there_is_still_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    for name in ("local", "local:small", "local:/x/y.gguf", "hf:org/repo/y.gguf", f"transformers:{tmp_path / 'base'}"):
        assert split_adapter(f"{name}+/no/such") == (name, Path("/no/such"))


@given(st.text("+/abc.", max_size=12), st.sampled_from(["local:", "transformers:", "hf:", "local+"]))
def test_what_is_split_can_be_put_together_again(rest: str, kind: str) -> None:
    name = kind + rest
    base, adapter = split_adapter(name)
    if adapter is not None:
        assert name.startswith(f"{base}+")
        assert Path(name.removeprefix(f"{base}+")) == adapter
    else:
        assert base == name


def test_a_model_is_prompted_as_its_adapter_was_trained(adapter: Path, base: Path) -> None:
    assert prompt_style_of(f"transformers:{base}+{adapter}") == ("transcript", True)  # though the base has a chat template
    noted(adapter, style="instruction")
    assert prompt_style_of(f"local+{adapter}") == ("instruction", True)
    assert prompt_style_of(f"local+{adapter}", "transcript") == ("transcript", True)
    noted(adapter, style=None)
    assert prompt_style_of(f"transformers:{base}+{adapter}") == ("instruction", True)


def test_in_a_suite_both_sides_of_a_plus_are_relative_to_its_file(tmp_path: Path) -> None:
    for folder in ("models/base", "trained"):
        (tmp_path / folder).mkdir(parents=True)
    suite = tmp_path / "suite.toml"
    suite.write_text(
        'twins = ["ann"]\n[models]\naction = "local+trained"\nscorer = "transformers:models/base+trained"\n'
        'proposer = "local:x.gguf+trained"\ntrained = "local:small+trained"\n',
        "utf-8",
    )
    found = read_suite(suite).models
    at = tmp_path.resolve()
    assert found.action == f"local+{at}/trained"
    assert found.scorer == f"transformers:{at}/models/base+{at}/trained"
    assert found.proposer == f"local:{at}/x.gguf+{at}/trained"
    assert found.trained == f"local:small+{at}/trained"


# Another base --------------------------------------------------------------------------------------------------------------


def gguf_file(folder: Path, path: Path, architecture: str = "llama") -> Path:
    """A GGUF file with the header of a transformers model and no sensible numbers."""
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


def larger(folder: Path, **options: Any) -> Path:
    """A Llama of another size."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    small = tiny_model(folder)
    config = AutoConfig.from_pretrained(small, **options)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(small).save_pretrained(folder)
    return folder


def test_a_gguf_file_and_a_folder_of_the_same_model_have_the_same_layers(base: Path, tmp_path: Path) -> None:
    one, other = layers_of(base), layers_of(gguf_file(base, tmp_path / "x.gguf"))
    facts = [(found.architecture, found.blocks, found.heads, found.key_heads) for found in (one, other)]
    assert facts == [("llama", 2, 4, 2)] * 2
    for module in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj", "lm_head", "model.no.such"):
        assert one.shape_of(module) == other.shape_of(module)
    assert other.shape_of("model.layers.1.self_attn.k_proj") == (16, 32)


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("size", "said"),
    [
        ({"hidden_size": 48}, "has 48 x|x 48 weights instead of"),
        ({"num_hidden_layers": 1}, "is not there"),
        ({"num_hidden_layers": 3}, "it has 3 blocks of layers, not 2"),
        ({"num_key_value_heads": 4}, "k_proj has 32 x 32 weights instead of 16 x 32"),
    ],
)
def test_an_adapter_of_another_base_is_one_sentence_by_every_door(
    adapter: Path, tmp_path: Path, size: dict[str, int], said: str
) -> None:
    noted(adapter, base="local:small")
    other = larger(tmp_path / "other", **size)
    file = gguf_file(other, tmp_path / "other.gguf")
    for call in (load_model, load_scorer, prompt_style_of):
        for name in (f"transformers:{other}", f"local:{file}"):
            if call is prompt_style_of and name.startswith("transformers:"):
                continue  # that takes torch, and is said when the model is named to be used
            with pytest.raises(ModelError, match=said) as caught:
                call(f"{name}+{adapter}")
            for part in ('trained on "local:small"', f'does not fit "{name}"', f'name its own: "local:small+{adapter}"'):
                assert part in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("headers") / "x.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + data)
    with pytest.raises(ModelError, match="is not a GGUF file that can be read"):
        layers_of(path)


# In transformers -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("real")
def test_a_scorer_with_an_adapter_scores_as_peft_does(adapter: Path, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = f"transformers:{base}+{adapter}"
    plain, found = load_scorer(f"transformers:{base}"), load_scorer(name)
    assert found.name == name
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer("Them: hello").input_ids + tokenizer(" fine thanks").input_ids
    start = len(tokenizer("Them: hello").input_ids)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = sum(float(logits[place - 1, ids[place]]) for place in range(start, len(ids)))
    item = [("Them: hello", " fine thanks")]
    assert found.score(item)[0].nats == pytest.approx(wanted, abs=1e-3)
    assert abs(plain.score(item)[0].nats - wanted) > 0.1


@pytest.mark.usefixtures("real")
def test_scores_of_an_adapter_that_was_trained_again_are_not_taken_from_the_cache(adapter: Path, base: Path) -> None:
    item, name = [("Them: hello", " fine thanks")], f"transformers:{base}+{adapter}"
    before = load_scorer(name).score(item)[0].nats
    trained(base, adapter, std=0.6, told=TOLD)
    again = load_scorer(name)
    assert isinstance(again, CachedScorer)
    assert again.score(item)[0].nats != pytest.approx(before, abs=1e-3)


@pytest.mark.usefixtures("real")
def test_a_chat_model_with_an_adapter_says_what_peft_says(adapter: Path, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = load_model(f"transformers:{base}+{adapter}")
    plain = load_model(f"transformers:{base}", style="transcript")
    assert (model.style, model.name) == ("transcript", f"transformers:{base}+{adapter}")
    assert model.identity != plain.identity

    def said(by: Any) -> str:
        return asyncio.run(sample(by, [("user", "Them: hello")], max_tokens=10, temperature=0.0))[0].text

    both = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = torch.tensor([tokenizer("Them: hello").input_ids])
    written = both.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    assert said(model) == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    assert said(model) != said(plain)


@pytest.mark.usefixtures("real")
def test_without_peft_the_sentence_says_what_to_install(adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"needs the package peft: pip install 'usertwin\[train\]'"):
        load_scorer(f"transformers:{base}+{adapter}").score([("a", "b")])


# For llama.cpp -------------------------------------------------------------------------------------------------------------


def read_gguf(path: Path) -> tuple[Any, dict[str, Any]]:
    """A reader of a GGUF file and its tensors."""
    import gguf

    reader = gguf.GGUFReader(path)
    return reader, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def change(tensors: dict[str, Any], alpha: float, name: str) -> Any:
    """What llama.cpp adds to a layer's weights."""
    a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
    return b @ a * (alpha / b.shape[1])


def merged_change(base: Path, adapter: Path, module: str) -> Any:
    """What peft adds to them."""
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
    folder = trained(base, tmp_path / "other", **options)
    path = adapter_as_gguf(read_adapter(folder), tmp_path / "deep" / "adapter.gguf")
    reader, tensors = read_gguf(path)
    alpha = float(reader.get_field("adapter.lora.alpha").contents())
    facts = [reader.get_field(key).contents() for key in ("general.type", "adapter.type", "general.architecture")]
    assert facts == ["adapter", "lora", "llama"]
    assert len(tensors) == 2 * 2 * len(EVERY)
    for ours, module in (
        ("blk.1.ffn_down", "mlp.down_proj"),
        ("blk.1.ffn_up", "mlp.up_proj"),
        ("blk.1.attn_v", "self_attn.v_proj"),
    ):
        wanted = merged_change(base, folder, f"model.layers.1.{module}")
        np.testing.assert_allclose(change(tensors, alpha, f"{ours}.weight"), wanted, atol=1e-5)
    # Row 1 of a head is, in a GGUF file of a Llama, the first of the second half: 4 heads of 8 rows, so row 4.
    wanted = merged_change(base, folder, "model.layers.0.self_attn.q_proj")
    found = change(tensors, alpha, "blk.0.attn_q.weight")
    np.testing.assert_allclose(found[[0, 1, 2, 3, 8, 9]], wanted[[0, 4, 1, 5, 8, 12]], atol=1e-5)
    assert not list((tmp_path / "deep").glob(".partial-*"))


def test_rows_stand_as_they_are_where_the_architecture_wants_it_so(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
                         num_key_value_heads=2)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    folder = trained(tmp_path / "qwen", tmp_path / "adapter")
    reader, tensors = read_gguf(adapter_as_gguf(read_adapter(folder), tmp_path / "x.gguf"))
    assert reader.get_field("general.architecture").contents() == "qwen2"
    wanted = merged_change(tmp_path / "qwen", folder, "model.layers.0.self_attn.k_proj")
    np.testing.assert_allclose(change(tensors, 16.0, "blk.0.attn_k.weight"), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "has no place for .*lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, r"has no place for .*lm_head"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "has no place for .*embed_tokens"),
    ],
)
def test_what_llama_cpp_has_no_place_for_is_refused(base: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    adapter = read_adapter(trained(base, tmp_path / "other", **options))
    with pytest.raises(ModelError, match=said):
        adapter_as_gguf(adapter, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_an_architecture_that_is_not_converted_is_said(adapter: Path, base: Path, tmp_path: Path) -> None:
    file = gguf_file(base, tmp_path / "x.gguf", "stablelm")
    with pytest.raises(UsertwinError, match=r'adapters of "stablelm" are not converted.*transformers:DIR\+ADAPTER'):
        adapter_as_gguf(read_adapter(adapter), tmp_path / "y.gguf", file)


def test_an_adapter_is_converted_once_and_again_when_it_changed(adapter: Path, base: Path, tmp_path: Path) -> None:
    file = gguf_file(base, tmp_path / "x.gguf")
    first = kept_as_gguf(read_adapter(adapter), file, "local:x")
    stamp = first.stat().st_mtime_ns
    assert first.parent == cache_folder() / "adapters"
    assert kept_as_gguf(read_adapter(adapter), file, "local:x") == first
    assert first.stat().st_mtime_ns == stamp
    trained(base, adapter, std=0.5, told=TOLD)
    assert kept_as_gguf(read_adapter(adapter), file, "local:x") != first
    assert len(list(first.parent.iterdir())) == 2


# The hub -------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("real")
def test_a_file_of_the_hub_is_run_like_any_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[tuple[str, str]] = []
    started: list[tuple[Path, str, Path | None]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        (tmp_path / "x.gguf").write_bytes(b"GGUF")
        return str(tmp_path / "x.gguf")

    def engine(path: Path, style: str, adapter: Path | None = None) -> str:
        started.append((path, style, adapter))
        return "http://127.0.0.1:1/v1"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(naming, "engine_url", engine)
    model = load_model("hf:org/repo/deep/x.gguf")
    assert asked == [("org/repo", "deep/x.gguf")]
    assert started == [(tmp_path / "x.gguf", "transcript", None)]
    assert (model.style, model.max_n, prompt_style_of("hf:org/repo/deep/x.gguf")) == ("transcript", 4, ("transcript", True))


@pytest.mark.usefixtures("real")
def test_without_a_network_a_file_of_the_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(repository: str, file: str) -> str:
        raise LocalEntryNotFoundError("no such file here\nand much more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for call in (load_model, load_scorer, weights_folder):
        with pytest.raises(
            ModelError, match=r'"hf:org/repo/x\.gguf" is not in the cache.*no such file here\); connect'
        ) as caught:
            call("hf:org/repo/x.gguf")
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", ["hf:repo", "hf:org/repo", "hf:org/repo/x.bin", "hf://x.gguf"])
def test_a_name_on_the_hub_has_an_owner_a_repository_and_a_file(name: str) -> None:
    with pytest.raises(UsageError, match=r"write hf:OWNER/REPOSITORY/FILE\.gguf"):
        load_model(name)


# For real ------------------------------------------------------------------------------------------------------------------

PROMPTS = (
    "Me: what did you do at the weekend?\nThem:",
    "one two three four five six seven eight\none two three",
    "The capital of France is",
    "Them: Hello, this is the help desk.\nMe: hi, I need a train to Rome\n\nThem: Which day?\nMe:",
)


@pytest.fixture(scope="module")
def weights() -> Path:
    """The real tiny model's, for torch."""
    return weights_folder("local")


def likely_next(name: str, prompt: str) -> dict[str, float]:
    """The log-probabilities of the 40 likeliest next tokens, by the engine of a model."""
    chat: Any = load_model(name).chat
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1, "logprobs": True, "top_logprobs": 40}
    url = f"{str(chat.openai_api_base).rstrip('/')}/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        first = json.load(answer)["choices"][0]["logprobs"]["content"][0]
    return {one["token"]: one["logprob"] for one in first["top_logprobs"]}


@pytest.mark.slow
@pytest.mark.parametrize(("modules", "std"), [(["q_proj", "k_proj"], 0.08), (EVERY, 0.04)])
def test_the_engine_with_an_adapter_reckons_as_transformers_with_it(
    weights: Path, tmp_path: Path, modules: list[str], std: float
) -> None:
    """Its weights of four bits and activations of eight put it 0.1 nats off with the adapter and without."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained(weights, tmp_path / "adapter", std=std, target_modules=modules, told=TOLD)
    plain: Any = AutoModelForCausalLM.from_pretrained(weights)
    tokenizer: Any = AutoTokenizer.from_pretrained(weights)
    asked = [torch.tensor([tokenizer(prompt).input_ids]) for prompt in PROMPTS]
    with torch.inference_mode():
        without = [plain(ids).logits[0, -1].log_softmax(-1) for ids in asked]
        both: Any = peft.PeftModel.from_pretrained(plain, folder)
        adapted = [both(ids).logits[0, -1].log_softmax(-1) for ids in asked]
    off: dict[str, list[float]] = {"adapted": [], "without": []}
    for prompt, one, other in zip(PROMPTS, adapted, without, strict=True):
        for token, told in likely_next(f"local+{folder}", prompt).items():
            ids = tokenizer(token, add_special_tokens=False).input_ids
            if len(ids) == 1:
                off["adapted"].append(abs(told - float(one[ids[0]])))
                off["without"].append(abs(told - float(other[ids[0]])))
    assert len(off["adapted"]) > 100
    assert np.mean(off["adapted"]) < 0.2
    assert np.mean(off["adapted"]) < 0.4 * np.mean(off["without"])


@pytest.mark.slow
def test_an_adapter_of_the_real_tiny_model_fits_it_by_its_name(weights: Path, tmp_path: Path) -> None:
    folder = trained(weights, tmp_path / "adapter", target_modules=["q_proj"], told=TOLD)
    assert layers_of(fetch(TINY)).shape_of("model.layers.29.self_attn.q_proj") == (576, 576)
    assert prompt_style_of(f"local+{folder}") == ("transcript", True)
    cut = trained(weights, tmp_path / "cut", target_modules=["q_proj"], layers_to_transform=[3, 7], told=TOLD)
    assert prompt_style_of(model_with_adapter(cut)) == ("transcript", True)  # it was meant to change two blocks only
