"""The models that a service has: each with its engine, its adapters, and the names by which requests choose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimo.core.errors import UserError
from bimo.engine import Engine, EngineSettings, Request, SamplingParams
from bimo.engine.answers import TokenLogprob
from bimo.engine.jobs import Job
from bimo.serving.contract import ChatMessage, ModelCard, TokenInfo
from bimo.serving.driving import Driver, Watcher
from bimo.tasks.classification import labels_of

if TYPE_CHECKING:
    from bimo.lm import LM
    from bimo.model.lora import Adapter
    from bimo.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Voice:
    """How conversations of an adapter are written, where that is not as its model does it.

    Attributes:
        template: A chat template; "": the model's.
        system: What a conversation begins with that has no system message of its own; "": nothing.
    """

    template: str = ""
    system: str = ""


class ServedModel:
    """One model at work.

    Args:
        name: As requests name it.
        lm: The model.
        settings: Of its engine; None: those of the model.
        adapters: LoRA adapters, which are chosen as if they were models.

    Attributes:
        driver: Steps the engine.
    """

    def __init__(
        self, name: str, lm: LM, settings: EngineSettings | None = None, adapters: Sequence[Adapter] = ()
    ) -> None:
        self.name, self.lm, self.adapters = name, lm, tuple(adapters)
        self._guests: dict[str, Guest] = {}  # adapters that came later; replaced, never changed
        self._changing = threading.Lock()
        self._n_hidden = 0
        self._settings = settings or lm.engine_settings
        self._opened = int(time.time())
        _warm_up(lm)
        self.driver = Driver(name, self._engine)

    def _engine(self) -> Engine:
        guests = [guest.adapter for guest in self._guests.values()]
        return Engine(self.lm, settings=self._settings, adapters=[*self.adapters, *guests])

    @property
    def names(self) -> tuple[str, ...]:
        """The model's, then those of its adapters; what is hidden has none."""
        guests = (name for name, guest in self._guests.items() if not guest.hidden)
        return (self.name, *(adapter.name for adapter in self.adapters), *guests)

    def _has_template(self, name: str) -> bool:
        """Whether a guest brought a chat template."""
        guest = self._guests.get(name)
        return guest is not None and guest.tokenizer is not None

    def is_guest(self, name: str) -> bool:
        """Whether an adapter came later, hidden or not."""
        return name in self._guests

    def add_guest(self, adapter: Adapter, voice: Voice) -> None:
        """Have one more adapter, or another in place of a guest of its name. From any thread but the engine's.

        Raises:
            UserError: It does not fit.
        """
        tokenizer = self.lm.tokenizer.with_template(voice.template) if voice.template else None
        with self._changing:
            before = self._guests
            guest = Guest(adapter, voice.system, tokenizer)
            self._guests = {**before, adapter.name: guest}  # first: an engine that is made anew meanwhile has it
            try:
                self.driver.engine.add_adapter(adapter, replace=True)
            except BaseException:
                self._guests = before
                raise

    def hide_guest(self, name: str) -> int:
        """Show a guest to nobody any more; who knows it can still ask it. Returns which hiding this is."""
        with self._changing:
            self._n_hidden += 1
            self._guests = {**self._guests, name: replace(self._guests[name], hidden=self._n_hidden)}
            return self._n_hidden

    def drop_guest(self, name: str, hidden: int) -> bool:
        """Let a hidden guest go, unless it has come back since it was hidden."""
        with self._changing:
            guest = self._guests.get(name)
            if guest is None or guest.hidden != hidden:
                return False
            self._guests = {own: guest for own, guest in self._guests.items() if own != name}
            with suppress(UserError):  # an engine made anew at this moment may not have it
                self.driver.engine.remove_adapter(name)
            return True

    @property
    def cards(self) -> list[ModelCard]:
        """What there is to choose."""
        spec, lm = self.driver.engine.spec, self.lm
        return [
            ModelCard(
                name=name,
                base="" if name == self.name else self.name,
                context_length=spec.context_length,
                vocab_size=spec.vocab_size,
                d_model=spec.d_model,
                n_layers=spec.n_layers,
                n_heads=spec.n_heads,
                chat=lm.has_tokenizer and (lm.tokenizer.has_chat_template or self._has_template(name)),
                tasks=tuple(task.name for task in lm.tasks),
                labels=tuple(labels_of(lm.tasks)),
                created=self._opened,
            )
            for name in self.names
        ]

    def ids(
        self, prompt: str | tuple[int, ...], messages: Sequence[ChatMessage] = (), name: str = ""
    ) -> tuple[int, ...]:
        """What the model reads; name: of the adapter that answers.

        Raises:
            UserError: It has no chat template, or a message is not well formed.
        """
        if messages:
            said = [{"role": message.role, "content": message.content} for message in messages]
            guest = self._guests.get(name)
            if guest is not None and guest.system and said[0]["role"] != "system":
                said.insert(0, {"role": "system", "content": guest.system})
            return tuple(self.tokenizer_of(name).encode_chat(said, add_generation_prompt=True))
        return tuple(self.driver.engine.prompt_ids(prompt)) if isinstance(prompt, str) else prompt

    def tokenizer_of(self, name: str) -> Tokenizer:
        """The model's, or with the chat template that an adapter brought."""
        guest = self._guests.get(name)
        return (guest and guest.tokenizer) or self.lm.tokenizer

    def submit(
        self,
        name: str,
        ids: tuple[int, ...],
        params: SamplingParams | None,
        tell: Watcher | Callable[[], None],
        **about: Any,
    ) -> Job:
        """Hand a request to the engine; `about` are further arguments of `Engine.request`.

        Raises:
            UserError: The model cannot do it.
        """
        adapter = "" if name == self.name else name

        def request(engine: Engine) -> Request:
            return engine.request(ids, params, adapter=adapter, **about)

        return self.driver.submit(request, tell)

    def token_infos(self, logprobs: Sequence[TokenLogprob]) -> tuple[TokenInfo, ...]:
        """Tokens of an answer as a client reads them; the one that ended it is no part of it."""
        ends = self.driver.engine.intake.ends
        return tuple(self._info(found) for found in logprobs if found.token not in ends)

    def texts_of(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Each id as a person reads it; control tokens by their names."""
        return tuple(self._text(i) for i in ids)

    def _info(self, found: TokenLogprob) -> TokenInfo:
        top = tuple(TokenInfo(self._text(i), logprob, tuple(self._bytes[i])) for i, logprob in found.top)
        return TokenInfo(self._text(found.token), found.logprob, tuple(self._bytes[found.token]), top)

    def _text(self, token: int) -> str:
        return self._control.get(token) or self._bytes[token].decode("utf-8", errors="replace")

    @cached_property
    def _bytes(self) -> Sequence[bytes]:
        own = self.lm.tokenizer.bytes_of_ids if self.lm.has_tokenizer else ()
        return (*own, *(b"" for _ in range(len(own), self.driver.engine.spec.vocab_size)))

    @cached_property
    def _control(self) -> Mapping[int, str]:
        return {i: name for name, i in self.lm.tokenizer.control_tokens.items()} if self.lm.has_tokenizer else {}


@dataclass(frozen=True, slots=True)
class Guest:
    """An adapter that came while the model was at work.

    Attributes:
        adapter: The adapter.
        system: What its conversations begin with.
        tokenizer: With its own chat template; None: the model's.
        hidden: Which hiding it is in; 0: it can be seen.
    """

    adapter: Adapter
    system: str = ""
    tokenizer: Tokenizer | None = None
    hidden: int = 0


def _warm_up(lm: LM) -> None:
    """Have the tokenizer make what it makes at its first text, before several threads use it."""
    if lm.has_tokenizer:
        lm.tokenizer.encode("a")
        with suppress(UserError):  # a template that wants other messages, or none
            lm.tokenizer.encode_chat([{"role": "user", "content": "a"}])


def open_models(
    paths: Sequence[str], names: Sequence[str], adapters: Sequence[str], settings: EngineSettings
) -> list[ServedModel]:
    """The models of a command line.

    Args:
        paths: What `bimo.load` takes.
        names: As requests name them, in the same order; fewer: the others are called as their folder or file.
        adapters: NAME=FOLDER, or MODEL/NAME=FOLDER where there are several models.
        settings: Of each engine.

    Raises:
        UserError: One cannot be opened, or two have the same name.
    """
    from bimo.lm import load

    if len(names) > len(paths):
        raise UserError(f"{len(names)} names for {len(paths)} models", where="--name", mend="Give one for each.")
    if not all(name.strip() for name in names):
        raise UserError("a name is empty", where="--name", mend="Give each model one, or leave --name out.")
    called = [*names, *(_name_of(path) for path in paths[len(names) :])]
    wanted: dict[str, list[tuple[str, str]]] = {name: [] for name in called}
    for text in adapters:
        name, equals, folder = text.partition("=")
        model, _, own = name.rpartition("/")
        model = model or (called[0] if len(called) == 1 else "")
        if not equals or not own or model not in wanted:
            mend = "Write NAME=FOLDER, or MODEL/NAME=FOLDER with several models."
            raise UserError(f"{text!r} names no adapter of a model", where="--adapter", mend=mend)
        wanted[model].append((own, folder))
    every = [*called, *(name for own in wanted.values() for name, _ in own)]
    twice = next((name for name in every if every.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two models are called {twice!r}", where="--name", mend="Give each a name of its own.")
    found = []
    for path, name in zip(paths, called, strict=True):
        lm = load(path)
        found.append(ServedModel(name, lm, settings, [_adapter(lm, *own) for own in wanted[name]]))
    return found


def _adapter(lm: LM, name: str, folder: str) -> Adapter:
    from bimo.interop.adapters import load_adapter

    return load_adapter(Path(folder), lm.model, name)


def _name_of(path: str) -> str:
    """The last part of a path that says something: runs/demo/model is demo."""
    whole = Path(path).absolute()
    own = whole.parent if whole.name == "model" else whole
    return own.name.removesuffix(".gguf")
