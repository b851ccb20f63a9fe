"""How good a trained synthesizer is: what its traces gain on held-out pairs, beside the base's on the same pairs.

The one design choice: base and trained write one trace for each pair under the same seed, and what is compared is the guarded
gain: a trace that a guard rejects counts 0, as a twin would have none, so that nothing is won by writing what is not used.
The scorer should be one that was in no reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from usertwin.memory import Scorer
from usertwin.memory.distractors import Distractors
from usertwin.memory.fidelity import CHOICES, gains
from usertwin.memory.guards import gives_away
from usertwin.memory.lessons import Lesson
from usertwin.memory.tracing import Progress, no_progress
from usertwin.memory.watch import LEAKS
from usertwin.memory.words import word_tokens
from usertwin.personas import Pair

from .statistics import mean_over_people

#: Examples that a report shows: pairs on which base and trained differ the most, to both sides.
_EXAMPLES = 6


@dataclass(frozen=True, slots=True)
class Looked:
    """A trace of a held-out pair, looked at.

    Attributes:
        label: whose pair it is.
        conversation: from which conversation.
        novel: the guarded gain, in nats per token of the action.
        leaks: whether a guard rejects it for a leak.
        gives_away: whether the action can be told from it alone.
        words: how many it has.
    """

    label: str
    conversation: str
    novel: float
    leaks: bool
    gives_away: bool
    words: int


def look_at(
    lessons: Sequence[Lesson],
    written: Sequence[Sequence[str]],
    scorer: Scorer,
    detector: Scorer,
    distractors: Mapping[str, Distractors],
    guard: Callable[[str, Pair], str | None],
    progress: Progress = no_progress,
) -> list[list[Looked]]:
    """Look at the traces of several writers, one for each pair; those of a pair together, since they share its context.

    Args:
        lessons: the pairs.
        written: for each writer, the trace of each pair.
        scorer: for the gain.
        detector: is asked whether the trace gives the action away.
        distractors: other actions of each person, by label.
        guard: the name of the guard that rejects a trace, or None.
        progress: is told how far things are.
    """
    found: list[list[Looked]] = [[] for _ in written]
    for done, (one, *traces) in enumerate(zip(lessons, *written, strict=True)):
        progress("measuring", done, len(lessons))
        reasons = {trace: guard(trace, one.pair) for trace in dict.fromkeys(traces)}
        passed = [trace for trace, why in reasons.items() if why is None]
        novel = {trace: parts["novel"] for trace, parts in zip(passed, gains(scorer, one.pair, passed), strict=True)}
        others = distractors[one.label].of(one.pair, CHOICES - 1)
        for own, trace in zip(found, traces, strict=True):
            own.append(
                Looked(
                    label=one.label,
                    conversation=one.pair.conversation_id,
                    novel=novel.get(trace, 0.0),
                    leaks=reasons[trace] in LEAKS,
                    gives_away=bool(trace) and gives_away(detector, one.pair, trace, others),
                    words=len(word_tokens(trace)),
                )
            )
    progress("measuring", len(lessons), len(lessons))
    return found


def compared(base: Sequence[Looked], trained: Sequence[Looked], *, seed: int = 0) -> dict[str, Any] | None:
    """What was measured of base and trained, on the same pairs in the same order; None without any.

    Intervals are of the mean over people, from resampling people and within them conversations; people weigh the same.
    """
    if not base:
        return None
    people, where = [one.label for one in base], [one.conversation for one in base]

    def estimate(values: Sequence[float]) -> dict[str, Any] | None:
        found = mean_over_people(values, people, where, seed=seed)
        return None if found is None else {key: asdict(found[0].estimate())[key] for key in ("value", "low", "high")}

    def both(of: Callable[[Looked], float]) -> dict[str, float]:
        return {"base": fmean(map(of, base)), "trained": fmean(map(of, trained))}

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


def of_each(base: Sequence[Looked], trained: Sequence[Looked], *, seed: int = 0) -> dict[str, Any]:
    """The same for each person, by label."""
    found: dict[str, Any] = {}
    for label in dict.fromkeys(one.label for one in base):
        own = [i for i, one in enumerate(base) if one.label == label]
        found[label] = compared([base[i] for i in own], [trained[i] for i in own], seed=seed)
    return found


def examples_of(
    lessons: Sequence[Lesson], before: Sequence[str], after: Sequence[str], base: Sequence[Looked], trained: Sequence[Looked]
) -> list[dict[str, Any]]:
    """Pairs with both traces: those on which the trained one gains most over the base's, and those on which it loses most."""
    order = sorted(range(len(lessons)), key=lambda i: trained[i].novel - base[i].novel)
    picked = list(dict.fromkeys([*order[::-1][: _EXAMPLES // 2], *order[: _EXAMPLES // 2]]))
    return [
        {
            "context": [f"{turn.speaker}: {turn.text}" for turn in lessons[i].pair.context[-3:]],
            "action": lessons[i].pair.action,
            "base": before[i],
            "trained": after[i],
        }
        for i in picked
    ]
