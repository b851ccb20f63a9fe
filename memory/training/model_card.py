"""The model card of a trained adapter, for the Hugging Face hub.

Design: the card is built from numbers and names alone, so it cannot contain a person's name or text. Values that were not
measured are marked as such, and every value has its n.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usertwin.personas import UsageError
from usertwin.personas.files import write_private

CARD = "README.md"
_TEMPLATE = Path(__file__).parent / "model_card.txt"

#: For each training method, its title and one sentence about it.
METHODS = {
    "sft": (
        "SFT on selected traces",
        "The base was fine-tuned on its own traces with the highest reward (rejection sampling).",
    ),
    "dpo": (
        "DPO",
        "The base learned to prefer its own trace with the highest reward to the one with the lowest, or to one that leaks.",
    ),
    "grpo": ("Recon-GRPO", "The base was trained by GRPO to write traces from which the action can be reconstructed."),
    "e2e": (
        "E2E-GRPO",
        "The base was trained by GRPO to write traces that pass the guards and help to predict another turn of the person.",
    ),
}
#: Bases with a known origin: name on the Hugging Face hub, and licence there.
_KNOWN_BASES = {
    "local": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    "local:small": ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "apache-2.0"),
}
_GROUPS = {"seen": "trained on, later turns", "unseen": "not trained on"}
_MEASURES = (
    ("passing", "passes the guards", 3),
    ("leak_rate", "leak rate", 3),
    ("reveals_action", "reveals the action", 3),
    ("words", "words per trace", 1),
)
_NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """The facts of a card.

    Attributes:
        base: name of the base, as on the command line.
        method: training method.
        sources: the logs; the card shows only file names.
        people: people trained on.
        pairs: pairs trained on.
        unseen: people held out.
        style: prompt style.
        proposal_mode: "backward" if the synthesizer is shown the action, else "forward".
        reward: weights of the reward terms, and the shape of the fidelity term.
        scorer: name of the model in the reward.
        rank: rank of the LoRA adapter.
        steps: optimizer steps.
        tokens: generated tokens.
        seconds: duration of steps and audits.
        stopped: why training stopped early, or None.
        seed: seed.
        device: "cpu", or "cuda" with the GPU's name.
        measured: the measurements in result.json; None if there are none.
        versions: versions of the packages.
    """

    base: str
    method: str
    sources: Sequence[str]
    people: int
    pairs: int
    unseen: int = 0
    style: str = "transcript"
    proposal_mode: str = "backward"
    reward: Mapping[str, float | str] = field(default_factory=dict[str, float | str])
    scorer: str | None = None
    rank: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    seed: int = 0
    device: str = "cpu"
    measured: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict[str, str])


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write the card of an adapter into its folder, atomically, and return its path. UsageError if that fails."""
    target = folder / CARD
    try:
        write_private(target, card_text(facts).encode("utf-8", "replace").decode())  # a file name may hold lone surrogates
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror}); name an existing folder with free space") from error
    return target


def card_text(facts: CardFacts) -> str:
    """Return the card: Markdown with the front matter of the Hugging Face hub."""
    from huggingface_hub import ModelCard, ModelCardData

    hub_name, licence = _origin(facts.base)
    # None leaves a field out: a link to a wrong base would mislead.
    data = ModelCardData(
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "usertwin", "recon", "user-simulation", facts.method],
        base_model=hub_name or None,
        base_model_relation="adapter" if hub_name else None,
        license=licence or "other",
        license_name=None if licence else "as-the-base-model",
    )
    title, description = METHODS.get(facts.method, (facts.method, f"The base was trained by {facts.method}."))
    measured = facts.measured or {}
    return str(
        ModelCard.from_template(
            data,
            template_path=str(_TEMPLATE),
            facts=facts,
            title=title,
            description=description,
            base=_public_name(facts.base),
            hub_name=hub_name,
            licence=licence,
            sources=[_public_name(source) for source in facts.sources],
            reward_scorer=None if facts.scorer is None else _public_name(facts.scorer),
            scorer=_public_name(str(measured.get("scorer") or "unknown")),
            rows=_rows(measured),
            missing=[label for group, label in _GROUPS.items() if measured and not measured.get(group)],
            others=(measured.get("unseen") or {}).get("people", 0),
        )
    )


def _origin(base: str) -> tuple[str, str]:
    """Return the name of a base on the hub and its licence; empty strings if unknown."""
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)/.+", base)
    return _KNOWN_BASES.get(base, (match[1] if match else "", ""))


def _public_name(name: str) -> str:
    """Return the name of a model or a log without folders and server addresses; a name on the hub stays whole."""
    if name.startswith(("hf:", "openai:")):
        return name.partition("@")[0]
    kind, colon, path = name.rpartition(":") if re.match(r"(?:local|transformers):", name) else ("", "", name)
    return kind + colon + (re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path)


def _rows(measured: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the table of results: people, measure, base, trained, difference, n."""
    rows: list[tuple[str, ...]] = []
    for key, label in _GROUPS.items():
        group = measured.get(key)
        if not group:
            continue
        people, n = f"{label} ({group['people']})", str(group["n"])
        gains = [_estimate(group.get(name), signed=name == "difference") for name in ("base", "trained", "difference")]
        rows.append((people, "guarded gain", *gains, str(group.get("compared", n))))
        for name, title, digits in _MEASURES:
            change = group.get(name) or {}
            values = [_number(change.get(side), digits) for side in ("base", "trained")]
            difference = change.get("difference")
            rows.append((people, title, *values, _estimate(difference, signed=True, digits=digits) if difference else "", n))
    return rows


def _estimate(estimate: Mapping[str, Any] | None, *, signed: bool, digits: int = 3) -> str:
    """Return a value with its interval."""
    if estimate is None:
        return _NOT_MEASURED
    low, high = estimate.get("low"), estimate.get("high")
    ends = "no interval" if low is None or high is None else f"{_number(low, digits)} to {_number(high, digits)}"
    return f"{'+' if signed and round(estimate['value'], digits) > 0 else ''}{_number(estimate['value'], digits)} ({ends})"


def _number(value: float | None, digits: int) -> str:
    return _NOT_MEASURED if value is None else f"{round(value, digits) + 0.0:.{digits}f}"
