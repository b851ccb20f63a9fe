"""evals/suites/config.py: what a suite's file may say, and that whatever is wrong with it is said in one sentence with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented_suite import suite_file, talk, write_log

from usertwin.evals.arm_names import ARMS, USUAL_ARMS
from usertwin.evals.suites.config import Corpus, Suite, logs_of, people_of, read_suite
from usertwin.personas import LogError, UsageError, read_conversations
from usertwin.personas.importers.chitchat import CHITCHAT

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LEAST = '[[corpora]]\nname = "casual"\nfrom = "chitchat"\n'


def read(folder: Path, text: str) -> Suite:
    (folder / "s.toml").write_text(text, "utf-8")
    return read_suite(folder / "s.toml")


def refused(folder: Path, text: str) -> str:
    """What is said of a suite, without the name of its file, with which it begins; it is one sentence."""
    with pytest.raises(UsageError) as error:
        read(folder, text)
    said = str(error.value)
    assert said.startswith(str(folder / "s.toml"))
    assert "\n" not in said
    assert "pydantic" not in said
    return said.removeprefix(str(folder / "s.toml"))


# What is read ----------------------------------------------------------------------------------------------------------


def test_a_suite_of_three_lines_is_read_with_the_usual_arms(tmp_path: Path) -> None:
    found = read(tmp_path, LEAST)
    assert (found.arms, found.turns, found.k, found.window) == (USUAL_ARMS, 100, None, None)
    assert found.corpora == (Corpus.model_validate({"name": "casual", "from": CHITCHAT, "people": 2}),)
    assert found.models.judge is None


def test_arms_come_in_the_order_in_which_they_are_reported(tmp_path: Path) -> None:
    found = read(tmp_path, 'arms = ["persona", "recalled_pairs", "no_memory", "persona"]\n' + LEAST)
    assert found.arms == ("no_memory", "recalled_pairs", "persona")


def test_paths_of_corpora_and_models_are_relative_to_the_file_and_names_are_no_paths(tmp_path: Path) -> None:
    text = """
        [models]
        action = "scripted:replies.txt"
        judge = "local:models/big.gguf"
        scorer = "transformers:../weights"
        trained = "local:small"
        proposer = "openai:NAME@http://127.0.0.1/v1"
        [transfer]
        proposers = ["local", "scripted:x/y.txt"]
        scorers = ["fake:"]
        [[corpora]]
        name = "court"
        from = "oyez:court"
        [[corpora]]
        name = "desk"
        from = "logs/desk.jsonl.gz"
        [[corpora]]
        name = "casual"
        from = "chitchat"
    """
    found = read(tmp_path, text)
    models = found.models
    assert [corpus.source for corpus in found.corpora] == [
        f"oyez:{tmp_path / 'court'}",
        f"{tmp_path / 'logs/desk.jsonl.gz'}",
        CHITCHAT,
    ]
    assert (models.action, models.judge) == (f"scripted:{tmp_path / 'replies.txt'}", f"local:{tmp_path / 'models/big.gguf'}")
    assert (models.scorer, models.trained) == (f"transformers:{tmp_path.parent / 'weights'}", "local:small")
    assert models.proposer == "openai:NAME@http://127.0.0.1/v1"
    assert found.transfer is not None
    assert (found.transfer.proposers, found.transfer.scorers) == (("local", f"scripted:{tmp_path / 'x/y.txt'}"), ("fake:",))


def test_absolute_paths_stay_as_they_are(tmp_path: Path) -> None:
    found = read(
        tmp_path, f'[models]\naction = "scripted:{tmp_path}/a.txt"\n[[corpora]]\nname = "a"\nfrom = "{tmp_path}/l.jsonl"\n'
    )
    assert (found.models.action, found.corpora[0].source) == (f"scripted:{tmp_path}/a.txt", f"{tmp_path}/l.jsonl")


@given(st.permutations(ARMS), st.integers(1, len(ARMS)), st.integers(0, 10_000), st.integers(1, 9))
def test_whatever_arms_and_numbers_are_named_come_back(
    tmp_path_factory: Any, arms: list[str], count: int, turns: int, k: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    found = read(folder, f"arms = {json.dumps(arms[:count])}\nturns = {turns}\nk = {k}\nwindow = {k}\n{LEAST}")
    assert set(found.arms) == set(arms[:count])
    assert (found.turns, found.k, found.window) == (turns, k, k)


# What is wrong -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("turn = 3\n" + LEAST, ', line 1: there is no key "turn" (did you mean "turns"?)'),
        (LEAST + "\n[models]\nacton = 'local'\n", ', line 6: there is no key "models.acton" (did you mean "action"?)'),
        (LEAST + "peple = 2\n", ', line 4: there is no key "corpora.peple" (did you mean "people"?)'),
        (LEAST + LEAST.replace("casual", "b") + "rule = 1\n", ', line 7: there is no key "corpora.rule" (did you'),
        ("zzz = 1\n" + LEAST, ', line 1: there is no key "zzz"'),
        ("traces = { moment = 3 }\n" + LEAST, ', line 1: there is no key "traces.moment" (did you mean "moments"?)'),
        ("models.sorer = 'local'\n" + LEAST, ', line 1: there is no key "models.sorer" (did you mean "scorer"?)'),
        ('arms = ["tau"]\n' + LEAST, f', line 1: there is no arm "tau" (did you mean "tau2"?); there are {", ".join(ARMS)}'),
        ('arms = [\n  "no_memory",\n  "x",\n]\n' + LEAST, f', line 1: there is no arm "x"; there are {", ".join(ARMS)}'),
        ("name = 'nobody'\n", ": names nobody to measure: give [[corpora]] with people, or twins"),
        ("twins = []\n", ": names nobody to measure: give [[corpora]] with people, or twins"),
        ("# first\nk = 8\n" + LEAST, ', line 2: "k" and "window" are given together, or neither'),
        ("window = 8\n" + LEAST, ', line 1: "k" and "window" are given together, or neither'),
        ('turns = "many"\n' + LEAST, ", line 1: \"turns\": input should be a valid integer, not 'many'"),
        ("turns = true\n" + LEAST, ', line 1: "turns": input should be a valid integer, not True'),
        ("turns = 2.5\n" + LEAST, ', line 1: "turns": input should be a valid integer, not 2.5'),
        ("\nreplies = -1\n" + LEAST, ', line 2: "replies": input should be greater than or equal to 0, not -1'),
        ("samples = 0\n" + LEAST, ', line 1: "samples": input should be greater than or equal to 1, not 0'),
        ("seed = 2024-01-01\n" + LEAST, ", line 1: \"seed\": input should be a valid integer, not '2024-01-01'"),
        ("arms = 'all'\n" + LEAST, ", line 1: \"arms\": input should be a valid array, not 'all'"),
        ("arms = [3]\n" + LEAST, ', line 1: "arms": input should be a valid string, not 3'),
        (LEAST + "people = []\n", ', line 4: "people": name at least one person, or how many'),
        (LEAST + "people = 0\n", ', line 4: "people": name at least one person, or how many'),
        (LEAST + "people = ['Ann', 'Bob', 'Ann']\n", ', line 4: "people": "Ann" is named twice'),
        (LEAST + "people = 'Ann'\n", ", line 4: \"corpora.people\": how many, or a list of names, not 'Ann'"),
        (LEAST + "people = ['Ann', 3]\n", ', line 4: "corpora.people": how many, or a list of names, not '),
        (LEAST + LEAST, ': two corpora have the name "casual"; give each its own'),
        ("[[corpora]]\nname = 'x'\n", ', line 1: "corpora.from" is missing'),
        (LEAST + "[[corpora]]\nfrom = 'x'\n", ', line 4: "corpora.name" is missing'),
        ("corpora = 3\n", ', line 1: "corpora": input should be a valid array, not 3'),
        ("corpora = ['chitchat']\n", ', line 1: "corpora": input should be an object, not \'chitchat\''),
        ("models = 'local'\n" + LEAST, ", line 1: \"models\": input should be an object, not 'local'"),
        ("models.style = 'x'\n" + LEAST, ", line 1: \"models.style\": input should be 'transcript' or 'instruction', not 'x'"),
        (LEAST + "[transfer]\nproposers = []\nscorers = ['fake:']\n", ", line 5: a table of transfer needs at least one of"),
        (LEAST + "[transfer]\nproposers = ['local']\n", ', line 4: "transfer.scorers" is missing'),
        ("turns = \n" + LEAST, ": Invalid value (at line 1, column 9)"),
        (LEAST + "[[corpora]\n", ": Expected ']]' at the end of an array declaration (at line 4, column 10)"),
        ("turns = 3\nturns = 4\n", ": Cannot overwrite a value (at line 2, column 10)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_with_the_line(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, text).startswith(said)


def test_a_file_that_is_not_there_or_no_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml: no such file"):
        read_suite(tmp_path / "nowhere.toml")
    with pytest.raises(UsageError, match=r"Is a directory"):
        read_suite(tmp_path)
    (tmp_path / "s.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match=r"s\.toml: .*utf-8"):
        read_suite(tmp_path / "s.toml")


@given(
    st.dictionaries(
        st.sampled_from([*Suite.model_fields, "other"]), st.sampled_from([0, -1, "", "x", [], ["x"], {}, {"a": 1}, True, 1.5])
    )
)
def test_whatever_a_file_says_is_read_or_refused_with_a_sentence(tmp_path_factory: Any, data: dict[str, Any]) -> None:
    def toml(value: object) -> str:
        return "{ a = 1 }" if value == {"a": 1} and isinstance(value, dict) else json.dumps(value)

    folder = tmp_path_factory.getbasetemp()
    text = "".join(f"{key} = {toml(value)}\n" for key, value in data.items())
    try:
        read(folder, text)
    except UsageError as error:
        assert str(error).startswith(str(folder / "s.toml"))  # noqa: PT017 - either is right
        assert "\n" not in str(error)  # noqa: PT017 - likewise


# Who is measured -----------------------------------------------------------------------------------------------------------


def corpus(**what: Any) -> Corpus:
    return Corpus.model_validate({"name": "shop", "from": "log.jsonl"} | what)


def test_an_unknown_person_is_told_with_the_most_frequent_speakers(tmp_path: Path) -> None:
    log = read_conversations(write_log(tmp_path / "log.jsonl", "Ann", "Bob"))
    with pytest.raises(
        LogError,
        match=r'log\.jsonl: nobody called "Eve" speaks here; the most frequent speakers are "desk" \(108\), "Ann" \(54\)',
    ):
        people_of(corpus(people=("Ann", "Eve")), log, 6)


def test_those_who_said_most_in_a_role_are_taken_and_who_said_too_little_is_passed_over(tmp_path: Path) -> None:
    log = read_conversations(write_log(tmp_path / "log.jsonl", "Ann", "Bob", more=[talk("Cid", 0, turns=90)]))
    assert people_of(corpus(people=2, role="user"), log, 6) == ["Ann", "Bob"]
    assert people_of(corpus(people=1), log, 6) == ["desk"]
    with pytest.raises(LogError, match=r'log\.jsonl: only 2 people said enough to be learned, and the suite wants 3 of "shop"'):
        people_of(corpus(people=3, role="user"), log, 6)
    with pytest.raises(LogError, match=r'"Cid" has 90 turns in 1 conversations; a twin needs at least'):
        people_of(corpus(people=("Cid",)), log, 6)


def test_a_corpus_that_is_not_there_is_named(tmp_path: Path) -> None:
    suite = read_suite(suite_file(tmp_path, ("log.jsonl", "nowhere.jsonl")))
    with pytest.raises(LogError, match=r"nowhere\.jsonl"):
        logs_of(suite)


# The suites beside the quickstart ------------------------------------------------------------------------------------------


def test_the_suite_of_the_paper_names_four_domains_eight_people_the_traces_and_all_peers() -> None:
    found = read_suite(EXAMPLES / "suite_four_domains.toml")
    assert len(found.corpora) == 4
    assert [one.people for one in found.corpora] == [2] * 4
    assert {one.source.partition(":")[0] for one in found.corpora} >= {"oyez", CHITCHAT}
    assert set(found.arms) >= {
        "no_memory",
        "recalled_pairs",
        "backward",
        "random_of_n",
        "recalled_triples",
        "openevals",
        "tau2",
        "persona",
    }
    assert found.turns >= 100


def test_the_small_suite_needs_nothing_but_the_package_of_chats_and_its_script() -> None:
    found = read_suite(EXAMPLES / "suite_small.toml")
    assert [one.source for one in found.corpora] == [CHITCHAT]
    assert found.models.action == f"scripted:{EXAMPLES / 'suite_small_replies.txt'}"
    assert (found.models.scorer, found.models.embedder) == ("fake:", "fake:256")
    for model in (found.models.action, found.models.judge):
        assert model is not None
        assert Path(model.removeprefix("scripted:")).is_file()
