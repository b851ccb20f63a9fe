"""Tests of evals/benchmarks: tiny runs yield every promised figure, and losses and errors are counted."""

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
from usertwin.evals.benchmarks.crash_safety import check_appended, check_learned, small_log, small_recipe
from usertwin.evals.benchmarks.figures import figure, record_requests, run_alternately, run_in_subprocess
from usertwin.evals.benchmarks.large_memory import short_triples, units, variants
from usertwin.evals.benchmarks.learning import LearnSizes, learn_part, person_conversations, threads_part
from usertwin.evals.benchmarks.memory import Sizes, memory_part, real_embeddings
from usertwin.evals.benchmarks.recon import PEOPLE, ReconSizes, controls_part, resume_figures, shared_context_figures
from usertwin.evals.benchmarks.run import main
from usertwin.evals.benchmarks.scoring import EvalSizes, eval_part, scoring_figures
from usertwin.memory import TripleStore, alearn
from usertwin.memory.models.chat import sample
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.personas import ChatLog, Conversation, Turn, split_pairs
from usertwin.personas.chat_log import sort_by_time
from usertwin.simulator import load_model

TINY = Sizes(
    dimension=32, flat=300, appended=20, recalls=2, opens=2, appends=2, saves=2, kinds=300, large=600, chunk=250, real=280,
    queries=20, timed_queries=3, resident_recalls=5, kills=2, save_kills=1, twins=4,
)  # fmt: skip
KINDS = [f"kinds_200k.{kind}.{what}" for kind in ("flat", "ivfpq") for what in
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


def test_a_tiny_memory_run_yields_every_figure_and_loses_nothing() -> None:
    pytest.importorskip("langchain_community")
    real = units(np.random.default_rng(7), TINY.real + TINY.queries, TINY.dimension)
    figures = dict(memory_part(TINY, lambda count: real[:count]))
    assert set(figures) == PROMISED
    assert all(math.isfinite(row.value) and row.low <= row.value <= row.high for row in figures.values())
    assert figures["memory.lost_in_200_kills"].value == figures["memory.lost_when_killed_in_save"].value == 0
    assert figures["memory.unclean_opens_after_200_kills"].value == 0, figures["memory.unclean_opens_after_200_kills"].against
    assert figures["memory.kinds_200k.flat.recall_at_10"].value == 1


def test_an_acknowledged_triple_that_is_gone_counts_as_lost(tmp_path: Path) -> None:
    with TripleStore(tmp_path / "memory", FakeEmbedder(384)) as store:
        store.add(short_triples(0, 10))
    (tmp_path / "acknowledged").write_text("memory memories 4\nmemory memories 12\n", "utf-8")
    assert check_appended(tmp_path, tmp_path / "acknowledged") == {"lost": 2, "problems": []}


def test_an_acknowledged_trace_that_is_gone_counts_as_lost(tmp_path: Path) -> None:
    asyncio.run(alearn("twin-0", small_log(), small_recipe("none", 384), embedder=FakeEmbedder(384), home=tmp_path))
    (tmp_path / "acknowledged").write_text("twin-0 memories 3\ntwin-0 traces 2\n", "utf-8")
    assert check_learned(tmp_path, tmp_path / "acknowledged") == {"lost": 2, "problems": []}


def test_variants_begin_with_the_known_embeddings_and_have_unit_length() -> None:
    rng = np.random.default_rng(0)
    known = units(rng, 5, 16)
    vectors = np.concatenate([variants(rng, known, start, 4) for start in (0, 4, 8)])
    assert np.array_equal(vectors[:5], known)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert len(np.unique(vectors, axis=0)) == 12


def test_real_embeddings_are_computed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("USERTWIN_CACHE", str(tmp_path))
    first = real_embeddings(30, FakeEmbedder(64), small_log())
    monkeypatch.setattr(FakeEmbedder, "embed", None)
    assert first.shape == (30, 64)
    assert np.array_equal(real_embeddings(30, FakeEmbedder(64)), first)


def test_a_part_of_the_benchmarks_can_be_run_alone() -> None:
    [only] = [option for option in main.params if option.name == "only"]
    assert isinstance(only.type, click.Choice)
    assert {"memory", "learn"} <= set(only.type.choices)


def test_a_tiny_learn_run_yields_its_figures() -> None:
    figures = dict(learn_part(LearnSizes(turns=40, rounds=2, large_turns=90), FakeEmbedder(), small_log()))
    assert set(figures) == {"learn.vs_read_and_embed", "learn.10k_turns_s"}
    assert all(row.value > 0 and row.low <= row.value <= row.high for row in figures.values())
    assert [row.n for row in figures.values()] == [2, 1]


def test_runs_of_learning_with_many_requests_at_once_are_equal() -> None:
    figures = dict(threads_part(runs=3, turns=30, log=small_log()))
    assert figures["learn.equal_runs"].value == 1
    assert figures["learn.equal_runs"].n == 3


def test_a_log_of_one_person_has_the_turns_asked_for_and_two_speakers() -> None:
    conversations = person_conversations(small_log().conversations, 300)  # more than the log has: conversations repeat
    log = ChatLog(sort_by_time(conversations, "test"), "test")
    assert 300 <= log.turn_counts()["Person"] < 304
    assert all(len(conversation.speakers()) >= 2 for conversation in conversations)
    assert len(split_pairs(log, "Person").corpus) > 150
    with pytest.raises(ValueError, match="no conversation has two speakers"):
        person_conversations([Conversation("c", (Turn("Bob", "user", "hi"),))], 3)


def test_sides_run_alternately_in_either_order() -> None:
    order: list[str] = []

    def side(name: str, number: int) -> float:
        order.append(name)
        return float(number)

    assert run_alternately(2, lambda n: side("a", n), lambda n: side("b", n)) == [[0.0, 1.0], [0.0, 1.0]]
    assert order == ["a", "b", "b", "a"]


def test_a_figure_is_the_median_with_its_quartiles() -> None:
    row = figure([4.0, 1.0, 2.0, 3.0, 5.0], "s", "nothing")
    assert (row.low, row.value, row.high, row.n) == (2.0, 3.0, 4.0, 5)
    assert figure([2.0], "s", "nothing").low == 2.0


def test_scoring_is_compared_with_the_bare_model_on_equal_sequences() -> None:
    items = [("Them: hello\nMe:", " good day\n"), ("Them: hullo\nMe:", " good day\n"), ("Them: and now?\nMe:", " bye\n")]
    figures = dict(scoring_figures(TransformersScorer("tiny", tiny), items, 3))
    assert set(figures) == {"eval.scoring_vs_forward", "eval.scoring_tokens_per_s", "eval.scoring_max_abs_error"}
    assert all(0 < row.low <= row.value <= row.high for name, row in figures.items() if name != "eval.scoring_max_abs_error")
    assert figures["eval.scoring_max_abs_error"].value < 1e-4
    assert figures["eval.scoring_max_abs_error"].n == sum(len(continuation) for _, continuation in items)
    assert "3 sequences of 23 to 25 tokens" in figures["eval.scoring_vs_forward"].against


def test_wrong_scores_show_in_the_largest_error() -> None:
    class WrongScorer(TransformersScorer):
        def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
            return [replace(row, token_nats=(row.token_nats[0] - 0.5, *row.token_nats[1:])) for row in super().score(items)]

    figures = dict(scoring_figures(WrongScorer("tiny", tiny), [("Them: hello\nMe:", " good day\n")], 2))
    assert figures["eval.scoring_max_abs_error"].value == pytest.approx(0.5, abs=1e-3)


def test_requests_to_a_model_are_recorded_in_order(endpoint: Endpoint) -> None:
    model = load_model(f"openai:m@{endpoint.url}")
    requests = record_requests(model)
    for text in ("first", "second"):
        asyncio.run(sample(model, [("user", text)], seed=3))
    payloads = [json.loads(request) for request in requests]
    assert [payload["messages"][-1]["content"] for payload in payloads] == ["first", "second"]
    assert [payload["messages"] for payload in payloads] == [received["messages"] for received in endpoint.requests]
    assert requests == [json.dumps(payload, sort_keys=True) for payload in payloads]


def test_a_subprocess_returns_the_result_of_the_function() -> None:
    assert run_in_subprocess(math.gcd, 12, 18) == 6


@pytest.mark.slow
def test_real_turns_get_the_scores_of_the_bare_model() -> None:
    figures = dict(eval_part(EvalSizes(items=4, rounds=2)))
    assert figures["eval.scoring_max_abs_error"].value < 1e-3
    assert figures["eval.scoring_vs_forward"].n == 2


def test_a_shared_context_gives_the_scores_of_whole_sequences() -> None:
    figures = dict(shared_context_figures(TransformersScorer("tiny", tiny), 1))
    assert figures["recon.logprob_max_abs_error"].value < 1e-3
    assert figures["recon.shared_context_speedup"].n == 1


def test_learning_again_repeats_no_request(endpoint: Endpoint) -> None:
    sizes, model = ReconSizes(traces=2, learned=12), load_model(f"openai:m@{endpoint.url}")
    figures = dict(resume_figures(sizes, model, FakeScorer(), FakeEmbedder()))
    assert figures["recon.resume_repeated_requests"].value == figures["recon.warm_cache_requests"].value == 0
    assert figures["recon.resume_repeated_requests"].against != "0 before and after the stop"
    assert figures["recon.warm_cache_time_share"].value > 0


def test_a_tiny_controls_run_yields_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PEOPLE, "chatter")  # one person shows the way
    script = tmp_path / "judge.txt"
    script.write_text("no verdict\n", "utf-8")
    sizes = ReconSizes(controls=2, agreement=0, memory=60)
    models = {
        "proposer": f"scripted:{script}",
        "judge": f"scripted:{script}",
        "scorer": FakeScorer(),
        "embedder": FakeEmbedder(),
    }
    figures = dict(controls_part(sizes, **models))
    for person in PEOPLE:
        assert figures[f"controls.{person}.copy.rejected"].value == 1
        assert figures[f"controls.{person}.copy.gain"].value > figures[f"controls.{person}.own.gain"].value
        assert figures[f"controls.{person}.more_than_leakage"].n == 2
