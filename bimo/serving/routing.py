"""Which model answers, by the language of a text: `--route zh=ADAPTER,de=MODEL`, and the language packs that are there.

- A request that names a model gets that model. Without a name, with `auto`, or with the name of the default, its text
  decides.
- Of a conversation the newest message of the user decides; where it is not clear ("ok", a piece of code), the one
  before it, and so on: a conversation keeps its model through such messages, and changes it with the language.
- What stays unclear, and a language without a route, goes to the default.
- Vectors and attention are never sent elsewhere: they can only be compared within one model.

No tensors, no HTTP; a decision takes less than a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from bimo.core.errors import UserError, nearest
from bimo.serving.contract import ModelCard
from bimo.serving.gateway import ByName, Routed
from bimo.tasks.languages import LANGUAGES, language_code
from bimo.tasks.recognising import Guess, sure_language

AUTO = "auto"
"""What a request calls the model that its language decides on."""
DEFAULT = "default"
_STAY = ("embed", "attend")
_LOOKED_BACK = 8  # messages of a conversation
_MEND = "Write LANGUAGE=MODEL, separated by commas: zh=mandarin,de=tiny."
Recognise = Callable[[str], Guess | None]


def parse(text: str) -> dict[str, str]:
    """Routes out of a command line: `zh=ADAPTER,de=MODEL,default=MODEL`; languages by their codes or English names.

    Raises:
        UserError: It is not of this form, a language is unknown, or stands twice.
    """
    routes: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, model = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not model:
            raise UserError(f"{part[:100]!r} is no route", where="--route", mend=_MEND)
        try:
            language = DEFAULT if name.lower() == DEFAULT else language_code(name)
        except UserError as error:
            raise UserError(error.what, where="--route", mend=error.mend) from error
        if language in routes:
            raise UserError(f"there are two routes for {name!r}", where="--route", mend="Give each language one.")
        routes[language] = model
    if not routes:
        raise UserError("there is no route in it", where="--route", mend=_MEND)
    return routes


def check_routes(routes: Mapping[str, str], models: Iterable[str]) -> None:
    """Whether every route leads to a model.

    Raises:
        UserError: One leads nowhere.
    """
    known = list(models)
    for language, model in routes.items():
        if model not in known:
            what = f"the route for {language!r} leads to {model!r}, which is not there{nearest(model, known)}"
            raise UserError(what, where="--route", mend=f"There are: {', '.join(known)}.")


class Router:
    """A `ModelRouter` by language. Routes may change while requests are routed, from any thread.

    Args:
        routes: Models by language; they stand above those that `put` adds.
        default: Where the rest goes; "": the first model that there is.
        recognise: From a text to its language; None: unclear.
    """

    def __init__(
        self, routes: Mapping[str, str] | None = None, default: str = "", recognise: Recognise = sure_language
    ) -> None:
        self._fixed = {code: model for code, model in (routes or {}).items() if code != DEFAULT}
        self._default = default or (routes or {}).get(DEFAULT, "")
        self._added: tuple[tuple[str, str], ...] = ()  # replaced, never changed: whoever reads it may go on
        self._recognise, self._by_name = recognise, ByName()

    @property
    def routes(self) -> dict[str, str]:
        """Models by language, as of now; of several that were added for a language, the newest."""
        return {**dict(self._added), **self._fixed}

    def put(self, language: str, model: str) -> None:
        """Send a language to a model, unless it has a route of its own from the beginning."""
        self._added = (*((code, name) for code, name in self._added if name != model), (language, model))

    def drop(self, model: str) -> None:
        """Send nothing more to a model that was `put`; an earlier one for its language gets that back."""
        self._added = tuple((code, name) for code, name in self._added if name != model)

    def route(self, texts: Sequence[str], wanted: str, cards: Sequence[ModelCard], task: str = "") -> Routed:
        """See `ModelRouter`."""
        known = [card.name for card in cards]
        default = self._default if self._default in known else known[0]
        if (wanted and wanted not in (AUTO, default)) or (wanted == AUTO and AUTO in known):
            return self._by_name.route(texts, wanted, cards, task)
        if task in _STAY:
            return Routed(default, None, "the default: vectors and attention are of one model, whatever the language")
        guess = next(filter(None, map(self._recognise, texts[:_LOOKED_BACK])), None)
        if guess is None:
            return Routed(default, None, "the default, as no language is clear")
        name, model = LANGUAGES[guess.language], self.routes.get(guess.language)
        if model is None:
            return Routed(default, guess.language, f"the default, as {name} has no route")
        if model not in known:
            return Routed(default, guess.language, f"the default, as the model for {name} is not there at the moment")
        return Routed(model, guess.language, f"the text is {name}")
