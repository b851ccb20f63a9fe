"""The models that a twin's record names: its embedding model, and the synthesizer that reasons for it.

They are loaded only if the user has chosen them (see memory/twin/consent.py).
"""

from __future__ import annotations

import os.path
from pathlib import Path

from usertwin.memory import ChatModel, Embedder, Settings, TwinRecord
from usertwin.memory.models.chat import Price
from usertwin.memory.twin.consent import check_consent
from usertwin.personas import ModelError, UsageError

from .backends.downloads import FetchProgress
from .backends.load import load_embedder, load_model, prompt_style_of
from .backends.lora_adapter import model_with_adapter
from .backends.model_name import ModelName


def resolve_synthesizer(text: str) -> str:
    """Return the name of a synthesizer's model with absolute paths, so that the twin can be opened from any folder.

    Raises:
        UsageError: the text names neither an adapter's folder nor a chat model, or the adapter does not record its base model.
        ModelError: the folder holds no adapter.
    """
    name = model_with_adapter(text) if os.path.isdir(os.path.expanduser(text)) else text
    try:
        prompt_style_of(name)
    except UsageError as error:
        raise UsageError(f'the synthesizer "{text}" is neither an adapter\'s folder nor a model: {error}') from None
    return str(ModelName.parse(name).resolved())


def load_own_embedder(record: TwinRecord, folder: Path | None = None) -> Embedder:
    """Return the embedding model of a twin's memory. UsageError if the user has not allowed the twin to load it.

    `folder` is the twin's, which the error names.
    """
    check_consent(record, record.recipe.embedder, folder=folder)
    return load_embedder(record.recipe.embedder)


def reasoner_name(record: TwinRecord, model: str, settings: Settings | None = None) -> str | None:
    """Return the name of the model that reasons for a twin beside the named one, which acts; None if that one does both."""
    name = record.recipe.synthesizer
    return name if name != model and (settings or record.settings or Settings()).reasons else None


def load_reasoner(
    record: TwinRecord,
    model: ChatModel,
    settings: Settings | None = None,
    *,
    price: Price | None = None,
    progress: FetchProgress | None = None,
    folder: Path | None = None,
) -> ChatModel:
    """Return the model that reasons for a twin: its synthesizer, loaded if the settings use reasoning, else `model`.

    `model` acts, and also reasons if there is no synthesizer or both have the same name. The settings are by default those in
    the record; the price is that of a hosted synthesizer, and the folder the twin's, which an error names.

    Raises:
        ModelError: the synthesizer cannot be loaded; the message names the reason and the way out.
        UsageError: the user has not allowed the twin to load it.
    """
    name = reasoner_name(record, model.name, settings)
    if name is None:
        return model
    check_consent(record, name, folder=folder)
    try:
        return load_model(name, price=price, progress=progress)
    except (ModelError, UsageError) as error:
        raise ModelError(
            f'the twin "{record.name}" reasons with "{name}", which cannot be loaded ({error}); restore it, learn the twin '
            'again with --overwrite, or open it in Python with reasoner="local"'
        ) from error
