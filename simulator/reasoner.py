"""The model that reasons for a twin: the synthesizer it was learned with, or the model that acts."""

from __future__ import annotations

from pathlib import Path

from usertwin.memory import ChatModel, Settings, TwinRecord
from usertwin.memory.models.chat import Price
from usertwin.personas import ModelError, UsageError

from .backends.downloads import FetchProgress
from .backends.load import load_model, prompt_style_of
from .backends.lora_adapter import model_with_adapter
from .backends.model_name import ModelName


def resolve_synthesizer(text: str) -> str:
    """Return the name of a synthesizer's model with absolute paths, so that the twin can be opened from any folder.

    Raises:
        UsageError: the text names neither an adapter's folder nor a chat model, or the adapter does not record its base model.
        ModelError: the folder holds no adapter.
    """
    name = model_with_adapter(text) if Path(text).expanduser().is_dir() else text
    try:
        prompt_style_of(name)
    except UsageError as error:
        raise UsageError(f'the synthesizer "{text}" is neither an adapter\'s folder nor a model: {error}') from None
    return str(ModelName.parse(name).resolved())


def load_reasoner(
    record: TwinRecord,
    model: ChatModel,
    settings: Settings | None = None,
    *,
    price: Price | None = None,
    progress: FetchProgress | None = None,
) -> ChatModel:
    """Return the model that reasons for a twin: its synthesizer, loaded if the settings use reasoning, else `model`.

    `model` acts, and also reasons if there is no synthesizer or both have the same name. The settings are by default those in
    the record; the price is that of a hosted synthesizer.

    Raises:
        ModelError: the synthesizer cannot be loaded; the message names the reason and the way out.
    """
    name = record.recipe.synthesizer
    if name is None or name == model.name or not (settings or record.settings or Settings()).reasons:
        return model
    try:
        return load_model(name, price=price, progress=progress)
    except (ModelError, UsageError) as error:
        raise ModelError(
            f'the twin "{record.name}" reasons with "{name}", which cannot be loaded ({error}); restore it, learn the twin '
            'again with --overwrite, or open it in Python with reasoner="local"'
        ) from error
