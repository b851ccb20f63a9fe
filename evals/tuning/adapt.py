"""Adapt the acting model to a twin: a LoRA adapter, trained on the twin's own prompts and used only if it pays.

Design: a row is a remembered moment: the prompt that the twin would have written at that time, and what the person really said.
The function that writes the twin's prompts writes the rows, too, from what the memory held before the moment and of other
conversations. Rows of another form taught a model to ignore its memory (evals/EXPERIMENTS.md). The gain is the paired
difference in bits per character on validation turns to the same twin without the adapter.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path

from usertwin.evals.arm_names import WORDS
from usertwin.evals.metrics import statistics
from usertwin.evals.metrics.statistics import Inference, evenly_spaced, ratio_inference, t_quantile
from usertwin.evals.replay.adapted import split_adapter
from usertwin.evals.replay.arms import own_words
from usertwin.memory import Recalled, Scorer, TripleStore, TwinRecord
from usertwin.memory.concurrency import to_thread
from usertwin.memory.event_loop import run_sync
from usertwin.memory.own_words.own_words import WordMixture
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.run_lock import exclusive_run
from usertwin.memory.text.transcript import action_completion, format_action_prompt, format_example
from usertwin.memory.training.checkpoints import check_room
from usertwin.memory.training.policy import check_installed, empty_base
from usertwin.memory.training.user_model import TWIN, PromptCompletion, UserModelConfig, fine_tune, is_training_of
from usertwin.memory.twin.locks import writing
from usertwin.memory.twin.record import ADAPTER_FOLDER, ADAPTING_FOLDER, TwinAdapter, twin_command, update_record
from usertwin.personas import Pair, UsageError
from usertwin.simulator import SimulatedUser, load_model, load_scorer
from usertwin.simulator.backends.downloads import FetchProgress
from usertwin.simulator.backends.llama_cpp import cores
from usertwin.simulator.backends.load import prompt_style_of
from usertwin.simulator.backends.lora_adapter import read_adapter
from usertwin.simulator.backends.lora_of_twin import ADAPTED_STYLE, weights_checksum
from usertwin.simulator.backends.model_files import layers_of
from usertwin.simulator.backends.model_name import LOCAL_FORMS, ModelName
from usertwin.simulator.backends.weights import existing_file, transformers_tokenizer, weights_folder
from usertwin.simulator.prompts import RECALLED_TURNS, with_shown_traces

from .reranking import LEVEL
from .tune import fresh_validation_pairs

#: Rows of an optimizer step.
_BATCH_SIZE = 8
#: Tokens of a row, if the context of the model is not known.
_MAX_TOKENS = 4096
#: Floating-point operations a second of one CPU core and of a GPU, for the estimate of the time.
_CORE_SPEED, _GPU_SPEED = 5e10, 1e13
#: Operations for a token and a parameter: forward, forward again for the gradient, backward; and the forward pass alone.
_TRAINING_WORK, _SCORING_WORK = 8, 2
#: Characters of a token, for the estimate before texts are tokenized.
_TOKEN_CHARACTERS = 3.6


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptConfig:
    """How an adapter is trained and measured.

    Attributes:
        rows: the most of the person's remembered turns to train on, the latest ones before the validation turns.
        epochs: passes over them.
        rank: rank of the adapter's matrices.
        limit: the most validation turns to measure on, evenly spaced.
        seed: of the training, and of the reasoning of a twin that reasons.
    """

    rows: int = 160
    epochs: int = 1
    rank: int = 16
    limit: int = 48
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError if a number is below 1."""
        for name in ("rows", "epochs", "rank", "limit"):
            if getattr(self, name) < 1:
                raise UsageError(f"adapt_{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptPlan:
    """The cost of adapting.

    Attributes:
        rows: rows to train on.
        tokens: tokens of a row, on average.
        epochs: passes over the rows.
        validation: validation turns to measure on, with the adapter and without.
        parameters: weights of the base; None if it is not on this machine yet.
    """

    rows: int
    tokens: int
    epochs: int
    validation: int
    parameters: int | None

    @property
    def minutes(self) -> float | None:
        """The estimated time on this machine; None without the base."""
        if self.parameters is None:
            return None
        import torch

        speed = _GPU_SPEED if torch.cuda.is_available() else _CORE_SPEED * cores()
        work = _TRAINING_WORK * self.rows * self.epochs + _SCORING_WORK * 2 * self.validation
        return work * self.tokens * self.parameters / speed / 60

    def __str__(self) -> str:
        minutes = (
            "a time that is known when the model is here" if self.minutes is None else f"{max(1, round(self.minutes))} min"
        )
        passes = "once" if self.epochs == 1 else f"{self.epochs} times"
        return (
            f"an adapter is trained on {self.rows} turns of about {self.tokens} tokens {passes}, and measured on "
            f"{self.validation} validation turns: about {minutes} on this machine"
        )


def check_adaptable(model: str, style: str | None = None) -> None:
    """Raise UsageError if a model cannot be adapted: it is not on this machine, has an adapter, or follows instructions."""
    check_installed()
    parsed = ModelName.parse(model)
    if not parsed.is_local or parsed.adapter is not None:
        raise UsageError(f'--adapt: the weights of "{model}" cannot be adapted; name a model without adapter: {LOCAL_FORMS}')
    if (style or prompt_style_of(model)[0]) != ADAPTED_STYLE:
        raise UsageError(
            f'--adapt: "{model}" follows instructions, and an adapter is trained on transcripts; pass --style transcript'
        )


def estimate_adapting(pairs: Sequence[Pair], model: str, config: AdaptConfig, *, k: int, window: int) -> AdaptPlan:
    """Return the cost before anything is loaded, from the lengths of a person's pairs."""
    rows = pairs[-config.rows :]
    examples = sum(len(format_example(pair, RECALLED_TURNS)) for pair in rows)
    prompts = sum(len(format_action_prompt(pair, window)) + len(pair.action) for pair in rows)
    tokens = round((k * examples + prompts) / max(1, len(rows)) / _TOKEN_CHARACTERS)
    return AdaptPlan(
        rows=len(rows), tokens=tokens, epochs=config.epochs, validation=config.limit, parameters=_parameters(model)
    )  # fmt: skip


def _parameters(model: str) -> int | None:
    """Return the number of weights in the matrices of a model; None if it is not on this machine."""
    name = ModelName.parse(model)
    path = existing_file(name) if name.kind == "local" else name.path if name.kind == "transformers" else None
    return None if path is None or not path.exists() else sum(map(prod, layers_of(path).shapes.values()))


# The rows -----------------------------------------------------------------------------------------------------------


async def prompt_row(user: SimulatedUser, pair: Pair, recalled: Sequence[Recalled], seed: int) -> PromptCompletion:
    """Return the prompt that the twin writes at a moment, and what the person really said as its completion."""
    shown = with_shown_traces([match.triple for match in recalled], user.settings.traces)
    writer = await to_thread(user.writer_with, None)
    prompt = writer.fitted(pair, shown, await user.reasoning_for(pair, shown, seed=seed))
    [(_, text)] = prompt.messages
    return text, action_completion(pair.action)


async def prompt_rows(
    user: SimulatedUser, pairs: Sequence[Pair], *, seed: int = 0, progress: Progress = no_progress
) -> list[PromptCompletion]:
    """Return the row of each moment: only what is earlier and of another conversation is recalled."""
    matches = await to_thread(user.recall_many, pairs, before=[pair.when for pair in pairs])
    rows: list[PromptCompletion] = []
    for number, (pair, recalled) in enumerate(zip(pairs, matches, strict=True)):
        progress("rows", number, len(pairs))
        rows.append(await prompt_row(user, pair, recalled, seed + number))
    progress("rows", len(pairs), len(pairs))
    return rows


def training_pairs(user: SimulatedUser, validation: Sequence[Pair], limit: int) -> list[Pair]:
    """Return the latest remembered turns of the person before all validation turns, in order of time."""
    first = min(pair.when for pair in validation)
    spoken = [triple.pair for triple in user.store.triples(abandoned=False) if triple.pair.when < first]
    return sorted(spoken, key=lambda pair: (pair.when, pair.conversation_id, pair.position))[-limit:]


# The adapter --------------------------------------------------------------------------------------------------------


def adapt(
    user: SimulatedUser, folder: Path, config: AdaptConfig | None = None, *,
    on_plan: Callable[[AdaptPlan], None] = lambda plan: None, progress: Progress = no_progress,
    fetch: FetchProgress | None = None,
) -> TwinAdapter:  # fmt: skip
    """Train an adapter of a twin's model, measure it, store the outcome in the twin, and return it.

    A training that was stopped or killed continues from its last checkpoint; one of other rows or settings is deleted. The
    outcome replaces an earlier one. The twin stays usable meanwhile, and an adapter that it has stays in use.

    Args:
        user: the twin, played by the model to adapt.
        folder: the twin's folder.
        config: how to adapt; the default configuration if None.
        on_plan: called with the cost before training starts.
        progress: called with "rows", "adapting" or "validating", the number of finished rows, steps or turns, and the total.
        fetch: callback for the progress of a download.

    Raises:
        UsageError: the model cannot be adapted, or the twin has too few turns; a package is missing, or the disk is full; turns
            were forgotten meanwhile.
        ModelError: the model cannot be loaded.
        TwinError: the memory holds a held-out conversation, or another process is writing in it.
    """
    config = config or AdaptConfig()
    config.check()
    user, _ = split_adapter(user, None)
    name = str(ModelName.parse(user.model.name).resolved())
    check_adaptable(name, user.model.style)
    fresh, _ = fresh_validation_pairs(user, folder)
    validation = evenly_spaced(fresh, config.limit)
    conversations = len({pair.conversation_id for pair in validation})
    if conversations < statistics.MIN_CONVERSATIONS:
        raise UsageError(
            f"{user.name}: {conversations} validation conversations cannot tell whether an adapter pays; "
            f"{statistics.MIN_CONVERSATIONS} are needed, so learn the twin from a longer log"
        )
    pairs, known = training_pairs(user, validation, config.rows), _known(user, folder)
    if not pairs:
        raise UsageError(
            f"{user.name}: no remembered turn is earlier than the validation turns, so there is nothing to train on"
        )
    work = folder / ADAPTING_FOLDER
    with exclusive_run(work):
        rows = run_sync(prompt_rows(user, pairs, seed=config.seed, progress=progress))
        base = weights_folder(name, fetch)
        on_plan(_exact_plan(rows, validation, base, config))
        candidate, settings = work / ADAPTER_FOLDER, _training_config(user, config)
        if not is_training_of(rows, candidate, settings, name):
            for place in (candidate, candidate.with_name(f"{candidate.name}.partial")):
                shutil.rmtree(place, ignore_errors=True)
        check_room(empty_base(base), work, config.rank)
        fine_tune(
            rows, base, candidate, settings, metadata={"base": name, "kind": TWIN, "people": [user.name]},
            progress=lambda _, done, total: progress("adapting", done, total),
        )  # fmt: skip
        gain = run_sync(_measure(user, f"{name}+{candidate}", validation, config.seed, progress))
        estimate = gain.estimate()
        attempt = TwinAdapter(
            used=_pays(gain), base=name, weights=weights_checksum(name), identity=read_adapter(candidate).identity,
            turns=len(pairs), remembered=len(known[0]), epochs=config.epochs, rank=config.rank,
            trained_at=datetime.now(UTC).isoformat(timespec="seconds"), difference=estimate.value, low=estimate.low,
            high=estimate.high, validation_turns=len(validation), conversations=conversations,
        )  # fmt: skip
        _store(user, folder, attempt, candidate, known)
    shutil.rmtree(work)
    return attempt


def _training_config(user: SimulatedUser, config: AdaptConfig) -> UserModelConfig:
    return UserModelConfig(
        epochs=config.epochs, batch_size=_BATCH_SIZE, rank=config.rank, seed=config.seed, low_memory=True,
        max_tokens=user.model.context_tokens or _MAX_TOKENS,
    )  # fmt: skip


def _exact_plan(rows: Sequence[PromptCompletion], validation: Sequence[Pair], base: Path, config: AdaptConfig) -> AdaptPlan:
    tokenizer = transformers_tokenizer(base)
    tokens = sum(len(ids) for ids in tokenizer(["".join(row) for row in rows]).input_ids)
    return AdaptPlan(
        rows=len(rows), tokens=tokens // len(rows), epochs=config.epochs, validation=len(validation),
        parameters=_parameters(f"transformers:{base}"),
    )  # fmt: skip


async def _measure(
    user: SimulatedUser, adapted: str, validation: Sequence[Pair], seed: int, progress: Progress
) -> Inference:  # fmt: skip
    """Return the bits per character of validation turns with the adapter minus without, below 0 a gain."""
    model = load_model(adapted, style=user.model.style)  # a part that the engine does not support is an error here
    reasoner = model if user.reasoner.chat is user.model.chat else user.reasoner
    twin = SimulatedUser(
        user.record, user.store, model, reasoner=reasoner, settings=user.settings, k=user.k, ranking=user.ranking
    )  # fmt: skip
    total = 2 * len(validation)
    before = await _bits(user, load_scorer(ModelName.parse(adapted).base), validation, seed, progress, 0, total)
    after = await _bits(twin, load_scorer(adapted), validation, seed, progress, len(validation), total)
    progress("validating", total, total)
    sizes = [float(len(action_completion(pair.action)) - 1) for pair in validation]
    differences = [second - first for first, second in zip(before, after, strict=True)]
    gain = ratio_inference(differences, sizes, [pair.conversation_id for pair in validation])
    assert gain is not None, "there are validation turns"
    return gain


async def _bits(
    user: SimulatedUser, scorer: Scorer, pairs: Sequence[Pair], seed: int, progress: Progress, done: int, total: int
) -> list[float]:
    """Return the cost of each real turn after the twin's own prompt, with its own words if it uses them, in bits."""
    weights = user.settings.words
    words = None if weights is None else own_words(user, scorer, [WORDS])
    matches = await to_thread(user.recall_many, pairs, before=[pair.when for pair in pairs])
    bits: list[float] = []
    for number, (pair, recalled) in enumerate(zip(pairs, matches, strict=True)):
        progress("validating", done + number, total)
        [likelihood] = await to_thread(scorer.score, [await prompt_row(user, pair, recalled, seed + number)])
        if words is not None and weights is not None:
            likelihood = WordMixture(words, weights).likelihood(likelihood, pair.action, pair.when)
        bits.append(likelihood.bits)
    return bits


def _pays(gain: Inference) -> bool:
    """Return whether a difference is below 0, by the one-sided test of reranking rules."""
    return gain.error is not None and gain.value < -t_quantile(LEVEL, gain.freedom) * gain.error


def _known(user: SimulatedUser, folder: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Return the ids of the triples in the memory, and those of the validation conversations."""
    with TripleStore(folder, user.store.embedder, create=False) as store:  # as the memory is on disk now
        triples = frozenset(triple.id for triple in store.triples())
    return triples, frozenset(TwinRecord.load(folder).validation)


def _store(
    user: SimulatedUser, folder: Path, attempt: TwinAdapter, candidate: Path, known: tuple[frozenset[str], frozenset[str]]
) -> None:
    """Store an attempt in the twin: the record, and the adapter if it is used.

    An earlier adapter leaves the record before its folder, so that a killed process leaves no record of a missing adapter.

    Raises:
        UsageError: turns that it was trained or measured on were forgotten meanwhile; then it is deleted.
    """
    with writing(folder):
        if any(before - now for before, now in zip(known, _known(user, folder), strict=True)):
            shutil.rmtree(candidate)
            again = twin_command("learn", user.name, folder.parent, "--adapt")
            raise UsageError(
                f"{user.name}: turns were forgotten meanwhile, so this adapter is deleted; train another one: {again}"
            )
        place = folder / ADAPTER_FOLDER
        update_record(folder, lambda record: replace(record, adapter=None))
        if place.exists():
            shutil.rmtree(place)
        if attempt.used:
            candidate.rename(place)
        update_record(folder, lambda record: replace(record, adapter=attempt))
