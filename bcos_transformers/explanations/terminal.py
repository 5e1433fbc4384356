"""Coloured words in the terminal."""

from typing import Any

from bcos_transformers.explanations.layout import AGAINST, FOR, heading, pieces_of, sum_line
from bcos_transformers.explanations.text_explanation import TextExplanation
from bcos_transformers.extras import require

SAID = 0.35  # words with this share of the largest contribution show their number


def render_terminal(explanation: TextExplanation, show_special_tokens: bool = False) -> Any:
    """The text with its words coloured by their contribution, and the sum that is the logit.

    Args:
        explanation: one explained text; with several targets they follow one another.
        show_special_tokens: show special tokens among the words; else they only appear in the sum.

    Returns:
        A `rich.text.Text`, to be printed by a `rich.console.Console`. Large contributions are also printed as numbers, so
        that the reading does not depend on colours alone.

    Raises:
        ImportError: rich is not installed.
    """
    text = require("rich.text", "viz").Text()
    for index, target in enumerate(explanation.targets):
        if index:
            text.append("\n")
        _append(text, explanation.for_target(target), show_special_tokens)
    return text


def _append(text: Any, explanation: TextExplanation, show_special_tokens: bool) -> None:
    text.append(f"{_printable(heading(explanation))} ", style="bold")
    if explanation.probability is not None:
        text.append(f"({explanation.probability:.0%})  ", style="dim")
    for number, line in enumerate(pieces_of(explanation, show_special_tokens)):
        if number:
            text.append("  |  ", style="dim")
        for piece in line:
            if piece.score is None:
                text.append(_printable(piece.text))
                continue
            style = _style(piece.strength if piece.score >= 0 else -piece.strength)
            text.append(_printable(piece.text), style=f"{style} italic" if piece.special else style)
            if piece.strength >= SAID:
                text.append(f"{piece.score:+.2f}", style="dim")
    if explanation.truncated:
        text.append(" [the text was cut]", style="italic")
    if explanation.windows:
        text.append(f" [mean of {len(explanation.windows)} windows]", style="italic")
    equals = "=" if f"{explanation.total:.4f}" == f"{explanation.logit:.4f}" else "≈"
    terms = "  ".join(f"{name} {value:+.4f}" for name, value in sum_line(explanation))
    text.append(
        f"\n  {terms}  sum {explanation.total:+.4f} {equals} logit {explanation.logit:+.4f}  "
        f"(residual {explanation.residual:+.0e})",
        style="dim",
    )


def _printable(text: str) -> str:
    """Without control characters, which could move the cursor or change the terminal's colours."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _style(strength: float) -> str:
    """Background colour for a strength in [-1, 1]."""
    share = min(1.0, abs(strength))
    if share < 0.1:
        return ""
    mixed = [round(255 + (channel - 255) * share) for channel in (FOR if strength > 0 else AGAINST)]
    text = "#ffffff" if share > 0.6 else "#101010"
    return f"{text} on rgb({mixed[0]},{mixed[1]},{mixed[2]})"
