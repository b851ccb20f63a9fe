"""User models M_a: a base that is fine-tuned on what a person did, with or without traces, and asked how likely turns are.

The one design choice: the text that is learned is the very text that is scored later (transcript.py), prompt and continuation
tokenized apart as a scorer does it, so that what is compared are the traces and not two ways of writing a moment down.

    learned without a trace    context | "Me:" action
    learned with a trace       context "(Me thinking:" | trace ")" "Me:" action      (only what is right of the bar is learned)
    asked at once              context "Me:" | action
    asked with own thoughts    the model writes thoughts from the context alone; then  context thought "Me:" | action
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import ceil, exp, fsum, gcd, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usertwin.memory.atomic_files import digest_of, sync_folder
from usertwin.memory.models.scoring import Likelihood, Precision
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.propose import TRACE_TOKENS
from usertwin.memory.text.transcript import ME, action_line, current_moment, flat, open_thought
from usertwin.personas import Pair, UsageError

from .checkpoints import CHECKPOINTS, last_checkpoint, prepare_resume, training_errors
from .policy import check_installed, ends_of, load_base, lora
from .trl_trainers import trainer_arguments

if TYPE_CHECKING:
    from trl.trainer.sft_trainer import SFTTrainer

#: What is known of an adapter besides peft's own files.
ABOUT = "usertwin.json"
_FORMAT = 1
#: The most tokens of a row; of a longer context the end is kept, of a longer continuation the beginning.
_LONGEST = 1024
#: Rows that are computed at once on a processor; more are taken one lot after the other.
_AT_ONCE = 4
#: How often in a training the state is kept, to go on from after a kill.
_CHECKPOINTS = 8

#: A prompt and what is to be learned after it.
Row = tuple[str, str]


@dataclass(frozen=True, slots=True)
class UserModelConfig:
    """How a user model is fine-tuned.

    Attributes:
        epochs: how often every row is seen, if `steps` is None.
        steps: how many steps of the optimizer; None: as `epochs` says.
        batch: rows of a step.
        learning_rate: at the start; it falls to 0 in a straight line.
        rank: of the LoRA adapter (Hu et al., arXiv 2106.09685), on every linear layer.
        precision: of the weights of the base.
        seed: for the adapter's first weights and the order of the rows.
    """

    epochs: int = 3
    steps: int | None = None
    batch: int = 8
    learning_rate: float = 2e-4
    rank: int = 16
    precision: Precision = "float32"
    seed: int = 0

    def steps_for(self, rows: int) -> int:
        """How many steps of the optimizer so many rows take."""
        return self.epochs * ceil(rows / self.batch) if self.steps is None else self.steps


def row_of(pair: Pair, turns: int, thought: str | None = None) -> Row:
    """A moment as it is learned: the prompt, and what follows it.

    Args:
        pair: the moment.
        turns: of the context that are shown.
        thought: its trace, if it is learned with one.
    """
    if thought is None:
        return current_moment(pair, turns), action_line(pair.action)
    return open_thought(pair, turns), f" {flat(thought)})\n{ME}:{action_line(pair.action)}"


def fit(
    rows: Sequence[Row],
    base: Path,
    target: Path,
    how: UserModelConfig,
    *,
    about: Mapping[str, Any],
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Fine-tune a base on rows, or find that this was done; what was begun and killed goes on from its last checkpoint.

    Args:
        rows: what is learned; of each the second part only.
        base: folder of the base model.
        target: folder of the adapter, there whole or not at all.
        how: how to fine-tune.
        about: what to note with the adapter.
        progress: is told how far it is.

    Returns:
        What is noted with the adapter: `about`, and `steps`, `rows`, `loss` (in nats per token, over the last tenth of steps).

    Raises:
        UsageError: there is no row; a package is missing; the adapter that is there was made of other rows; there is no room.
        ModelError: the base cannot be loaded.
    """
    if not rows:
        raise UsageError(f"{target}: there is nothing to learn; give more people, or traces for more moments")
    made_of = digest_of(json.dumps([list(rows), asdict(how), str(about.get("base"))]).encode("utf-8", "surrogatepass"))
    partial = target.with_name(f"{target.name}.partial")
    _check_same(made_of, target, partial)
    if (target / ABOUT).exists():
        return json.loads((target / ABOUT).read_text("utf-8"))
    check_installed()
    noted = {
        "format": _FORMAT,
        "style": "transcript",
        **about,
        "rows": len(rows),
        "made_of": made_of,
        "how_fitted": asdict(how),
    }
    with training_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
        _note(noted, partial)
        trainer = _trainer(rows, base, partial, how, progress)
        prepare_resume(trainer, last_checkpoint(partial / CHECKPOINTS))
        noted |= {"steps": trainer.state.global_step, "loss": _last_loss(trainer)}
        trainer.save_model(str(partial))
        (partial / "README.md").write_text(_card(noted), "utf-8")
        _note(noted, partial)
        shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
        partial.rename(target)
        sync_folder(target.parent)
    return noted


def _check_same(made_of: str, *folders: Path) -> None:
    """UsageError if one of the folders holds a model that was made of something else."""
    for folder in folders:
        if (folder / ABOUT).exists() and json.loads((folder / ABOUT).read_text("utf-8")).get("made_of") != made_of:
            raise UsageError(
                f"{folder}: holds a model that was trained on something else; delete that folder, or name another one"
            )


