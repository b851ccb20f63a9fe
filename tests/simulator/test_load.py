"""Models by name: chat models, scorers and embedders, and the switch that allows only scripted ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.personas import ModelError, UsageError
from usertwin.simulator import load_embedder, load_model, load_scorer
from usertwin.simulator.backends import load
from usertwin.simulator.backends.downloads import cache_folder
from usertwin.simulator.backends.llama_cpp import Engine
from usertwin.simulator.backends.load import prompt_style_of
from usertwin.simulator.backends.scripted import ScriptedChatModel
from usertwin.simulator.backends.weights import weights_folder


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow names of models that are not scripted; none of them is contacted."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.txt"
    path.write_text("hello\n", "utf-8")
    return path


@pytest.mark.parametrize("name", ["", "gpt-5", "scripted", "scripted:", "openai", "openai:", "ollama:x", "Local", "fake:"])
def test_an_unknown_name_is_refused_with_the_list_of_forms(name: str) -> None:
    with pytest.raises(UsageError, match="is not a chat model") as caught:
        load_model(name)
    assert '"local:small"' in str(caught.value)
    assert '"openai:NAME@URL"' in str(caught.value)


def test_the_default_style_can_be_overridden(script: Path) -> None:
    assert load_model(f"scripted:{script}").style == "transcript"
    assert load_model(f"scripted:{script}", style="instruction").style == "instruction"
    assert load_model(f"scripted:{script}").name == f"scripted:{script}"


@pytest.mark.usefixtures("real")
def test_a_model_at_an_endpoint_needs_no_key() -> None:
    from langchain_openai import ChatOpenAI

    model = load_model("openai:llama3@http://127.0.0.1:11434/v1")
    assert isinstance(model.chat, ChatOpenAI)
    assert (model.chat.model_name, str(model.chat.openai_api_base)) == ("llama3", "http://127.0.0.1:11434/v1")
    assert (model.style, model.supports_sampling_params) == ("instruction", True)


@pytest.mark.usefixtures("real")
def test_openais_own_models_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"OPENAI_API_KEY.*openai:gpt-5-mini@http"):
        load_model("openai:gpt-5-mini")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert load_model("openai:gpt-5-mini").supports_sampling_params is False  # reasoning models reject a temperature
    assert load_model("openai:gpt-4.1-mini").supports_sampling_params is True
    assert "sk-secret" not in repr(load_model("openai:gpt-5-mini"))


@pytest.mark.parametrize(
    "load_it",
    [
        lambda: load_model("local"),
        lambda: load_model("local:small"),
        lambda: load_model("local:/some/file.gguf"),
        lambda: load_model("openai:gpt-5-mini"),
        lambda: load_model("openai:x@http://127.0.0.1:1/v1"),
        lambda: load_scorer("local"),
        lambda: load_scorer("transformers:/some/folder"),
        lambda: load_embedder(),
        lambda: load_embedder("all-mpnet-base-v2"),
    ],
)
def test_only_scripted_forbids_every_other_model(load_it: Any) -> None:
    with pytest.raises(ModelError, match="USERTWIN_ONLY_SCRIPTED forbids all others; unset it"):
        load_it()
    assert not cache_folder().exists()  # nothing was downloaded first


def test_only_scripted_allows_scripts_and_fakes(script: Path) -> None:
    assert isinstance(load_model(f"scripted:{script}").chat, ScriptedChatModel)
    assert isinstance(load_scorer("fake:"), FakeScorer)
    np.testing.assert_array_equal(load_embedder("fake:").embed(["hi there"]), FakeEmbedder().embed(["hi there"]))
    assert load_embedder("fake:").name == FakeEmbedder().name
    assert load_embedder("fake:64").dimension == 64


@pytest.mark.parametrize("name", ["", "openai:gpt-5-mini", "scripted:x", "transformers:", "fake"])
def test_a_model_without_log_probabilities_is_not_a_scorer(name: str) -> None:
    with pytest.raises(UsageError, match="cannot score texts"):
        load_scorer(name)


def test_an_unknown_precision_is_refused() -> None:
    assert isinstance(load_scorer("fake:", "bfloat16"), FakeScorer)
    with pytest.raises(UsageError, match='"int8" is not a precision of a scorer; use float32 or bfloat16'):
        load_scorer("fake:", "int8")  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("real")
def test_the_name_of_a_bfloat16_scorer_contains_the_precision(tmp_path: Path) -> None:
    names = [load_scorer(f"transformers:{tmp_path}", precision).name for precision in ("float32", "bfloat16")]
    assert names == [f"transformers:{tmp_path}", f"transformers:{tmp_path}, bfloat16"]


@pytest.mark.parametrize("name", ["fake:many", "fake:0", "fake:-3"])
def test_a_fake_embedder_needs_a_positive_number_of_dimensions(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        load_embedder(name)


@pytest.mark.usefixtures("real")
def test_a_scorer_without_its_weights_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such model"):
        load_scorer(f"local:{tmp_path / 'none.gguf'}").score([("a", "b")])
    with pytest.raises(ModelError, match="transformers cannot load this model"):
        load_scorer(f"transformers:{tmp_path}").score([("a", "b")])


@pytest.mark.usefixtures("real")
def test_a_file_of_the_hub_runs_in_llama_cpp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    requests: list[tuple[str, str]] = []
    engines: list[tuple[Path, str, Path | None]] = []

    def download(repository: str, file: str) -> str:
        requests.append((repository, file))
        (tmp_path / "x.gguf").write_bytes(b"GGUF")
        return str(tmp_path / "x.gguf")

    def engine(path: Path, style: str, adapter: Path | None = None) -> Engine:
        engines.append((path, style, adapter))
        return Engine(SimpleNamespace(listening_address="http://127.0.0.1:1"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(load, "shared_engine", engine)
    model = load_model("hf:org/repo/deep/x.gguf")
    assert requests == [("org/repo", "deep/x.gguf")]
    assert engines == [(tmp_path / "x.gguf", "transcript", None)]
    assert (model.style, model.max_n, prompt_style_of("hf:org/repo/deep/x.gguf")) == ("transcript", 4, ("transcript", True))


@pytest.mark.usefixtures("real")
def test_a_failed_hub_download_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(repository: str, file: str) -> str:
        raise LocalEntryNotFoundError("no such file here\nand much more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for call in (load_model, load_scorer, weights_folder):
        with pytest.raises(
            ModelError, match=r'"hf:org/repo/x\.gguf" is not in the cache.*no such file here\); go online'
        ) as caught:
            call("hf:org/repo/x.gguf")
        assert "\n" not in str(caught.value)
