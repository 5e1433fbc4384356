"""Comprehensiveness, sufficiency, log-odds and AOPC against numbers computed by hand; the search; bad input."""

import itertools
import logging
import math

import pytest
import torch

from bcos_transformers.evaluation.perturbation import (
    area,
    count_of,
    count_of_eraser,
    perturbation_scores,
    scores_of_orders,
)
from bcos_transformers.evaluation.ranking import ranking
from bcos_transformers.evaluation.rows import ChangedRow, Classifier, Row, encode_rows, rows_of
from bcos_transformers.evaluation.search import greedy_orders
from toy_classifier import ToyClassifier

WEIGHTS = {5: 2.0, 6: 1.0, 7: -1.0, 8: 0.5}
IDS = [2, 5, 7, 6, 8, 3]  # [CLS] … [SEP]
SCORES = [9.0, 2.0, -1.0, 1.0, 0.5, 9.0]  # the weights; special tokens never count


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def classifier(tokenizer) -> Classifier:
    return Classifier(ToyClassifier(WEIGHTS), tokenizer, progress=False)


@pytest.mark.parametrize("replacement", ["mask", "attention"])
def test_by_hand(classifier, tokenizer, replacement):
    (score,) = perturbation_scores(classifier, rows_of(tokenizer, [IDS]), [SCORES], replacement)
    p = sigmoid(2.5)
    # Of four tokens 10 … 40 % are one, 50 … 70 % two, 80 and 90 % three; the order is 5, 6, 8, 7.
    hidden = [p - sigmoid(0.5)] * 4 + [p - sigmoid(-0.5)] * 3 + [p - sigmoid(-1.0)] * 2
    left = [p - sigmoid(2.0)] * 4 + [p - sigmoid(3.0)] * 3 + [p - sigmoid(3.5)] * 2
    assert score.comprehensiveness_curve == pytest.approx(hidden, abs=1e-12)
    assert score.sufficiency_curve == pytest.approx(left, abs=1e-12)
    for curve, value in ((hidden, score.comprehensiveness), (left, score.sufficiency)):
        assert value == pytest.approx(0.1 * (sum(curve) - (curve[0] + curve[-1]) / 2), abs=1e-12)
    assert score.probability == pytest.approx(p, abs=1e-12)
    assert score.log_odds == pytest.approx(math.log(sigmoid(0.5)) - math.log(p), abs=1e-12)
    # ERASER rounds up: 1, 5, 10 and 20 % of four tokens are one, 50 % two.
    assert score.aopc_comprehensiveness == pytest.approx((4 * hidden[0] + hidden[4]) / 5, abs=1e-12)
    assert score.aopc_sufficiency == pytest.approx((4 * left[0] + left[4]) / 5, abs=1e-12)


def test_the_predicted_class_is_scored(tokenizer):
    opposite = Classifier(ToyClassifier({token: -weight for token, weight in WEIGHTS.items()}), tokenizer)
    (score,) = perturbation_scores(opposite, rows_of(tokenizer, [IDS]), [SCORES])
    assert score.probability == pytest.approx(sigmoid(2.5), abs=1e-12)
    assert score.comprehensiveness_curve[0] == pytest.approx(sigmoid(2.5) - sigmoid(0.5), abs=1e-12)


def test_counts():
    assert [count_of(p, 19) for p in (10, 50, 90)] == [1, 9, 17]
    assert [count_of(p, 1) for p in (10, 90)] == [1, 1]
    assert count_of(70, 10) == 7  # 0.7 * 10 is 6.999… in floating point
    assert [count_of_eraser(p, 19) for p in (1, 5, 10, 20, 50)] == [1, 1, 2, 4, 10]
    assert area([1.0] * 9) == pytest.approx(0.8, abs=1e-12)


def test_batches_change_nothing(classifier, tokenizer):
    rows = rows_of(tokenizer, [IDS, [2, 6, 3], [2, 8, 7, 7, 5, 6, 6, 8, 3]])
    scores = [SCORES, [0, 1, 0], [0, 3, 2, 1, 4, 5, 7, 6, 0]]
    together = perturbation_scores(classifier, rows, scores)
    small = Classifier(classifier.model, tokenizer, batch_tokens=1)
    for row, attribution, score in zip(rows, scores, together, strict=True):
        (alone,) = perturbation_scores(small, [row], [attribution])
        assert alone.comprehensiveness == pytest.approx(score.comprehensiveness, abs=1e-14)
        assert alone.sufficiency == pytest.approx(score.sufficiency, abs=1e-14)