def _note(noted: Mapping[str, Any], folder: Path) -> None:
    (folder / ABOUT).write_text(json.dumps(noted, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _trainer(rows: Sequence[Row], base: Path, folder: Path, how: UserModelConfig, progress: Progress) -> SFTTrainer:
    """The trainer of trl, for rows that are tokenized already."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    model, tokenizer = load_base(base, how.precision)
    steps = how.steps_for(len(rows))
    together = gcd(how.batch, _AT_ONCE) if model.device.type == "cpu" else how.batch
    longest = min(_LONGEST, int(getattr(model.config, "max_position_embeddings", _LONGEST)))
    config = SFTConfig(
        **trainer_arguments(
            folder, batch=how.batch, at_once=together, learning_rate=how.learning_rate,
            save_every=max(1, steps // _CHECKPOINTS), seed=how.seed,
        ),
        max_steps=steps, lr_scheduler_type="linear", warmup_steps=0, max_length=None, packing=False, completion_only_loss=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip

    class Told(TrainerCallback):
        """Says how far the training is."""

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            progress("fitting", state.global_step, steps)

    data = Dataset.from_list([_encoded(tokenizer, row, longest) for row in rows])
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora(how.rank), callbacks=[Told()]
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _encoded(tokenizer: Any, row: Row, longest: int) -> dict[str, list[int]]:
    """A row as tokens; labels are -100 where nothing is to be learned."""
    before: list[int] = tokenizer(row[0]).input_ids or [tokenizer.eos_token_id]
    after: list[int] = tokenizer(row[1], add_special_tokens=False).input_ids[: longest // 2]
    before = before[-(longest - len(after)) :]
    return {"input_ids": before + after, "labels": [-100] * len(before) + after}


def _last_loss(trainer: SFTTrainer) -> float | None:
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    last = losses[-max(1, len(losses) // 10) :]
    return fsum(last) / len(last) if last else None


def _card(noted: Mapping[str, Any]) -> str:
    """The model card of an adapter."""
    how, loss = noted["how_fitted"], noted["loss"]
    lines = [
        f"# A user model: {noted.get('kind', 'pairs')}", "",
        f"A LoRA adapter (rank {how['rank']}) of the base `{noted.get('base', '?')}`, whose licence it is under.", "",
        f"- learned from: {noted['rows']} moments of {', '.join(noted.get('people', ())) or 'one person'}; traces: "
        f"{noted.get('kind', 'none')}",
        f"- how: supervised, {noted['steps']} steps of {how['batch']} rows, learning rate {how['learning_rate']:g}, seed "
        f"{how['seed']}; loss at the end {'not known' if loss is None else f'{loss:.3f} nats per token'}",
        "- for: comparing what traces are worth; it may repeat what these people said, so treat it as their log", "",
    ]  # fmt: skip
    return "\n".join(lines)


class UserModel:
    """A base, with an adapter or without, that says how likely turns are; loaded when first asked.

    Args:
        name: what to call it.
        base: folder of the base model.
        adapter: folder of the adapter; None for the base alone.
        precision: of the weights and sums.
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
        model.generation_config = GenerationConfig()  # a base may bring along ways of sampling that are not the model's own
        return model, tokenizer

    def at_once(self, pair: Pair, turns: int) -> Likelihood:
        """How likely the action is after the context alone."""
        return self._scorer.score([(current_moment(pair, turns), action_line(pair.action))])[0]

    def with_thoughts(self, pair: Pair, turns: int, n: int, *, seed: int = 0) -> tuple[float, list[str]]:
        """How likely the action is once the model has thought by itself.

        The log of the mean, over n thoughts that the model draws from the context alone, of the probability of the action after
        each. On average this is a lower bound of the log-probability that the model thinks whatever it may and then does this,
        and the closer the more thoughts there are (the importance-weighted bound with the prior as the proposal: Burda et al.,
        arXiv 1509.00519). For that the thoughts are drawn as the model has them, at temperature 1 from all tokens.

        Args:
            pair: the moment.
            turns: of the context that are shown.
            n: how many thoughts.
            seed: for drawing them.

        Returns:
            Nats, and the thoughts.
        """
        thoughts = self._thoughts(pair, turns, n, seed)
        items = [(current_moment(pair, turns, thought=thought), action_line(pair.action)) for thought in thoughts]
        return mean_likelihood([one.nats for one in self._scorer.score(items)]), thoughts

    @cached_property
    def _ends(self) -> list[int]:
        return ends_of(self._scorer.loaded[1], "transcript")

    def _thoughts(self, pair: Pair, turns: int, n: int, seed: int) -> list[str]:
        import torch

        model, tokenizer = self._scorer.loaded
        most = TRACE_TOKENS["transcript"]
        room = int(getattr(model.config, "max_position_embeddings", 2048)) - most
        asked = tokenizer(open_thought(pair, turns), return_tensors="pt").input_ids[:, -room:].to(model.device)
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            written = model.generate(
                asked, attention_mask=torch.ones_like(asked), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=most, num_return_sequences=n, eos_token_id=self._ends, pad_token_id=tokenizer.pad_token_id,
            )[:, asked.shape[1] :]  # fmt: skip
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        return [thought_in(text) for text in texts]


def thought_in(text: str) -> str:
    r"""The thought in what a model wrote after `open_thought`: its first line, without the bracket that closes it.

    >>> thought_in(" wants (some) tea)\nMe: tea please")
    'wants (some) tea'
    """
    return flat(text.partition("\n")[0]).removesuffix(")").rstrip()


def mean_likelihood(nats: Sequence[float]) -> float:
    """The log of the mean of probabilities that are given as logs; at least one, and at least one of them above 0."""
    top = max(nats)
    return top + log(fsum(exp(one - top) for one in nats) / len(nats))
