"""memory/training/model_card.py: a card that the hub can read, with every number's n, and nobody's name or words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from usertwin.memory.training.model_card import CARD, METHODS, CardFacts, card_of, write_card
from usertwin.personas import UsageError

GROUP: dict[str, Any] = {
    "n": 90,
    "people": 2,
    "base": {"value": 0.012, "low": 0.002, "high": 0.022},
    "trained": {"value": 0.033, "low": None, "high": None},
    "difference": {"value": 0.021, "low": -0.001, "high": 0.043},
    "leak_rate": {"base": 0.12, "trained": 0.08, "difference": {"value": -0.04, "low": -0.08, "high": 0.01}},
    "gives_away": {"base": 0.2, "trained": None},
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


def front(card: str) -> dict[str, Any]:
    """The front matter of a card."""
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))


def rows(card: str) -> list[list[str]]:
    """The rows of the table of numbers, without its head."""
    lines = card[card.index("## Numbers") : card.index("## Licence")].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


def test_the_front_matter_is_what_the_hub_wants() -> None:
    found = front(card_of(FACTS))
    assert found["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (found["library_name"], found["license"], found["base_model_relation"]) == ("peft", "apache-2.0", "adapter")
    assert {"lora", "usertwin", "grpo"} <= set(found["tags"])
    assert "datasets" not in found


@pytest.mark.parametrize(
    ("base", "hub", "licence"),
    [
        ("local:small", "Qwen/Qwen2.5-Coder-1.5B-Instruct", "apache-2.0"),
        ("hf:some/model-GGUF/model.gguf", "some/model-GGUF", "other"),
        ("transformers:/srv/models/mine", None, "other"),
    ],
)
def test_a_base_is_linked_only_where_it_is_known_to_be(base: str, hub: str | None, licence: str) -> None:
    card = card_of(replace(FACTS, base=base))
    assert (front(card).get("base_model"), front(card)["license"]) == (hub, licence)
    assert ("As the base model; check it." in card) == (licence == "other")


def test_no_folder_of_the_machine_is_told() -> None:
    paths = ("/home/me/logs/chat.jsonl", "C:\\logs\\chat.jsonl", "logs/chat.jsonl")
    for path in paths:
        card = card_of(replace(FACTS, sources=[path], base="transformers:/srv/models/mine/", scorer="transformers:/srv/judge"))
        assert "Sources: chat.jsonl." in card
        assert "transformers:mine" in card
        assert "Scored by transformers:judge." in card
        assert not re.search(r"/srv|/home|logs[/\\]", card)


def test_the_address_of_a_server_is_not_told() -> None:
    card = card_of(replace(FACTS, scorer="openai:big@http://box.internal:8000/v1"))
    assert "Scored by openai:big." in card
    assert "internal" not in card


def test_the_numbers_have_their_intervals_and_their_n() -> None:
    assert rows(card_of(FACTS)) == [
        ["not trained on (2)", "novel gain", "0.012 (0.002 to 0.022)", "0.033 (no interval)", "+0.021 (−0.001 to 0.043)", "90"],
        ["not trained on (2)", "leak rate", "0.120", "0.080", "−0.040 (−0.080 to 0.010)", "90"],
        ["not trained on (2)", "tells the action alone", "0.200", "not measured", "", "90"],
        ["not trained on (2)", "words a trace", "22.4", "15.0", "", "90"],
    ]
    assert "People trained on, later moments: not measured." in card_of(FACTS)


def test_what_was_not_measured_is_said_not_to_be() -> None:
    card = card_of(replace(FACTS, measured=None))
    assert "## Numbers\n\nNot measured.\n" in card
    assert "measured on nobody else" in card
    assert rows(card) == []


def test_the_limits_say_on_how_many_people_and_on_what_machine_it_was_trained() -> None:
    card = card_of(FACTS)
    assert "It was trained on 3 people and measured on 2 others" in card
    assert "untested on a GPU" in card
    assert "untested on a GPU" not in card_of(replace(FACTS, device="cuda NVIDIA H100"))
    assert "in sight" in card
    assert "with the person's action in sight" not in card_of(replace(FACTS, how="forward"))


def test_the_reward_and_the_reason_to_stop_are_told() -> None:
    card = card_of(replace(FACTS, stopped="the audit rises: 20 of 32"))
    assert "| fidelity | 1.0 |\n| leak | 0.2 |\n" in card
    assert "form of the fidelity: clipped." in card
    assert "- Ended: early: the audit rises: 20 of 32" in card
    assert "1,210 pairs" in card
    assert "12.5 minutes of steps and audits on cpu" in card


def test_of_a_sum_the_weights_are_told() -> None:
    card = card_of(replace(FACTS, method="soup", soup=(2.0, 0.6), lean=0.3))
    assert "- Sum: 2 times the part to which nearness to the action is worth 0.3 more, 0.6 times the one to which" in card
    assert "- Sum:" not in card_of(FACTS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_it_does(method: str) -> None:
    card = card_of(replace(FACTS, method=method))
    assert f"trained by {METHODS[method][0]}\n" in card
    assert METHODS[method][1] in card


@settings(max_examples=30)
@given(st.text(), st.text(min_size=1), st.text())
def test_whatever_a_name_is_the_card_can_be_read(base: str, source: str, method: str) -> None:
    card = card_of(replace(FACTS, base=f"transformers:x{base}", sources=[source], method=method, stopped=base))
    found = front(card)
    assert found["tags"][-1] == "".join(filter(str.isprintable, method))
    assert [line for line in card.splitlines() if line.startswith("# ")] != []
    titles = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert titles == ["Base", "Data", "Reward", "Training", "Numbers", "Licence", "Limits", "How to use it"]
    assert not re.search(r"(?<!\\)<", card.split("\n---\n", 1)[1])


def test_the_card_takes_the_place_of_one_that_was_there(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("by peft")
    assert write_card(tmp_path, FACTS) == tmp_path / CARD
    assert (tmp_path / CARD).read_text("utf-8") == card_of(FACTS)
    assert [one.name for one in tmp_path.iterdir()] == [CARD]


def test_a_source_whose_name_is_no_text_does_not_stop_the_card(tmp_path: Path) -> None:
    write_card(tmp_path, replace(FACTS, sources=["log-\udcff.jsonl"]))
    assert "log-?.jsonl" in (tmp_path / CARD).read_text("utf-8")


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone/README\.md: cannot be written \(No such file or directory\); name a folder"):
        write_card(tmp_path / "gone", FACTS)
