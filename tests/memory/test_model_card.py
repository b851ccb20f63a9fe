"""memory/training/model_card.py: valid front matter, every number with its n, no person's name or text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from usertwin.memory.training.model_card import CARD, METHODS, CardFacts, card_text, write_card
from usertwin.personas import UsageError

GROUP: dict[str, Any] = {
    "n": 90,
    "people": 2,
    "base": {"value": 0.012, "low": 0.002, "high": 0.022},
    "trained": {"value": 0.033, "low": None, "high": None},
    "difference": {"value": 0.021, "low": -0.001, "high": 0.043},
    "leak_rate": {"base": 0.12, "trained": 0.08, "difference": {"value": -0.04, "low": -0.08, "high": 0.01}},
    "reveals_action": {"base": 0.2, "trained": None},
    "words": {"base": 22.41, "trained": 15.0},
}
FACTS = CardFacts(
    base="local",
    method="grpo",
    sources=["chitchat", "logs/support.jsonl.gz"],
    people=3,
    pairs=1210,
    unseen=2,
    reward={"fidelity": 1.0, "leak": 0.2, "shape": "clipped"},
    scorer="local",
    rank=16,
    steps=80,
    tokens=40123,
    seconds=750.0,
    measured={"scorer": "local:small", "seen": None, "unseen": GROUP},
    versions={"trl": "1.16.0"},
)


def front_matter(card: str) -> dict[str, Any]:
    return ModelCard(card).data.to_dict()


def rows(card: str) -> list[list[str]]:
    """The rows of the table of results, without its head."""
    lines = card[card.index("## Results") : card.index("## Licence")].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


def test_the_front_matter_names_base_licence_and_method() -> None:
    data = front_matter(card_text(FACTS))
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (data["library_name"], data["license"], data["base_model_relation"]) == ("peft", "apache-2.0", "adapter")
    assert {"lora", "usertwin", "grpo"} <= set(data["tags"])
    assert "datasets" not in data


@pytest.mark.parametrize(
    ("base", "hub_name", "licence"),
    [
        ("local:small", "Qwen/Qwen2.5-Coder-1.5B-Instruct", "apache-2.0"),
        ("hf:some/model-GGUF/model.gguf", "some/model-GGUF", "other"),
        ("transformers:/srv/models/mine", None, "other"),
    ],
)
def test_only_a_base_of_known_origin_is_linked(base: str, hub_name: str | None, licence: str) -> None:
    card = card_text(replace(FACTS, base=base))
    assert (front_matter(card).get("base_model"), front_matter(card)["license"]) == (hub_name, licence)
    assert ("As the base model; check it." in card) == (licence == "other")


@pytest.mark.parametrize("path", ["/home/me/logs/chat.jsonl", "C:\\logs\\chat.jsonl", "logs/chat.jsonl"])
def test_the_card_shows_no_folder(path: str) -> None:
    card = card_text(replace(FACTS, sources=[path], base="transformers:/srv/models/mine/", scorer="transformers:/srv/judge"))
    assert "Sources: `chat.jsonl`." in card
    assert "`transformers:mine`" in card
    assert "Scored by `transformers:judge`." in card
    assert not re.search(r"/srv|/home|logs[/\\]", card)


def test_the_card_shows_no_server_address() -> None:
    card = card_text(replace(FACTS, scorer="openai:big@http://box.internal:8000/v1"))
    assert "Scored by `openai:big`." in card
    assert "internal" not in card


def test_every_result_has_its_interval_and_its_n() -> None:
    card = card_text(FACTS)
    assert rows(card) == [
        [
            "not trained on (2)",
            "guarded gain",
            "0.012 (0.002 to 0.022)",
            "0.033 (no interval)",
            "+0.021 (-0.001 to 0.043)",
            "90",
        ],
        ["not trained on (2)", "passes the guards", "not measured", "not measured", "", "90"],
        ["not trained on (2)", "leak rate", "0.120", "0.080", "-0.040 (-0.080 to 0.010)", "90"],
        ["not trained on (2)", "reveals the action", "0.200", "not measured", "", "90"],
        ["not trained on (2)", "words per trace", "22.4", "15.0", "", "90"],
    ]
    assert "People trained on, later turns: not measured." in card
    assert "Scored by `local:small`" in card


def test_a_card_without_measurements_says_so() -> None:
    card = card_text(replace(FACTS, measured=None))
    assert "## Results\n\nNot measured.\n" in card
    assert "measured on no others" in card
    assert rows(card) == []


def test_the_limits_name_the_number_of_people_and_the_machine() -> None:
    card = card_text(FACTS)
    assert "It was trained on 3 people and measured on 2 others" in card
    assert "untested on a GPU" in card
    assert "untested on a GPU" not in card_text(replace(FACTS, device="cuda NVIDIA H100"))
    assert "with the action in the prompt" in card
    assert "with the action in the prompt" not in card_text(replace(FACTS, proposal_mode="forward"))


def test_the_card_shows_the_reward_and_why_training_stopped() -> None:
    card = card_text(replace(FACTS, stopped="the audit rises: 20 of 32"))
    assert "| fidelity | 1.0 |\n| leak | 0.2 |\n" in card
    assert "Shape of the fidelity term: clipped." in card
    assert "- Ended: early: the audit rises: 20 of 32\n" in card
    assert "1,210 pairs" in card
    assert "12.5 minutes of steps and audits on cpu" in card
    assert "- Versions: trl 1.16.0\n" in card


@pytest.mark.parametrize("method", [*METHODS, "another"])
def test_the_card_describes_every_method(method: str) -> None:
    card = card_text(replace(FACTS, method=method))
    title, description = METHODS.get(method, (method, "The base was trained by another."))
    assert f"trained by {title}\n" in card
    assert description in card


def test_every_card_has_the_same_sections() -> None:
    sections = ["Base", "Data", "Reward", "Training", "Results", "Licence", "Limits", "Use"]
    for facts in (FACTS, CardFacts(base="", method="x", sources=[], people=1, pairs=1)):
        card = card_text(facts)
        assert re.findall(r"^## (.*)$", card, re.MULTILINE) == sections
        assert "\n\n\n" not in card


def test_a_card_replaces_the_one_of_peft(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("by peft")
    assert write_card(tmp_path, FACTS) == tmp_path / CARD
    assert (tmp_path / CARD).read_text("utf-8") == card_text(FACTS)
    assert [path.name for path in tmp_path.iterdir()] == [CARD]


def test_a_source_name_that_is_not_unicode_is_written(tmp_path: Path) -> None:
    write_card(tmp_path, replace(FACTS, sources=["log-\udcff.jsonl"]))
    assert "log-?.jsonl" in (tmp_path / CARD).read_text("utf-8")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone/README\.md: cannot be written \(No such file or directory\); name an existing"):
        write_card(tmp_path / "gone", FACTS)
