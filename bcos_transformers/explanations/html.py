"""Explanations as one HTML page that needs nothing else: no script, no style sheet, no font to fetch."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bcos_transformers.explanations.layout import heading, pieces_of, sum_line
from bcos_transformers.explanations.text_explanation import TextExplanation
from bcos_transformers.extras import require

TEMPLATES = Path(__file__).parent / "templates"
_fragments = itertools.count()


def render_html(
    explanations: Sequence[TextExplanation], title: str = "Explanations", show_special_tokens: bool = False
) -> str:
    """One page that shows the texts with their words coloured by their contribution.

    Colours are blue (for the target) and orange (against it), told apart by a solid and a dashed line as well. A word
    shows its signed score when pointed at, when focused with the keyboard, and on paper. With several targets, radio
    buttons choose the one that is shown.

    Args:
        explanations: the explained texts.
        title: heading of the page.
        show_special_tokens: show special tokens among the words; else they only appear in the sum.

    Returns:
        The page. All text is escaped.

    Raises:
        ImportError: jinja2 is not installed.
    """
    items = [_item(explanation, show_special_tokens) for explanation in explanations]
    return _template("page.html.jinja").render(title=title, items=items, page="e")


def render_fragment(explanation: TextExplanation, show_special_tokens: bool = False) -> str:
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


def _item(explanation: TextExplanation, show_special_tokens: bool) -> dict[str, Any]:
    singles = [explanation.for_target(target) for target in explanation.targets]
    return {
        "views": [_view(single, show_special_tokens) for single in singles],
        "truncated": explanation.truncated,
        "windows": [_window(window) for window in explanation.windows],
        "granularity": explanation.granularity,
    }


def _view(explanation: TextExplanation, show_special_tokens: bool) -> dict[str, Any]:
    total, logit = f"{explanation.total:+.4f}", f"{explanation.logit:+.4f}"
    return {
        "heading": heading(explanation),
        "probability": explanation.probability,
        "lines": pieces_of(explanation, show_special_tokens),
        "terms": sum_line(explanation),
        "total": total,
        "logit": logit,
        "equals": "=" if total == logit else "≈",
        "residual": explanation.residual,
    }


def _window(window: TextExplanation) -> list[str]:
    """Words and logit of a window, for each target."""
    words = f"{window.words[0]} … {window.words[-1]}" if window.words else "–"
    singles = [window.for_target(target) for target in window.targets]
    return [f"{words}: {single.label} {single.logit:+.4f}" for single in singles]
