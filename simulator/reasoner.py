"""Who reasons for a twin: the synthesizer that it was learned with, or the model that acts.

The one design choice: a twin keeps its synthesizer by a name that holds wherever it is opened from, so a path in it is made
absolute, and the model is loaded only for a twin that reasons.
"""

from __future__ import annotations

from pathlib import Path

from usertwin.memory import ChatModel, Settings, TwinRecord
from usertwin.memory.models.chat import Price
from usertwin.personas import ModelError, UsageError

from .backends.downloads import FetchProgress
from .backends.load import load_model, prompt_style_of
from .backends.lora_adapter import model_with_adapter
from .backends.model_name import split_adapter


def synthesizer_named(told: str) -> str:
    """The name of a synthesizer's model, to be kept.

    Args:
        told: the folder of an adapter, or the name of any chat model.

    Raises:
        UsageError: it is neither, or the adapter does not say of which model it is.
        ModelError: the folder holds no adapter.
    """
    if Path(told).expanduser().is_dir():
        return _anywhere(model_with_adapter(told))
    try:
        prompt_style_of(told)
    except UsageError as error:
        raise UsageError(f"the synthesizer is no folder of an adapter, and no model either: {error}") from None
    return _anywhere(told)


def _anywhere(name: str) -> str:
    """A model's name with whole paths, so that it means the same in every folder."""
    base, adapter = split_adapter(name)
    kind, colon, rest = base.partition(":")
    if rest and kind != "openai" and (path := Path(rest).expanduser()).exists():
        rest = str(path.resolve())
    return f"{kind}{colon}{rest}" + ("" if adapter is None else f"+{adapter.resolve()}")


def reasoner_of(
    record: TwinRecord,
    model: ChatModel,
    settings: Settings | None = None,
    *,
    price: Price | None = None,
    progress: FetchProgress | None = None,
) -> ChatModel:
    """Who reasons for a twin: the synthesizer it was learned with, or the model that acts.

    Args:
        record: what is known about the twin.
        model: who acts; also who reasons if there is no synthesizer, if it has the same name, or if the twin does not reason.
        settings: how the twin uses its memory; by default what its record says.
        price: what the synthesizer costs, if it is hosted.
        progress: is told how far a download is.

    Raises:
        ModelError: the synthesizer cannot be had; the message says why, and what to do.
    """
    name = record.recipe.synthesizer
    if name is None or name == model.name or not (settings or record.settings or Settings()).reasons:
        return model
    try:
        return load_model(name, price=price, progress=progress)
    except (ModelError, UsageError) as error:
        raise ModelError(
            f'the twin "{record.name}" reasons with "{name}", which cannot be had ({error}); put it back, learn the twin again '
            'with --overwrite, or open it in Python with reasoner="local"'
        ) from error
