"""A suite in parts: runs of some of its corpora, and the figures of the people of several runs, as if one had measured them.

Design: from five people on, intervals and tests are over people, and need each person's own values only. So a suite that takes
too long for one sitting is run corpus by corpus, and no turn is needed to join the results. Only the discriminators differ from
those of one run: each was trained on the people of its own run, so the AUC of a person is that of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from usertwin.evals.metrics.arm_discriminators import joined_controls
from usertwin.evals.metrics.closeness import PRIMARY, joined_closeness
from usertwin.evals.metrics.spread import joined_spread
from usertwin.evals.metrics.statistics import MIN_PEOPLE
from usertwin.evals.records.joined_runs import read_joined
from usertwin.evals.records.measured_turns import RUN_FORMAT, read_result
from usertwin.evals.reports.labels import few_people_warnings
from usertwin.evals.reports.summary import summary_of
from usertwin.personas import UsageError

from .config import Suite

#: Settings that are facts about single people: some always, some where they were tuned.
_OF_PEOPLE, _TUNED = "triples", ("k", "window")
#: Parts of a result that are not made of values of single people.
_NOT_JOINED = ("judge", "likelihood_judge", "drift", "transfer", "user_models")
#: Differing settings that an error names.
_SHOWN = 3


def with_corpora(suite: Suite, names: Sequence[str]) -> Suite:
    """Return the suite with these corpora alone, and with all for no name. UsageError if it has no corpus of a name."""
    known = [corpus.name for corpus in suite.corpora]
    if missing := [name for name in names if name not in known]:
        raise UsageError(f'--corpus: the suite has no corpus "{missing[0]}"; there are {", ".join(known)}')
    chosen = tuple(corpus for corpus in suite.corpora if corpus.name in names)
    return suite.model_copy(update={"corpora": chosen, "twins": ()}) if names else suite


def read_part(path: Path) -> dict[str, Any]:
    """Return the result of the run in a folder, or of a file of joined runs. UsageError if it is neither."""
    return read_joined(path) if path.is_file() else read_result(path)


def join_runs(parts: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the result of several runs' people together, in the shape of the result of one run.

    Args:
        parts: name and result of each run (at least one), or of runs that were joined before.

    Raises:
        UsageError: two runs differ in settings, models, prompts or arms; a person is in two of them; or they have too few
            people in all for intervals over people.
    """
    people = _people_of(parts)
    _check_same(parts)
    results = [result for _, result in parts]
    first = results[0]
    result = joined_closeness(people, first["twin_arm"], seed=first["seed"], question=first.get("question", ()))
    texts = [own.get("suite_text") for own in results]
    settings: dict[str, Any] = dict(first["settings"])
    for key in (_OF_PEOPLE, *_TUNED):
        if isinstance(settings.get(key), Mapping):
            settings[key] = _merged([own["settings"] for own in results], key)
    result |= {
        "format": RUN_FORMAT, "kind": "joined", "name": ", ".join(dict.fromkeys(str(own.get("name")) for own in results)),
        "traces": _traces(results),
        "discriminator": joined_controls([own.get("discriminator") for own in results]),
        "spread": joined_spread([own.get("spread") or {} for own in results]),
        "leakage": _merged(results, "leakage"), "endings": _merged(results, "endings"),
        "models": first["models"], "settings": settings, "versions": first["versions"], "prompts": first["prompts"],
        "looks": _unique(chain.from_iterable(own.get("looks", ()) for own in results)),
        "suite_text": texts[0] if len(set(texts)) == 1 else None,
        "measured_at": max(str(own.get("measured_at", "")) for own in results),
    }  # fmt: skip
    result["warnings"] = [*few_people_warnings(result), *_warnings(results)]
    result["summary"] = summary_of(result)
    return result


def _people_of(parts: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Mapping[str, Any]]:
    """Return the people of all runs. UsageError if somebody is in two runs, or if they are too few."""
    people: dict[str, Mapping[str, Any]] = {}
    run_of: dict[str, str] = {}
    for name, result in parts:
        for person, own in result["people"].items():
            if person in people:
                raise UsageError(f'{name}: "{person}" is in {run_of[person]} too, and a person counts once; leave out one run')
            people[person], run_of[person] = own, name
    if len(people) < MIN_PEOPLE:
        raise UsageError(
            f"{parts[-1][0]}: the runs have {len(people)} people in all, and intervals over people need {MIN_PEOPLE}; add runs"
        )
    return people


def _check_same(parts: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise UsageError, naming what differs, if two runs did not measure the same thing."""
    (first_name, first), *others = parts
    setup = _setup(first)
    for name, result in others:
        own = _setup(result)
        differing = [key for key in {**setup, **own} if setup.get(key) != own.get(key)]
        if differing:
            shown = ", ".join(f"{key} ({setup.get(key)}, {own.get(key)})" for key in differing[:_SHOWN])
            more = ", ..." if differing[_SHOWN:] else ""
            raise UsageError(f"{name}: differs from {first_name} in {shown}{more}; join runs of one suite alone")


def _setup(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what runs that are joined must have in common, by dotted name."""
    setup = {key: result.get(key) for key in ("twin_arm", "seed", "question")}
    for part in ("settings", "models", "prompts"):
        values: Mapping[str, Any] = result.get(part) or {}
        setup |= {
            f"{part}.{key}": value
            for key, value in values.items()
            if key != _OF_PEOPLE and not (key in _TUNED and isinstance(value, Mapping))
        }
    return setup


def _traces(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean number of shown traces by arm; a run without any trace in an arm has 0 at all of its turns."""
    traces: dict[str, dict[str, float]] = {}
    for arm in dict.fromkeys(chain.from_iterable(own.get("traces", {}) for own in results)):
        unseen = ({"value": 0.0, "n": own["arms"].get(arm, {}).get(PRIMARY, {"n": 0})["n"]} for own in results)
        rows = [own.get("traces", {}).get(arm, none) for own, none in zip(results, unseen, strict=True)]
        n = sum(row["n"] for row in rows)
        traces[arm] = {"value": sum(row["value"] * row["n"] for row in rows) / n, "n": n}
    return traces


def _warnings(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the warnings of the runs that still hold, and what joining leaves out."""
    warnings = _unique(
        chain.from_iterable(
            (warning for warning in own.get("warnings", ()) if warning not in few_people_warnings(own)) for own in results
        )
    )
    versions = [own["versions"] for own in results]
    if changed := [name for name in versions[0] if any(own.get(name) != versions[0][name] for own in versions)]:
        warnings.append(f"the runs used different versions of {', '.join(changed)}")
    if left_out := [key for key in _NOT_JOINED if any(own.get(key) for own in results)]:
        warnings.append(f"{', '.join(left_out)}: the figures are in the reports of the single runs")
    return warnings


def _merged(results: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    return dict(chain.from_iterable((own.get(key) or {}).items() for own in results))


def _unique(items: Any) -> list[Any]:
    unique: list[Any] = []
    for item in items:
        if item not in unique:
            unique.append(item)
    return unique
