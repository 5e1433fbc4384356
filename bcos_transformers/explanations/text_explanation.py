"""What an explained text is: words and their signed contributions, which add up to the logit."""

import json
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from bcos_transformers.extras import require

FORMAT = "bcos-text-explanation/1"
PER_TARGET = (
    "token_scores",
    "scores",
    "special_tokens_score",
    "outside_score",
    "label",
    "logit",
    "probability",
    "residual",
)
TOLERANCE = 1e-6


class WordScore(NamedTuple):
    """One unit of an explained text.

    Attributes:
        word: as it stands in the text.
        score: its signed contribution; with several targets a dict by target.
        offset: characters `[start, end)` in the text.
    """

    word: str
    score: float | dict[int, float]
    offset: tuple[int, int]


@dataclass(frozen=True, repr=False)
class TextExplanation:
    """One explained text: `sum(scores) + special_tokens_score + outside_score + residual == logit`.

    With one target the scores are a list and the rest are single values. With several, everything that depends on the
    target (`scores`, `special_tokens_score`, `outside_score`, `label`, `logit`, `probability`, `residual`,
    `token_scores`) is a dict by target, `target` is the list of its keys, and `for_target` picks one.

    Attributes:
        text: the text.
        words: its units (tokens, words or sentences, see `granularity`) as they stand in the text; those of `text_pair`
            follow.
        offsets: characters `[start, end)` of each unit in the text that it is of.
        scores: signed contribution of each unit to the logit.
        special_tokens_score: contribution of tokens that stand for nothing in the text, `[CLS]` and `[SEP]` for instance.
        target: index of the explained class or output, or id of the explained token; question answering: 0 is the start
            of the answer, 1 its end, 2 the span.
        label: its name.
        logit: the explained quantity: the target's logit, minus what `contrast` names.
        probability: the model's probability of the target; None for regression.
        residual: what the contributions leave unexplained: rounding.
        tokens: the tokens as the tokenizer names them, special ones included.
        token_scores: contribution of each token.
        unit_of_token: index of the unit that each token is part of; None for special tokens.
        segments: which text each unit is of: 0, or 1 for `text_pair`.
        text_pair: the second text, if there is one.
        outside_score: what lies outside of the units: words that slicing left out; with `windows`, what the tokens of an
            overlap contributed where they had less context. Else 0.
        contrast: what was subtracted from the logit: `"mean"`, the name of a foil, or None.
        position: the token whose logit is explained (token-level heads and language models); question answering: the
            positions of start and end, -1 where one plays no part.
        task: what kind of head the model has.
        granularity: what a unit is: `"token"`, `"word"` or `"sentence"`.
        truncated: whether the text was too long, so that a part of it was neither read nor explained.
        windows: for a text that was read in windows, the exact explanation of each; this object is their mean.

    Raises:
        ValueError: the fields do not fit each other, or the contributions do not add up to the logit.
    """

    text: str
    words: list[str]
    offsets: list[tuple[int, int]]
    scores: list[float] | dict[int, list[float]]
    special_tokens_score: float | dict[int, float]
    target: int | list[int]
    label: str | dict[int, str]
    logit: float | dict[int, float]
    probability: float | None | dict[int, float | None]
    residual: float | dict[int, float]
    tokens: list[str]
    token_scores: list[float] | dict[int, list[float]]
    unit_of_token: list[int | None]
    segments: list[int]
    text_pair: str | None = None
    outside_score: float | dict[int, float] = 0.0
    contrast: str | None = None
    position: int | tuple[int, int] | None = None
    task: str = "sequence-classification"
    granularity: str = "word"
    truncated: bool = False
    windows: tuple["TextExplanation", ...] = field(default=())

    def __post_init__(self) -> None:
        if not len(self.words) == len(self.offsets) == len(self.segments):
            raise ValueError(
                f"Every word needs an offset and a segment, got {len(self.words)} words, {len(self.offsets)} offsets and "
                f"{len(self.segments)} segments."
            )
        if len(self.tokens) != len(self.unit_of_token):
            raise ValueError(f"{len(self.tokens)} tokens but {len(self.unit_of_token)} entries in `unit_of_token`.")
        for one in self._singles():
            if len(one["scores"]) != len(self.words) or len(one["token_scores"]) != len(self.tokens):
                raise ValueError(
                    f"{len(self.words)} words and {len(self.tokens)} tokens need as many scores, got "
                    f"{len(one['scores'])} and {len(one['token_scores'])}."
                )
            total = sum(one["scores"]) + one["special_tokens_score"] + one["outside_score"] + one["residual"]
            size = 1.0 + sum(map(abs, one["token_scores"])) + abs(one["logit"])
            if not math.isfinite(total) or abs(total - one["logit"]) > TOLERANCE * size:
                raise ValueError(
                    f"The contributions add up to {total:.6g}, not to the logit {one['logit']:.6g} of {one['label']!r}: "
                    "some of the numbers are missing or were changed."
                )

    def _singles(self) -> list[dict[str, Any]]:
        """The values that depend on the target, target by target."""
        if not isinstance(self.target, list):
            return [{name: getattr(self, name) for name in PER_TARGET}]
        for name in PER_TARGET:
            value = getattr(self, name)
            if not isinstance(value, dict) or list(value) != self.target:
                raise ValueError(f"With the targets {self.target}, `{name}` must be a dict with these keys.")
        return [{name: getattr(self, name)[target] for name in PER_TARGET} for target in self.target]

    def __repr__(self) -> str:
        what = ", ".join(f"{one['label']!r}: {one['logit']:+.4f}" for one in self._singles())
        shown = self.text if len(self.text) <= 60 else f"{self.text[:59]}…"
        return f"TextExplanation({shown!r}, logits {{{what}}}, {len(self)} {self.granularity}s)"

    @property
    def targets(self) -> list[int]:
        """The explained targets, also where it is one."""
        return self.target if isinstance(self.target, list) else [self.target]

    @property
    def total(self) -> float | dict[int, float]:
        """What the contributions add up to; it misses the logit by `residual`."""
        if isinstance(self.target, list):
            return {target: self.for_target(target).total for target in self.target}
        return sum(self.scores) + self.special_tokens_score + self.outside_score

    @property
    def explained_word(self) -> str | None:
        """The unit that holds the explained position, for heads that have one logit a token."""
        unit = self.unit_of_token[self.position] if isinstance(self.position, int) and not self.windows else None
        return None if unit is None else self.words[unit]

    def for_target(self, target: int | str) -> "TextExplanation":
        """The explanation of one of several targets, by index or name.

        Raises:
            KeyError: it was not explained.
        """
        labels = self.label if isinstance(self.label, dict) else {self.target: self.label}
        found = [index for index, label in labels.items() if target in (index, label)]
        if not found:
            explained = ", ".join(f"{index} ({label})" for index, label in labels.items())
            raise KeyError(f"Target {target!r} was not explained; explained: {explained}.")
        if not isinstance(self.target, list):
            return self
        values = {name: getattr(self, name)[found[0]] for name in PER_TARGET}
        windows = tuple(window.for_target(found[0]) for window in self.windows)
        return replace(self, target=found[0], windows=windows, **values)

    def top(self, k: int = 5, sign: str | None = None) -> list[WordScore]:
        """The `k` units with the largest contributions, largest first.

        Args:
            k: how many.
            sign: None for the largest absolute values, `"positive"` or `"negative"` for those for or against the target.

        Raises:
            ValueError: several targets (pick one with `for_target`), or an unknown sign.
        """
        if isinstance(self.target, list):
            raise ValueError(f"Several targets are explained: for_target(…) picks one of {self.target}.")
        if sign not in (None, "positive", "negative"):
            raise ValueError(f"`sign` must be None, 'positive' or 'negative', got {sign!r}.")
        direction = {"positive": 1, "negative": -1}.get(sign)
        units = [unit for unit in self if direction is None or unit.score * direction > 0]
        return sorted(units, key=lambda unit: -abs(unit.score))[:k]

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int | slice) -> "WordScore | TextExplanation":
        """A unit, or an explanation of some units in which the others are in `outside_score`."""
        if not isinstance(index, slice):
            scores = self.scores
            score = {t: s[index] for t, s in scores.items()} if isinstance(scores, dict) else scores[index]
            return WordScore(self.words[index], score, self.offsets[index])
        kept = range(len(self))[index]
        if kept.step != 1:
            raise ValueError(f"Slices of an explanation go forward one by one, got the step {kept.step}.")
        tokens = [i for i, unit in enumerate(self.unit_of_token) if unit is None or unit in kept]
        units = (self.unit_of_token[i] for i in tokens)
        chosen = {name: getattr(self, name)[index] for name in ("words", "offsets", "segments")}

        def part(scores: list[float], token_scores: list[float], outside: float) -> tuple[list, list, float]:
            left_out = sum(scores) - sum(scores[index])
            return scores[index], [token_scores[i] for i in tokens], outside + left_out

        values = zip(*(part(s["scores"], s["token_scores"], s["outside_score"]) for s in self._singles()), strict=True)
        values = dict(zip(("scores", "token_scores", "outside_score"), values, strict=True))
        several = isinstance(self.target, list)
        values = {n: dict(zip(self.target, v, strict=True)) if several else v[0] for n, v in values.items()}
        return replace(
            self,
            tokens=[self.tokens[i] for i in tokens],
            unit_of_token=[None if unit is None else unit - kept.start for unit in units],
            windows=(),
            position=None if isinstance(self.position, int) else self.position,
            **chosen,
            **values,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers; `from_dict` reads them."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "windows"}
        values["offsets"] = [list(offset) for offset in self.offsets]
        if isinstance(self.position, tuple):
            values["position"] = list(self.position)
        return {"format": FORMAT, **values, "windows": [window.to_dict() for window in self.windows]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TextExplanation":
        """Reads what `to_dict` wrote, also after a detour through JSON.

        Raises:
            ValueError: it is not an explanation, or one of another version.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            given = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"This is not an explanation of the format {FORMAT!r}: {given!r}.")
        values = {name: value for name, value in values.items() if name != "format"}
        known = {f.name for f in fields(cls)}
        if values.keys() != known:
            raise ValueError(
                f"These fields of an explanation are missing or too many: {sorted(values.keys() ^ known)}."
            )
        for name in PER_TARGET:
            if isinstance(values[name], dict):
                values[name] = {int(target): value for target, value in values[name].items()}
        values["offsets"] = [tuple(offset) for offset in values["offsets"]]
        if isinstance(values["position"], list):
            values["position"] = tuple(values["position"])
        values["windows"] = tuple(cls.from_dict(window) for window in values["windows"])
        return cls(**values)

    def to_json(self, **options: Any) -> str:
        """JSON; `options` go to `json.dumps` (`indent=2` for people)."""
        return json.dumps(self.to_dict(), **{"ensure_ascii": False, **options})

    @classmethod
    def from_json(cls, text: str) -> "TextExplanation":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: it is not JSON, or not an explanation.
        """
        return cls.from_dict(json.loads(text))

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with a row a unit: `word`, `start`, `end`, `segment`, and `score` or a column a target.

        Raises:
            ImportError: pandas is not installed.
        """
        pandas = require("pandas", "viz")
        rows = {"word": self.words, "start": [a for a, _ in self.offsets], "end": [b for _, b in self.offsets]}
        scores = self.scores if isinstance(self.scores, dict) else {"score": self.scores}
        names = self.label if isinstance(self.label, dict) else {}
        columns = {names.get(target, target): values for target, values in scores.items()}
        if len(columns) < len(scores):  # labels that have the same name
            columns = scores
        return pandas.DataFrame({**rows, "segment": self.segments, **columns})

    def to_html(self, title: str | None = None, show_special_tokens: bool = False) -> str:
        """A page of its own, without anything to fetch; see `explanations.html.render_html`."""
        from bcos_transformers.explanations.html import render_html

        return render_html([self], title=title or "Explanation", show_special_tokens=show_special_tokens)

    def to_terminal(self, show_special_tokens: bool = False) -> Any:
        """Coloured text for a `rich` console; see `explanations.terminal.render_terminal`."""
        from bcos_transformers.explanations.terminal import render_terminal

        return render_terminal(self, show_special_tokens=show_special_tokens)

    def plot(self, kind: str | None = None, **options: Any) -> Any:
        """A matplotlib figure; see `explanations.plots.plot_explanation`."""
        from bcos_transformers.explanations.plots import plot_explanation

        return plot_explanation(self, kind=kind, **options)

    def _repr_html_(self) -> str | None:
        """What notebooks show; without jinja2 they fall back to plain text."""
        from bcos_transformers.explanations.html import render_fragment

        try:
            return render_fragment(self)
        except ImportError:
            return None
