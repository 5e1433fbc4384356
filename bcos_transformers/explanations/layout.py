"""What every rendering shares: the pieces of a text in their order, and how strong a colour is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bcos_transformers.explanations.text_explanation import TextExplanation
from bcos_transformers.prototypes.text_explanation import PrototypeExplanation, PrototypeShare

FOR, AGAINST = (33, 102, 172), (199, 100, 10)  # blue and orange, which colour-blind readers tell apart
ATTENTION = (112, 112, 124)  # no direction: neither for nor against


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


def pieces_of(explanation: TextExplanation, special_tokens: bool = False) -> list[list[Piece]]:
    """The pieces of each text of a single-target explanation; together, specials aside, they are that text.

    Args:
        explanation: one target.
        special_tokens: also put special tokens where they stand among the tokens.
    """
    texts = [explanation.text] if explanation.text_pair is None else [explanation.text, explanation.text_pair]
    scores, token_scores = explanation.scores, explanation.token_scores
    return _pieces(explanation, texts, explanation.segments, scores, token_scores, special_tokens)


def pieces_by_prototypes(
    explanation: PrototypeExplanation,
    scores: Sequence[float],
    token_scores: Sequence[float],
    special_tokens: bool = False,
) -> list[Piece]:
    """The pieces of a text explained by prototypes, with the attention, the text's scores or those of a share."""
    segments = [0] * len(explanation.words)
    (line,) = _pieces(explanation, [explanation.text], segments, scores, token_scores, special_tokens)
    return line


def _pieces(
    explanation: TextExplanation | PrototypeExplanation,
    texts: list[str],
    segments: list[int],
    scores: Sequence[float],
    token_scores: Sequence[float],
    special_tokens: bool,
) -> list[list[Piece]]:
    of_specials = [abs(s) for s, u in zip(token_scores, explanation.unit_of_token, strict=True) if u is None]
    largest = max([*map(abs, scores), *(of_specials if special_tokens else [])], default=0.0) or 1.0
    lines: list[list[Piece]] = [[] for _ in texts]
    reached = [0] * len(texts)
    for kind, index in _order(explanation.unit_of_token, len(scores), special_tokens):
        if kind == "special":
            segment, score = _segment_before(explanation.unit_of_token, segments, index), token_scores[index]
            lines[segment].append(Piece(explanation.tokens[index], score, abs(score) / largest, special=True))
            continue
        segment, (begin, end), score = segments[index], explanation.offsets[index], scores[index]
        lines[segment].append(Piece(texts[segment][reached[segment] : begin]))
        lines[segment].append(Piece(texts[segment][begin:end], score, abs(score) / largest))
        reached[segment] = end
    for segment, text in enumerate(texts):
        lines[segment].append(Piece(text[reached[segment] :]))
    return [[piece for piece in line if piece.text] for line in lines]


def _order(unit_of_token: list[int | None], units: int, special_tokens: bool) -> Iterator[tuple[str, int]]:
    """Units, and special tokens where they are wanted, in the order of the tokens."""
    if not special_tokens:
        yield from (("unit", index) for index in range(units))
        return
    seen = -1
    for token, unit in enumerate(unit_of_token):
        if unit is None:
            yield "special", token
        elif unit > seen:
            seen = unit
            yield "unit", unit


def _segment_before(unit_of_token: list[int | None], segments: list[int], token: int) -> int:
    """The text that a special token stands in or after."""
    before = [unit for unit in unit_of_token[:token] if unit is not None]
    return segments[before[-1]] if before else 0


def sum_line(explanation: TextExplanation) -> list[tuple[str, float]]:
    """The terms of the sum that is the logit, by name, of a single-target explanation."""
    terms = [
        (f"{explanation.granularity}s", sum(explanation.scores)),
        ("special tokens", explanation.special_tokens_score),
    ]
    if explanation.outside_score:
        terms.append(("overlaps" if explanation.windows else "left out", explanation.outside_score))
    return terms


def prototypes_sum_line(explanation: PrototypeExplanation) -> list[tuple[str, float]]:
    """The terms of the sum that is the logit, by name, of an explanation by prototypes."""
    terms = [(f"prototype {share.number}", share.contribution) for share in explanation.prototypes]
    if explanation.other_prototypes:
        others = f"{explanation.other_prototypes} other{'s' if explanation.other_prototypes > 1 else ''}"
        terms.append((others, explanation.other_prototypes_contribution))
    return [*terms, ("bias", explanation.bias)]


def share_sum_line(explanation: PrototypeExplanation, share: PrototypeShare) -> list[tuple[str, float]]:
    """The terms of the sum that is a prototype's share, by name, where shares split over the words."""
    return [(f"{explanation.granularity}s", sum(share.scores)), ("special tokens", share.special_tokens_score)]


def heading(explanation: TextExplanation | PrototypeExplanation) -> str:
    """What is explained, in words, of a single-target explanation."""
    name = str(explanation.label)
    if explanation.contrast is not None:
        name += f" rather than {'the mean' if explanation.contrast == 'mean' else explanation.contrast}"
    if isinstance(explanation, PrototypeExplanation):
        return name
    word = explanation.explained_word
    if explanation.task == "token-classification" and word is not None:
        name = f"{word}: {name}"
    return name
