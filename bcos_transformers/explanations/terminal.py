"""Coloured words in the terminal."""

from bcos_transformers.explanations.words import WordContributions
from bcos_transformers.extras import require

FOR, AGAINST = (33, 102, 172), (178, 88, 0)  # blue and orange: told apart by colour-blind readers too


def render_terminal(explanation: WordContributions):
    """The text with its words coloured by their contribution, and the sum that is the logit.

    Args:
        explanation: one explained text.

    Returns:
        A `rich.text.Text`, to be printed by a `rich.console.Console`. The sign is also printed as a number under a
        threshold, so that the reading does not depend on colours alone.

    Raises:
        ImportError: rich is not installed.
    """
    rich_text = require("rich.text", "viz")
    line = rich_text.Text()
    line.append(f"{explanation.label} ", style="bold")
    line.append(f"({explanation.probability:.0%})  ", style="dim")
    largest = max((abs(score) for score in explanation.scores), default=0.0) or 1.0
    position = 0
    for (begin, end), score in zip(explanation.spans, explanation.scores, strict=True):
        line.append(explanation.text[position:begin])
        line.append(explanation.text[begin:end], style=_style(score / largest))
        if abs(score) >= 0.35 * largest:
            line.append(f"{score:+.2f}", style="dim")
        position = end
    line.append(explanation.text[position:])
    words = sum(explanation.scores)
    total = words + explanation.special_tokens_score
    if explanation.truncated:
        line.append(" [the rest was cut]", style="italic")
    equals = "=" if f"{total:.4f}" == f"{explanation.logit:.4f}" else "≈"
    line.append(
        f"\n  words {words:+.4f}  special tokens {explanation.special_tokens_score:+.4f}  "
        f"sum {total:+.4f} {equals} logit {explanation.logit:+.4f}  (residual {explanation.residual:+.0e})",
        style="dim",
    )
    return line


def _style(strength: float) -> str:
    """Background colour for a strength in [-1, 1]."""
    if abs(strength) < 0.1:
        return ""
    colour = FOR if strength > 0 else AGAINST
    share = min(1.0, abs(strength))
    mixed = [round(255 + (channel - 255) * share) for channel in colour]
    text = "#ffffff" if share > 0.6 else "#101010"
    return f"{text} on rgb({mixed[0]},{mixed[1]},{mixed[2]})"
