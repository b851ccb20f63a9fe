"""A twin with its adapter beside itself without it: only the arms of the twin have the adapter, in bits and in replies."""

from __future__ import annotations

from dataclasses import dataclass, replace

from usertwin.memory import Scorer
from usertwin.memory.models.scoring import Precision
from usertwin.memory.twin.record import ADAPTER_FOLDER
from usertwin.simulator import SimulatedUser, load_model, load_scorer
from usertwin.simulator.backends.lora_of_twin import adapter_for
from usertwin.simulator.backends.model_name import ModelName


@dataclass(frozen=True, slots=True)
class AdaptedTwin:
    """A twin that acts with its adapter; the scorer has it too, and is None if it has other weights."""

    user: SimulatedUser
    scorer: Scorer | None


def is_adapted_twin(user: SimulatedUser) -> bool:
    """Return whether the model of a twin has the twin's own adapter."""
    record = user.record.adapter
    if record is None or not record.used or not user.model.name.endswith(ADAPTER_FOLDER):
        return False
    return ModelName.parse(user.model.name).adapter == (user.store.folder / ADAPTER_FOLDER).absolute()


def without_adapter(user: SimulatedUser) -> SimulatedUser:
    """Return an adapted twin without its adapter; it shares the memory, which only the given twin closes."""
    base = load_model(ModelName.parse(user.model.name).base, style=user.model.style)
    base = replace(base, cache=user.model.cache)
    reasoner = base if user.reasoner.chat is user.model.chat else user.reasoner
    return SimulatedUser(
        user.record, user.store, base, reasoner=reasoner, last_turn=user.last_turn, abandonment=user.abandonment,
        settings=user.settings, k=user.k, ranking=user.ranking,
    )  # fmt: skip


def split_adapter(user: SimulatedUser, scorer: Scorer | None) -> tuple[SimulatedUser, AdaptedTwin | None]:
    """Return the twin without its adapter, and with it if it has one; `scorer` is that of `adapted_scorer`."""
    return (without_adapter(user), AdaptedTwin(user, scorer)) if is_adapted_twin(user) else (user, None)


def adapted_scorer(user: SimulatedUser, name: str, precision: Precision = "float32") -> Scorer | None:
    """Return the named scorer with the adapter of a twin; None if the twin has none, or the scorer has other weights."""
    if not is_adapted_twin(user) or name == "fake:":
        return None
    adapter = adapter_for(user.record, user.store.folder, name, style=user.model.style)
    return None if adapter is None else load_scorer(f"{name}+{adapter}", precision)
