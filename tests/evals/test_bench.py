"""The benchmarks run at a tiny size, yields every promised figure, and would notice what it counts."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest

from conftest import Endpoint, tiny
from usertwin.evals.benchmarks.crash_safety import judge_appended, judge_learned, small_log, small_recipe
from usertwin.evals.benchmarks.figures import figure, in_child, in_turn, noted_questions
from usertwin.evals.benchmarks.large_memory import short_triples, units, variants
from usertwin.evals.benchmarks.memory import Sizes, memory_part, real_embeddings
from usertwin.evals.benchmarks.recon import PEOPLE, ReconSizes, controls_part, recon_part
from usertwin.evals.benchmarks.run import main
from usertwin.evals.benchmarks.scoring import EvalSizes, eval_part, scoring_figures
from usertwin.memory import TripleStore, alearn
from usertwin.memory.models.chat import sample
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.simulator import load_model

TINY = Sizes(
    dimension=32, flat=300, appended=20, recalls=2, opens=2, appends=2, saves=2, kinds=300, large=600, chunk=250, real=280,
    queries=20, timed_queries=3, resident_recalls=5, kills=2, save_kills=1, twins=4,
)  # fmt: skip
KINDS = [f"kinds_200k.{kind}.{what}" for kind in ("flat", "hnsw", "ivf", "ivfpq") for what in
         ("build_s", "query_ms", "recall_at_10", "bytes")]  # fmt: skip
PROMISED = {f"memory.{name}" for name in (
    "recall_100k_ms", "recall_100k_vs_faiss", "recall_100k_vs_faiss_one_thread", "recall_100k_before_vs_faiss",
    "recall_100k_before_vs_faiss_one_thread", "open_100k_s", "open_100k_vs_read", "append_vs_sqlite", "append_1k_ms",
    "append_commit_ms", "search_vs_langchain", "open_vs_langchain", "append_vs_langchain", "langchain_search_ms",
    "langchain_open_s", "langchain_append_s", "list_10k_s", "open_among_10k_vs_alone", "lost_in_200_kills",
    "unclean_opens_after_200_kills", "lost_when_killed_in_save", "lost_when_killed_in_save_langchain", *KINDS,
    "ann_1m_recall_at_10", "ann_1m_time_vs_exact", "ann_1m_search_ms", "recall_1m_ms", "rss_1m_vs_vectors",
    "rss_peak_1m_vs_vectors", "open_1m_s", "add_1m_s", "build_1m_s", "ann_1m_random_recall_at_10",
    "ann_1m_random_time_vs_exact",
)}  # fmt: skip


def test_a_tiny_run_yields_every_figure_and_loses_nothing() -> None:
    pytest.importorskip("langchain_community")
    real = units(np.random.default_rng(7), TINY.real + TINY.queries, TINY.dimension)
    found = dict(memory_part(TINY, lambda count: real[:count]))
    assert set(found) == PROMISED
    assert all(math.isfinite(one.value) and one.low <= one.value <= one.high for one in found.values())
    assert found["memory.lost_in_200_kills"].value == found["memory.lost_when_killed_in_save"].value == 0
    assert found["memory.unclean_opens_after_200_kills"].value == 0, found["memory.unclean_opens_after_200_kills"].against
    assert found["memory.kinds_200k.flat.recall_at_10"].value == 1


def test_an_acknowledged_triple_that_is_gone_counts_as_lost(tmp_path: Path) -> None:
    with TripleStore(tmp_path / "memory", FakeEmbedder(384)) as store:
        store.add(short_triples(0, 10))
    (tmp_path / "told").write_text("memory memories 4\nmemory memories 12\n", "utf-8")
    assert judge_appended(tmp_path, tmp_path / "told") == {"lost": 2, "wrong": []}


def test_a_trace_that_learning_says_is_done_and_is_not_there_counts_as_lost(tmp_path: Path) -> None:
    asyncio.run(alearn("twin-0", small_log(), small_recipe("none", 384), embedder=FakeEmbedder(384), home=tmp_path))
    (tmp_path / "told").write_text("twin-0 memories 3\ntwin-0 traces 2\n", "utf-8")
    assert judge_learned(tmp_path, tmp_path / "told") == {"lost": 2, "wrong": []}


def test_variants_begin_with_the_known_embeddings_and_have_unit_length() -> None:
    rng = np.random.default_rng(0)
    known = units(rng, 5, 16)
    made = np.concatenate([variants(rng, known, start, 4) for start in (0, 4, 8)])
    assert np.array_equal(made[:5], known)
    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    assert len(np.unique(made, axis=0)) == 12


def test_real_embeddings_are_computed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("USERTWIN_CACHE", str(tmp_path))
    first = real_embeddings(30, FakeEmbedder(64), small_log())
    monkeypatch.setattr(FakeEmbedder, "embed", None)
    assert first.shape == (30, 64)
    assert np.array_equal(real_embeddings(30, FakeEmbedder(64)), first)


def test_the_benchmark_can_be_asked_for_the_memory_alone() -> None:
    [only] = [option for option in main.params if option.name == "only"]
    assert isinstance(only.type, click.Choice)
    assert "memory" in only.type.choices


def test_sides_are_measured_in_turn_in_either_order() -> None:
    order: list[str] = []

    def side(name: str, number: int) -> float:
        order.append(name)
        return float(number)

    assert in_turn(2, lambda n: side("a", n), lambda n: side("b", n)) == [[0.0, 1.0], [0.0, 1.0]]
    assert order == ["a", "b", "b", "a"]


def test_a_figure_is_the_median_with_its_quartiles() -> None:
    one = figure([4.0, 1.0, 2.0, 3.0, 5.0], "s", "nothing")
    assert (one.low, one.value, one.high, one.n) == (1.5, 3.0, 4.5, 5)
    assert figure([2.0], "s", "nothing").low == 2.0


def test_scoring_is_compared_with_the_bare_model_on_the_same_sequences() -> None:
    items = [("Them: hello\nMe:", " good day\n"), ("Them: hullo\nMe:", " good day\n"), ("Them: and now?\nMe:", " bye\n")]
    found = dict(scoring_figures(TransformersScorer("tiny", tiny), items, 3))
    assert set(found) == {"eval.scoring_vs_forward", "eval.scoring_tokens_per_s", "eval.scoring_max_abs_error"}
    assert all(0 < one.low <= one.value <= one.high for name, one in found.items() if name != "eval.scoring_max_abs_error")
    assert found["eval.scoring_max_abs_error"].value < 1e-4
    assert found["eval.scoring_max_abs_error"].n == sum(len(continuation) for _, continuation in items)
    assert "3 sequences of 23 to 25 tokens" in found["eval.scoring_vs_forward"].against


def test_scores_that_are_off_are_seen_in_the_largest_error() -> None:
    class Off(TransformersScorer):
        def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
            return [replace(one, each=(one.each[0] - 0.5, *one.each[1:])) for one in super().score(items)]

    found = dict(scoring_figures(Off("tiny", tiny), [("Them: hello\nMe:", " good day\n")], 2))
    assert found["eval.scoring_max_abs_error"].value == pytest.approx(0.5, abs=1e-3)


def test_what_a_model_is_asked_is_noted_in_order(endpoint: Endpoint) -> None:
    model = load_model(f"openai:m@{endpoint.url}")
    asked = noted_questions(model)
    for text in ("first", "second"):
        asyncio.run(sample(model, [("user", text)], seed=3))
    found = [json.loads(question) for question in asked]
    assert [one["messages"][-1]["content"] for one in found] == ["first", "second"]
    assert [one["messages"] for one in found] == [one["messages"] for one in endpoint.asked]
    assert asked == [json.dumps(one, sort_keys=True) for one in found]


def test_a_child_process_gives_back_what_the_function_returns() -> None:
    assert in_child(math.gcd, 12, 18) == 6


@pytest.mark.slow
def test_real_turns_are_scored_as_the_bare_model_scores_them() -> None:
    found = dict(eval_part(EvalSizes(items=4, rounds=2)))
    assert found["eval.scoring_max_abs_error"].value < 1e-3
    assert found["eval.scoring_vs_forward"].n == 2


@pytest.mark.slow
def test_the_figures_of_recon_come_out_of_a_tiny_run_and_nothing_is_asked_twice() -> None:
    found = dict(recon_part(ReconSizes(pairs=2, traces=2)))
    assert found["recon.logprob_max_abs_error"].value < 1e-3
    assert found["recon.shared_context_speedup"].n == 2
    assert found["recon.resume_repeated_requests"].value == found["recon.warm_cache_requests"].value == 0
    assert found["recon.warm_cache_time_share"].value < 1


@pytest.mark.slow
def test_the_figures_of_the_controls_come_out_of_a_tiny_run(tmp_path: Path) -> None:
    script = tmp_path / "judge.txt"
    script.write_text("no verdict\n", "utf-8")
    found = dict(controls_part(ReconSizes(controls=2, agreement=0, memory=60), judge=f"scripted:{script}"))
    for called in PEOPLE:
        assert found[f"controls.{called}.copy.rejected"].value == 1
        assert found[f"controls.{called}.copy.gain"].value > found[f"controls.{called}.own.gain"].value
        assert found[f"controls.{called}.more_than_leakage"].n == 2
