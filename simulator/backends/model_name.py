"""Model names: the one place where they are parsed.

local                 SmolLM2-135M, in this process (the default; downloaded once)
local:small           Qwen2.5-Coder-1.5B, in this process (1.1 GB; downloaded once)
local:/path.gguf      any GGUF file, in this process
hf:OWNER/REPO/x.gguf  a GGUF file of the Hugging Face hub, in this process (downloaded once into the hub's cache)
transformers:DIR      a folder with a transformers model, in this process, with torch
BASE+ADAPTER          any of these with a LoRA adapter: local+DIR, local:small+DIR, transformers:DIR+DIR
openai:NAME           OpenAI's model NAME (OPENAI_API_KEY, OPENAI_BASE_URL)
openai:NAME@URL       any OpenAI-compatible endpoint: vLLM, Ollama, a proxy
openai:NAME@URL#VAR   the same with a key, or a login "user:password", from the environment variable VAR
scripted:FILE         replies read from a file
fake:                 a scorer without weights; fake:N is an embedder with N dimensions
"""

from __future__ import annotations

import os.path
import re
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Literal, Self, get_args
from urllib.parse import urlsplit

from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import UsageError
from usertwin.personas.secrets import take_logins

Kind = Literal["local", "hf", "transformers", "openai", "scripted", "fake"]
#: What a model is used for. A "base" model is one whose weights are read: to be trained, or to run with an adapter.
Role = Literal["chat model", "scorer", "base"]

#: Kinds for tests: they run the same code as a model, and know nothing about language or people.
TEST_KINDS: tuple[Kind, ...] = ("scripted", "fake")
#: Kinds whose weights are on this machine.
LOCAL_KINDS: tuple[Kind, ...] = ("local", "hf", "transformers")
LOCAL_FORMS = '"local", "local:small", "local:/path.gguf", "hf:OWNER/REPO/FILE.gguf" or "transformers:DIR"'
#: For each role: the kinds of models that fill it, and what is wrong with any other name.
_ROLES: dict[Role, tuple[tuple[Kind, ...], str]] = {
    "chat model": (
        (*LOCAL_KINDS, "openai", "scripted"),
        f'is not a chat model; use {LOCAL_FORMS}, each with an optional "+ADAPTER"; '
        '"openai:NAME", "openai:NAME@URL", "openai:NAME@URL#KEY_VARIABLE" or "scripted:FILE"',
    ),
    "scorer": ((*LOCAL_KINDS, "fake"), f'cannot score texts; use {LOCAL_FORMS}, each with an optional "+ADAPTER"'),
    "base": (LOCAL_KINDS, f"has no weights here; use {LOCAL_FORMS}"),
}
_BUILT_IN = ("", "small")
#: Hosted models that reason before they answer reject temperature and stop texts.
_REASONING_MODELS = ("gpt-5", "o1", "o3", "o4")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parsed model name. `str` gives the name again, without a login that stood in the URL.

    Attributes:
        kind: where the model comes from.
        target: what stands after the colon, without URL and adapter; "" for the default local model.
        url: the endpoint of an "openai" model; "" for OpenAI's own.
        adapter: the folder of a LoRA adapter; None without one.
        key_variable: the environment variable with the key of the URL; "" without one.
    """

    kind: Kind
    target: str = ""
    url: str = ""
    adapter: Path | None = None
    _: KW_ONLY
    key_variable: str = ""

    @classmethod
    def parse(cls, text: str, role: Role = "chat model", *, folder: Path | None = None) -> Self:
        """Return the parsed form of the name of a model that fills a role; UsageError if the text is no such name.

        No file is opened; folders named after a plus are looked up, from `folder` (the current one if None) if relative. A path
        may contain a plus: the adapter is what follows the last plus with an existing folder after it. If there is none, it is
        what follows the last plus with a complete model name before it, so that loading reports it as missing.
        """
        kinds, complaint = _ROLES[role]
        folder = folder or Path()
        kind, _, rest = text.partition(":")
        adapter, url, key_variable = None, "", ""
        if text.startswith("local+"):
            kind, rest, adapter = "local", "", text.removeprefix("local+")
        elif kind in LOCAL_KINDS:
            rest, adapter = _split_adapter(kind, rest, folder)
        elif kind == "openai":
            rest, _, url = rest.partition("@")
            url, hash_sign, key_variable = take_logins(url).partition("#")
            if "@" in key_variable or ("@" in url and not _is_url(url)):  # not repeated here: it may hold a password
                raise UsageError(
                    f'the URL of "openai:{rest}" cannot be read; write special characters of a login as %2F, %23, %40, %20, ...'
                )
            if hash_sign and not (url and re.fullmatch(r"[A-Za-z_]\w*", key_variable, re.ASCII)):
                raise UsageError(
                    f'"{text}" names no environment variable with the key; write its name after "#", such as '
                    "openai:NAME@URL#GROQ_API_KEY"
                )
        complete = text == "fake:" if kind == "fake" else bool(rest) or kind == "local"  # only an embedder has dimensions
        if kind not in kinds or not complete or "\0" in text:
            raise UsageError(f'"{text}" {complaint}')
        if kind == "hf" and not re.fullmatch(r"[^/]+/[^/]+/.*\.gguf", rest, re.DOTALL):
            raise UsageError(f'"{text}" is not a file on the Hugging Face hub; write hf:OWNER/REPO/FILE.gguf')
        if role == "base" and adapter is not None:
            raise UsageError(f'"{text}" has an adapter; name the base model without one')
        return cls(
            kind, rest, url, None if adapter is None else folder / os.path.expanduser(adapter), key_variable=key_variable
        )  # fmt: skip

    def __str__(self) -> str:
        return self.base if self.adapter is None else f"{self.base}+{self.adapter}"

    @property
    def base(self) -> str:
        """The name without its adapter."""
        if self.kind == "local" and not self.target:
            return "local"
        endpoint = f"@{self.url}" if self.url else ""
        return f"{self.kind}:{self.target}{endpoint}" + (f"#{self.key_variable}" if self.key_variable else "")

    @property
    def is_local(self) -> bool:
        """Whether the model's weights are on this machine."""
        return self.kind in LOCAL_KINDS

    @property
    def is_hosted(self) -> bool:
        """Whether the model is an endpoint: calls may cost money, and it tells no likelihoods of given texts."""
        return self.kind == "openai"

    @property
    def is_free(self) -> bool:
        """Whether calls cost no money."""
        return not self.is_hosted

    @property
    def is_gguf(self) -> bool:
        """Whether the model is a GGUF file, which llama.cpp runs."""
        return self.kind in {"local", "hf"}

    @property
    def is_built_in(self) -> bool:
        """Whether the model is one of those that usertwin downloads itself."""
        return self.kind == "local" and self.target in _BUILT_IN

    @property
    def path(self) -> Path:
        """The file or folder that the target names; only for names that hold a path."""
        return Path(os.path.expanduser(self.target))

    @property
    def default_style(self) -> PromptStyle:
        """How the model is prompted unless its files or its adapter say otherwise."""
        return "instruction" if self.is_hosted else "transcript"

    @property
    def supports_sampling_params(self) -> bool:
        """Whether the model accepts temperature, stop texts, and several samples of one prompt."""
        return self.kind != "openai" or not self.target.startswith(_REASONING_MODELS)

    def resolved(self, folder: Path | None = None) -> Self:
        """Return the name with absolute paths. Relative ones start from `folder`, the current one if None."""
        has_path = self.kind in {"scripted", "transformers"} or (self.kind == "local" and not self.is_built_in)
        target = os.path.realpath((folder or Path()) / self.path) if has_path else self.target
        return replace(self, target=target, adapter=None if self.adapter is None else Path(os.path.realpath(self.adapter)))