def test_the_same_text_is_computed_once(classifier, tokenizer):
    (row,) = rows_of(tokenizer, [IDS])
    classifier.probabilities([ChangedRow(row)] * 5 + [ChangedRow(row, frozenset([1]))] * 3)
    assert classifier.model.rows == 2


def test_the_model_is_left_alone(classifier, tokenizer):
    classifier.model.train()
    classifier.probabilities([ChangedRow(row) for row in rows_of(tokenizer, [IDS])])
    assert classifier.model.training


def test_ties_are_broken_by_seed_not_by_place(tokenizer):
    (row,) = rows_of(tokenizer, [[2, *range(5, 25), 3]])
    constant = [1.0] * len(row)
    orders = [ranking(constant, row, seed) for seed in range(200)]
    assert orders[0] == ranking(constant, row, 0)
    assert sorted(orders[0]) == row.positions
    mean_place = torch.tensor([[order.index(p) for p in row.positions] for order in orders]).double().mean(0)
    assert (mean_place - 9.5).abs().max() < 2.0  # no position comes first more often


def test_constant_scores_are_said(classifier, tokenizer, caplog):
    rows = rows_of(tokenizer, [IDS, IDS])
    with caplog.at_level(logging.WARNING):
        perturbation_scores(classifier, rows, [SCORES, [0.5] * 6])
    assert "In 1 of 2 texts every token has the same score" in caplog.text


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([SCORES[:-1]], "5 scores for a text of 6 tokens"),
        ([[math.nan, *SCORES[1:]]], r"must be finite; at the positions \[0\]"),
        ([[math.inf, *SCORES[1:]]], "must be finite"),
        ([SCORES, SCORES], "1 texts but 2 attributions"),
    ],
)
def test_bad_scores_are_refused(classifier, tokenizer, scores, message):
    with pytest.raises(ValueError, match=message):
        perturbation_scores(classifier, rows_of(tokenizer, [IDS]), scores)


def test_texts_of_special_tokens_alone_are_refused(tokenizer):
    with pytest.raises(ValueError, match="Text 1 has no token that is not a special one"):
        rows_of(tokenizer, [IDS, [2, 3]])
    with pytest.raises(ValueError, match="Text 0 has no token"):
        encode_rows(tokenizer, [""])


def test_models_without_a_predicted_class_are_refused(tokenizer):
    model = ToyClassifier(WEIGHTS)
    model.config.num_labels = 1
    with pytest.raises(ValueError, match="classifier with one label a text"):
        Classifier(model, tokenizer)


def test_replacements_are_checked(classifier, tokenizer):
    row = ChangedRow(rows_of(tokenizer, [IDS])[0])
    with pytest.raises(ValueError, match="`replacement` must be one of"):
        classifier.probabilities([row], "delete")
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="has no mask token: use replacement='attention'"):
        classifier.probabilities([row], "mask")
    assert classifier.probabilities([row], "attention").shape == (1, 2)


def test_nan_logits_are_refused(tokenizer):
    classifier = Classifier(ToyClassifier({5: math.nan}), tokenizer)
    with pytest.raises(ValueError, match="NaN or infinite"):
        classifier.probabilities([ChangedRow(row) for row in rows_of(tokenizer, [IDS])])


@pytest.mark.parametrize("keep", [False, True])
def test_the_search_finds_the_best_order(classifier, tokenizer, keep):
    rows = rows_of(tokenizer, [IDS, [2, 6, 3]])
    found = scores_of_orders(classifier, rows, greedy_orders(classifier, rows, 100, keep))
    name = "sufficiency" if keep else "comprehensiveness"
    every = [scores_of_orders(classifier, rows[:1], [order])[0] for order in itertools.permutations(rows[0].positions)]
    best = (min if keep else max)(getattr(score, name) for score in every)
    assert getattr(found[0], name) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_the_search_keeps_to_its_budget(tokenizer, budget):
    model = ToyClassifier({5 + i: (-1) ** i * (i % 7) / 3 for i in range(30)})
    classifier = Classifier(model, tokenizer)
    (row,) = rows_of(tokenizer, [[2, *range(5, 35), 3]])
    (order,) = greedy_orders(classifier, [row], budget)
    assert sorted(order) == row.positions
    assert model.rows <= max(budget, 30) + 1  # one more for the whole text


def test_pairs_of_texts_keep_their_types(tokenizer):
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    (row,) = encode_rows(tokenizer, [("good film", "bad soup")])
    assert row.token_type_ids == (0, 0, 0, 0, 1, 1, 1)
    assert row.maskable == (False, True, True, False, True, True, False)
    assert isinstance(row, Row)
