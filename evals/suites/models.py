"""The models of a suite, loaded once and shared by its people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from usertwin.memory import ChatModel, Embedder, Scorer
from usertwin.memory.models.answer_cache import CompletionCache
from usertwin.simulator import load_embedder, load_model, load_scorer
from usertwin.simulator.backends.load import prompt_style_of

from .config import Suite


@dataclass(frozen=True, slots=True)
class SuiteModels:
    """The models of a suite, each loaded when first needed, and once; what they answer is kept in `answers`, if it is given."""

    suite: Suite
    fetch: Any
    answers: CompletionCache | None = None
    kept: dict[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])

    def _once(self, kind: str, name: str, load: Callable[[], Any]) -> Any:
        if (kind, name) not in self.kept:
            self.kept[kind, name] = load()
        return self.kept[kind, name]

    def chat(self, name: str) -> ChatModel:
        """A chat model in its usual manner, or the suite's."""
        found = self._once("chat", name, lambda: load_model(name, style=self.suite.models.style, progress=self.fetch))
        return replace(found, cache=self.answers)

    def judge(self, name: str) -> ChatModel:
        """The same for a judge, which is always told what to do; a scripted one is as it is."""
        style = None if name.startswith("scripted:") else "instruction"
        found = self._once("judge", name, lambda: load_model(name, style=style, progress=self.fetch))
        return replace(found, cache=self.answers)

    def check(self) -> None:
        """UsageError or ModelError if a name is no model's, or a script or key is missing; nothing long is loaded for it."""
        models, transfer = self.suite.models, self.suite.transfer
        proposers = [models.proposer, models.trained, *(transfer.proposers if transfer else ())]
        for name in filter(None, [models.action, *proposers]):
            prompt_style_of(name)
            if not name.startswith(("local", "hf:")):
                self.chat(name)
        if models.judge is not None:
            prompt_style_of(models.judge)
            if not models.judge.startswith(("local", "hf:")):
                self.judge(models.judge)
        for name in [models.scorer, *(transfer.scorers if transfer else ())]:
            kind = name.partition(":")[0]
            if name != "fake:" and kind not in {"local", "hf", "transformers"}:
                load_scorer(name)  # says what is wrong with it

    def scorer(self, name: str) -> Scorer:
        """A scorer, with its cache."""
        precision = self.suite.models.precision
        return self._once("scorer", name, lambda: load_scorer(name, precision, progress=self.fetch))

    def embedder(self) -> Embedder:
        """The embedding model."""
        name = self.suite.models.embedder
        return self._once("embedder", name or "", lambda: load_embedder(name))
