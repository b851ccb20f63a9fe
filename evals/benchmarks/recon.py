"""What Recon costs, and what its scores mean, on the built-in people: parts of `make bench`.

The one design choice: the figures of meaning (control traces, agreement of scorers) come out of the same code as
`usertwin controls`, so that anybody's people can be measured as these were.
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

from usertwin.evals.cli.demo import SPEAKER
from usertwin.evals.metrics.statistics import Estimate, mean
from usertwin.evals.replay.tune import validation_pairs
from usertwin.evals.traces.control_traces import Controls, other_moments
from usertwin.memory import LikelihoodGain, Recipe, Synthesizer, alearn
from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import ForcedChoice, reconstruct
from usertwin.memory.recon.judged_fidelity import JudgeFidelity
from usertwin.memory.text.transcript import action_completion, join_blocks, format_example
from usertwin.personas import Pair, split_pairs
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.simulator import SimulatedUser, load_embedder, load_model, load_scorer

from .figures import Figure, figure, noted_questions, one_figure, timed

#: Two people of the built-in corpus whose controls are measured.
PEOPLE = {"student": SPEAKER, "chatter": "842e34da-02f5-4904-ace0-fe96083a3a1c"}
#: Who proposes there: `PROPOSER=local:small make bench ONLY=controls` for the best that runs here.
PROPOSER = "PROPOSER"
_CONTEXT_TOKENS = 600
_WORDS = ("happy", "curious", "tired", "sure", "glad", "shy", "hurried", "amused")


@dataclass(frozen=True, slots=True)
class ReconSizes:
    """How much is measured."""

    pairs: int = 6
    traces: int = 8
    controls: int = 60
    agreement: int = 12
    memory: int = 1500


FULL = ReconSizes()


def recon_part(sizes: ReconSizes = FULL) -> Iterator[tuple[str, Figure]]:
    """Scoring with the context computed once, and going on after a stop without asking again."""
    yield from _shared_context(sizes.pairs)
    yield from _asked_once(sizes.traces)


def _shared_context(count: int) -> Iterator[tuple[str, Figure]]:
    """Eight traces of one pair after 600 tokens of context, against eight whole sequences one by one."""
    cached: Any = load_scorer("local")
    scorer: TransformersScorer = cached.scorer
    _, tokenizer = scorer.loaded
    split = split_pairs(load_chitchat(), SPEAKER, window=6)
    earlier = join_blocks(format_example(pair, 6) for pair in split.corpus[-60:])
    before = tokenizer.decode(tokenizer(earlier).input_ids[-_CONTEXT_TOKENS:])
    speedups, errors = list[float](), list[float]()
    for pair in [pair for pair in split.validation if not pair.abandoned][:count]:
        traces = [f"I felt {word} about it, and I wanted to {word} a little more." for word in _WORDS]
        items = [(f"{before}\n\n{reconstruct(pair, trace)}", action_completion(pair.action)) for trace in traces]
        shared, alone = list[Likelihood](), list[Likelihood]()
        together = timed(lambda items=items, shared=shared: shared.extend(scorer.score(items)))
        apart = timed(lambda items=items, alone=alone: [alone.extend(scorer.score([item])) for item in items])
        speedups.append(apart / together)
        errors += [
            abs(x - y) for a, b in zip(shared, alone, strict=True) for x, y in zip(a.token_nats, b.token_nats, strict=True)
        ]
    against = f"eight whole sequences one by one, {_CONTEXT_TOKENS} tokens of context (bar: 3)"
    yield "recon.shared_context_speedup", figure(speedups, "ratio", against)
    yield (
        "recon.logprob_max_abs_error",
        Figure(value=max(errors), unit="nats/token", low=min(errors), high=max(errors), n=len(errors), against="bar: 1e-3"),
    )


class _StoppedError(Exception):
    """Learning was stopped, as by Ctrl-C."""


def _asked_once(traces: int) -> Iterator[tuple[str, Figure]]:
    """A learning that is stopped in the middle and goes on, and one that was done before, by what a model is asked."""
    log, embedder, scorer = load_chitchat(), load_embedder(), load_scorer("local")
    model = load_model("local")
    asked = noted_questions(model)
    recipe = Recipe(
        source="chitchat",
        speaker=SPEAKER,
        method="recon",
        candidates=4,
        max_triples=60,
        max_traces=traces,
        window=6,
        embedder=embedder.name,
        model="local",
        scorer="local",
        seed=0,
    )

    def run(home: str, name: str, *, stop_at: int | None = None) -> list[str]:
        def progress(stage: str, done: int, total: int) -> None:
            if stage == "traces" and done == stop_at:
                raise _StoppedError

        asked.clear()
        learning = alearn(
            name, log, recipe, embedder=embedder, model=model, scorer=scorer, home=home, overwrite=True, progress=progress
        )  # fmt: skip
        with suppress(_StoppedError, BaseExceptionGroup):
            asyncio.run(learning)
        return list(asked)

    with tempfile.TemporaryDirectory() as home:
        whole, again = list[str](), list[str]()
        first = timed(lambda: whole.extend(run(home, "whole")))
        second = timed(lambda: again.extend(run(home, "whole")))
        parts = run(home, "parts", stop_at=traces // 2) + run(home, "parts")
    repeated = len(parts) - len(set(parts))
    yield "recon.resume_repeated_requests", one_figure(repeated, "requests", f"{len(parts)} before and after the stop", traces)
    yield "recon.warm_cache_requests", one_figure(len(again), "requests", f"{len(whole)} the first time (bar: 0)", traces)
    yield "recon.warm_cache_time_share", one_figure(second / first, "ratio", "the first run (bar: 0.05)", traces)


def controls_part(sizes: ReconSizes = FULL, *, judge: str = "local:small") -> Iterator[tuple[str, Figure]]:
    """Control traces of two people, and how far the scorers agree on the same traces."""
    proposer = os.environ.get(PROPOSER, "local")
    log, embedder, scorer, model = load_chitchat(), load_embedder(), load_scorer("local"), load_model(proposer)
    with tempfile.TemporaryDirectory() as home:
        for called, speaker in PEOPLE.items():
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
            asyncio.run(alearn(called, log, recipe, embedder=embedder, home=home))
            with SimulatedUser.load(called, home=home, model=model, embedder=embedder) as user:
                folder = Path(home) / called
                pairs, others = validation_pairs(user, folder, sizes.controls), other_moments(user, folder, sizes.controls)
                made = Controls(Synthesizer("recon", model, LikelihoodGain(scorer), scorer, embedder), model, scorer, embedder)
                found = asyncio.run(made.measure(pairs, others, user.store, name=user.persona.name))
                yield from _control_figures(called, found, proposer)
                if called == "student":
                    distractors = Distractors([triple.pair for triple in user.store.triples()], embedder)
                    scorers = {
                        "judge": JudgeFidelity(model, load_model(judge, style="instruction"), orders=2),
                        "gain": LikelihoodGain(scorer),
                        "choice": ForcedChoice(scorer, distractors),
                    }
                    taus = asyncio.run(_agreement(made.synthesizer, scorers, pairs[: sizes.agreement]))
                    yield from _tau_figures(taus, f"same traces of {proposer}; judge {judge}")


def _control_figures(called: str, found: dict[str, Any], proposer: str) -> Iterator[tuple[str, Figure]]:
    """The table of `usertwin controls`, figure by figure."""
    against = f"proposals of {proposer}, 95% by conversation"
    for name, row in found["controls"].items():
        for kind, unit in (("gain", "nats/token"), ("novel", "nats/token"), ("guarded", "nats/token")):
            if row[kind] is not None:
                yield f"controls.{called}.{name}.{kind}", _of(row[kind], unit, against)
        yield f"controls.{called}.{name}.rejected", one_figure(row["rejected"] / row["n"], "share", "by a guard", row["n"])
    for name, one in found["own_minus"].items():
        if one is not None:
            yield f"controls.{called}.own_minus_{name}", _of(one, "nats/token", f"on words not copied; {against}")
    for name in ("swap_contrast", "validity"):
        if found[name] is not None:
            yield f"controls.{called}.{name}", _of(found[name], "nats/token" if name == "swap_contrast" else "rho", against)
    for name, one in found["selection"].items():
        if one is not None:
            yield f"controls.{called}.{name.replace(' - ', '_minus_')}", _of(one, "bits/char saved", against)
    more = float(found["decision"]["more_than_leakage"])
    yield f"controls.{called}.more_than_leakage", one_figure(more, "yes=1", "every condition holds", found["turns"])


def _of(estimate: dict[str, Any], unit: str, against: str) -> Figure:
    low, high = (estimate["value"] if estimate[end] is None else estimate[end] for end in ("low", "high"))
    return Figure(value=estimate["value"], unit=unit, low=low, high=high, n=estimate["n"], against=against)


async def _agreement(
    synthesizer: Synthesizer, scorers: dict[str, Any], pairs: Sequence[Pair]
) -> dict[tuple[str, str], Estimate | None]:
    """Kendall's tau-b of each two scorers on the proposals of each pair, averaged over pairs."""
    from scipy.stats import kendalltau

    taus: dict[tuple[str, str], list[float]] = {}
    where: dict[tuple[str, str], list[str]] = {}
    for pair in pairs:
        made = await replace(synthesizer, scorer=None).synthesize(pair, "Me")
        proposals = made.provenance.proposals if made.provenance else ()
        traces = [one.trace for one in proposals if one.score is not None]
        if len(set(traces)) < 3:
            continue
        scores = {name: [one.value for one in await scorer.score(pair, traces)] for name, scorer in scorers.items()}
        for one, other in (("judge", "gain"), ("gain", "choice"), ("judge", "choice")):
            found: Any = kendalltau(scores[one], scores[other])
            tau = float(found.statistic)
            if tau == tau:  # a scorer that tells nothing apart has none
                taus.setdefault((one, other), []).append(tau)
                where.setdefault((one, other), []).append(pair.conversation_id)
    return {names: mean(values, where[names]) for names, values in taus.items()}


def _tau_figures(taus: dict[tuple[str, str], Estimate | None], against: str) -> Iterator[tuple[str, Figure]]:
    for (one, other), estimate in taus.items():
        if estimate is not None:
            yield f"recon.kendall_{one}_{other}", _of(estimate.to_json(), "tau-b", against)
