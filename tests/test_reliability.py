"""Completeness, stability, masking validity."""

import math

import pytest
import torch

from bcos_transformers.evaluation.reliability import (
    completeness_residuals,
    expected_calibration_error,
    explanations_under,
    masking_validity,
    stability,
)
from bcos_transformers.evaluation.rows import Classifier, encode_rows, rows_of
from conftest import bcos_model, make_tokenizer
from toy_classifier import ToyClassifier

TEXTS = ["a good film", "the soup was bad, and dull", "not very funny", "it is great !"]


def test_residuals():
    assert completeness_residuals([[1.0, -2.0], [0.0]], [-0.5, 0.0]) == [(0.5, 0.25), (0.0, 0.0)]
    assert completeness_residuals([[0.0]], [1.0]) == [(1.0, math.inf)]
    with pytest.raises(ValueError, match="1 attributions but 2 values"):
        completeness_residuals([[1.0]], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        completeness_residuals([[math.nan]], [1.0])


def test_stability_by_hand():
    found = stability([[1.0, 2.0, 4.0]], [[1.0, 3.0, 4.0]])
    assert found.largest_difference == 0.25
    assert found.lowest_correlation == pytest.approx(1.0)
    assert stability([[3.0, 2.0, 1.0]], [[1.0, 2.0, 3.0]]).lowest_correlation == pytest.approx(-1.0)
    assert stability([[1.0, 1.0]], [[1.0, 2.0]]).lowest_correlation == 0.0
    with pytest.raises(ValueError, match="Text 0 has 1 scores and 2"):
        stability([[1.0]], [[1.0, 2.0]])
    for scores in ([math.nan, 1.0], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="Text 0 needs scores, and finite ones"):
            stability([scores], [[1.0, 2.0]])
    with pytest.raises(ValueError, match="no explanations"):
        stability([], [])
    with pytest.raises(ValueError, match="1 explanations but 0"):
        stability([[1.0]], [])


@pytest.mark.parametrize(
    ("circumstance", "limit"), [("batch", 1e-12), ("eager", 1e-10), ("sdpa", 1e-12), ("bfloat16", 0.2)]
)
def test_bcos_explanations_are_stable(circumstance, limit):
    model, tokenizer = bcos_model(), make_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = encode_rows(tokenizer, [*TEXTS, TEXTS[0]])
    reference = explanations_under(model, tokenizer, rows, "alone")
    assert [len(scores) for scores in reference] == [len(row) for row in rows]
    assert reference[0] == reference[-1]
    found = stability(explanations_under(model, tokenizer, rows, circumstance), reference)
    assert found.largest_difference < limit
    assert (circumstance == "bfloat16") == (found.largest_difference > 1e-6)
    assert model.config._attn_implementation == "sdpa"
    assert model.dtype == torch.float64
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unknown_circumstances_are_refused():
    with pytest.raises(ValueError, match="`circumstance` must be one of"):
        explanations_under(bcos_model(), make_tokenizer(), [], "float8")


def test_masking_validity_of_a_model_that_knows(tokenizer):
    rows = rows_of(tokenizer, [[2, 5, 6, 3], [2, 7, 8, 3]])
    knows = Classifier(ToyClassifier({5: 4.0, 6: 4.0, 7: -4.0, 8: -4.0}), tokenizer)
    found = masking_validity(knows, rows, [1, 0])
    assert found.accuracy[0] == 1.0
    assert found.accuracy[-1] == 0.5
    assert found.entropy_when_all_hidden == pytest.approx(1.0)
    assert masking_validity(knows, rows, [1, 0]) == found


def test_masking_validity_of_a_model_that_does_not(tokenizer):
    rows = rows_of(tokenizer, [[2, 5, 6, 3], [2, 7, 8, 3]])
    surprised = Classifier(ToyClassifier({5: 4.0, 6: 4.0, 7: -4.0, 8: -4.0, 4: 9.0}), tokenizer)  # 4 is [MASK]
    found = masking_validity(surprised, rows, [1, 0])
    assert found.entropy_when_all_hidden < 0.01
    assert found.calibration_error[-1] > 0.4


def test_calibration_error_by_hand():
    confidence = torch.tensor([0.95, 0.91, 0.55, 1.0], dtype=torch.float64)
    correct = torch.tensor([True, False, True, True])
    # Bin 0.9…1 holds three: accuracy 2/3, confidence 0.9533…; bin 0.5…0.6 one: 1 and 0.55.
    expected = 0.75 * abs(2 / 3 - 2.86 / 3) + 0.25 * 0.45
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-12)


def test_bad_input(tokenizer):
    classifier = Classifier(ToyClassifier({}), tokenizer)
    rows = rows_of(tokenizer, [[2, 5, 3]])
    with pytest.raises(ValueError, match="1 texts but 2 labels"):
        masking_validity(classifier, rows, [0, 1])
    with pytest.raises(ValueError, match="got 1 texts and draws=0"):
        masking_validity(classifier, rows, [0], draws=0)
    with pytest.raises(ValueError, match="got 0 texts"):
        masking_validity(classifier, [], [])
    with pytest.raises(ValueError, match=r"Shares must lie in \[0, 1\]"):
        masking_validity(classifier, rows, [0], shares=(0.0, 2.0))
