"""What every rendering shares: the pieces of a text in their order, and how strong a colour is."""

from collections.abc import Iterator
from dataclasses import dataclass

from bcos_transformers.explanations.text_explanation import TextExplanation

FOR, AGAINST = (33, 102, 172), (199, 100, 10)  # blue and orange, which colour-blind readers tell apart


@dataclass(frozen=True)
class Piece:
    """A stretch of text.

    Attributes:
        text: as it stands there.
        score: contribution of the unit or special token; None for what lies between units.
        strength: size of the score in `[0, 1]`, the largest of the explanation being 1.
        special: whether it is a special token, which has no place in the text itself.
    """

    text: str
    score: float | None = None
    strength: float = 0.0
    special: bool = False


def largest_score(explanation: TextExplanation, special_tokens: bool = False) -> float:
    """The largest absolute score of a single-target explanation, or 1 where there is none."""
    scores = [abs(score) for score in explanation.scores]
    if special_tokens:
        scores += [
            abs(s) for s, u in zip(explanation.token_scores, explanation.unit_of_token, strict=True) if u is None
        ]
    return max(scores, default=0.0) or 1.0


def pieces_of(explanation: TextExplanation, special_tokens: bool = False) -> list[list[Piece]]:
    """The pieces of each text of a single-target explanation; together, specials aside, they are that text.

    Args:
        explanation: one target.
        special_tokens: also put special tokens where they stand among the tokens.
    """
    largest = largest_score(explanation, special_tokens)
    texts = [explanation.text] if explanation.text_pair is None else [explanation.text, explanation.text_pair]
    lines: list[list[Piece]] = [[] for _ in texts]
    reached = [0] * len(texts)
    for kind, index in _order(explanation, special_tokens):
        if kind == "special":
            segment, score = _segment_before(explanation, index), explanation.token_scores[index]
            lines[segment].append(Piece(explanation.tokens[index], score, abs(score) / largest, special=True))
            continue
        segment, (begin, end), score = (
            explanation.segments[index],
            explanation.offsets[index],
            explanation.scores[index],
        )
        lines[segment].append(Piece(texts[segment][reached[segment] : begin]))
        lines[segment].append(Piece(texts[segment][begin:end], score, abs(score) / largest))
        reached[segment] = end
    for segment, text in enumerate(texts):
        lines[segment].append(Piece(text[reached[segment] :]))
    return [[piece for piece in line if piece.text] for line in lines]


def _order(explanation: TextExplanation, special_tokens: bool) -> Iterator[tuple[str, int]]:
    """Units, and special tokens where they are wanted, in the order of the tokens."""
    if not special_tokens:
        yield from (("unit", index) for index in range(len(explanation)))
        return
    seen = -1
    for token, unit in enumerate(explanation.unit_of_token):
        if unit is None:
            yield "special", token
        elif unit > seen:
            seen = unit
            yield "unit", unit


def _segment_before(explanation: TextExplanation, token: int) -> int:
    """The text that a special token stands in or after."""
    before = [unit for unit in explanation.unit_of_token[:token] if unit is not None]
    return explanation.segments[before[-1]] if before else 0


def sum_line(explanation: TextExplanation) -> list[tuple[str, float]]:
    """The terms of the sum that is the logit, by name, of a single-target explanation."""
    terms = [
        (f"{explanation.granularity}s", sum(explanation.scores)),
        ("special tokens", explanation.special_tokens_score),
    ]
    if explanation.outside_score:
        terms.append(("overlaps" if explanation.windows else "left out", explanation.outside_score))
    return terms


def heading(explanation: TextExplanation) -> str:
    """What is explained, in words, of a single-target explanation."""
    name = str(explanation.label)
    if explanation.contrast is not None:
        name += f" rather than {'the mean' if explanation.contrast == 'mean' else explanation.contrast}"
    word = explanation.explained_word
    if explanation.task == "token-classification" and word is not None:
        name = f"{word}: {name}"
    return name
