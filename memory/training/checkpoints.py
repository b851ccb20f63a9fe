"""Checkpoints of a training with trl: which one to go on from, how, and where the finished adapter goes.

The one design choice: a checkpoint counts only if its state, which transformers writes last, can be read; whatever a stop left
half-written is deleted, so that going on is going on from the newest that is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from usertwin.personas import UsageError

from .prefix_sharing import shared_prefix_forward

ADAPTER, CHECKPOINTS = "adapter", "checkpoints"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; those that a stop left half-written are deleted."""
    for one in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        try:
            _state_of(one)
            return one
        except (OSError, ValueError):
            shutil.rmtree(one)
    return None


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _state_of(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))


def prepare_resume(trainer: Any, checkpoint: Path | None, over: Callable[[int], bool] = lambda step: False) -> None:
    """Train from a checkpoint on, or from the start; what is at its end already is only brought back.

    Args:
        trainer: of trl.
        checkpoint: where to go on, if anywhere.
        over: whether a training was to stop by itself after a step.
    """
    if checkpoint is not None:
        state = _state_of(checkpoint)
        if state["global_step"] >= state["max_steps"] or over(step_of(checkpoint)):
            _restore(trainer, checkpoint)  # what was stopped was only what comes after training
            return
    with shared_prefix_forward(trainer.model.get_base_model()):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _restore(trainer: Any, checkpoint: Path) -> None:
    """Bring a trainer to where a checkpoint is; going on from the last one, transformers would do a step too many."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import TrainerState

    set_peft_model_state_dict(trainer.model, load_file(checkpoint / "adapter_model.safetensors"))
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


@contextmanager
def training_errors(folder: Path) -> Generator[None]:
    """UsageError, with the way out, if what is written meanwhile does not fit on the disk."""
    from safetensors import SafetensorError

    try:
        yield
    except Exception as error:  # each of those who write a checkpoint says it in another way
        if not isinstance(error, OSError | SafetensorError) and "PytorchStreamWriter" not in str(error):
            raise
        raise UsageError(f"{folder}: a checkpoint cannot be written ({error}); make room, and give the same command") from error


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """Put a model's adapter in its place in a folder, whole or not at all."""
    partial = folder / f"{ADAPTER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial))
    tokenizer.save_pretrained(str(partial))
    shutil.rmtree(folder / ADAPTER, ignore_errors=True)  # there is one if a stop came right after it was put there
    partial.rename(folder / ADAPTER)


def adapter_bytes(model: Any, rank: int) -> int:
    """What an adapter of that rank takes on disk: float32, on every linear layer."""
    import torch

    layers = [layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and "lm_head" not in name]
    return 4 * rank * sum(layer.in_features + layer.out_features for layer in layers)


def check_room(model: Any, folder: Path, rank: int) -> None:
    """UsageError if the disk has no room for two checkpoints (adapter, two moments of it) and the adapter.

    Args:
        model: the base; of its layers only the shapes matter.
        folder: where checkpoints go; it exists.
        rank: of the adapter.
    """
    needed, free = 7 * adapter_bytes(model, rank) + 64 * 2**20, shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f"{folder}: training needs {needed / 2**20:,.0f} MiB for its checkpoints, and {free / 2**20:,.0f} are free; make "
            "room, or name another folder"
        )
