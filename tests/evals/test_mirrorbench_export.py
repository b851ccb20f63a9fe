"""Tests of evals/records/mirrorbench_export.py: lines that mirrorbench reads; the two conversations differ in the last turn."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_run import PEOPLE, TWIN, turn, turns

from usertwin.evals.records.mirrorbench_export import mirrorbench_lines
from usertwin.personas import UsageError


def exported(measured: list[Any], arm: str = TWIN) -> list[dict[str, Any]]:
    """Return the lines as objects."""
    return [json.loads(line) for line in mirrorbench_lines(measured, arm)]


def test_the_conversations_differ_only_in_the_last_turn() -> None:
    (line,) = exported([turn(3, PEOPLE[0], text="is it raining?")])
    assert line["real_conversation"] == [
        {"role": "assistant", "content": "Good morning!"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "What can I do for you?\nTake your time."},
        {"role": "user", "content": "is it raining?"},
    ]
    assert line["rollout_conversation"] == [*line["real_conversation"][:-1], {"role": "user", "content": "twin says 3"}]


def test_every_line_identifies_its_turn() -> None:
    (line,) = exported([turn(3, PEOPLE[0])])
    assert line["episode_id"] == "chitchat/ann/c3/3"
    assert line["task_id"] == "chitchat/ann"
    assert line["metadata"] == {
        "arm": TWIN, "person": "chitchat/ann", "conversation_id": "c3", "position": 3, "measured_user_turn": 1,
    }  # fmt: skip


def test_every_line_has_the_keys_of_mirrorbench_datasets() -> None:
    (line,) = exported([turn(3, PEOPLE[0])])
    assert line["conversation_id"] == line["episode_id"]
    assert line["turns"] == line["real_conversation"]
    assert (line["task_description"], line["task_tag"]) == ("the weather", "next_turn")


def test_episode_names_are_unique() -> None:
    names = [line["episode_id"] for line in exported(turns())]
    assert len(set(names)) == len(names) == 40


@given(st.lists(st.tuples(st.sampled_from(["ann", "desk", "other"]), st.text())), st.text())
def test_roles_alternate_and_no_message_is_empty(context: list[tuple[str, str]], text: str) -> None:
    measured = replace(turn(1, PEOPLE[0]), context=tuple(context), action=text, replies={TWIN: (text,)})
    for line in mirrorbench_lines([measured], TWIN):
        assert "\n" not in line
        conversations = json.loads(line)
        for key in ("real_conversation", "rollout_conversation"):
            roles = [message["role"] for message in conversations[key]]
            assert all(first != second for first, second in pairwise(roles))
            assert roles[-1] == "user"
            assert all(message["content"].strip() for message in conversations[key])


def test_turns_without_a_reply_of_the_arm_are_skipped() -> None:
    silent = replace(turn(5, PEOPLE[0]), replies={"persona": ("hm",)})
    assert [line["metadata"]["position"] for line in exported([turn(4, PEOPLE[0]), silent])] == [4]


def test_an_arm_without_replies_is_an_error_that_names_the_others() -> None:
    with pytest.raises(UsageError, match="name one of persona, recalled_pairs"):
        exported(turns(2), "trained")


def test_an_export_of_a_run_without_replies_names_the_way_out() -> None:
    with pytest.raises(UsageError, match="run the suite with replies"):
        exported([replace(turn(1, PEOPLE[0]), replies={})])
