"""Agreement with rationales and treebank phrases, against scikit-learn, scipy's definition and hand-made cases."""

import itertools
import math

import pytest
import torch
from sklearn.metrics import average_precision_score

from bcos_transformers.evaluation.plausibility import phrase_correlation, plausibility_scores, treebank_rationale


def test_by_hand():
    score = plausibility_scores([0.1, 0.9, 0.5, 0.7], [1, 0, 1, 0])
    assert score.f1 == 0.0  # the top two are words 1 and 3
    assert score.mrr == pytest.approx(1 / 3)
    assert score.auprc == pytest.approx((1 / 3 + 2 / 4) / 2, abs=1e-12)
    perfect = plausibility_scores([5.0, -1.0, 4.0], [1, 0, 1])
    assert (perfect.f1, perfect.auprc, perfect.mrr) == (1.0, 1.0, 1.0)


def test_average_precision_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        scores = torch.randint(0, 5, (12,), generator=generator).double().tolist()  # with ties
        marks = torch.randint(0, 2, (12,), generator=generator).tolist()
        marks[0] = 1
        found = plausibility_scores(scores, marks)
        assert found.auprc == pytest.approx(average_precision_score(marks, scores), abs=1e-12)


def test_ties_are_expectations_over_their_orders():
    scores, marks = [1.0, 1.0, 1.0, 2.0], [0, 1, 1, 0]
    tied = [0, 1, 2]
    orders = [[3, *order] for order in itertools.permutations(tied)]
    f1 = [sum(marks[i] for i in order[:2]) / 2 for order in orders]
    found = plausibility_scores(scores, marks)
    assert found.f1 == pytest.approx(sum(f1) / len(f1))
    ranks = [min(order.index(i) + 1 for i in (1, 2)) for order in orders]
    assert 1 / found.mrr == pytest.approx(sum(ranks) / len(ranks))


def test_bad_input():
    with pytest.raises(ValueError, match="3 scores but a rationale of 2"):
        plausibility_scores([1.0, 2.0, 3.0], [1, 0])
    with pytest.raises(ValueError, match="marks no word"):
        plausibility_scores([1.0, 2.0], [0, 0])
    with pytest.raises(ValueError, match="finite"):
        plausibility_scores([1.0, math.nan], [1, 0])


def test_treebank():
    assert treebank_rationale([2, 3, 4, 1, 0], 1) == [False, True, True, False, False]
    assert treebank_rationale([2, 3, 4, 1, 0], 0) == [False, False, False, True, True]
    spans = [(0, 1, 0), (1, 2, 2), (2, 3, 4), (1, 3, 3), (0, 3, 4)]
    assert phrase_correlation([-1.0, 0.0, 3.0], spans[:3]) == pytest.approx(1.0)
    assert phrase_correlation([3.0, 0.0, -1.0], spans[:3]) == pytest.approx(-1.0)
    # Sums −1, 0, 3, 3 have ranks 1, 2, 3.5, 3.5; labels 0, 2, 4, 3 ranks 1, 2, 4, 3; the whole sentence is left out.
    expected = torch.corrcoef(torch.tensor([[1.0, 2.0, 3.5, 3.5], [1.0, 2.0, 4.0, 3.0]]))[0, 1]
    assert phrase_correlation([-1.0, 0.0, 3.0], spans) == pytest.approx(float(expected), abs=1e-6)
    assert math.isnan(phrase_correlation([1.0, 1.0, 1.0], spans[:3]))
    with pytest.raises(ValueError, match="inside of the 2 words"):
        phrase_correlation([1.0, 2.0], spans)
