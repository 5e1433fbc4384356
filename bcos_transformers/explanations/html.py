"""Explanations as one self-contained HTML page."""

from collections.abc import Sequence
from pathlib import Path

from bcos_transformers.explanations.words import WordContributions
from bcos_transformers.extras import require


def render_html(explanations: Sequence[WordContributions], title: str = "Explanations") -> str:
    """One page, without scripts or anything to fetch, that shows the texts with their words coloured.

    Args:
        explanations: the explained texts.
        title: heading of the page.

    Returns:
        The page. All text is escaped.

    Raises:
        ImportError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "demo")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True
    )
    items = [{"explanation": explanation, "pieces": _pieces(explanation)} for explanation in explanations]
    return environment.get_template("page.html.jinja").render(title=title, items=items)


def _pieces(explanation: WordContributions) -> list[dict]:
    """Words and the gaps between them, in order; words with their score and strength in [0, 1]."""
    largest = max((abs(score) for score in explanation.scores), default=0.0) or 1.0
    pieces, position = [], 0
    for (begin, end), score in zip(explanation.spans, explanation.scores, strict=True):
        pieces.append({"text": explanation.text[position:begin], "score": None})
        pieces.append(
            {
                "text": explanation.text[begin:end],
                "score": score,
                "side": "for" if score >= 0 else "against",
                "strength": abs(score) / largest,
            }
        )
        position = end
    pieces.append({"text": explanation.text[position:], "score": None})
    return [piece for piece in pieces if piece["text"]]
