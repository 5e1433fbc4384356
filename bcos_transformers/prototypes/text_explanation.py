"""What a text explained by prototypes is: texts that it looks like, and their shares, which add up to the logit."""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from bcos_transformers.explanations.text_explanation import TOLERANCE
from bcos_transformers.extras import require

FORMAT = "bcos-prototype-explanation/1"
ATTENTION_TOLERANCE = 1e-4  # of α, which was rounded to float32 before it was added up


@dataclass(frozen=True)
class PrototypeShare:
    """What one prototype adds to a logit: `weight * similarity == contribution`.

    Attributes:
        number: which prototype of the model it is, from 0.
        text: the training text that it is; None before projection.
        label: what it stands for: its class by name, or the value of a regression as text.
        index: row of that text in the training data; None before projection.
        similarity: how similar the explained text is to it.
        weight: of the similarity in the explained logit, after contrast where one was asked for.
        contribution: its share of the logit.
        scores: the share split over the explained text's words; None where shares do not split.
        special_tokens_score: the part of tokens that stand for nothing in the text; None where shares do not split.
        token_scores: the share split over the tokens, special ones included; None where shares do not split.
        residual: what that split leaves unexplained, rounding; None where shares do not split.
    """

    number: int
    text: str | None
    label: str
    index: int | None
    similarity: float
    weight: float
    contribution: float
    scores: list[float] | None = None
    special_tokens_score: float | None = None
    token_scores: list[float] | None = None
    residual: float | None = None

    @property
    def name(self) -> str:
        """The text, or what to call a prototype that is none yet."""
        return f"prototype {self.number} (not projected onto a text)" if self.text is None else self.text


