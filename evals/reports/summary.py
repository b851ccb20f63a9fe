"""The headline of a report: the answer to the question that was declared before the measurement, and the warnings about models.

Design: the words follow the test (`verdict`), not the sign of a value, so a headline cannot claim more than the tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from usertwin.evals.arm_names import usual_opponents
from usertwin.simulator.backends.model_name import TEST_KINDS, kind_of

from .labels import (
    PRIMARY,
    Estimate,
    arm_label,
    contrasts_of,
    counted,
    difference_of,
    interval,
    interval_basis,
    measure_label,
    negated,
    number,
    p_text,
    plural,
    twin_arm,
    verdict,
)

#: Contrasts of a question that have a sentence in the headline.
_SENTENCES = 3
#: Measures of written replies; the first one that has figures speaks for them.
REPLY_MEASURES = ("discriminator", "rank")
#: Roles of models by their keys in a result.
_ROLES = {
    "scorer": "the scorer", "action": "the action model", "judge": "the judge", "outside": "the model that compares replies",
    "embedder": "the embedder",
}  # fmt: skip


def question_of(result: Mapping[str, Any]) -> list[str]:
    """Return the contrasts "A - B" that the headline answers: does A predict people better than B?

    They are those that the suite declared; else the twin's arm against no memory; without that against the arm that the twin
    leads by least, or trails by most (all such arms are then in the declared family). Empty if nothing was compared.
    """
    if declared := [contrast for contrast in result.get("question", ()) if contrast.count(" - ") == 1]:
        return declared
    differences = contrasts_of(result)
    best = max(usual_opponents(differences), key=lambda arm: differences[arm]["value"], default=None)
    return [] if best is None else [f"{twin_arm(result)} - {best}"]


def answer_of(result: Mapping[str, Any]) -> Estimate | None:
    """Return the paired difference of the first contrast of the question; None if it was not measured."""
    question = question_of(result)
    return difference_of(result, question[0]) if question else None


def summary_of(result: Mapping[str, Any]) -> str:
    """Return the headline: a sentence for each contrast of the question (at most three), and one for written replies.

    The first sentence names the data, the model that measured, and the model that wrote replies if any were written.
    """
    question = question_of(result)
    if not question:
        arm = twin_arm(result)
        missing = "" if arm in result["arms"] else f': its arm "{arm}" is not among the measured ones'
        return f"The twin was compared with nothing{missing} ({_data(result, result['turns'])})."
    sentences = [_answer(result, contrast, first=place == 0) for place, contrast in enumerate(question[:_SENTENCES])]
    if more := len(question[_SENTENCES:]):
        sentences.append(f"{plural(more, 'more contrast')} of the question {'is' if more == 1 else 'are'} in the tables.")
    return " ".join([*sentences, *_reply_sentences(result, question[0], several=len(question) > 1)])


def _answer(result: Mapping[str, Any], contrast: str, *, first: bool) -> str:
    """Return the sentence of a contrast in bits per character; the first one holds the data and the models."""
    subject, other = _names(result, contrast)
    paired = difference_of(result, contrast)
    if paired is None:
        return f"{_capital(subject)} was not compared with {other}: no turn was measured for both."
    outcome, turn, share = verdict(paired), f"{_whose(result)} next turn", _share(result, contrast, paired)
    claim = {
        "closer": f"{subject} predicts {turn} {share}better than {other}: it needs",
        "further": f"{subject} predicts {turn} {share}worse than {other}: it needs",
        "same": f"{subject} is not shown to predict {turn} better than {other}: the difference is",
        "unknown": f"it is not known yet whether {subject} predicts {turn} better than {other}: the difference is",
    }[outcome]
    shown, unit, signed = {
        "closer": (negated(paired), "fewer bits per character", False),
        "further": (paired, "more bits per character", False),
    }.get(outcome, (paired, "bits per character", True))
    basis = interval_basis(result) if outcome == "unknown" else _sureness(result, shown, 3, signed=signed)
    details = [basis, _data(result, paired["n"]), _models(result)] if first else [basis, f"n={counted(paired['n'])}"]
    return _capital(f"{claim} {number(shown['value'], 3, signed=signed)} {unit} ({'; '.join(filter(None, details))}).")


def _sureness(result: Mapping[str, Any], paired: Estimate, digits: int, *, signed: bool) -> str:
    """Return the interval and the test of a difference, and that they are over conversations if so for several people."""
    ends = interval(paired, digits, signed=signed)
    interval_text = ends if paired.get("low") is None else f"95% interval {ends}"
    within = result.get("intervals_over") == "conversations" and _people(result) > 1
    return f"{interval_text}, {p_text(paired)}" + (", over conversations of these people alone" if within else "")


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _share(result: Mapping[str, Any], contrast: str, paired: Estimate) -> str:
    """Return the difference as a share of the second arm's bits, "4.1% "; empty where these are not known."""
    bits = result["arms"].get(contrast.partition(" - ")[2], {}).get(PRIMARY)
    return f"{abs(paired['value']) / bits['value']:.1%} " if bits and bits["value"] > 0 else ""


