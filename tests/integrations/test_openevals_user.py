"""A twin in openevals' own simulation, with the real package."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openevals.simulators import run_multiturn_simulation, run_multiturn_simulation_async
from twins import BYE, GOAL, failing_twin, silent_twin, talking_twin, texts

from usertwin.memory.models.recording import Recording
from usertwin.personas import ModelError, UsageError
from usertwin.simulator.integrations.openevals import twin_user
from usertwin.simulator.recording import load_user


class App:
    """An app that records its calls."""

    def __init__(self) -> None:
        self.calls = list[tuple[str, str]]()

    def __call__(self, message: Any, *, thread_id: str, **_: Any) -> dict[str, str]:
        self.calls.append((thread_id, message["content"]))
        return {"role": "assistant", "content": f"answer {len(self.calls)}"}

    async def later(self, message: Any, *, thread_id: str, **_: Any) -> dict[str, str]:
        await asyncio.sleep(0)
        return self(message, thread_id=thread_id)


@pytest.fixture(autouse=True)
def _no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGSMITH_TRACING", "false")


def test_a_twin_and_an_app_alternate_and_evaluators_get_the_trajectory(ann: str) -> None:
    (user, chat), app = talking_twin(ann), App()
    twin = twin_user(user, goal=GOAL)
    result = run_multiturn_simulation(
        app=app, user=twin.turn, stopping_condition=twin.stop, max_turns=3,
        trajectory_evaluators=[lambda *, outputs, **_: {"key": "length", "score": len(outputs)}],
    )  # fmt: skip
    assert [message["role"] for message in result["trajectory"]] == ["user", "assistant"] * 3
    assert texts(result["trajectory"], "user") == [text for _, text in app.calls]
    assert result["evaluator_results"] == [{"key": "length", "score": 6}]
    assert len(chat.requests) == 3  # nothing is written that nobody hears
    assert "answer 2" in chat.prompts[2]


def test_the_simulation_ends_when_the_twin_leaves(ann: str) -> None:
    app = App()
    twin = twin_user(talking_twin(ann, leaves_after=1)[0])
    result = run_multiturn_simulation(app=app, user=twin.turn, stopping_condition=twin.stop, max_turns=9)
    assert texts(result["trajectory"], "user")[-1] == BYE
    assert len(app.calls) == 2
    with pytest.raises(UsageError, match=r"give the simulation stopping_condition=user\.stop"):
        twin.turn(result["trajectory"])


def test_a_twin_that_leaves_without_a_word_sends_none(ann: str) -> None:
    app = App()
    twin = twin_user(silent_twin(ann, after=2))
    result = run_multiturn_simulation(app=app, user=twin.turn, stopping_condition=twin.stop, max_turns=9)
    assert [message["role"] for message in result["trajectory"]] == ["user", "assistant"] * 2
    assert all(texts(result["trajectory"], "user"))


def test_async_simulations_at_once_are_kept_apart(ann: str) -> None:
    twin = twin_user(talking_twin(ann)[0], goal=GOAL)

    async def run() -> list[Any]:
        simulation = {"user": twin.aturn, "stopping_condition": twin.astop, "max_turns": 2}
        return await asyncio.gather(*(run_multiturn_simulation_async(app=App().later, **simulation) for _ in range(8)))

    for result in asyncio.run(run()):
        assert texts(result["trajectory"], "assistant") == ["answer 1", "answer 2"]
        assert len(set(texts(result["trajectory"], "user"))) == 2


def test_the_twins_failure_is_raised_as_its_own_and_the_app_gets_no_call(ann: str) -> None:
    app = App()
    twin = twin_user(failing_twin(ann, after=1))
    with pytest.raises(ModelError, match="the model does not answer"):
        run_multiturn_simulation(app=app, user=twin.turn, stopping_condition=twin.stop, max_turns=3)
    assert len(app.calls) == 1


def test_a_recorded_simulation_is_replayed_without_a_model(ann: str, tmp_path: Any) -> None:
    user, chat = talking_twin(ann)
    results = list[Any]()
    for mode in ("record", "replay"):
        with Recording(tmp_path / "recording", mode) as recording, load_user(ann, recording, model=user.model) as recorded:
            twin = twin_user(recorded, seed=5)
            results.append(run_multiturn_simulation(app=App(), user=twin.turn, stopping_condition=twin.stop, max_turns=2))
    calls = len(chat.requests)
    assert texts(results[0]["trajectory"], "user") == texts(results[1]["trajectory"], "user")
    assert calls == len(chat.requests)
