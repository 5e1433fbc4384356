"""Coloured words in the terminal."""

from typing import Any

from bcos_transformers.explanations.layout import (
    AGAINST,
    ATTENTION,
    FOR,
    Piece,
    heading,
    pieces_by_prototypes,
    pieces_of,
    prototypes_sum_line,
    sum_line,
)
from bcos_transformers.explanations.text_explanation import TextExplanation
from bcos_transformers.extras import require
from bcos_transformers.prototypes.text_explanation import PrototypeExplanation, PrototypeShare

SAID = 0.35  # words with this share of the largest contribution show their number
BAR = 8  # characters of the largest share
MAX_TEXT = 200  # characters of a prototype's text; files and pages have all of it


def render_terminal(explanation: TextExplanation | PrototypeExplanation, show_special_tokens: bool = False) -> Any:
    """The text with its words coloured by their contribution, and the sum that is the logit.

    Args:
        explanation: one explained text; with several targets they follow one another. Prototypes come in a list below.
        show_special_tokens: show special tokens among the words; else they only appear in the sum.

    Returns:
        A `rich.text.Text`, to be printed by a `rich.console.Console`. Large contributions are also printed as numbers, so
        that the reading does not depend on colours alone.

    Raises:
        ImportError: rich is not installed.
    """
    text = require("rich.text", "viz").Text()
    if isinstance(explanation, PrototypeExplanation):
        _append_prototypes(text, explanation, show_special_tokens)
        return text
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
        _append_words(text, line)
    if explanation.truncated:
        text.append(" [the text was cut]", style="italic")
    if explanation.windows:
        text.append(f" [mean of {len(explanation.windows)} windows]", style="italic")
    _append_sum(text, explanation, sum_line(explanation))


def _append_words(text: Any, line: list[Piece], attention: bool = False) -> None:
    for piece in line:
        if piece.score is None:
            text.append(_printable(piece.text))
            continue
        style = _style(piece.strength, ATTENTION if attention else FOR if piece.score >= 0 else AGAINST)
        text.append(_printable(piece.text), style=f"{style} italic" if piece.special else style)
        if piece.strength >= SAID:
            text.append(f"{piece.score:.0%}" if attention else f"{piece.score:+.2f}", style="dim")


def _append_sum(
    text: Any, explanation: TextExplanation | PrototypeExplanation, named: list[tuple[str, float]]
) -> None:
    equals = "=" if f"{explanation.total:.4f}" == f"{explanation.logit:.4f}" else "≈"
    terms = "  ".join(f"{name} {value:+.4f}" for name, value in named)
    text.append(
        f"\n  {terms}  sum {explanation.total:+.4f} {equals} logit {explanation.logit:+.4f}  "
        f"(residual {explanation.residual:+.0e})",
        style="dim",
    )


def _append_prototypes(text: Any, explanation: PrototypeExplanation, show_special_tokens: bool) -> None:
    text.append(f"{_printable(heading(explanation))} ", style="bold")
    if explanation.probability is not None:
        text.append(f"({explanation.probability:.0%})  ", style="dim")
    if explanation.splits_over_words:
        scores, token_scores = explanation.scores, explanation.token_scores
    else:
        scores, token_scores = explanation.attention, explanation.token_attention
    line = pieces_by_prototypes(explanation, scores, token_scores, show_special_tokens)
    _append_words(text, line, attention=not explanation.splits_over_words)
    if explanation.truncated:
        text.append(" [the text was cut]", style="italic")
    text.append("\n  this looks like:\n", style="bold")
    largest = max((abs(share.contribution) for share in explanation.prototypes), default=0.0) or 1.0
    for share in explanation.prototypes:
        _append_share(text, explanation, share, abs(share.contribution) / largest)
    names = sorted(zip(explanation.attention, explanation.words, strict=True), key=lambda pair: -pair[0])[:3]
    attended = " · ".join(f"{' '.join(word.split())} {value:.0%}" for value, word in names)
    text.append(f"  attention: {_printable(attended)}", style="dim")
    _append_sum(text, explanation, prototypes_sum_line(explanation))


def _append_share(text: Any, explanation: PrototypeExplanation, share: PrototypeShare, strength: float) -> None:
    colour = FOR if share.contribution >= 0 else AGAINST
    bar = "█" if share.contribution >= 0 else "░"
    text.append(f"  {share.contribution:+.4f} ", style="bold")
    text.append((bar * max(1, round(BAR * strength))).ljust(BAR), style=f"rgb({colour[0]},{colour[1]},{colour[2]})")
    text.append(f" {_printable(share.label)}: ", style="bold")
    known = " ".join(share.name.split())
    text.append(_printable(known if len(known) <= MAX_TEXT else known[: MAX_TEXT - 1] + "…"))
    facts = f"similarity {share.similarity:.4f} × weight {share.weight:+.4f}"
    if share.text is not None:
        facts += f", prototype {share.number}"
        facts += "" if share.index is None else f", training text {share.index}"
    if share.scores is not None:
        words = sorted(zip(share.scores, explanation.words, strict=True), key=lambda pair: -abs(pair[0]))[:3]
        facts += ", through " + " · ".join(f"{' '.join(word.split())} {score:+.2f}" for score, word in words)
    text.append(f"\n     {_printable(facts)}\n", style="dim")


def _printable(text: str) -> str:
    """Without control characters, which could move the cursor or change the terminal's colours."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _style(strength: float, colour: tuple[int, int, int]) -> str:
    """Background of this colour for a strength in [0, 1]."""
    share = min(1.0, strength)
    if share < 0.1:
        return ""
    mixed = [round(255 + (channel - 255) * share) for channel in colour]
    text = "#ffffff" if share > 0.6 else "#101010"
    return f"{text} on rgb({mixed[0]},{mixed[1]},{mixed[2]})"
