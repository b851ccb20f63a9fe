"""The card of a trained adapter: what it is, what it was made of, how good it is, and what nobody knows of it.

The one design choice: the card is written from numbers and names alone, so that no text of a person can be in it and no person
is named; a number that was not measured is said not to be, and none is told without its n.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usertwin.memory.atomic_files import replace_file
from usertwin.memory.text.prompt_template import PromptTemplate
from usertwin.personas import UsageError

CARD = "README.md"
_TEMPLATE = PromptTemplate(Path(__file__).parent / "model_card.txt")

#: The methods of training: how each is called, and what it does.
METHODS = {
    "sft": (
        "SFT on selected traces",
        "The base was fine-tuned on its own traces that were rewarded best (rejection sampling).",
    ),
    "dpo": (
        "DPO",
        "The base was taught to prefer its own best-rewarded trace of a moment over its worst, or over one that leaks.",
    ),
    "soup": (
        "DPO twice, added",
        "The base was taught by DPO twice to prefer traces that gain over others and over those that leak, once leaning toward "
        "the action and once away from it; the adapter is the weighted sum of both.",
    ),
    "grpo": ("Recon-GRPO", "The base was trained by GRPO with a reward for traces from which the action can be reconstructed."),
    "e2e": (
        "E2E-GRPO",
        "The base was trained by GRPO with a reward for how much a trace helps with another moment of the person.",
    ),
}
#: Bases whose origin is known: what they are called on the Hugging Face hub, the licence there, and its name.
_KNOWN = {
    "local": ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct", "apache-2.0"),
    "local:small": ("Qwen/Qwen2.5-Coder-1.5B-Instruct", "Qwen2.5-Coder-1.5B-Instruct", "apache-2.0"),
}
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&])")
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card tells.

    Attributes:
        base: the base, as on the command line.
        method: one of `METHODS`, or another's name.
        sources: the logs, by name; of a path only its last part is told.
        people: how many people it was trained on.
        pairs: and on how many of theirs.
        unseen: people kept apart.
        style: "transcript" or "instruction".
        how: "backward" if the synthesizer is shown the action, "forward" if not.
        reward: the weights of its terms, and its shape.
        scorer: whose likelihood, or whose judgement, is in the reward.
        rank: of the LoRA; 0 if not told.
        soup: the weights of what was added, first of the part that leans toward the action; empty if nothing was.
        lean: of these parts.
        steps: of the optimiser.
        tokens: that were generated, by the base or while it was trained.
        seconds: that it took.
        stopped: why it ended early, or None.
        seed: of everything that is drawn.
        device: "cpu", or "cuda" and what else torch calls a GPU.
        measured: as in `result.json`; None if nothing was.
        versions: of the packages.
    """

    base: str
    method: str
    sources: Sequence[str]
    people: int
    pairs: int
    unseen: int = 0
    style: str = "transcript"
    how: str = "backward"
    reward: Mapping[str, float | str] = field(default_factory=dict[str, float | str])
    scorer: str | None = None
    rank: int = 0
    soup: Sequence[float] = ()
    lean: float = 0.0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    seed: int = 0
    device: str = "cpu"
    measured: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict[str, str])


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write the card of an adapter into its folder, in place of any that is there.

    Args:
        folder: the adapter's folder.
        facts: what the card tells.

    Returns:
        The card.

    Raises:
        UsageError: it cannot be written there.
    """
    target, partial = folder / CARD, folder / f".{CARD}.partial"
    try:
        partial.write_bytes(card_of(facts).encode("utf-8", "replace"))  # a file's name may hold what is no letter
        replace_file(partial, target)
    except OSError as error:
        raise UsageError(
            f"{target}: cannot be written ({error.strerror}); name a folder that exists, with room on it"
        ) from error
    return target


def card_of(facts: CardFacts) -> str:
    """The card as Markdown with the front matter of the Hugging Face hub."""
    title, what = METHODS.get(
        facts.method, (in_markdown(facts.method), f"The base was trained by {in_markdown(facts.method)}.")
    )
    rows, missing = _rows(facts.measured)
    page = _TEMPLATE.fill(
        front=_front(facts),
        title=title,
        what=what,
        style=_style(facts),
        base=_base(facts.base),
        rank=facts.rank,
        pairs=_several(facts.pairs, "pair", "pairs"),
        people=_several(facts.people, "person", "people"),
        unseen=_several(facts.unseen, "other person was", "other people were") if facts.unseen else "",
        sources=", ".join(in_markdown(_name(source)) for source in facts.sources) or "not told",
        reward=_reward(facts),
        terms=[(in_markdown(name), in_markdown(weight)) for name, weight in facts.reward.items() if name != "shape"],
        training=_training(facts),
        rows=rows,
        missing=missing,
        scorer=in_markdown(_name(str((facts.measured or {}).get("scorer") or "a scorer whose name was not kept"))),
        licence=_licence(facts.base),
        limits=_limits(facts),
    )
    return re.sub(r"\n{3,}", "\n\n", page) + "\n"


def _front(facts: CardFacts) -> str:
    """The front matter; a base that is not known to be on the hub is left out, as a link to it would lead astray."""
    from huggingface_hub import ModelCardData

    hub, licence = _hub_name(facts.base), _KNOWN.get(facts.base, ("", "", ""))[2]
    data: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "usertwin", "recon", "user-simulation", "".join(filter(str.isprintable, facts.method))],
    }
    if hub:
        data |= {"base_model": hub, "base_model_relation": "adapter"}
    data |= {"license": licence} if licence else {"license": "other", "license_name": "as-the-base-model"}
    return ModelCardData(**data).to_yaml(line_break="\n").strip("\n")


def _hub_name(base: str) -> str:
    """What a base is called on the hub; empty if that is not known."""
    if base in _KNOWN:
        return _KNOWN[base][0]
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)/.+", base)
    return found[1] if found else ""


def _base(base: str) -> str:
    if base in _KNOWN:
        return f"`{base}`: {_KNOWN[base][1]} ({_KNOWN[base][0]} on the Hugging Face hub)."
    return f"{in_markdown(_name(base))}."


def _name(told: str) -> str:
    """A model or a log without the folders and addresses of where it was; a name on the hub stays whole."""
    if told.startswith(("hf:", "openai:")):
        return told.partition("@")[0]
    kind, colon, path = told.rpartition(":") if re.match(r"(?:local|transformers):", told) else ("", "", told)
    return kind + colon + (re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path)


def _style(facts: CardFacts) -> str:
    prompt = "as the continuation of a transcript" if facts.style == "transcript" else "as the answer to an instruction"
    known = "the moment alone" if facts.how == "forward" else "the moment and what the person did next"
    return f"why a person may act as they do, from {known}, {prompt}."


def _reward(facts: CardFacts) -> str:
    told = "A trace is worth the weighted sum of the terms below, each from 0 to 1, and nothing if a guard rejects it."
    if not facts.reward:
        told = "Its weights were not kept."
    shape = f" The form of the fidelity: {in_markdown(facts.reward['shape'])}." if "shape" in facts.reward else ""
    return told + shape + (f" Scored by {in_markdown(_name(facts.scorer))}." if facts.scorer else "")


def _training(facts: CardFacts) -> list[tuple[str, str]]:
    found = {
        "Steps": f"{facts.steps:,}",
        "Generated tokens": f"{facts.tokens:,}",
        "Time": f"{facts.seconds / 60:.1f} minutes of steps and audits on {in_markdown(facts.device)}",
        "Ended": f"early: {in_markdown(facts.stopped)}" if facts.stopped else "as planned",
        "Seed": str(facts.seed),
    }
    if facts.soup:
        toward, away = facts.soup
        found["Sum"] = (
            f"{toward:g} times the part to which nearness to the action is worth {facts.lean:g} more, {away:g} times the one "
            "to which distance is"
        )
    if facts.versions:
        found["Versions"] = ", ".join(f"{in_markdown(name)} {in_markdown(version)}" for name, version in facts.versions.items())
    return list(found.items())


def _rows(measured: Mapping[str, Any] | None) -> tuple[list[tuple[str, ...]], list[str]]:
    """The rows of the numbers' table, and a line for each group of people that nothing was measured on."""
    rows, missing = list[tuple[str, ...]](), list[str]()
    if measured is None:
        return rows, missing
    for key, said in (("seen", "trained on, later moments"), ("unseen", "not trained on")):
        group = measured.get(key)
        if not group:
            missing.append(f"People {said}: not measured.")
            continue
        n, of = str(group["n"]), f"{said} ({group['people']})"
        gains = [_estimate(group.get(name), signed=name == "difference") for name in ("base", "trained", "difference")]
        rows.append((of, "novel gain", *gains, n))
        for name, title in (("leak_rate", "leak rate"), ("gives_away", "tells the action alone"), ("words", "words a trace")):
            one = group.get(name) or {}
            digits = 1 if name == "words" else 3
            values = (_number(one.get(side), digits) for side in ("base", "trained"))
            more = _estimate(one["difference"], signed=True, digits=digits) if one.get("difference") else ""
            rows.append((of, title, *values, more, n))
    return rows, missing


