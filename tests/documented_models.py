"""Scripted and fake models in the place of those that the documentation names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from conftest import function_model
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.simulator.backends import load


def install(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace the loaders in every module that has imported them: any name then means a scripted or fake model."""
    model, _ = function_model(lambda prompt, seed: f"I want to know it soon, number {seed}")
    loaders: dict[str, Callable[..., Any]] = {
        "load_model": lambda *_, **__: model,
        "load_scorer": lambda *_, **__: FakeScorer(),
        "load_embedder": lambda *_, **__: FakeEmbedder(),
    }
    for name, loader in loaders.items():
        original = getattr(load, name)
        for module in list(sys.modules.values()):
            if module.__name__.startswith("usertwin.") and vars(module).get(name) is original:
                set_attribute(module, name, loader)
