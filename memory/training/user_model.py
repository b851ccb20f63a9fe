"""User models: a base fine-tuned on a person's actions, with or without traces, that scores turns of the person.

The fine-tuning text equals the text scored later (transcript.py), with prompt and continuation tokenized apart as a scorer does
it. So a comparison of user models compares the traces, not two formats. The loss covers the part after the bar:

    trained without traces      context | "Me:" action
    trained with traces         context "(Me thinking:" | trace ")" "Me:" action
    scored directly             context "Me:" | action
    scored with own thoughts    the model samples thoughts from the context alone; then  context thought "Me:" | action
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import ceil, exp, fsum, gcd, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usertwin.memory.atomic_files import checksum
from usertwin.memory.models.scoring import Likelihood, Precision
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.propose import TRACE_TOKENS
from usertwin.memory.text.transcript import ME, action_completion, format_action_prompt, format_thought_prompt, single_line
from usertwin.personas import Pair, UsageError
from usertwin.personas.files import fsync_folder, private_folder, private_umask, write_private
from usertwin.personas.reading import as_type, parse_json, read_file

from .checkpoints import CHECKPOINTS, last_checkpoint, run_trainer, training_errors
from .policy import check_installed, load_base, lora_config, stop_tokens
from .trl_trainers import trainer_arguments

if TYPE_CHECKING:
    from trl.trainer.sft_trainer import SFTTrainer

#: The file of our metadata in an adapter's folder.
METADATA = "usertwin.json"
#: The kind, in the metadata, of an adapter that is trained on the prompts of a twin and lies in its folder.
TWIN = "twin"
_FORMAT = 1
_MAX_TOKENS = 1024
_CPU_MICRO_BATCH = 4
#: Checkpoints per training.
_CHECKPOINTS = 20
#: The settings that user models had before there were others; their value leaves the fingerprint of a training as it was.
_LATER_SETTINGS: Mapping[str, object] = {"max_tokens": _MAX_TOKENS, "low_memory": False}

#: A prompt, and the completion to learn.
PromptCompletion = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserModelConfig:
    """How a user model is fine-tuned.

    Attributes:
        epochs: passes over the rows, if `steps` is None.
        steps: optimizer steps; None to derive them from `epochs`.
        batch_size: rows per step.
        learning_rate: initial learning rate; it decays linearly to 0.
        rank: rank of the LoRA adapter (arXiv 2106.09685) on every linear layer.
        precision: precision of the base.
        seed: seed of the adapter's initial weights and the order of the rows.
        max_tokens: tokens of a row; a longer context loses its beginning, a longer continuation its end.
        low_memory: train one row at a time, and compute the activations of a block again for its gradient.
    """

    epochs: int = 3
    steps: int | None = None
    batch_size: int = 8
    learning_rate: float = 2e-4
    rank: int = 16
    precision: Precision = "float32"
    seed: int = 0
    max_tokens: int = _MAX_TOKENS
    low_memory: bool = False

    def steps_for(self, rows: int) -> int:
        """Return the number of optimizer steps for that many rows."""
        return self.epochs * ceil(rows / self.batch_size) if self.steps is None else self.steps


def training_row(pair: Pair, turns: int, thought: str | None = None) -> PromptCompletion:
    """Return the prompt and the completion of a pair.

    Args:
        pair: the pair.
        turns: turns of context in the prompt.
        thought: the trace of the pair, to train with traces.
    """
    if thought is None:
        return format_action_prompt(pair, turns), action_completion(pair.action)
    return format_thought_prompt(pair, turns), f" {single_line(thought)})\n{ME}:{action_completion(pair.action)}"


def fine_tune(
    rows: Sequence[PromptCompletion],
    base: Path,
    target: Path,
    config: UserModelConfig,
    *,
    metadata: Mapping[str, Any],
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Fine-tune a base on rows, unless that was done; a killed training resumes from its last checkpoint.

    Args:
        rows: the training rows; the loss covers the completions only.
        base: folder of the base model.
        target: folder of the adapter; it appears only when complete.
        config: the configuration.
        metadata: facts to store with the adapter.
        progress: receives the steps done.

    Returns:
        `metadata`, with `steps`, `rows` and `loss` (nats per token, mean of the last tenth of the steps).

    Raises:
        UsageError: no rows; a package is missing; the target holds an adapter of other rows; the disk is full.
        ModelError: the base cannot be loaded.
    """
    if not rows:
        raise UsageError(f"{target}: no rows to train on; give more people, or traces for more pairs")
    fingerprint = _fingerprint(rows, config, metadata.get("base"))
    partial = _partial(target)
    if (other := _other_training(fingerprint, target, partial)) is not None:
        raise UsageError(f"{other}: holds a user model of other rows or settings; delete that folder, or name another one")
    if (target / METADATA).exists():
        return _read_metadata(target)
    check_installed()
    facts = {
        "format": _FORMAT,
        "style": "transcript",
        **metadata,
        "rows": len(rows),
        "made_of": fingerprint,
        "config": asdict(config),
    }
    with training_errors(partial), private_umask(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)  # trl has no other name
        private_folder(partial)
        _write_metadata(facts, partial)
        trainer = _trainer(rows, base, partial, config, progress)
        run_trainer(trainer, last_checkpoint(partial / CHECKPOINTS))
        facts |= {"steps": trainer.state.global_step, "loss": _final_loss(trainer)}
        trainer.save_model(str(partial))
        (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle
        write_private(partial / "README.md", _card(facts))
        _write_metadata(facts, partial)
        shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
        partial.rename(target)
        fsync_folder(target.parent)
    return facts


def _fingerprint(rows: Sequence[PromptCompletion], config: UserModelConfig, base: object) -> str:
    # The former name of a field stays in the fingerprint, so user models trained before it was renamed are reused.
    fields = {
        "batch" if name == "batch_size" else name: value
        for name, value in asdict(config).items()
        if name not in _LATER_SETTINGS or value != _LATER_SETTINGS[name]
    }
    return checksum(json.dumps([list(rows), fields, str(base)]).encode("utf-8", "surrogatepass"))


def is_training_of(rows: Sequence[PromptCompletion], target: Path, config: UserModelConfig, base: str) -> bool:
    """Return whether `fine_tune` would continue or reuse what is at the target, if anything: the arguments are the same.

    `base` is the name of the base in the metadata.
    """
    return _other_training(_fingerprint(rows, config, base), target, _partial(target)) is None


def _partial(target: Path) -> Path:
    """Return the folder of an unfinished training."""
    return target.with_name(f"{target.name}.partial")


def _other_training(fingerprint: str, *folders: Path) -> Path | None:
    """Return the first of the folders that holds a model of other rows or another configuration; None if none does."""
    made = (folder for folder in folders if (folder / METADATA).exists())
    return next((folder for folder in made if _read_metadata(folder).get("made_of") != fingerprint), None)


def _read_metadata(folder: Path) -> dict[str, Any]:
    way_out = "delete its folder, and run the same command again"
    return read_file(folder / METADATA, lambda raw: as_type(dict[str, Any], parse_json(raw)), way_out=way_out, error=UsageError)


def _write_metadata(facts: Mapping[str, Any], folder: Path) -> None:
    write_private(folder / METADATA, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def _trainer(
    rows: Sequence[PromptCompletion], base: Path, folder: Path, config: UserModelConfig, progress: Progress
) -> SFTTrainer:
    """Return trl's trainer for rows that are tokenized here."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    model, tokenizer = load_base(base, config.precision)
    steps, batch_size = config.steps_for(len(rows)), config.batch_size
    max_tokens = min(config.max_tokens, int(getattr(model.config, "max_position_embeddings", config.max_tokens)))
    micro_batch_size = gcd(batch_size, _CPU_MICRO_BATCH) if model.device.type == "cpu" else batch_size
    shared = trainer_arguments(
        folder, batch_size=batch_size, micro_batch_size=1 if config.low_memory else micro_batch_size,
        learning_rate=config.learning_rate, save_every=max(1, steps // _CHECKPOINTS), seed=config.seed,
    )  # fmt: skip
    if config.low_memory:
        shared["gradient_checkpointing"] = True
    arguments = SFTConfig(
        **shared, max_steps=steps, lr_scheduler_type="linear", warmup_steps=0, max_length=None, packing=False,
        completion_only_loss=True, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip

    class ProgressCallback(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress("fitting", state.global_step, steps)

    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([_encoded(tokenizer, row, max_tokens) for row in rows]),
        processing_class=tokenizer,
        peft_config=lora_config(config.rank),
        callbacks=[ProgressCallback()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _encoded(tokenizer: Any, row: PromptCompletion, max_tokens: int) -> dict[str, list[int]]:
    """Return the tokens of a row as a scorer reads it; labels of the prompt are -100, which excludes them from the loss."""
    prompt: list[int] = tokenizer(row[0], split_special_tokens=True).input_ids or [tokenizer.eos_token_id]
    completion: list[int] = tokenizer(row[1], add_special_tokens=False, split_special_tokens=True).input_ids[: max_tokens // 2]
    prompt = prompt[-(max_tokens - len(completion)) :]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def _final_loss(trainer: SFTTrainer) -> float | None:
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    last = losses[-max(1, len(losses) // 10) :]
    return fsum(last) / len(last) if last else None


def _card(facts: Mapping[str, Any]) -> str:
    """Return the model card of an adapter."""
    from huggingface_hub import ModelCard, ModelCardData

    config, loss = facts["config"], facts["loss"]
    kind, people = facts.get("kind", "none"), ", ".join(facts.get("people", ())) or "one person"
    of_twin = kind == TWIN
    use = "a part of the twin in whose folder it lies" if of_twin else "comparing the value of traces"
    text = f"""\
---
{ModelCardData(library_name="peft", tags=["lora", "usertwin", "user-simulation"]).to_yaml()}
---

# A user model: {kind}

A LoRA adapter (rank {config["rank"]}) of the base `{facts.get("base", "?")}`; the licence of the base applies.

- Data: {facts["rows"]} pairs of {people}; {"each after the twin's own prompt" if of_twin else f"traces: {kind}"}
- Training: supervised, {facts["steps"]} steps of {config["batch_size"]} rows, learning rate {config["learning_rate"]:g}, seed \
{config["seed"]}; final loss {"unknown" if loss is None else f"{loss:.3f} nats per token"}
- Use: {use}. It may repeat what these people wrote; protect it like their log.
"""
    return str(ModelCard(text))


class UserModel:
    """A base, with or without an adapter, that scores turns; loaded on first use.

    Args:
        name: name in reports.
        base: folder of the base model.
        adapter: folder of the adapter; None for the base alone.
        precision: precision of the weights.
    """

    def __init__(self, name: str, base: Path, adapter: Path | None = None, precision: Precision = "float32") -> None:
        self.name, self._base, self._adapter = name, base, adapter
        self._precision: Precision = precision
        self._scorer = TransformersScorer(name, self._load, precision)

    def _load(self) -> tuple[Any, Any]:
        from transformers import GenerationConfig

        model, tokenizer = load_base(self._base, self._precision)
        if self._adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(self._adapter)).merge_and_unload()
        model.generation_config = GenerationConfig()  # a base may ship sampling defaults that distort its distribution
        return model, tokenizer

    def score(self, pair: Pair, turns: int) -> Likelihood:
        """Return the likelihood of the action given the context alone."""
        return self._scorer.score([(format_action_prompt(pair, turns), action_completion(pair.action))])[0]

    def score_with_thoughts(self, pair: Pair, turns: int, n: int, *, seed: int = 0) -> tuple[float, list[str]]:
        """Return a lower bound on the marginal log-probability of the action over the model's own thoughts.

        The bound is the log of the mean, over n sampled thoughts, of the probability of the action after each. It tightens with
        more thoughts (importance-weighted bound with the prior as proposal, arXiv 1509.00519). Therefore thoughts are sampled
        from the model's own distribution: temperature 1, all tokens.

        Args:
            pair: the pair.
            turns: turns of context in the prompt.
            n: number of thoughts.
            seed: seed of the thoughts.

        Returns:
            The bound in nats, and the thoughts.
        """
        thoughts = self._sample_thoughts(pair, turns, n, seed)
        completion = action_completion(pair.action)
        items = [(format_action_prompt(pair, turns, thought=thought), completion) for thought in thoughts]
        return log_mean_exp([likelihood.nats for likelihood in self._scorer.score(items)]), thoughts

    @cached_property
    def _stop_tokens(self) -> list[int]:
        return stop_tokens(self._scorer.loaded[1], "transcript")

    def _sample_thoughts(self, pair: Pair, turns: int, n: int, seed: int) -> list[str]:
        import torch

        model, tokenizer = self._scorer.loaded
        max_tokens = TRACE_TOKENS["transcript"]
        room = int(getattr(model.config, "max_position_embeddings", 2048)) - max_tokens
        ids = tokenizer(format_thought_prompt(pair, turns), return_tensors="pt").input_ids[:, -room:].to(model.device)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            sampled = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=max_tokens, num_return_sequences=n, eos_token_id=self._stop_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )[:, ids.shape[1] :]  # fmt: skip
        return [parse_thought(text) for text in tokenizer.batch_decode(sampled, skip_special_tokens=True)]


def parse_thought(text: str) -> str:
    r"""Return the thought in a completion of `format_thought_prompt`: its first line, without the closing bracket.

    >>> parse_thought(" wants (some) tea)\nMe: tea please")
    'wants (some) tea'
    """
    return single_line(text.partition("\n")[0]).removesuffix(")").rstrip()


def log_mean_exp(nats: Sequence[float]) -> float:
    """Return the log of the mean of probabilities given as logs; at least one must be above minus infinity."""
    top = max(nats)
    return top + log(fsum(exp(value - top) for value in nats) / len(nats))