def _estimate(one: Mapping[str, Any] | None, *, signed: bool, digits: int = 3) -> str:
    if one is None:
        return "not measured"
    low, high = one.get("low"), one.get("high")
    ends = "no interval" if low is None or high is None else f"{_number(low, digits)} to {_number(high, digits)}"
    return f"{'+' if signed and round(one['value'], digits) > 0 else ''}{_number(one['value'], digits)} ({ends})"


def _number(value: float | None, digits: int) -> str:
    return "not measured" if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", _MINUS)


def _licence(base: str) -> str:
    if base in _KNOWN:
        return "Apache-2.0, as the base model."
    return "As the base model; check it."


def _limits(facts: CardFacts) -> list[str]:
    unseen = (facts.measured or {}).get("unseen")
    others = f"measured on {_several(unseen['people'], 'other', 'others')}" if unseen else "measured on nobody else"
    found = [
        f"It was trained on {_several(facts.people, 'person', 'people')} and {others}; nothing is known of other languages, "
        "other kinds of talk and other bases.",
        "It may carry traits of the people whose logs it saw, words of theirs among them.",
        "Its traces are guesses that make what a person did likelier; they are not what the person thought.",
        "It was not tested on anything but writing traces, nor for safety, bias or truth.",
    ]
    if not facts.device.startswith(("cuda", "gpu")):
        found.append("It was trained on a CPU, and is untested on a GPU.")
    if facts.how != "forward":
        found.append("It was trained to write with the person's action in sight; what it writes without it was not rewarded.")
    return found


def _several(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def in_markdown(value: object) -> str:
    r"""A value as text inside Markdown, on one line.

    >>> in_markdown("a|b <i>")
    'a\\|b \\<i\\>'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(str(value).split()))
