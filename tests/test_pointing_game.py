"""SeqPG: perfect, inverted and random attributions; how pairs are made; bad input."""

import pytest
import torch

from bcos_transformers.evaluation.pointing_game import load_pairs, make_pairs, row_of, save_pairs, seqpg
from bcos_transformers.evaluation.rows import ChangedRow, Classifier, rows_of
from toy_classifier import ToyClassifier

GOOD, BAD, DULL = list(range(5, 15)), list(range(15, 25)), 40
WEIGHTS = {**dict.fromkeys(GOOD, 1.0), **dict.fromkeys(BAD, -1.0)}


def texts(count: int, seed: int = 0) -> tuple[list[list[int]], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    ids, labels = [], []
    for i in range(count):
        words = GOOD if i % 2 else BAD
        size = int(torch.randint(4, 12, (1,), generator=generator))
        drawn = torch.randint(0, 10, (size,), generator=generator).tolist()
        ids.append([2, *(words[j] for j in drawn), 3])
        labels.append(i % 2)
    return ids, labels


@pytest.fixture
def pairs(tokenizer):
    ids, labels = texts(60)
    return make_pairs(Classifier(ToyClassifier(WEIGHTS), tokenizer), rows_of(tokenizer, ids), labels, count=20)


def test_pairs_are_sure_and_of_equal_halves(pairs, tokenizer):
    classifier = Classifier(ToyClassifier(WEIGHTS), tokenizer)
    assert len(pairs) == 20
    for pair in pairs:
        assert pair.labels[0] != pair.labels[1]
        assert pair.segments.count(0) == pair.segments.count(1) >= 5
        assert (pair.input_ids[0], pair.input_ids[-1]) == (2, 3)
        assert pair.segments[0] is pair.segments[-1] is None
        for half, label in enumerate(pair.labels):
            ids = [2, *(t for t, s in zip(pair.input_ids, pair.segments, strict=True) if s == half), 3]
            (row,) = classifier.probabilities([ChangedRow(r) for r in rows_of(tokenizer, [ids])])
            assert row[label] > 0.8


def test_pairs_depend_on_the_seed_alone(tokenizer, pairs):
    ids, labels = texts(60)
    classifier = Classifier(ToyClassifier(WEIGHTS), tokenizer)
    assert make_pairs(classifier, rows_of(tokenizer, ids), labels, count=20) == pairs
    assert make_pairs(classifier, rows_of(tokenizer, ids), labels, count=20, seed=1) != pairs


def test_halves_are_classified_correctly_whatever_the_probability(tokenizer):
    """A low `min_probability` does not let in a text that is cut to one of the other class."""
    good_then_bad, bad = [2, *[5] * 5, *[15] * 7, 3], [2, *[16] * 5, 3]
    mixed = [2, *[17] * 5, *[6] * 7, 3]  # of class 1, cut to class 0
    classifier = Classifier(ToyClassifier({**WEIGHTS, 15: -0.1, 17: -0.1}), tokenizer)
    rows = rows_of(tokenizer, [good_then_bad, bad, mixed])
    (pair,) = make_pairs(classifier, rows, [1, 0, 1], min_probability=0.2)
    assert sorted(pair.labels) == [0, 1]
    assert {5, 16} <= set(pair.input_ids)
    with pytest.raises(ValueError, match="No pair"):
        make_pairs(classifier, rows_of(tokenizer, [bad, mixed]), [0, 1], min_probability=0.2)


def test_perfect_inverted_random(pairs):
    right = [[[float(s == half) for s in pair.segments] for half in (0, 1)] for pair in pairs]
    assert seqpg(right, pairs) == [1.0] * len(pairs)
    wrong = [two[::-1] for two in right]
    assert seqpg(wrong, pairs) == [0.0] * len(pairs)
    generator = torch.Generator().manual_seed(0)
    many = pairs * 50
    random = [torch.randn(2, len(pair.segments), generator=generator).tolist() for pair in many]
    assert sum(seqpg(random, many)) / len(many) == pytest.approx(0.5, abs=0.02)


def test_negative_and_special_scores_do_not_count(pairs):
    scores = [
        [[100.0 if s is None else 2.0 if s == half else -50.0 for s in pair.segments] for half in (0, 1)]
        for pair in pairs
    ]
    assert seqpg(scores, pairs) == [1.0] * len(pairs)


def test_no_positive_score_points_nowhere(pairs):
    assert seqpg([[[-1.0] * len(pair.segments)] * 2 for pair in pairs], pairs) == [0.5] * len(pairs)


def test_by_hand(pairs):
    pair = pairs[0]
    first = [3.0 if s == 0 else 1.0 for s in pair.segments]  # three quarters
    second = [3.0 if s == 0 else 2.0 for s in pair.segments]  # two fifths
    assert seqpg([[first, second]], [pair]) == [pytest.approx((0.75 + 0.4) / 2, abs=1e-12)]


def test_files(pairs, tmp_path):
    save_pairs(pairs, tmp_path / "pairs.jsonl")
    assert load_pairs(tmp_path / "pairs.jsonl") == pairs
    assert row_of(pairs[0]).maskable[0] is False


def test_bad_input(pairs, tokenizer):
    with pytest.raises(ValueError, match="20 pairs but 1 attributions"):
        seqpg([[[0.0], [0.0]]], pairs)
    with pytest.raises(ValueError, match="two classes is needed, got 1"):
        seqpg([[[0.0] * len(pairs[0].segments)]], pairs[:1])
    with pytest.raises(ValueError, match="1 scores for a text"):
        seqpg([[[0.0], [0.0]]], pairs[:1])
    ids, labels = texts(10)
    classifier = Classifier(ToyClassifier({}), tokenizer)
    with pytest.raises(ValueError, match="No pair of texts of different classes"):
        make_pairs(classifier, rows_of(tokenizer, ids), labels)
    with pytest.raises(ValueError, match="10 texts but 9 labels"):
        make_pairs(classifier, rows_of(tokenizer, ids), labels[:-1])
