"""LoRA adapters: reading them, refusing them for another base, and merging them in transformers."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from random_adapters import ALL_LAYERS, FACTS, random_adapter, resized_model, write_gguf
from tiny_model import tiny_model

from usertwin.memory.models.chat import sample
from usertwin.memory.models.score_cache import CachedScorer
from usertwin.memory.twin.consent import allow_adapter
from usertwin.personas import ModelError, UsageError
from usertwin.simulator import load_model, load_scorer
from usertwin.simulator.backends.load import prompt_style_of
from usertwin.simulator.backends.lora_adapter import model_with_adapter, read_adapter

peft = pytest.importorskip("peft", reason="adapters need the extra: pip install 'usertwin[train]'")
pytestmark = pytest.mark.usefixtures("in_one_thread")


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


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow names of models that are not scripted."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")


def with_facts(folder: Path, **changes: Any) -> Path:
    """Change the facts in usertwin.json and return the folder; None removes a fact."""
    path = folder / "usertwin.json"
    facts = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({key: fact for key, fact in facts.items() if fact is not None}), "utf-8")
    return folder


def with_config(folder: Path, **changes: Any) -> Path:
    """Change peft's config and return the folder."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
    return folder


# The folder -------------------------------------------------------------------------------------------------------------


def test_an_adapter_records_its_base_and_its_training(adapter: Path, base: Path) -> None:
    loaded = read_adapter(adapter)
    assert (loaded.base, loaded.style, loaded.method, loaded.proposal_mode) == ("local", "transcript", "dpo", "backward")
    assert (loaded.rank, loaded.trained_on, loaded.others) == (4, str(base), ())
    assert loaded.layers["model.layers.1.self_attn.k_proj"] == (16, 32)
    assert loaded.layers["model.layers.0.mlp.down_proj"] == (32, 64)
    assert len(loaded.layers) == 2 * len(ALL_LAYERS)


def test_an_adapter_may_name_its_proposal_mode_with_either_key(adapter: Path) -> None:
    assert read_adapter(with_facts(adapter, how=None, proposal_mode="forward")).proposal_mode == "forward"
    assert read_adapter(with_facts(adapter, how="scaffolded", proposal_mode=None)).proposal_mode == "scaffolded"


def test_an_adapter_of_another_program_lacks_our_facts(adapter: Path) -> None:
    (adapter / "usertwin.json").unlink()
    loaded = read_adapter(adapter)
    assert (loaded.base, loaded.style, loaded.method, loaded.proposal_mode) == (None, None, None, None)
    assert loaded.layers


