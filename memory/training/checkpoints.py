"""Checkpoints of a trl training: find the newest complete one, resume from it, and save the finished adapter.

Design: transformers writes trainer_state.json last, so a checkpoint is complete only if that file parses. Incomplete
checkpoints are deleted.
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

ADAPTER, CHECKPOINTS, TRAINER_STATE = "adapter", "checkpoints", "trainer_state.json"
#: In the errors of torch.save and of tokenizers when a write fails.
_FAILED_WRITES = ("PytorchStreamWriter", "inline_container", "iostream error", "No space left on device")


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, or None; incomplete ones are deleted."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        try:
            json.loads((checkpoint / TRAINER_STATE).read_text("utf-8"))
            return checkpoint
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def run_trainer(trainer: Any, checkpoint: Path | None, is_finished: Callable[[Any], bool] = lambda state: False) -> None:
    """Train from a checkpoint, or from the start. A checkpoint of a finished training is only loaded.

    Args:
        trainer: a trainer of trl.
        checkpoint: where to resume; None to start.
        is_finished: whether training had stopped early, given the TrainerState of the checkpoint.
    """
    if checkpoint is not None:
        from transformers import TrainerState

        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        if is_finished(state) or state.global_step >= state.max_steps:
            _load_finished(trainer, checkpoint, state)
            return
    with shared_prefix_forward(trainer.model.get_base_model()):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _load_finished(trainer: Any, checkpoint: Path, state: Any) -> None:
    """Load the weights and the state of a checkpoint; resuming from the last one, transformers would do one extra step."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(trainer.model, load_file(checkpoint / "adapter_model.safetensors"))
    trainer.state = state


@contextmanager
def training_errors(folder: Path) -> Generator[None]:
    """Turn errors of a full disk into a UsageError that names the folder."""
    from safetensors import SafetensorError

    try:
        yield
    except Exception as error:  # each library that writes to a checkpoint reports a full disk in its own way
        if not isinstance(error, OSError | SafetensorError) and not any(words in str(error) for words in _FAILED_WRITES):
            raise
        raise UsageError(f"{folder}: a checkpoint cannot be written ({error}); free space, and run the same command") from error


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model's adapter and tokenizer as `folder`/adapter, atomically."""
    partial = folder / f"{ADAPTER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial))
    tokenizer.save_pretrained(str(partial))
    shutil.rmtree(folder / ADAPTER, ignore_errors=True)  # left there if a kill came right after the rename below
    partial.rename(folder / ADAPTER)


def adapter_bytes(model: Any, rank: int) -> int:
    """Return the size on disk of a LoRA adapter of that rank: float32, on every linear layer but the head."""
    import torch

    layers = [layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and "lm_head" not in name]
    return 4 * rank * sum(layer.in_features + layer.out_features for layer in layers)


def check_room(model: Any, folder: Path, rank: int) -> None:
    """Raise UsageError if the disk has no room for the adapter and two checkpoints (adapter and two Adam moments).

    Args:
        model: the base model; only the shapes of its layers are used.
        folder: an existing folder on the disk of the checkpoints.
        rank: rank of the adapter.
    """
    needed, free = 7 * adapter_bytes(model, rank) + 64 * 2**20, shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f"{folder}: training needs {needed / 2**20:,.0f} MiB for its checkpoints, and {free / 2**20:,.0f} MiB are free; "
            "free space, or name another folder"
        )
