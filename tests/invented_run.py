"""An invented result of a run with its turns, for the tests of reports, comparisons and exports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usertwin.evals.records.measured_turns import MANIFEST, RESULT, RUN_FORMAT, MeasuredTurn, RecalledTurn

EVIL = "<script>document.title = 'x'</script> & \"quoted\" {{ 7 * 7 }}"
TWIN = "recalled_pairs"
PEOPLE = ("chitchat/ann", "chitchat/bob", "support/cyd", "support/dee")
#: For each arm its bits per character, and the difference twin minus arm.
COSTS = {
    "no_memory": (1.447, -0.051), "other_person": (1.431, -0.035), "random_own": (1.416, -0.020), "recent_own": (1.410, -0.014),
    "recalled_pairs": (1.396, 0.0), "recon": (1.399, -0.003), "openevals": (1.520, -0.124), "tau2": (1.497, -0.101),
    "persona": (1.404, -0.008),
}  # fmt: skip
MEASURES = {
    "bits_per_char": 1.4, "choice": 0.31, "chrf": 0.14, "embedding_similarity": 0.22, "rank": 0.61, "length_ratio": 1.12,
    "questions": -0.03, "greetings": 0.01, "politeness": 0.04, "capitals": 0.12, "emoji": 0.0, "style": 0.184,
    "function_words": 0.092, "diversity": -0.05, "discriminator": 0.71, "context_discriminator": 0.78,
}  # fmt: skip


def est(value: float, half: float | None = 0.01, n: int = 412) -> dict[str, Any]:
    """Return an estimate with an interval of this half width; no interval for None."""
    low, high = (None, None) if half is None else (value - half, value + half)
    return {"value": value, "low": low, "high": high, "n": n}


def paired(value: float, half: float | None = 0.006, n: int = 412, **more: Any) -> dict[str, Any]:
    """Return a paired difference."""
    return {**est(value, half, n), "p": 0.008, "visible": 0.009, **more}


def arms(n: int = 412) -> dict[str, dict[str, Any]]:
    """Return every measure of every arm."""
    return {
        arm: {
            name: est(cost if name == "bits_per_char" else value + 0.1 * (cost - 1.396), 0.02, n)
            for name, value in MEASURES.items()
        }
        for arm, (cost, _) in COSTS.items()
    }


def differences(n: int = 412, half: float = 0.006) -> dict[str, dict[str, Any]]:
    """Return the paired differences of the twin and every other arm."""
    return {
        f"{TWIN} - {arm}": {"bits_per_char": paired(value, half, n), "chrf": paired(-0.01, 0.02, n)}
        for arm, (_, value) in COSTS.items()
        if arm != TWIN
    }


def result(**changes: Any) -> dict[str, Any]:
    """Return a result with every part; `changes` replaces some."""
    persons = {
        person: {"turns": 103, "conversations": 20 + place, "arms": arms(103), "paired": differences(103, 0.004 * (place + 1))}
        for place, person in enumerate(PEOPLE)
    }
    family = [f"{TWIN} - {arm}" for arm in ("openevals", "tau2", "persona")]
    contrasts = differences()
    for name in family:
        contrasts[name]["bits_per_char"]["p_holm"] = 0.024
    whole: dict[str, Any] = {
        "arms": arms(),
        "paired": contrasts,
        "people": persons,
        "family": {"measure": "bits_per_char", "contrasts": family, "alpha": 0.05},
        "turns": 412, "conversations": 86, "twin_arm": TWIN, "seed": 7, "format": RUN_FORMAT, "name": "four <people>",
        "models": {"action": "local", "scorer": "local", "embedder": "all-MiniLM-L6-v2", "proposer": "local", "judge": None},
        "settings": {"k": 4, "window": 6, "samples": 1, "replies": 100, "turns": 103},
        "versions": {"usertwin": "0.1.0", "torch": "2.13.0"},
        "measured_at": "2026-11-23T12:00:00+00:00",
        "judge": judge(),
        "discriminator": {
            "folds_by": "person", "folds": 4, "control": est(0.51, 0.04), "context_control": est(0.49, 0.04),
            "misplaced": est(0.68, 0.05),
        },
        "spread": {
            TWIN: {"spread": est(0.62, 0.2, 4), "matching": est(0.4, None, 4), "pairs": 2},
            "openevals": {"spread": est(0.11, 0.2, 4), "matching": None, "pairs": 2},
        },
        "likelihood_judge": {
            "model": "local:small", "contrasts": {f"{TWIN} - openevals": {"win": est(0.64, 0.05, 80), "p": 0.02}},
            "real": {TWIN: {"win": est(0.58, 0.04, 80), "p": 0.02, "holds": True}}, "identical": est(0.5, None, 80),
            "usable": True, "warnings": [],
        },
        "leakage": {
            person: {"near_duplicates": 2, "of": 105, "memorized": {"value": 0.01, "n": 103}, "checked": ["split by time"]}
            for person in PEOPLE
        },
        "endings": {
            PEOPLE[0]: {
                "f1": est(0.42, 0.1, 120),
                "calibration": {
                    "brier": est(0.08, 0.02, 120),
                    "bins": [{"low": 0.0, "high": 0.5, "predicted": 0.1, "observed": 0.12, "n": 90}],
                },
            },
            PEOPLE[1]: {"f1": est(0.3, 0.1, 90), "calibration": None},
        },
        "drift": {
            depth: {"similarity": est(0.3 - int(depth) / 50), "real_history": est(0.3), "difference": est(-0.02), "style": None}
            for depth in ("1", "3", "5", "10")
        },
        "drift_lengths": {"too_short": est(0.2), "as_long": est(0.7), "too_long": est(0.1)},
        "transfer": [
            {"proposer": "small", "scorer": "local", "arm": "recon", "against": TWIN, "bits_per_char": paired(0.001)}
        ],
        "user_models": user_models(),
        "warnings": ["the discriminator had few replies: 40"],
        "suite_text": '[suite]\nname = "four <people>"\n',
    }  # fmt: skip
    return {**whole, **changes}


def user_models() -> dict[str, Any]:
    """Return the figures of the user-model experiment."""
    row = {"against": None, "without_thoughts": None, "without_thoughts_against": None}
    recon = {"without_thoughts": est(1.35), "without_thoughts_against": paired(0.05)}
    return {
        "of": "person", "base": "local", "thoughts": 4, "precision": "float32", "models": {}, "examples": [90, 100, 95],
        "steps": [36, 39, 36], "turns": 160, "conversations": 30, "people": 4,
        "rows": [
            {"kind": "base", "bits_per_char": est(1.4), **row, "against": paired(0.1)},
            {"kind": "none", "bits_per_char": est(1.3), **row},
            {"kind": "recon", "bits_per_char": est(1.2), "against": paired(-0.1, p_holm=0.016), **recon},
        ],
        "paired": {"recon - backward": paired(-0.001)},
        "family": {"contrasts": ["recon - none"], "alpha": 0.05},
    }  # fmt: skip


def judge() -> dict[str, Any]:
    """Return the figures of a judge."""
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


def turn(number: int, person: str, similarity: float = 0.5, gained: float = 0.0, text: str = "hello there") -> MeasuredTurn:
    """Return a measured turn where the twin gains this many bits over no memory."""
    name = person.partition("/")[2]
    return MeasuredTurn(
        person=person, conversation_id=f"c{number % 5}", position=number,
        context=(("desk", "Good morning!"), (name, "hi"), ("desk", "What can I do for you?"), ("desk", "Take your time.")),
        action=text, characters=len(text), goal="the weather",
        bits={TWIN: 40.0 - gained, "no_memory": 40.0, "persona": 39.0},
        replies={TWIN: (f"twin says {number}", "again"), "persona": (f"persona says {number}",)},
        reasoning={TWIN: f"wants number {number}"},
        similarity={TWIN: (similarity, 0.1), "persona": (0.2,)},
        recalled=(
            RecalledTurn(
                conversation_id="c9", position=3, similarity=0.71, context=(("desk", "Hello?"),), action="good day",
                reasoning="is polite",
            ),
            RecalledTurn(conversation_id="c8", position=1, similarity=0.44, context=(), action="yes"),
        ),
    )  # fmt: skip


def turns(count: int = 40, text: str = "hello there") -> list[MeasuredTurn]:
    """Return turns of all people; later ones are closer to the real turn."""
    return [turn(number, PEOPLE[number % 4], number / count, number - count / 2, text) for number in range(count)]


def write_run(folder: Path, figures: Mapping[str, Any], measured: Sequence[MeasuredTurn], state: str = "complete") -> Path:
    """Write the folder of a run, and return it."""
    (folder / "people").mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"format": RUN_FORMAT, "state": state}), "utf-8")
    (folder / RESULT).write_text(json.dumps(figures), "utf-8")
    lines = "".join(json.dumps(turn.to_json(), ensure_ascii=False) + "\n" for turn in measured)
    (folder / "people" / "1.jsonl").write_text(lines, "utf-8")
    return folder