def test_the_identity_depends_on_the_weights_and_not_on_the_folder(adapter: Path, tmp_path: Path) -> None:
    before = read_adapter(adapter).identity
    assert read_adapter(shutil.copytree(adapter, tmp_path / "copy")).identity == before
    data = bytearray((adapter / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (adapter / "adapter_model.safetensors").write_bytes(data)
    assert read_adapter(adapter).identity != before


def _without(*names: str) -> Any:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _halved(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no such adapter; name a folder with adapter_config.json"),
        (_without("adapter_config.json"), "is not an adapter, adapter_config.json is missing"),
        (_without("adapter_model.safetensors"), "is not an adapter, adapter_model.safetensors is missing"),
        (_pickled, "a pickle .*can run code and is never read; save the adapter again"),
        (_halved, "cannot be read as safetensors"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json: cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "is not a JSON object"),
        (lambda folder: (folder / "usertwin.json").write_bytes(b"\xff"), "usertwin.json: cannot be read"),
        (lambda folder: with_config(folder, peft_type="IA3"), "peft_type is 'IA3'; only LoRA adapters are supported"),
        (lambda folder: with_facts(folder, format=2), "format is 2, this version reads 1"),
        (lambda folder: with_facts(folder, style="poem"), 'style is "poem"; it must be transcript or instruction'),
    ],
)
def test_a_broken_adapter_is_one_sentence_from_every_function(adapter: Path, damage: Any, message: str) -> None:
    damage(adapter)
    for call in (read_adapter, model_with_adapter, lambda folder: prompt_style_of(f"local+{folder}")):
        with pytest.raises(ModelError, match=message) as caught:
            call(adapter)
        assert str(adapter) in str(caught.value)
        assert "\n" not in str(caught.value)


# Names ------------------------------------------------------------------------------------------------------------------


def test_model_with_loadeds_the_base_from_the_folder(adapter: Path, base: Path) -> None:
    assert model_with_adapter(adapter) == f"local+{adapter}"
    assert model_with_adapter(with_facts(adapter, base="local:small")) == f"local:small+{adapter}"


@pytest.mark.parametrize(
    "name", ["openai:m@http://127.0.0.1:1/v1", "local:/some/file.gguf", "hf:o/r/x.gguf", "transformers:base"]
)
def test_the_base_that_an_adapter_names_is_loaded_if_it_was_trained_here(adapter: Path, name: str) -> None:
    with_facts(adapter, base=name)
    with pytest.raises(UsageError, match=rf'trained on "{name}", .* without your word; name the base with it'):
        model_with_adapter(adapter)
    allow_adapter(name, read_adapter(adapter).identity)
    assert model_with_adapter(adapter) == f"{name}+{adapter}"
    with_config(adapter, lora_alpha=3)  # another adapter
    with pytest.raises(UsageError, match="without your word"):
        model_with_adapter(adapter)


def test_a_path_in_the_config_of_an_adapter_is_not_the_users_word(adapter: Path, base: Path) -> None:
    with_facts(adapter, base=None)
    for trained_on in (str(base), "org/model"):
        with_config(adapter, base_model_name_or_path=trained_on)
        with pytest.raises(UsageError, match=r"name the base with it, such as transformers:DIR\+") as caught:
            model_with_adapter(adapter)
        assert f'was trained on "{trained_on}"' in str(caught.value)


def test_the_prompt_style_is_that_of_the_adapters_training(adapter: Path, base: Path) -> None:
    assert prompt_style_of(f"transformers:{base}+{adapter}") == ("transcript", True)  # though the base has a chat template
    with_facts(adapter, style="instruction")
    assert prompt_style_of(f"local+{adapter}") == ("instruction", True)
    assert prompt_style_of(f"local+{adapter}", "transcript") == ("transcript", True)
    with_facts(adapter, style=None)
    assert prompt_style_of(f"transformers:{base}+{adapter}") == ("instruction", True)


# Other bases ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"hidden_size": 48}, "has 48 x|x 48 weights instead of"),
        ({"num_hidden_layers": 1}, "does not exist"),
        ({"num_hidden_layers": 3}, "it has 3 blocks, not 2"),
        ({"num_key_value_heads": 4}, "k_proj has 32 x 32 weights instead of 16 x 32"),
    ],
)
def test_an_adapter_of_another_base_is_one_sentence_from_every_function(
    adapter: Path, tmp_path: Path, size: dict[str, int], message: str
) -> None:
    with_facts(adapter, base="local:small")
    other = resized_model(tmp_path / "other", **size)
    file = write_gguf(other, tmp_path / "other.gguf")
    for call in (load_model, load_scorer, prompt_style_of):
        for name in (f"transformers:{other}", f"local:{file}"):
            if call is prompt_style_of and name.startswith("transformers:"):
                continue  # this check needs torch and is made when the model is loaded
            with pytest.raises(ModelError, match=message) as caught:
                call(f"{name}+{adapter}")
            for part in ('trained on "local:small"', f'does not fit "{name}"', f'use "local:small+{adapter}"'):
                assert part in str(caught.value)


# In transformers --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("real")
def test_a_scorer_with_an_adapter_scores_like_peft(adapter: Path, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = f"transformers:{base}+{adapter}"
    plain, adapted = load_scorer(f"transformers:{base}"), load_scorer(name)
    assert adapted.name == name
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer("Them: hello").input_ids + tokenizer(" fine thanks").input_ids
    start = len(tokenizer("Them: hello").input_ids)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = sum(float(logits[place - 1, ids[place]]) for place in range(start, len(ids)))
    item = [("Them: hello", " fine thanks")]
    assert adapted.score(item)[0].nats == pytest.approx(expected, abs=1e-3)
    assert abs(plain.score(item)[0].nats - expected) > 0.1


@pytest.mark.usefixtures("real")
def test_scores_of_a_retrained_adapter_are_not_read_from_the_cache(adapter: Path, base: Path) -> None:
    item, name = [("Them: hello", " fine thanks")], f"transformers:{base}+{adapter}"
    before = load_scorer(name).score(item)[0].nats
    random_adapter(base, adapter, std=0.6, facts=FACTS)
    again = load_scorer(name)
    assert isinstance(again, CachedScorer)
    assert again.score(item)[0].nats != pytest.approx(before, abs=1e-3)


@pytest.mark.usefixtures("real")
def test_a_chat_model_with_an_adapter_generates_like_peft(adapter: Path, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = load_model(f"transformers:{base}+{adapter}")
    plain = load_model(f"transformers:{base}", style="transcript")
    assert (model.style, model.name) == ("transcript", f"transformers:{base}+{adapter}")
    assert model.identity != plain.identity

    def greedy(chat: Any) -> str:
        return asyncio.run(sample(chat, [("user", "Them: hello")], max_tokens=10, temperature=0.0))[0].text

    both = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = torch.tensor([tokenizer("Them: hello").input_ids])
    written = both.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    assert greedy(model) == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    assert greedy(model) != greedy(plain)


@pytest.mark.usefixtures("real")
def test_without_peft_the_error_names_the_package(adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"needs the package peft: pip install 'usertwin\[train\]'"):
        load_scorer(f"transformers:{base}+{adapter}").score([("a", "b")])
