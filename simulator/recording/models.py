"""Chat models whose completions are recorded, and models that only replay a recording.

Prompts depend on facts about a model: its style, its context and how it counts tokens. So these facts are in the recording,
with the versions of the prompts, and a replayed run builds the same prompts without the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from usertwin.memory import ChatModel
from usertwin.memory.models.chat import FREE, PromptStyle
from usertwin.memory.models.recording import ModelRecording, Recording
from usertwin.memory.models.token_writer import NextToken, WrittenTokens
from usertwin.personas import ModelError, UsageError

from ..prompts import prompt_versions

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

_STYLES: tuple[PromptStyle, ...] = ("transcript", "instruction")
_MODEL, _COUNT = "model", "token count"
#: Fields of a `ChatModel` that prompts and requests depend on.
_FACTS = (
    "supports_sampling_params", "bypass_cache", "structured", "identity", "max_n", "control_tokens", "context_tokens",
)  # fmt: skip
_COUNTS, _WRITES = "counts_tokens", "writes_tokens"


def recorded_model(model: ChatModel, recording: Recording, *, prompts: Mapping[str, str] | None = None) -> ChatModel:
    """Return a model whose completions and token counts are looked up in a recording, and are added to it in the mode "record".

    Args:
        model: the model.
        recording: the recording.
        prompts: the versions of the prompts that it gets, by name; by default those of a twin.

    Raises:
        UsageError: the recording holds completions of another model of this name and style, or for other prompts.
        ReplayMiss: it is a replay, and the recording holds no completion of this model.
    """
    facts = {name: getattr(model, name) for name in _FACTS}
    facts |= {_COUNTS: model.count_tokens is not None, _WRITES: model.token_writer is not None}
    recording.require_equal(_MODEL, model.name, model.style, _plain(facts))
    counter = None if model.count_tokens is None else _counter(recording, model.name, model.identity, model.count_tokens)
    return replace(model, recording=_with_prompts(recording, model.style, prompts), count_tokens=counter)


def replayed_model(
    name: str, recording: Recording, style: PromptStyle | None = None, *, prompts: Mapping[str, str] | None = None
) -> ChatModel:
    """Return a model that only replays a recording: no weights are loaded and no endpoint is asked, whatever the name.

    Args:
        name: the name that it was recorded by.
        recording: the recording.
        style: how it was prompted; needed only if it was recorded in both styles.
        prompts: the versions of the prompts that it gets, by name; by default those of a twin.

    Raises:
        UsageError: it was recorded in both styles, or with other versions of the prompts.
        ReplayMiss: it was not recorded.
    """
    styles: tuple[PromptStyle, ...] = _STYLES if style is None else (style,)
    recorded: list[tuple[PromptStyle, Any]] = [
        (one, facts) for one in styles if (facts := recording.stored(_MODEL, name, one)) is not None
    ]
    if not recorded:
        raise recording.miss(_MODEL, name, style)
    if len(recorded) > 1:
        raise UsageError(f'{recording.path}: "{name}" was recorded in the styles {" and ".join(styles)}; name one with --style')
    recorded_style: PromptStyle = recorded[0][0]
    facts = recorded[0][1]
    return ChatModel(
        name, cast("BaseChatModel", _NoModel(name)), recorded_style, price=FREE,
        recording=_with_prompts(recording, recorded_style, prompts),
        count_tokens=_counter(recording, name, facts["identity"]) if facts[_COUNTS] else None,
        token_writer=_NoTokenWriter(name) if facts[_WRITES] else None, **{fact: facts[fact] for fact in _FACTS},
    )  # fmt: skip


def _with_prompts(recording: Recording, style: PromptStyle, prompts: Mapping[str, str] | None) -> ModelRecording:
    """Return a recording with the versions of prompts. UsageError if it was made with other versions."""
    prompts = prompt_versions(style) if prompts is None else dict(prompts)
    for name, version in prompts.items():
        recording.require_equal("prompt", name, None, {"version": version})
    return ModelRecording(recording, prompts)


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts with the types that a JSON text gives back."""
    return facts | {"bypass_cache": dict(facts["bypass_cache"]), "control_tokens": list(facts["control_tokens"])}


def _counter(recording: Recording, name: str, identity: str, count: Callable[[str], int] | None = None) -> Callable[[str], int]:
    """Return a recorded `ChatModel.count_tokens`; without `count`, of a replay."""

    def count_tokens(text: str) -> int:
        known = recording.find(_COUNT, name, [identity, text])
        if known is None:
            if count is None:
                raise recording.miss(_COUNT, name, [identity, text])
            known = recording.keep(_COUNT, name, [identity, text], count(text))
        return int(known)

    return count_tokens


class _NoModel:
    """Stands for the LangChain model of a replayed one, which answers nothing itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def ainvoke(self, *_: Any, **__: Any) -> Any:
        """Raise ModelError."""
        raise _not_loaded(self._name)

    def invoke(self, *_: Any, **__: Any) -> Any:
        """Raise ModelError."""
        raise _not_loaded(self._name)


class _NoTokenWriter:
    """Stands for the token writer of a replayed model.

    A twin counts the tokens of its words before it writes. A recording knows words by their text, so it finds the completion,
    and the counts of these stand-in tokens are never used.
    """

    vocabulary_size = 1

    def __init__(self, name: str) -> None:
        self._name = name

    def encode(self, turns: Sequence[str]) -> list[list[int]]:
        """Return one token for each turn."""
        return [[0] for _ in turns]

    async def write(self, messages: Sequence[tuple[str, str]], next_token: NextToken, **_: Any) -> list[WrittenTokens]:
        """Raise ModelError."""
        raise _not_loaded(self._name)


def _not_loaded(name: str) -> ModelError:
    return ModelError(f'the model "{name}" replays a recording and cannot be asked; record the run again to ask it')
