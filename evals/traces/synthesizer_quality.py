"""Quality of a trained synthesizer: the guarded gain of its traces on held-out pairs, against the base model's.

Both models sample several traces for each pair, by their model name, as learning a twin does. The gain is that of the traces
that pass the guards, and the share that passes stands apart: one mean of both would prefer a rejected trace to an honest one
that gains less than nothing. The scorer should not be part of any reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from usertwin.evals.metrics.statistics import mean_over_people
from usertwin.memory import ChatModel, Scorer
from usertwin.memory.jsonl import append_line, open_for_append, read_lines
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import CHOICES
from usertwin.memory.recon.propose import ProposalMode, propose
from usertwin.memory.training.audit import TraceQuality, measure_traces
from usertwin.memory.training.dataset import TrainingExample
from usertwin.personas import Pair
from usertwin.personas.files import private_folder
from usertwin.personas.reading import as_type

#: Number of examples in a report: the pairs on which base and trained model differ most, in both directions.
_EXAMPLES = 6


async def write_held_out_traces(
    path: Path,
    examples: Sequence[TrainingExample],
    model: ChatModel,
    proposal_mode: ProposalMode,
    *,
    samples: int,
    seed: int,
    progress: Progress = no_progress,
) -> list[list[str]]:
    """Sample traces of each pair, and return them; they are appended to a file line by line, so that a stop loses one pair.

    Args:
        path: the file; pairs that it already holds are not sampled again.
        examples: the held-out pairs.
        model: the synthesizer.
        proposal_mode: how traces are proposed.
        samples: number of traces for each pair.
        seed: seed of the sampler.
        progress: receives the progress.

    Raises:
        ModelError: the model does not answer; finished pairs stay in the file.
    """
    way_out = "delete the file to sample its traces again"
    written = read_lines(path, partial(as_type, list[str]), "list of traces", way_out)
    private_folder(path.parent)
    with open_for_append(path) as file:
        for example in examples[len(written) :]:
            progress("writing traces", len(written), len(examples))
            traces = await propose(model, example.pair, "the person", proposal_mode=proposal_mode, n=samples, seed=seed)
            written.append(traces)
            append_line(file, traces)
    progress("writing traces", len(written), len(examples))
    return written


def measure_writers(
    examples: Sequence[TrainingExample],
    written: Sequence[Sequence[Sequence[str]]],
    scorer: Scorer,
    detector: Scorer,
    distractors: Mapping[str, Distractors],
    guard: Callable[[str, Pair], str | None],
    progress: Progress = no_progress,
    *,
    saw_action: bool = True,
) -> list[list[TraceQuality]]:
    """Measure the traces of several writers on the same pairs; see `measure_traces`.

    Args:
        examples: the held-out pairs.
        written: for each writer, the traces of each pair.
        scorer: likelihoods for the gain.
        detector: likelihoods for the audit.
        distractors: other actions of each person, by label.
        guard: returns the name of the guard that rejects a trace, or None.
        progress: receives the progress.
        saw_action: see `measure_traces`.

    Returns:
        For each writer, one measurement for each pair.
    """
    measured: list[list[TraceQuality]] = [[] for _ in written]
    for done, (example, *groups) in enumerate(zip(examples, *written, strict=True)):
        progress("measuring", done, len(examples))
        others = distractors[example.label].nearest(example.pair, CHOICES - 1)
        qualities = measure_traces(example, groups, scorer, detector, others, guard, saw_action=saw_action)
        for of_writer, quality in zip(measured, qualities, strict=True):
            of_writer.append(quality)
    progress("measuring", len(examples), len(examples))
    return measured


def compare_traces(base: Sequence[TraceQuality], trained: Sequence[TraceQuality], *, seed: int = 0) -> dict[str, Any] | None:
    """Return base and trained model on the same pairs in the same order, with their difference; None without pairs.

    The guarded gain is compared at the `compared` pairs for which a trace of both passes the guards; all else at all pairs.
    Values are means over people, who have equal weight; differences have the `p` of their test. See `mean_of_people` for what
    the intervals and tests are over.
    """
    if not base:
        return None
    places, measured = range(len(base)), len({quality.label for quality in base})
    compared = [place for place in places if base[place].guarded_gain is not None and trained[place].guarded_gain is not None]

    def estimate(values: Sequence[float], of: Sequence[int] = places, *, test: bool = False) -> dict[str, Any] | None:
        people, conversations = [base[place].label for place in of], [base[place].conversation for place in of]
        result = mean_over_people(values, people, conversations, measured=measured)
        if result is None:
            return None
        found = result.estimate()
        return {"value": found.value, "low": found.low, "high": found.high} | ({"p": result.p(seed=seed)} if test else {})

    def both(value_of: Callable[[TraceQuality], float]) -> dict[str, Any]:
        differences = [value_of(after) - value_of(before) for before, after in zip(base, trained, strict=True)]
        return {
            "base": fmean(map(value_of, base)),
            "trained": fmean(map(value_of, trained)),
            "difference": estimate(differences, test=True),
        }

    before, after = ([writer[place].guarded_gain or 0.0 for place in compared] for writer in (base, trained))
    return {
        "n": len(base),
        "people": measured,
        "compared": len(compared),
        "base": estimate(before, compared),
        "trained": estimate(after, compared),
        "difference": estimate([late - early for early, late in zip(before, after, strict=True)], compared, test=True),
        "passing": both(lambda quality: 1 - float(quality.rejection_rate)),
        "leak_rate": both(lambda quality: float(quality.leak_rate)),
        "reveals_action": both(lambda quality: float(quality.reveals_action)),
        "words": both(lambda quality: float(quality.words)),
    }


def compare_by_person(base: Sequence[TraceQuality], trained: Sequence[TraceQuality], *, seed: int = 0) -> dict[str, Any]:
    """Return `compare_traces` of each person, by label."""
    comparisons: dict[str, Any] = {}
    for label in dict.fromkeys(quality.label for quality in base):
        own = [index for index, quality in enumerate(base) if quality.label == label]
        comparisons[label] = compare_traces([base[index] for index in own], [trained[index] for index in own], seed=seed)
    return comparisons


def contrasting_examples(
    examples: Sequence[TrainingExample],
    before: Sequence[Sequence[str]],
    after: Sequence[Sequence[str]],
    base: Sequence[TraceQuality],
    trained: Sequence[TraceQuality],
) -> list[dict[str, Any]]:
    """Return the pairs on which the trained model gains and loses most against the base, with the first trace of both."""
    order = sorted(
        range(len(examples)), key=lambda index: (trained[index].guarded_gain or 0.0) - (base[index].guarded_gain or 0.0)
    )
    selected = list(dict.fromkeys([*order[::-1][: _EXAMPLES // 2], *order[: _EXAMPLES // 2]]))
    return [
        {
            "context": [f"{turn.speaker}: {turn.text}" for turn in examples[index].pair.context[-3:]],
            "action": examples[index].pair.action,
            "base": before[index][0],
            "trained": after[index][0],
        }
        for index in selected
    ]
