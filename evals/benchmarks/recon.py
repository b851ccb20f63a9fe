"""Benchmarks of Recon on the built-in people: its cost, control traces, and the agreement of its scores.

The control figures come from the code of `usertwin controls`, so that other people can be measured in the same way.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from usertwin.evals.cli.demo import ROBIN
from usertwin.evals.metrics.statistics import Estimate, mean
from usertwin.evals.traces.control_traces import ControlExperiment, other_person_pairs
from usertwin.evals.tuning.tune import validation_pairs
from usertwin.memory import ChatModel, LikelihoodGain, Recipe, Synthesizer, alearn
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.models.scoring import Likelihood, Scorer
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import ForcedChoice, reconstruction_prompt
from usertwin.memory.recon.judged_fidelity import JudgeFidelity
from usertwin.memory.text.transcript import action_completion, format_example, join_blocks
from usertwin.personas import Pair, split_pairs
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.simulator import SimulatedUser, load_embedder, load_model, load_scorer

from .figures import Figure, figure, record_requests, single_figure, timed

#: Two people of the built-in corpus for the control traces.
PEOPLE = {"student": ROBIN.speaker, "chatter": "842e34da-02f5-4904-ace0-fe96083a3a1c"}
#: Environment variable with the proposer of the control traces: `PROPOSER=local:small make bench ONLY=controls`.
PROPOSER = "PROPOSER"
_CONTEXT_TOKENS = 600
_WORDS = ("happy", "curious", "tired", "sure", "glad", "shy", "hurried", "amused")


@dataclass(kw_only=True, frozen=True, slots=True)
class ReconSizes:
    """Sizes of the benchmark."""

    pairs: int = 6
    traces: int = 8
    learned: int = 60
    controls: int = 60
    agreement: int = 12
    memory: int = 1500


FULL = ReconSizes()


def recon_part(sizes: ReconSizes = FULL) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of scoring with a shared context, and of resuming without repeated requests."""
    scorer: Any = load_scorer("local")
    yield from shared_context_figures(scorer.scorer, sizes.pairs)
    yield from resume_figures(sizes, load_model("local"), scorer, load_embedder())


def shared_context_figures(scorer: TransformersScorer, count: int) -> Iterator[tuple[str, Figure]]:
    """Yield speed and error of scoring eight traces after one shared context, against scoring each sequence by itself."""
    _, tokenizer = scorer.loaded
    split = split_pairs(load_chitchat(), ROBIN.speaker, window=6)
    earlier = join_blocks(format_example(pair, 6) for pair in split.corpus[-60:])
    before = tokenizer.decode(tokenizer(earlier).input_ids[-_CONTEXT_TOKENS:])
    speedups, errors = list[float](), list[float]()
    for pair in [pair for pair in split.validation if not pair.abandoned][:count]:
        traces = [f"I felt {word} about it, and I wanted to {word} a little more." for word in _WORDS]
        items = [(f"{before}\n\n{reconstruction_prompt(pair, trace)}", action_completion(pair.action)) for trace in traces]
        shared, alone = list[Likelihood](), list[Likelihood]()
        together = timed(lambda items=items, shared=shared: shared.extend(scorer.score(items)))
        apart = timed(lambda items=items, alone=alone: [alone.extend(scorer.score([item])) for item in items])
        speedups.append(apart / together)
        errors += [
            abs(x - y) for a, b in zip(shared, alone, strict=True) for x, y in zip(a.token_nats, b.token_nats, strict=True)
        ]
    against = f"eight whole sequences one by one, {_CONTEXT_TOKENS} tokens of context (limit: 3)"
    yield "recon.shared_context_speedup", figure(speedups, "ratio", against)
    yield (
        "recon.logprob_max_abs_error",
        Figure(value=max(errors), unit="nats/token", low=min(errors), high=max(errors), n=len(errors), against="limit: 1e-3"),
    )


class _StoppedError(Exception):
    """Stops learning, as Ctrl-C does."""


