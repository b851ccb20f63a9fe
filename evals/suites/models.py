"""The models of a suite, loaded once and shared by its people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from usertwin.evals.replay.simulators import Simulator, load_simulators
from usertwin.memory import ChatModel, Embedder, Scorer
from usertwin.memory.models.completion_cache import CompletionCache
from usertwin.simulator import load_embedder, load_model, load_scorer
from usertwin.simulator.backends.load import prompt_style_of
from usertwin.simulator.backends.model_name import ModelName

from .config import Suite


@dataclass(frozen=True, slots=True)
class SuiteModels:
    """The models of a suite, each loaded at its first use; `fetch` receives the progress of downloads."""

    suite: Suite
    fetch: Any
    cache: CompletionCache | None = None
    loaded: dict[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])  #: by kind and name

    def _load_once(self, kind: str, name: str, load: Callable[[], Any]) -> Any:
        if (kind, name) not in self.loaded:
            self.loaded[kind, name] = load()
        return self.loaded[kind, name]

    def _chat(self, kind: str, name: str, style: Literal["transcript", "instruction"] | None) -> ChatModel:
        model = self._load_once(kind, name, lambda: load_model(name, style=style, progress=self.fetch))
        return replace(model, cache=self.cache)

    def chat(self, name: str) -> ChatModel:
        """Return a chat model, in the suite's prompt style if it has one."""
        return self._chat("chat", name, self.suite.models.style)

    def judge(self, name: str) -> ChatModel:
        """Return a chat model that takes instructions, as a judge must; a scripted one is used as it is."""
        return self._chat("judge", name, None if ModelName.parse(name).kind == "scripted" else "instruction")

    def scorer(self, name: str) -> Scorer:
        """Return a scorer, with its cache."""
        precision = self.suite.models.precision
        return self._load_once("scorer", name, lambda: load_scorer(name, precision, progress=self.fetch))

    def embedder(self) -> Embedder:
        """Return the embedding model."""
        name = self.suite.models.embedder
        return self._load_once("embedder", name or "", lambda: load_embedder(name))

    def simulators(self) -> dict[str, Simulator]:
        """Return the simulators among the suite's arms, by name."""
        return self._load_once("simulators", "", lambda: load_simulators(self.suite.arms))

    def check(self) -> None:
        """Check names, scripts and keys without loading weights. UsageError or ModelError if one is wrong or missing."""
        models, transfer = self.suite.models, self.suite.transfer
        self.simulators()
        proposers = [models.proposer, models.trained, *(transfer.proposers if transfer else ())]
        chats = [(name, self.chat) for name in (models.action, *proposers)]
        for name, load in [*chats, (models.judge, self.judge)]:
            if name is None:
                continue
            prompt_style_of(name)
            if not ModelName.parse(name).is_gguf:  # the other kinds need no download
                load(name)
        for name in (models.scorer, models.outside, *(transfer.scorers if transfer else ())):
            if name is not None:
                ModelName.parse(name, "scorer")
