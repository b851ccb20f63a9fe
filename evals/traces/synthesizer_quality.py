"""How good a trained synthesizer is: what its traces gain on held-out pairs, beside the base's on the same pairs.

The one design choice: both are asked as a twin's learning asks them, by their name as a model, for several traces of each pair,
and what is compared is the guarded gain: a trace that a guard rejects counts 0, as a twin would have none, so that nothing is
won by writing what is not used. The scorer should be one that was in no reward.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from usertwin.evals.metrics.statistics import mean_over_people
from usertwin.memory import ChatModel, Scorer
from usertwin.memory.jsonl import open_to_append, whole_lines, write_line
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.distractors import Distractors
from usertwin.memory.recon.fidelity import CHOICES
from usertwin.memory.recon.propose import ProposalMode, propose
from usertwin.memory.training.dataset import TrainingExample
from usertwin.memory.training.trace_quality import TraceQuality, measure_traces
from usertwin.personas import Pair

#: Examples that a report shows: pairs on which base and trained differ the most, to both sides.
_EXAMPLES = 6


async def write_held_out(
    path: Path,
    lessons: Sequence[TrainingExample],
    model: ChatModel,
    how: ProposalMode,
    *,
    samples: int,
    seed: int,
    progress: Progress = no_progress,
) -> list[list[str]]:
    """Have a model write traces for each pair; kept line by line in a file, so that a stop loses at most one pair.

    Args:
        path: the file.
        lessons: the pairs.
        model: who writes.
        how: in which way.
        samples: how many for each.
        seed: for the sampler.
        progress: is told how far things are.

    Raises:
        ModelError: the model does not answer; what was done is kept.
    """
    found: list[list[str]] = [json.loads(line) for line in whole_lines(path)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_to_append(path) as file:
        for one in lessons[len(found) :]:
            progress("writing traces", len(found), len(lessons))
            found.append(await propose(model, one.pair, "the person", proposal_mode=how, n=samples, seed=seed))
            write_line(file, found[-1])
    progress("writing traces", len(found), len(lessons))
    return found


def measure_all(
    lessons: Sequence[TrainingExample],
    written: Sequence[Sequence[Sequence[str]]],
    scorer: Scorer,
    detector: Scorer,
    distractors: Mapping[str, Distractors],
    guard: Callable[[str, Pair], str | None],
    progress: Progress = no_progress,
) -> list[list[TraceQuality]]:
    """Look at the traces of several writers, as `look_at_pair` does it.

    Args:
        lessons: the pairs.
        written: for each writer, the traces of each pair.
        scorer: for the gain.
        detector: for the audit.
        distractors: other actions of each person, by label.
        guard: the name of the guard that rejects a trace, or None.
        progress: is told how far things are.
    """
    found: list[list[TraceQuality]] = [[] for _ in written]
    for done, (one, *groups) in enumerate(zip(lessons, *written, strict=True)):
        progress("measuring", done, len(lessons))
        others = distractors[one.label].of(one.pair, CHOICES - 1)
        for own, looked in zip(found, measure_traces(one, groups, scorer, detector, others, guard), strict=True):
            own.append(looked)
    progress("measuring", len(lessons), len(lessons))
    return found


def compared(base: Sequence[TraceQuality], trained: Sequence[TraceQuality], *, seed: int = 0) -> dict[str, Any] | None:
    """What was measured of base and trained, on the same pairs in the same order; None without any.

    Intervals are of the mean over people, from resampling people and within them conversations; people weigh the same.
    """
    if not base:
        return None
    people, where = [one.label for one in base], [one.conversation for one in base]

    def estimate(values: Sequence[float]) -> dict[str, Any] | None:
        found = mean_over_people(values, people, where, seed=seed)
        return None if found is None else {key: asdict(found[0].estimate())[key] for key in ("value", "low", "high")}

    def both(of: Callable[[TraceQuality], float]) -> dict[str, Any]:
        more = [of(b) - of(a) for a, b in zip(base, trained, strict=True)]
        return {"base": fmean(map(of, base)), "trained": fmean(map(of, trained)), "difference": estimate(more)}

    return {
        "n": len(base),
        "people": len(set(people)),
        "base": estimate([one.novel for one in base]),
        "trained": estimate([one.novel for one in trained]),
        "difference": estimate([b.novel - a.novel for a, b in zip(base, trained, strict=True)]),
        "leak_rate": both(lambda one: float(one.leaks)),
        "gives_away": both(lambda one: float(one.gives_away)),
        "words": both(lambda one: float(one.words)),
    }


def of_each(base: Sequence[TraceQuality], trained: Sequence[TraceQuality], *, seed: int = 0) -> dict[str, Any]:
    """The same for each person, by label."""
    found: dict[str, Any] = {}
    for label in dict.fromkeys(one.label for one in base):
        own = [i for i, one in enumerate(base) if one.label == label]
        found[label] = compared([base[i] for i in own], [trained[i] for i in own], seed=seed)
    return found


def contrasting_examples(
    lessons: Sequence[TrainingExample],
    before: Sequence[Sequence[str]],
    after: Sequence[Sequence[str]],
    base: Sequence[TraceQuality],
    trained: Sequence[TraceQuality],
) -> list[dict[str, Any]]:
    """Pairs with the first trace of both: those on which the trained gains most over the base, and loses most."""
    order = sorted(range(len(lessons)), key=lambda i: trained[i].novel - base[i].novel)
    picked = list(dict.fromkeys([*order[::-1][: _EXAMPLES // 2], *order[: _EXAMPLES // 2]]))
    return [
        {
            "context": [f"{turn.speaker}: {turn.text}" for turn in lessons[i].pair.context[-3:]],
            "action": lessons[i].pair.action,
            "base": before[i][0],
            "trained": after[i][0],
        }
        for i in picked
    ]