def resume_figures(sizes: ReconSizes, model: ChatModel, scorer: Scorer, embedder: Embedder) -> Iterator[tuple[str, Figure]]:
    """Yield the requests that are repeated after a stop, and the requests and time of learning with a full cache."""
    log, requests, traces = load_chitchat(), record_requests(model), sizes.traces
    recipe = Recipe(
        source="chitchat",
        speaker=ROBIN.speaker,
        method="recon",
        candidates=4,
        max_triples=sizes.learned,
        max_traces=traces,
        window=6,
        embedder=embedder.name,
        model=model.name,
        scorer=scorer.name,
        seed=0,
    )

    def run(home: str, name: str, *, stop_at: int | None = None) -> list[str]:
        def progress(stage: str, done: int, total: int) -> None:
            if stage == "traces" and done == stop_at:
                raise _StoppedError

        requests.clear()
        learning = alearn(
            name, log, recipe, embedder=embedder, model=model, scorer=scorer, home=home, overwrite=True, progress=progress
        )  # fmt: skip
        with suppress(_StoppedError, BaseExceptionGroup):
            asyncio.run(learning)
        return list(requests)

    with tempfile.TemporaryDirectory() as home:
        whole, again = list[str](), list[str]()
        first = timed(lambda: whole.extend(run(home, "whole")))
        second = timed(lambda: again.extend(run(home, "whole")))
        parts = run(home, "parts", stop_at=traces // 2) + run(home, "parts")
    repeated, against = len(parts) - len(set(parts)), f"{len(parts)} before and after the stop"
    yield "recon.resume_repeated_requests", single_figure(repeated, "requests", against, traces)
    yield "recon.warm_cache_requests", single_figure(len(again), "requests", f"{len(whole)} the first time (limit: 0)", traces)
    yield "recon.warm_cache_time_share", single_figure(second / first, "ratio", "the first run (limit: 0.05)", traces)


def controls_part(
    sizes: ReconSizes = FULL,
    *,
    proposer: str | None = None,
    judge: str = "local:small",
    scorer: Scorer | None = None,
    embedder: Embedder | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Yield the control figures of two people, and the agreement of the fidelities on the same traces."""
    proposer = proposer or os.environ.get(PROPOSER, "local")
    log, model = load_chitchat(), load_model(proposer)
    scorer, embedder = scorer or load_scorer("local"), embedder or load_embedder()
    with tempfile.TemporaryDirectory() as home:
        for label, speaker in PEOPLE.items():
            recipe = Recipe(
                source="chitchat",
                speaker=speaker,
                method="none",
                candidates=4,
                max_triples=sizes.memory,
                max_traces=None,
                window=6,
                embedder=embedder.name,
                model=None,
                scorer=None,
                seed=0,
            )
            asyncio.run(alearn(label, log, recipe, embedder=embedder, home=home))
            with SimulatedUser.load(label, home=home, model=model, embedder=embedder) as user:
                folder = Path(home) / label
                pairs, others = validation_pairs(user, folder, sizes.controls), other_person_pairs(user, folder, sizes.controls)
                synthesizer = Synthesizer(
                    method="recon", model=model, fidelity=LikelihoodGain(scorer), scorer=scorer, embedder=embedder
                )
                experiment = ControlExperiment(synthesizer=synthesizer, model=model, scorer=scorer, embedder=embedder)
                result = asyncio.run(experiment.measure(pairs, others, user.store, name=user.persona.name))
                yield from _control_figures(label, result, proposer)
                if label == "student":
                    distractors = Distractors([triple.pair for triple in user.store.triples()], embedder)
                    scorers = {
                        "judge": JudgeFidelity(model, load_model(judge, style="instruction"), orders=2),
                        "gain": LikelihoodGain(scorer),
                        "choice": ForcedChoice(scorer, distractors),
                    }
                    taus = asyncio.run(_agreement(synthesizer, scorers, pairs[: sizes.agreement]))
                    yield from _tau_figures(taus, f"same traces of {proposer}; judge {judge}")


def _control_figures(label: str, result: dict[str, Any], proposer: str) -> Iterator[tuple[str, Figure]]:
    """Yield the table of `usertwin controls`, figure by figure."""
    against = f"proposals of {proposer}, 95% by conversation"
    for name, row in result["controls"].items():
        for kind in ("gain", "guarded_gain", "passing_gain"):
            if row[kind] is not None:
                yield f"controls.{label}.{name}.{kind}", _figure_of(row[kind], "nats/token", against)
        yield f"controls.{label}.{name}.rejected", single_figure(row["rejected"] / row["n"], "share", "by a guard", row["n"])
    for name, estimate in result["own_minus"].items():
        if estimate is not None:
            yield f"controls.{label}.own_minus_{name}", _figure_of(estimate, "nats/token", f"on words not copied; {against}")
    for name in ("swap_contrast", "validity"):
        if result[name] is not None:
            unit = "nats/token" if name == "swap_contrast" else "rho"
            yield f"controls.{label}.{name}", _figure_of(result[name], unit, against)
    for name, estimate in result["selection"].items():
        if estimate is not None:
            yield f"controls.{label}.{name.replace(' - ', '_minus_')}", _figure_of(estimate, "bits/char saved", against)
    more_than_leakage = float(result["decision"]["more_than_leakage"] or 0)
    yield (
        f"controls.{label}.more_than_leakage",
        single_figure(more_than_leakage, "yes=1", "every condition holds", result["turns"]),
    )


def _figure_of(estimate: dict[str, Any], unit: str, against: str) -> Figure:
    low, high = (estimate["value"] if estimate[end] is None else estimate[end] for end in ("low", "high"))
    return Figure(value=estimate["value"], unit=unit, low=low, high=high, n=estimate["n"], against=against)


async def _agreement(
    synthesizer: Synthesizer, scorers: dict[str, Any], pairs: Sequence[Pair]
) -> dict[tuple[str, str], Estimate | None]:
    """Return Kendall's tau-b of each two fidelities on the proposals of a pair, averaged over pairs."""
    from scipy.stats import kendalltau

    taus: dict[tuple[str, str], list[float]] = {}
    conversations: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        triple = await replace(synthesizer, scorer=None).synthesize(pair, "Me")
        proposals = triple.provenance.proposals if triple.provenance else ()
        traces = [candidate.trace for candidate in proposals if candidate.score is not None]
        if len(set(traces)) < 3:
            continue
        scores = {name: [score.value for score in await scorer.score(pair, traces)] for name, scorer in scorers.items()}
        for names in (("judge", "gain"), ("gain", "choice"), ("judge", "choice")):
            correlation: Any = kendalltau(scores[names[0]], scores[names[1]])
            tau = float(correlation.statistic)
            if tau == tau:  # NaN if all scores of a fidelity are equal
                taus.setdefault(names, []).append(tau)
                conversations.setdefault(names, []).append(pair.conversation_id)
    return {names: mean(values, conversations[names]) for names, values in taus.items()}


def _tau_figures(taus: dict[tuple[str, str], Estimate | None], against: str) -> Iterator[tuple[str, Figure]]:
    for (first, second), estimate in taus.items():
        if estimate is not None:
            yield f"recon.kendall_{first}_{second}", _figure_of(estimate.to_json(), "tau-b", against)
