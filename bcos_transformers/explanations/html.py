"""Explanations as one HTML page that needs nothing else: no script, no style sheet, no font to fetch."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bcos_transformers.explanations.layout import (
    Piece,
    heading,
    pieces_by_prototypes,
    pieces_of,
    prototypes_sum_line,
    share_sum_line,
    sum_line,
)
from bcos_transformers.explanations.text_explanation import TextExplanation
from bcos_transformers.extras import require
from bcos_transformers.prototypes.text_explanation import PrototypeExplanation, PrototypeShare

TEMPLATES = Path(__file__).parent / "templates"
_fragments = itertools.count()


def render_html(
    explanations: Sequence[TextExplanation | PrototypeExplanation],
    title: str = "Explanations",
    show_special_tokens: bool = False,
) -> str:
    """One page that shows the texts with their words coloured by their contribution.

    Colours are blue (for the target) and orange (against it), told apart by a solid and a dashed line as well. A word
    shows its signed score when pointed at, when focused with the keyboard, and on paper. With several targets, radio
    buttons choose the one that is shown. Texts explained by prototypes are followed by the prototypes with the largest
    shares; where shares do not split over words, these are shaded by the attention α instead.

    Args:
        explanations: the explained texts; both kinds may be mixed.
        title: heading of the page.
        show_special_tokens: show special tokens among the words; else they only appear in the sum.

    Returns:
        The page. All text is escaped.

    Raises:
        ImportError: jinja2 is not installed.
    """
    items = [_item(explanation, show_special_tokens) for explanation in explanations]
    return _template("page.html.jinja").render(title=title, items=items, page="e", **_legend(explanations))


def render_fragment(explanation: TextExplanation | PrototypeExplanation, show_special_tokens: bool = False) -> str:
    """The same for one explanation as a piece of HTML with its own style, for notebooks.

    Raises:
        ImportError: jinja2 is not installed.
    """
    items = [_item(explanation, show_special_tokens)]
    return _template("fragment.html.jinja").render(items=items, page=f"n{next(_fragments)}-{id(explanation):x}-")


def _template(name: str) -> Any:
    jinja2 = require("jinja2", "viz")
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def _legend(explanations: Sequence[TextExplanation | PrototypeExplanation]) -> dict[str, Any]:
    """Which kinds of colour the page explains, and what the coloured units are called."""
    by_prototypes = [e for e in explanations if isinstance(e, PrototypeExplanation)]
    coloured = [e for e in explanations if not isinstance(e, PrototypeExplanation) or e.splits_over_words]
    return {
        "granularity": coloured[0].granularity if coloured else "word",
        "coloured": bool(coloured) or not explanations,
        "shaded": len(coloured) < len(explanations),
        "by_prototypes": bool(by_prototypes),
    }


def _item(explanation: TextExplanation | PrototypeExplanation, show_special_tokens: bool) -> dict[str, Any]:
    if isinstance(explanation, PrototypeExplanation):
        return {"by_prototypes": _by_prototypes(explanation, show_special_tokens), "truncated": explanation.truncated}
    singles = [explanation.for_target(target) for target in explanation.targets]
    return {
        "views": [_view(single, show_special_tokens) for single in singles],
        "truncated": explanation.truncated,
        "windows": [_window(window) for window in explanation.windows],
        "granularity": explanation.granularity,
    }


def _view(explanation: TextExplanation, show_special_tokens: bool) -> dict[str, Any]:
    return {
        "heading": heading(explanation),
        "probability": explanation.probability,
        "lines": pieces_of(explanation, show_special_tokens),
        **_sum(sum_line(explanation), explanation.logit, explanation.residual),
    }


def _sum(terms: list[tuple[str, float]], whole: float, residual: float) -> dict[str, Any]:
    """A sum, as it is shown: its terms by name, what they come to, and what that should be."""
    total, logit = f"{sum(value for _, value in terms):+.4f}", f"{whole:+.4f}"
    equals = "=" if total == logit else "≈"
    return {"terms": terms, "total": total, "logit": logit, "equals": equals, "residual": residual}


def _by_prototypes(explanation: PrototypeExplanation, show_special_tokens: bool) -> dict[str, Any]:
    def pieces(scores: Sequence[float], token_scores: Sequence[float]) -> list[Piece]:
        return pieces_by_prototypes(explanation, scores, token_scores, show_special_tokens)

    def shown(share: PrototypeShare) -> dict[str, Any]:
        split = share.scores is not None
        return {
            "share": share,
            "width": abs(share.contribution) / largest,
            "line": pieces(share.scores, share.token_scores) if split else None,
            "sum": _sum(share_sum_line(explanation, share), share.contribution, share.residual) if split else None,
        }

    largest = max((abs(share.contribution) for share in explanation.prototypes), default=0.0) or 1.0
    return {
        "heading": heading(explanation),
        "explanation": explanation,
        "attention": pieces(explanation.attention, explanation.token_attention),
        "line": pieces(explanation.scores, explanation.token_scores) if explanation.splits_over_words else None,
        "prototypes": [shown(share) for share in explanation.prototypes],
        "sum": _sum(prototypes_sum_line(explanation), explanation.logit, explanation.residual),
    }


def _window(window: TextExplanation) -> list[str]:
    """Words and logit of a window, for each target."""
    words = f"{window.words[0]} … {window.words[-1]}" if window.words else "–"
    singles = [window.for_target(target) for target in window.targets]
    return [f"{words}: {single.label} {single.logit:+.4f}" for single in singles]
