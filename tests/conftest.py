"""What every test shares: nothing real is reached by accident, and a small person whose rule is known."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from numpy.typing import NDArray
from tiny_model import one_thread, tiny_model

from usertwin.memory import ChatModel, Recipe, alearn
from usertwin.memory.models.chat import Style
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.personas import ChatLog, Conversation, Pair, Turn
from usertwin.personas.chat_log import in_time_order
from usertwin.simulator.backends.scripted import ScriptedChatModel

pytest_plugins = ["pytester"]

settings.register_profile("usertwin", deadline=None)  # no timing decides a test
settings.load_profile("usertwin")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _nothing_real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reaches a model that is not scripted, or a home that is not its own, unless it is marked slow."""
    monkeypatch.setenv("USERTWIN_HOME", str(tmp_path / "twins"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setenv("USERTWIN_ONLY_SCRIPTED", "1")
        monkeypatch.setenv("USERTWIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def in_one_thread() -> Iterator[None]:
    """For modules that reckon with a tiny model."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model."""
    return tiny_model(tmp_path_factory.mktemp("base") / "tiny")


def small_conversation(number: int) -> Conversation:
    """A talk of Ann with a help desk: she greets, names her city, and says thanks at the end."""
    city = ("Oslo", "Rome", "Lima", "Cairo", "Kyoto")[number % 5]
    desk, ann = f"desk-{number % 2}", "Ann"
    turns = (
        Turn("guide", "instruction", f"You want the weather for {city}."),
        Turn(desk, "agent", "Hello, what can I do for you?"),
        Turn(ann, "user", f"hi, the weather in {city} please"),
        Turn(desk, "agent", f"Which day do you mean for {city}?"),
        Turn(ann, "user", f"tomorrow, day {number}"),
        Turn(desk, "agent", "It will be sunny. Anything else?"),
        Turn(ann, "user", "no thats all thank you bye"),
    )
    return Conversation(f"talk-{number:02d}", turns, f"2024-03-{number % 28 + 1:02d}T10:00:00+00:00")


def other_conversation(number: int) -> Conversation:
    """A talk of Bob with a help desk."""
    turns = (
        Turn("desk-0", "agent", "Hello, what can I do for you?"),
        Turn("Bob", "user", f"I demand a refund for order {number}!!"),
        Turn("desk-0", "agent", "Which order do you mean?"),
        Turn("Bob", "user", f"Order {number}, as I said."),
    )
    return Conversation(f"bob-{number:02d}", turns, f"2024-02-{number % 28 + 1:02d}T10:00:00+00:00")


def small_log() -> ChatLog:
    """Twenty talks of Ann and ten of Bob."""
    conversations = [*map(small_conversation, range(20)), *map(other_conversation, range(10))]
    return ChatLog(in_time_order(conversations, "test"), "test")


#: A moment of Ann's, for tests of what goes on with a single one.
ACTION = "the early train to Rome please"
PAIR = Pair(
    speaker="Ann",
    context=(Turn("Bob", "agent", "Hello there"), Turn("Ann", "user", "hi"), Turn("Bob", "agent", "When do you want to go?")),
    action=ACTION,
    goal="You want to see the sea.",
    conversation_id="talk",
    position=3,
    when=1.0,
)


@pytest.fixture
def log() -> ChatLog:
    """Twenty talks of Ann and ten of Bob."""
    return small_log()


@pytest.fixture
def log_file(log: ChatLog, tmp_path: Path) -> Path:
    """The same as a file."""
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(c.to_json()) + "\n" for c in log.conversations), "utf-8")
    return path


def recipe(**changes: object) -> Recipe:
    """How the test's twins are learned."""
    base: dict[str, object] = {
        "source": "test",
        "speaker": "Ann",
        "method": "recon",
        "candidates": 2,
        "max_triples": None,
        "max_traces": None,
        "window": 6,
        "embedder": "fake:256",
        "model": "scripted:test",
        "scorer": "fake:",
        "seed": 0,
    }
    return Recipe(**(base | changes))  # pyright: ignore[reportArgumentType]


def scripted(*answers: str, rules: list[tuple[str, str]] | None = None) -> ChatModel:
    """A model that gives these answers in turn."""
    return ChatModel("scripted:test", ScriptedChatModel(answers=list(answers), rules=rules or []), "transcript")


class Telling(BaseChatModel):
    """Says what a function makes of the prompt and the seed, and remembers both."""

    say: Callable[[str, int], str]
    asked: list[tuple[str, int]] = []  # noqa: RUF012 - a pydantic field, copied for each model

    @property
    def _llm_type(self) -> str:
        return "telling"

    @property
    def prompts(self) -> list[str]:
        """What it was asked, in order."""
        return [prompt for prompt, _ in self.asked]

    def _generate(self, *args: Any, **options: Any) -> ChatResult:
        raise AssertionError("models are asked asynchronously")

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, *, seed: int = 0, **options: Any
    ) -> ChatResult:
        prompt = "\n".join(str(message.text) for message in messages)
        self.asked.append((prompt, seed))
        said = self.say(prompt, seed)
        usage = UsageMetadata(input_tokens=len(prompt.split()), output_tokens=len(said.split()), total_tokens=0)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(said, usage_metadata=usage))])