def _reply_sentences(result: Mapping[str, Any], contrast: str, *, several: bool) -> list[str]:
    """Return a sentence about written replies, which names the arms if there are several contrasts; none without a test."""
    for measure in REPLY_MEASURES:
        paired, label = difference_of(result, contrast, measure), measure_label(measure)
        if paired is None or (outcome := verdict(paired)) == "unknown":
            continue
        claim = {"closer": "closer to", "further": "less close to", "same": "not shown to be closer to"}[outcome]
        value, sure = number(paired["value"], label.digits, signed=True), _sureness(result, paired, label.digits, signed=True)
        subject, than = _names(result, contrast) if several else ("it", "that")
        figures = f"{label.title}: {value}, below 0 is better, {sure}, n={counted(paired['n'])}"
        return [f"In written replies {subject} is {claim} {_whom(result)} than {than} ({figures})."]
    return []


def _names(result: Mapping[str, Any], contrast: str) -> tuple[str, str]:
    """Return the two arms of a contrast as the subject of a sentence and as what it is compared with."""
    twin = twin_arm(result)
    first, second = ("the twin" if arm == twin else arm_label(arm).phrase for arm in contrast.split(" - "))
    return first.replace("the same model", "the model", 1), second  # a sentence does not begin with "the same"


def _people(result: Mapping[str, Any]) -> int:
    return len(result.get("people") or ()) or 1  # the measurement of one twin lists no people


def _whose(result: Mapping[str, Any]) -> str:
    return "the person's" if _people(result) == 1 else "these people's"


def _whom(result: Mapping[str, Any]) -> str:
    return "the person" if _people(result) == 1 else "these people"


def _data(result: Mapping[str, Any], turns: float) -> str:
    people, conversations = plural(_people(result), "person", "people"), plural(result["conversations"], "conversation")
    return f"{plural(round(turns), 'held-out turn')} of {people} in {conversations}"


def _models(result: Mapping[str, Any]) -> str:
    """Return which model measured, and which one wrote the replies, if any were written; empty if not known."""
    models = _models_of(result)
    parts = [f"measured with {_short(str(models['scorer']))}"] if models.get("scorer") else []
    if models.get("action") and any("chrf" in measures for measures in result["arms"].values()):
        parts.append(f"replies written by {_short(str(models['action']))}")
    return ", ".join(parts)


def _models_of(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the names of the models by role; the record of a twin does not check them."""
    models: object = result.get("models")
    return cast("Mapping[str, Any]", models) if isinstance(models, Mapping) else {}


def _short(model: str) -> str:
    """Return the name of a model without the folders of its files; a result holds them in `models`."""
    return model if kind_of(model) in {"openai", "hf"} else re.sub(r"[^:+]*/", "", model)


def model_warnings(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence that names the models for tests among those of a measurement; none if all are real."""
    models = _models_of(result)
    tested = {key: name for key in _ROLES if kind_of(name := str(models.get(key) or "")) in TEST_KINDS}
    names = [f"{_ROLES[key]} ({_short(name)})" for key, name in tested.items()]
    if not names:
        return []
    subject = f"{', '.join(names[:-1])} and {names[-1]} are test models" if len(names) > 1 else f"{names[0]} is a test model"
    return [f"{subject}: no figure that rests on {'them' if len(names) > 1 else 'it'} says anything about a person"]


def twin_warnings(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before the figures of one twin's measurement."""
    leakage, warnings = result["leakage"], model_warnings(result)
    if dropped := leakage["near_duplicates"]:
        warnings.append(f"{dropped} of {leakage['of']} held-out turns nearly repeat the memory, and were dropped")
    if share := leakage["memorized"]["value"]:
        warnings.append(f"the scorer has memorized {share:.0%} of {leakage['memorized']['n']} long turns")
    return warnings
