"""An invented result and its turns, as a run would leave them: what reports, comparisons and exports are tested on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usertwin.evals.records.measured_turns import MANIFEST, RESULT, RUN_FORMAT, MeasuredTurn, Memory

EVIL = "<script>document.title = 'x'</script> & \"quoted\" {{ 7 * 7 }}"
TWIN = "recalled_pairs"
PEOPLE = ("chitchat/ann", "chitchat/bob", "support/cyd", "support/dee")
#: Bits per character and the difference twin minus arm.
COSTS = {
    "no_memory": (1.447, -0.051), "other_person": (1.431, -0.035), "random_own": (1.416, -0.020), "recent_own": (1.410, -0.014),
    "recalled_pairs": (1.396, 0.0), "recalled_triples": (1.399, -0.003), "openevals": (1.520, -0.124), "tau2": (1.497, -0.101),
    "persona": (1.404, -0.008),
}  # fmt: skip
MEASURES = {
    "bits_per_char": 1.4, "choice": 0.31, "chrf": 0.14, "embedding_similarity": 0.22, "rank": 0.61, "length_ratio": 1.12,
    "questions": -0.03, "greetings": 0.01, "politeness": 0.04, "capitals": 0.12, "emoji": 0.0, "style": 0.184,
    "function_words": 0.092, "diversity": -0.05, "discriminator": 0.71,
}  # fmt: skip


def est(value: float, half: float | None = 0.01, n: int = 412) -> dict[str, Any]:
    """An estimate with an interval of this half width; None for no interval."""
    low, high = (None, None) if half is None else (value - half, value + half)
    return {"value": value, "low": low, "high": high, "n": n}


def paired(value: float, half: float | None = 0.006, n: int = 412, **more: Any) -> dict[str, Any]:
    """A paired difference."""
    return {**est(value, half, n), "p": 0.008, "visible": 0.009, **more}


def arms(n: int = 412) -> dict[str, dict[str, Any]]:
    """Every measure of every arm."""
    return {
        arm: {
            name: est(cost if name == "bits_per_char" else value + 0.1 * (cost - 1.396), 0.02, n)
            for name, value in MEASURES.items()
        }
        for arm, (cost, _) in COSTS.items()
    }


def differences(n: int = 412, half: float = 0.006) -> dict[str, dict[str, Any]]:
    """The twin against every other arm."""
    return {
        f"{TWIN} - {arm}": {"bits_per_char": paired(value, half, n), "chrf": paired(-0.01, 0.02, n)}
        for arm, (_, value) in COSTS.items()
        if arm != TWIN
    }


def result(**changes: Any) -> dict[str, Any]:
    """A whole result, with every part there is."""
    persons = {
        person: {"turns": 103, "conversations": 20 + place, "arms": arms(103), "paired": differences(103, 0.004 * (place + 1))}
        for place, person in enumerate(PEOPLE)
    }
    family = [f"{TWIN} - {arm}" for arm in ("openevals", "tau2", "persona")]
    told = differences()
    for name in family:
        told[name]["bits_per_char"]["p_holm"] = 0.024
    whole: dict[str, Any] = {
        "arms": arms(),
        "paired": told,
        "people": persons,
        "family": {"measure": "bits_per_char", "contrasts": family, "alpha": 0.05},
        "turns": 412, "conversations": 86, "twin_arm": TWIN, "seed": 7, "format": RUN_FORMAT, "name": "four <people>",
        "models": {"action": "local", "scorer": "local", "embedder": "all-MiniLM-L6-v2", "proposer": "local", "judge": None},
        "settings": {"k": 4, "window": 6, "samples": 1, "replies": 100, "turns": 103},
        "versions": {"usertwin": "0.1.0", "torch": "2.13.0"},
        "measured_at": "2026-11-23T12:00:00+00:00",
        "judge": judge(),
        "leakage": {
            person: {"near_duplicates": 2, "of": 105, "known_by_heart": {"value": 0.01, "n": 103}, "checked": ["split by time"]}
            for person in PEOPLE
        },
        "endings": {
            PEOPLE[0]: {
                "f1": est(0.42, 0.1, 120),
                "calibration": {
                    "brier": est(0.08, 0.02, 120),
                    "bins": [{"low": 0.0, "high": 0.5, "told": 0.1, "left": 0.12, "n": 90}],
                },
            },
            PEOPLE[1]: {"f1": est(0.3, 0.1, 90), "calibration": None},
        },
        "drift": {
            depth: {"similarity": est(0.3 - int(depth) / 50), "real_history": est(0.3), "difference": est(-0.02), "style": None}
            for depth in ("1", "3", "5", "10")
        },
        "transfer": [
            {"proposer": "small", "scorer": "local", "arm": "recalled_triples", "against": TWIN, "bits_per_char": paired(0.001)}
        ],
        "warnings": ["the discriminator had few replies: 40"],
        "suite_text": '[suite]\nname = "four <people>"\n',
    }  # fmt: skip
    return {**whole, **changes}


def judge() -> dict[str, Any]:
    """What a judge said."""
    sanity = {
        "identical": {"win": est(0.5, 0.0, 40), "ties": est(1.0, 0.0, 40), "must": "all ties", "holds": True},
        "real_turn": {"win": est(0.7, 0.1, 40), "ties": est(0.2, 0.1, 40), "must": "0.95 or more", "holds": False},
        "same_arm": {"win": est(0.5, 0.1, 4), "ties": est(0.5, 0.2, 4), "must": "0.5", "holds": None},
    }
    against = {"win": est(0.61, 0.06, 200), "ties": est(0.3, 0.05, 200), "p": 0.01, "decided": est(0.66, 0.08, 120)}
    return {
        "model": "openai:judge", "contrasts": {f"{TWIN} - persona": against}, "sanity": sanity,
        "consistent": est(0.7, 0.05, 200), "first": est(0.58, 0.05, 200),
        "unreadable": {"value": 0.02, "n": 400}, "warnings": ["it prefers what is shown first"],
    }  # fmt: skip


def turn(number: int, person: str, similarity: float = 0.5, gained: float = 0.0, said: str = "hello there") -> MeasuredTurn:
    """One measured turn: the twin gains so many bits over no memory."""
    name = person.partition("/")[2]
    return MeasuredTurn(
        person=person, conversation_id=f"c{number % 5}", position=number,
        context=(("desk", "Good morning!"), (name, "hi"), ("desk", "What can I do for you?"), ("desk", "Take your time.")),
        action=said, characters=len(said), goal="the weather",
        bits={TWIN: 40.0 - gained, "no_memory": 40.0, "persona": 39.0},
        replies={TWIN: (f"twin says {number}", "again"), "persona": (f"persona says {number}",)},
        reasoning={TWIN: f"wants number {number}"},
        similarity={TWIN: (similarity, 0.1), "persona": (0.2,)},
        recalled=(Memory("c9", 3, 0.71, (("desk", "Hello?"),), "good day", "is polite"), Memory("c8", 1, 0.44, (), "yes")),
    )  # fmt: skip


def turns(count: int = 40, said: str = "hello there") -> list[MeasuredTurn]:
    """Turns of all people; the later, the closer to the real turn."""
    return [turn(number, PEOPLE[number % 4], number / count, number - count / 2, said) for number in range(count)]


def write_run(folder: Path, found: Mapping[str, Any], measured: Sequence[MeasuredTurn], state: str = "complete") -> Path:
    """A run's folder."""
    (folder / "people").mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"format": RUN_FORMAT, "state": state}), "utf-8")
    (folder / RESULT).write_text(json.dumps(found), "utf-8")
    lines = "".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in measured)
    (folder / "people" / "1.jsonl").write_text(lines, "utf-8")
    return folder