def telling(say: Callable[[str, int], str], style: Style = "transcript", **facts: Any) -> tuple[ChatModel, Telling]:
    """A model that says what a function makes of the prompt and the seed, and the same as something that can be looked into."""
    chat = Telling(say=say)
    return ChatModel("telling", chat, style, **facts), chat


class WeighingScorer:
    """A scorer for which some words of a prompt make all of a continuation likelier, and a word of the prompt itself more so.

    So what a trace gains by reasons is the sum of their weights, on each token, and apart from what it gains by copying.
    """

    def __init__(self, weights: Mapping[str, float], copied: float = 2.0) -> None:
        self.name = "weighing"
        self.calls: list[list[tuple[str, str]]] = []
        self._weights, self._copied = weights, copied

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        self.calls.append(list(items))
        found: list[Likelihood] = []
        for prompt, continuation in items:
            known = set(re.findall(r"\w+", prompt.casefold()))
            reasons = fsum(weight for word, weight in self._weights.items() if word in known)
            tokens = list(re.finditer(r"\s*\S+|\s+", continuation))
            each = [reasons - 10 + self._copied * (token[0].strip().casefold() in known) for token in tokens]
            found.append(Likelihood(fsum(each), len(each), tuple(each), tuple(token.end() for token in tokens)))
        return found


class Endpoint:
    """An OpenAI-compatible server on the loopback that remembers what it was asked, and by which path.

    Attributes:
        asked: the requests, in order, each with its `path`.
        content: what it answers, as often as is asked for.
        refusal: with what message it says that there is no such thing, instead of an answer; None if it answers.
        reason: why it stops writing.
        most: how many choices it gives at most.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.content: str | None = "Good day, what can I do?"
        self.refusal: str | None = None
        self.reason = "stop"
        self.most = 9
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the name is the standard library's
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append(body | {"path": self.path})
                refused = endpoint.refusal is not None
                raw = json.dumps({"error": {"message": endpoint.refusal}} if refused else endpoint.answer(body)).encode()
                self.send_response(404 if refused else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Say nothing of one who was killed before the answer came; the traceback would be read as ours."""
                if not isinstance(sys.exc_info()[1], ConnectionError):
                    super().handle_error(request, client_address)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request; every choice writes ten tokens, and the prompt has a hundred, forty of them known."""
        count = min(body.get("n") or 1, self.most)
        message = {"role": "assistant", "content": self.content}
        usage = {
            "prompt_tokens": 100, "completion_tokens": 10 * count, "total_tokens": 100 + 10 * count,
            "prompt_tokens_details": {"cached_tokens": 40},
        }  # fmt: skip
        return {
            "id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "usage": usage,
            "choices": [{"index": i, "finish_reason": self.reason, "message": message} for i in range(count)],
        }  # fmt: skip


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """An OpenAI-compatible server on the loopback, which may be named though it is not scripted."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = Endpoint()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


#: The tiny model's longest text, in tokens; its tokens are bytes.
PLACES = 160


@cache
def tiny() -> tuple[Any, Any]:
    """A small Llama with random but decided weights, and a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(["<end>", *alphabet])}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=PLACES,
        initializer_range=0.4,  # far from uniform, so that a wrong context is seen in every number
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval(), PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>")


@pytest.fixture(scope="session")
def _learned_ann(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a learned twin of Ann, made once."""
    home = tmp_path_factory.mktemp("learned")
    model = scripted("wants the weather for a city", "is in a hurry")
    asyncio.run(alearn("ann", small_log(), recipe(), embedder=FakeEmbedder(), model=model, scorer=FakeScorer(), home=home))
    return home


@pytest.fixture
def ann(_learned_ann: Path, tmp_path: Path) -> str:
    """A learned twin of Ann in the test's home, by name."""
    shutil.copytree(_learned_ann, tmp_path / "twins")
    return "ann"


class Meanings:
    """An embedder of which a test says what its texts mean; any other text means nothing in particular."""

    name, dimension = "meanings", 3

    def __init__(self, alike: Mapping[str, float]) -> None:
        self.alike, self.calls = alike, list[list[str]]()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(list(texts))
        rows = [(cosine := self.alike.get(text, 0.0), (1 - cosine * cosine) ** 0.5, 0.0) for text in texts]
        return np.asarray(rows, np.float32)
