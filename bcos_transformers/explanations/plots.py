"""Explanations as matplotlib figures: bars for one target, a heat map for several."""

from typing import Any

from bcos_transformers.explanations.layout import AGAINST, FOR, heading
from bcos_transformers.explanations.text_explanation import TextExplanation
from bcos_transformers.extras import require
from bcos_transformers.prototypes.text_explanation import PrototypeExplanation

KINDS = ("bar", "heatmap")
MAX_UNITS = 60  # what a figure holds legibly


def plot_explanation(explanation: TextExplanation, kind: str | None = None, max_units: int = MAX_UNITS) -> Any:
    """Draws an explanation.

    Args:
        explanation: one explained text.
        kind: `"bar"`, a bar for every unit and one for the special tokens, of one target; `"heatmap"`, a row for every
            target; None takes what fits.
        max_units: units that are drawn; of more, those with the largest contributions, in their order.

    Returns:
        A `matplotlib.figure.Figure` of its own (`figure.savefig(path)`), which pyplot does not know.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: an unknown kind, or bars for several targets.
    """
    several = isinstance(explanation.target, list)
    kind = ("heatmap" if several else "bar") if kind is None else kind
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}.")
    if kind == "bar" and several:
        raise ValueError("Bars show one target: pick one with for_target(…), or draw a heat map.")
    singles = [explanation.for_target(target) for target in explanation.targets]
    size = [max(abs(single.scores[i]) for single in singles) for i in range(len(explanation))]
    kept = sorted(sorted(range(len(size)), key=lambda i: -size[i])[:max_units])
    labels = [_short(explanation.words[i]) for i in kept]
    rest = len(size) - len(kept)
    figure = require("matplotlib.figure", "viz").Figure(layout="constrained")
    axes = figure.subplots()
    draw = _bars if kind == "bar" else _heat_map
    draw(figure, axes, singles, kept, labels)
    if rest:
        axes.set_xlabel(f"{axes.get_xlabel()}\n({rest} more {explanation.granularity}s with smaller contributions)")
    return figure


def _bars(figure: Any, axes: Any, singles: list[TextExplanation], kept: list[int], labels: list[str]) -> None:
    (one,) = singles
    values = [one.scores[i] for i in kept] + [one.special_tokens_score]
    names = [*labels, "special tokens"]
    left_out = one.outside_score + sum(score for i, score in enumerate(one.scores) if i not in set(kept))
    if left_out:
        values, names = [*values, left_out], [*names, "all others"]
    _draw(figure, axes, one, values, names)


def plot_prototypes(
    explanation: PrototypeExplanation, max_prototypes: int | None = None, text_length: int = 48
) -> Any:
    """Draws an explanation by prototypes: a bar for each prototype's share of the logit.

    Args:
        explanation: one explained text.
        max_prototypes: how many are drawn, those with the largest shares; the others have one bar together. None draws all
            that the explanation names.
        text_length: characters of a prototype's text that are shown.

    Returns:
        A `matplotlib.figure.Figure` of its own (`figure.savefig(path)`), which pyplot does not know.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `max_prototypes` or `text_length` below 1.
    """
    shares = explanation.prototypes
    for name, value in (("max_prototypes", max_prototypes), ("text_length", text_length)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    drawn = shares[:max_prototypes]
    values = [share.contribution for share in drawn]
    texts = [share.name if share.text is None else f"“{_short(share.text, text_length)}”" for share in drawn]
    names = [f"{text}\n{_short(share.label)}" for text, share in zip(texts, drawn, strict=True)]
    others = explanation.other_prototypes + len(shares) - len(drawn)
    if others:
        rest = sum(share.contribution for share in shares[len(drawn) :]) + explanation.other_prototypes_contribution
        values, names = [*values, rest], [*names, f"{others} other prototype{'s' if others > 1 else ''}"]
    if explanation.bias:
        values, names = [*values, explanation.bias], [*names, "bias"]
    figure = require("matplotlib.figure", "viz").Figure(layout="constrained")
    axes = figure.subplots()
    _draw(figure, axes, explanation, values, names, height=0.48)
    # Of the whole figure: long titles of axes this far to the right would leave it.
    title = f"{_short(explanation.text, 90)}\n{axes.get_title()}, because it looks like"
    axes.set_title("")
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.set_size_inches(8.5, figure.get_figheight())
    return figure


def _draw(
    figure: Any,
    axes: Any,
    one: TextExplanation | PrototypeExplanation,
    values: list[float],
    names: list[str],
    height: float = 0.26,
) -> None:
    """Horizontal bars that add up to a logit, each with its number; `height` in inches."""
    colours = [tuple(c / 255 for c in (FOR if value >= 0 else AGAINST)) for value in values]
    bars = axes.barh(range(len(values)), values, color=colours)
    for bar, value in zip(bars, values, strict=True):
        if value < 0:
            bar.set_hatch("///")
    axes.bar_label(bars, [f"{value:+.2f}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(values)), names, parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"contribution to the logit ({one.logit:+.4f}; residual {one.residual:+.0e})")
    probability = "" if one.probability is None else f", probability {one.probability:.1%}"
    axes.set_title(f"{_short(heading(one), 60)}{probability}", parse_math=False)
    figure.set_size_inches(7, 1.2 + height * len(values))


def _heat_map(figure: Any, axes: Any, singles: list[TextExplanation], kept: list[int], labels: list[str]) -> None:
    colors = require("matplotlib.colors", "viz")
    shades = colors.LinearSegmentedColormap.from_list(
        "bcos", [tuple(c / 255 for c in k) for k in (AGAINST, (255,) * 3, FOR)]
    )
    rows = [[single.scores[i] for i in kept] + [single.special_tokens_score] for single in singles]
    largest = max((abs(value) for row in rows for value in row), default=0.0) or 1.0
    image = axes.imshow(rows, cmap=shades, vmin=-largest, vmax=largest, aspect="auto")
    axes.set_xticks(range(len(kept) + 1), [*labels, "special tokens"], rotation=45, ha="right", parse_math=False)
    names = [f"{_short(heading(single), 40)}  {single.logit:+.2f}" for single in singles]
    axes.set_yticks(range(len(singles)), names, parse_math=False)
    if len(kept) <= 24:
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                dark = abs(value) > 0.6 * largest
                axes.text(
                    x, y, f"{value:+.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "0.2"
                )
    figure.colorbar(image, ax=axes, label="contribution")
    figure.set_size_inches(min(24, 4 + 0.5 * len(kept)), 1.8 + 0.4 * len(singles))


def _short(text: str, length: int = 28) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
