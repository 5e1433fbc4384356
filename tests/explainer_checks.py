"""What holds for every explanation of a text."""

import pytest

from bcos_transformers import TextExplanation

ABSOLUTE = {"rel": 1e-9, "abs": 1e-9}


def check_sum(explanation: TextExplanation, tolerance: float = 1e-9) -> None:
    for target in explanation.targets:
        one = explanation.for_target(target)
        total = sum(one.scores) + one.special_tokens_score + one.outside_score
        assert total + one.residual == pytest.approx(one.logit, **ABSOLUTE)
        assert abs(one.residual) <= tolerance * max(1.0, *map(abs, one.token_scores))
        assert sum(one.token_scores) + one.outside_score == pytest.approx(total, **ABSOLUTE)


def same(one: TextExplanation, other: TextExplanation) -> bool:
    return one.words == other.words and one.scores == pytest.approx(other.scores, **ABSOLUTE)
