"""Open a twin whose models are recorded or replayed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from usertwin.memory import ChatModel, Embedder, Settings, TwinRecord, existing_twin
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.models.recording import Recording

from ..backends.load import DEFAULT_MODEL, load_model
from ..reasoner import load_own_embedder, load_reasoner, reasoner_name
from ..user import SimulatedUser
from .embedder import RecordedEmbedder
from .models import recorded_model, replayed_model


def load_user(
    name: str,
    recording: Recording,
    *,
    home: str | Path | None = None,
    model: str | ChatModel = DEFAULT_MODEL,
    style: PromptStyle | None = None,
    reasoner: str | ChatModel | None = None,
    embedder: Embedder | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> SimulatedUser:
    """Open a twin as `SimulatedUser.load`, with recorded models, or in a replay without any model.

    In a replay, a model, reasoner or embedder that is given counts for its name only. One that is recorded already is used as
    it is, so that several twins can share it. The reasoner has the ledger of the model that acts.

    Raises:
        UsageError: the recording was made with other models of these names, or with other prompts.
        ReplayMiss: it is a replay, and the recording does not hold these models.
        TwinError, ModelError: as `SimulatedUser.load`.
    """
    folder = existing_twin(name, home)
    record = TwinRecord.load(folder)

    def opened(model: str | ChatModel, style: PromptStyle | None = None) -> ChatModel:
        if isinstance(model, ChatModel) and model.recording is not None:
            return model
        if recording.is_replay:
            recorded = model if isinstance(model, str) else model.name
            return replayed_model(recorded, recording, style if isinstance(model, str) else model.style)
        return recorded_model(load_model(model, style=style) if isinstance(model, str) else model, recording)

    chat = opened(model, style)
    if reasoner is None and not recording.is_replay:
        reasoner = load_reasoner(record, chat, settings, folder=folder)
    elif reasoner is None:
        reasoner = reasoner_name(record, chat.name, settings)
    if reasoner is None or reasoner is chat or (isinstance(reasoner, str) and reasoner == chat.name):
        thinks = chat
    else:
        thinks = replace(opened(reasoner), ledger=chat.ledger)
    if isinstance(embedder, RecordedEmbedder):
        vectors = embedder
    elif recording.is_replay:
        vectors = RecordedEmbedder(None, recording, record.recipe.embedder if embedder is None else embedder.name)
    else:
        vectors = RecordedEmbedder(embedder or load_own_embedder(record, folder), recording)
    return SimulatedUser.load(name, home=home, model=chat, reasoner=thinks, embedder=vectors, settings=settings, **options)
