"""The files of models: layers of GGUF files and transformers folders, and malformed headers."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_adapters import write_gguf

from usertwin.personas import ModelError
from usertwin.simulator.backends.model_files import layers_of


def test_a_gguf_file_and_a_folder_of_the_same_model_have_the_same_layers(base: Path, tmp_path: Path) -> None:
    folder, file = layers_of(base), layers_of(write_gguf(base, tmp_path / "x.gguf"))
    facts = [(layers.architecture, layers.blocks, layers.heads, layers.key_heads) for layers in (folder, file)]
    assert facts == [("llama", 2, 4, 2)] * 2
    for module in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj", "lm_head", "model.no.such"):
        assert folder.shape_of(module) == file.shape_of(module)
    assert file.shape_of("model.layers.1.self_attn.k_proj") == (16, 32)


@given(st.binary(max_size=200))
def test_malformed_headers_are_model_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("headers") / "x.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + data)
    with pytest.raises(ModelError, match="is not a readable GGUF file"):
        layers_of(path)