def kind_of(text: str) -> Kind | None:
    """Return the kind of model that a text names, None if it names none."""
    kind = "local" if text.startswith("local+") else text.partition(":")[0]
    return next((known for known in get_args(Kind) if known == kind), None)


def fake_dimension(text: str) -> int | None:
    """Return the number of dimensions of a "fake:" embedder, None for any other. UsageError if it is not a positive integer."""
    kind, colon, size = text.partition(":")
    if kind != "fake" or not colon:
        return None
    if size and not re.fullmatch("[1-9][0-9]{0,4}", size):
        raise UsageError(f'"{text}" is not an embedder; after "fake:" write the number of dimensions, up to 99999, or nothing')
    return int(size or 256)


def _is_url(url: str) -> bool:
    """Return whether a URL without a login can be split into its parts; True for none."""
    try:
        parts = urlsplit(url)
        return parts.password is None and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _split_adapter(kind: str, rest: str, folder: Path) -> tuple[str, str | None]:
    """Split what follows the colon into the target and the adapter's folder; see `ModelName.parse`."""
    if "\0" in rest or _exists(folder, rest):
        return rest, None
    splits = [(rest[:place], rest[place + 1 :]) for place, sign in enumerate(rest) if sign == "+"][::-1]
    present = (split for split in splits if split[1] and os.path.isdir(folder / os.path.expanduser(split[1])))
    complete = (split for split in splits if _is_complete(kind, split[0], folder))
    return next(present, None) or next(complete, (rest, None))


def _is_complete(kind: str, target: str, folder: Path) -> bool:
    return (kind == "local" and target == "small") or target.endswith(".gguf") or (kind != "hf" and _exists(folder, target))


def _exists(folder: Path, target: str) -> bool:
    return bool(target) and os.path.exists(folder / os.path.expanduser(target))  # False for a name that no file can have