@dataclass(frozen=True, repr=False)
class PrototypeExplanation:
    """One text explained by prototypes.

    `sum(share.contribution) + other_prototypes_contribution + bias + residual == logit`; over B-cos encoders with cosine
    similarity also `sum(scores) + special_tokens_score + bias + words_residual == logit`, and the same for every share.

    Attributes:
        text: the text.
        words: its words as they stand in the text (its tokens, for tokenizers that know no words).
        offsets: characters `[start, end)` of each word in the text.
        attention: the weight α of each word in the embedding that is compared with prototypes: the sum over its tokens.
        special_tokens_attention: that of tokens that stand for nothing in the text; together with `attention` 1.
        prototypes: those with the largest absolute shares, largest first.
        other_prototypes: how many there are besides.
        other_prototypes_contribution: their shares together.
        bias: what the last layer's bias adds, which belongs to no prototype; 0 without one.
        target: index of the explained class or output.
        label: its name.
        logit: the explained quantity: the target's logit, minus what `contrast` names.
        probability: the model's probability of the target; None for regression.
        residual: what the shares leave unexplained: rounding.
        tokens: the tokens as the tokenizer names them, special ones included.
        token_attention: α of each token.
        unit_of_token: index of the word that each token is part of; None for special tokens.
        scores: contribution of each word to the logit, through all prototypes; None where shares do not split.
        special_tokens_score: that of tokens that stand for nothing in the text; None where shares do not split.
        token_scores: contribution of each token; None where shares do not split.
        words_residual: what the split over words leaves unexplained, rounding; None where shares do not split.
        contrast: what was subtracted from the logit: `"mean"`, the name of a foil, or None.
        distance: what similarity is made of: `"l2"` or `"cosine"`.
        granularity: what `words` are: `"word"`, or `"token"` for tokenizers that know no words.
        truncated: whether the text was too long, so that a part of it was neither read nor explained.

    Raises:
        ValueError: the fields do not fit each other, or the shares do not add up to the logit.
    """

    text: str
    words: list[str]
    offsets: list[tuple[int, int]]
    attention: list[float]
    special_tokens_attention: float
    prototypes: list[PrototypeShare]
    other_prototypes: int
    other_prototypes_contribution: float
    bias: float
    target: int
    label: str
    logit: float
    probability: float | None
    residual: float
    tokens: list[str]
    token_attention: list[float]
    unit_of_token: list[int | None]
    scores: list[float] | None = None
    special_tokens_score: float | None = None
    token_scores: list[float] | None = None
    words_residual: float | None = None
    contrast: str | None = None
    distance: str = "l2"
    granularity: str = "word"
    truncated: bool = False

    def __post_init__(self) -> None:
        if not len(self.words) == len(self.offsets) == len(self.attention):
            raise ValueError(
                f"Every word needs an offset and its attention, got {len(self.words)} words, {len(self.offsets)} offsets "
                f"and {len(self.attention)} numbers."
            )
        if not len(self.tokens) == len(self.token_attention) == len(self.unit_of_token):
            raise ValueError(
                f"{len(self.tokens)} tokens need as many entries in `token_attention` and `unit_of_token`, got "
                f"{len(self.token_attention)} and {len(self.unit_of_token)}."
            )
        for word, (begin, end) in zip(self.words, self.offsets, strict=True):
            if self.text[begin:end] != word:
                raise ValueError(f"The text has {self.text[begin:end]!r} at [{begin}, {end}), not the word {word!r}.")
        attention = sum(self.attention) + self.special_tokens_attention
        if not abs(attention - 1) <= ATTENTION_TOLERANCE:
            raise ValueError(
                f"The attention adds up to {attention:.6g}, not to 1: some of it is missing or was changed."
            )
        self._check_shares()
        size = sum(abs(share.contribution) for share in self.prototypes) + abs(self.other_prototypes_contribution)
        _check_sum("The shares", self.total + self.residual, f"the logit of {self.label!r}", self.logit, size)
        splits = self._check_split(self, "the explanation")
        if splits:
            total = sum(self.scores) + self.special_tokens_score + self.bias + self.words_residual
            size = sum(map(abs, self.token_scores))
            _check_sum("The words", total, f"the logit of {self.label!r}", self.logit, size)
        if any((share.scores is not None) != splits for share in self.prototypes):
            raise ValueError("Either the logit and all shares are split over the words or none is.")

    def _check_shares(self) -> None:
        for share in self.prototypes:
            name = f"prototype {share.number}"
            product = share.weight * share.similarity
            _check_sum(f"Weight × similarity of {name}", product, "its share", share.contribution, 0)
            if self._check_split(share, name):
                total = sum(share.scores) + share.special_tokens_score + share.residual
                size = sum(map(abs, share.token_scores))
                _check_sum(f"The words of {name}", total, "its share", share.contribution, size)
        sizes = [abs(share.contribution) for share in self.prototypes]
        if sizes != sorted(sizes, reverse=True) or len({share.number for share in self.prototypes}) < len(sizes):
            raise ValueError("The prototypes must be different ones, those with the largest shares first.")

    def _check_split(self, split: Any, name: str) -> bool:
        """Whether a share, or the logit, is split over the words; a part of a split is an error."""
        rest = split.residual if isinstance(split, PrototypeShare) else split.words_residual
        parts = (split.scores, split.special_tokens_score, split.token_scores, rest)
        if all(part is None for part in parts):
            return False
        if any(part is None for part in parts):
            raise ValueError(f"A part of what the words contribute is missing in {name}.")
        if len(split.scores) != len(self.words) or len(split.token_scores) != len(self.tokens):
            raise ValueError(
                f"{len(self.words)} words and {len(self.tokens)} tokens need as many scores, got {len(split.scores)} and "
                f"{len(split.token_scores)} in {name}."
            )
        return True

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= 60 else f"{self.text[:59]}…"
        first = self.prototypes[0] if self.prototypes else None
        like = (
            "" if first is None else f", most like {first.name[:59] + '…' if len(first.name) > 60 else first.name!r}"
        )
        return f"PrototypeExplanation({shown!r}, {self.label!r}: {self.logit:+.4f}{like})"

    @property
    def total(self) -> float:
        """What the shares and the bias add up to; it misses the logit by `residual`."""
        return sum(share.contribution for share in self.prototypes) + self.other_prototypes_contribution + self.bias

    @property
    def splits_over_words(self) -> bool:
        """Whether there are contributions of words."""
        return self.scores is not None

    def top(self, k: int = 5) -> list[PrototypeShare]:
        """The `k` prototypes with the largest absolute shares, largest first, of those that the explanation holds."""
        return self.prototypes[:k]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers; `from_dict` reads them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["offsets"] = [list(offset) for offset in self.offsets]
        values["prototypes"] = [asdict(share) for share in self.prototypes]
        return {"format": FORMAT, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PrototypeExplanation":
        """Reads what `to_dict` wrote, also after a detour through JSON.

        Raises:
            ValueError: it is not an explanation by prototypes, one of another version, or a damaged one.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            given = values.get("format") if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"This is not an explanation of the format {FORMAT!r}: {given!r}.")
        values = {name: value for name, value in values.items() if name != "format"}
        _check_names(cls, values, "an explanation by prototypes")
        try:
            for share in values["prototypes"]:
                _check_names(PrototypeShare, share, "a prototype's share")
            values["prototypes"] = [PrototypeShare(**share) for share in values["prototypes"]]
            values["offsets"] = [tuple(offset) for offset in values["offsets"]]
            if any(len(offset) != 2 for offset in values["offsets"]):
                raise TypeError("offsets are pairs")
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"A field of this explanation holds something of the wrong type: {error}") from error

    def to_json(self, **options: Any) -> str:
        """JSON; `options` go to `json.dumps` (`indent=2` for people)."""
        return json.dumps(self.to_dict(), **{"ensure_ascii": False, **options})

    @classmethod
    def from_json(cls, text: str) -> "PrototypeExplanation":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: it is not JSON, or not an explanation by prototypes.
        """
        return cls.from_dict(json.loads(text))

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with a row a prototype, largest absolute share first.

        Its columns are `number`, `text`, `label`, `index`, `similarity`, `weight` and `contribution`.

        Raises:
            ImportError: pandas is not installed.
        """
        columns = ["number", "text", "label", "index", "similarity", "weight", "contribution"]
        rows = [[getattr(share, name) for name in columns] for share in self.prototypes]
        return require("pandas", "viz").DataFrame(rows, columns=columns)

    def to_html(self, title: str | None = None, show_special_tokens: bool = False) -> str:
        """A page of its own, without anything to fetch; see `explanations.html.render_html`."""
        from bcos_transformers.explanations.html import render_html

        return render_html([self], title=title or "Explanation", show_special_tokens=show_special_tokens)

    def to_terminal(self, show_special_tokens: bool = False) -> Any:
        """Coloured text for a `rich` console; see `explanations.terminal.render_terminal`."""
        from bcos_transformers.explanations.terminal import render_terminal

        return render_terminal(self, show_special_tokens=show_special_tokens)

    def plot(self, **options: Any) -> Any:
        """A matplotlib figure; see `explanations.plots.plot_prototypes`."""
        from bcos_transformers.explanations.plots import plot_prototypes

        return plot_prototypes(self, **options)

    def _repr_html_(self) -> str | None:
        """What notebooks show; without jinja2 they fall back to plain text."""
        from bcos_transformers.explanations.html import render_fragment

        try:
            return render_fragment(self)
        except ImportError:
            return None


def _check_names(kind: type, values: Any, what: str) -> None:
    known = {f.name for f in fields(kind)}
    given = values.keys() if isinstance(values, dict) else set()
    if given != known:
        raise ValueError(f"These fields of {what} are missing or too many: {sorted(given ^ known)}.")


def _check_sum(parts: str, total: float, whole: str, wanted: float, size: float) -> None:
    if not math.isfinite(total) or not abs(total - wanted) <= TOLERANCE * (1.0 + size + abs(wanted)):
        raise ValueError(
            f"{parts} come to {total:.6g}, not to {whole}, which is {wanted:.6g}: some of the numbers are missing or were "
            "changed."
        )
