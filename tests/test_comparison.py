"""Paired differences and normalized scores, against numbers by hand and a slow loop."""

import math
import random

import pytest
import torch
from test_report import cell, failed

from bcos_transformers.evaluation.comparison import all_differences, normalized_interval, paired_differences


def cells(**changed) -> list[dict]:
    return [
        cell("A", "bcos", [0.6, 0.3], [0.0, 0.2], seqpg=[0.75, 0.5]),
        cell("A", "occlusion", changed.get("occlusion", [0.5, 0.4]), [0.1, 0.1], seqpg=[0.5, 0.5]),
        cell("B", "occlusion", [0.4, 0.3], [0.4, 0.2], seqpg=None),
    ]


def test_differences_by_hand():
    frame = paired_differences([cells()], "A").set_index(["model", "method"])
    assert list(frame.index) == [("A", "occlusion"), ("B", "occlusion")]
    same = frame.loc["A", "occlusion"]
    assert same["comprehensiveness"] == pytest.approx((0.1 - 0.1) / 2, abs=1e-12)
    assert (same["comprehensiveness_low"], same["comprehensiveness_high"]) == pytest.approx((-0.1, 0.1))
    assert same["sufficiency"] == pytest.approx((-0.1 + 0.1) / 2, abs=1e-12)
    assert same["seqpg"] == pytest.approx(0.125)
    other = frame.loc["B", "occlusion"]
    assert other["comprehensiveness"] == pytest.approx(0.1)
    assert other["runs"] == 1
    assert math.isnan(other["seqpg"])
    assert math.isnan(other["seqpg_low"])


def test_a_difference_that_is_the_same_for_every_text_is_certain():
    frame = paired_differences([cells(occlusion=[0.5, 0.2])], "A")
    line = frame.iloc[0]
    assert line["comprehensiveness"] == pytest.approx(0.1)
    assert line["comprehensiveness_high"] - line["comprehensiveness_low"] == pytest.approx(0, abs=1e-12)


def test_texts_are_paired_by_their_index():
    one = cell("A", "bcos", [0.6, 0.3])
    other = cell("A", "lime", [0.3, 0.6])
    other["records"] = [{**record, "index": 1 - record["index"]} for record in other["records"]]
    assert paired_differences([[one, other]], "A").iloc[0]["comprehensiveness_high"] == pytest.approx(0)


def test_methods_are_compared_over_the_runs_that_have_them():
    more = [cell("A", "bcos", [0.9]), cell("A", "occlusion", [0.5]), failed("B", "occlusion", "no memory")]
    without = [cell("A", "occlusion", [0.1])]  # nothing to subtract from
    frame = paired_differences([cells(), more, without], "A").set_index(["model", "method"])
    assert frame.loc["A", "occlusion"][["runs", "comprehensiveness"]].tolist() == pytest.approx([2, (0.0 + 0.4) / 2])
    assert frame.loc["B", "occlusion"][["runs", "comprehensiveness"]].tolist() == pytest.approx([1, 0.1])


def test_all_differences_name_the_model():
    more = [*cells(), cell("B", "bcos", [0.5, 0.5]), failed("C", "bcos", "no memory")]
    frame = all_differences(more)
    assert list(zip(frame["bcos"], frame["model"], frame["method"], strict=True)) == [
        *(("A", "A", "occlusion"), ("A", "B", "occlusion"), ("A", "B", "bcos")),
        *(("B", "A", "bcos"), ("B", "A", "occlusion"), ("B", "B", "occlusion")),
    ]
    assert frame.iloc[2]["comprehensiveness"] == pytest.approx(-0.05)
    for nothing in ([cell("B", "occlusion", [0.4])], [cell("B", "bcos", [0.4])]):
        assert list(all_differences(nothing).columns) == list(frame.columns)
        assert all_differences(nothing).empty


def test_nothing_to_compare_with():
    with pytest.raises(ValueError, match="No cell of bcos on C"):
        paired_differences([cells()], "C")


def test_the_interval_of_normalized_scores_against_a_loop():
    generator = random.Random(0)
    chance = [generator.uniform(0, 0.2) for _ in range(12)]
    best = [generator.uniform(0.5, 0.8) for _ in range(12)]
    values = [generator.uniform(0.2, 0.5) for _ in range(12)]
    center, low, high = normalized_interval(values, chance, best)
    mean = [sum(column) / 12 for column in (values, chance, best)]
    assert center == pytest.approx((mean[0] - mean[1]) / (mean[2] - mean[1]), abs=1e-12)
    found = []
    for _ in range(4000):
        drawn = [generator.randrange(12) for _ in range(12)]
        v, c, b = (sum(column[i] for i in drawn) / 12 for column in (values, chance, best))
        found.append((v - c) / (b - c))
    expected = torch.tensor(found).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert (low, high) == pytest.approx(expected, abs=0.015)


def test_the_ends_have_no_interval():
    chance, best = [0.1, 0.2, 0.3], [0.5, 0.9, 0.4]
    assert normalized_interval(best, chance, best) == pytest.approx((1, 1, 1))
    assert normalized_interval(chance, chance, best) == pytest.approx((0, 0, 0))


def test_nothing_between_random_and_best():
    assert all(map(math.isnan, normalized_interval([0.1, 0.1], [0.1, 0.1], [0.1, 0.1])))
    # A resample of the first text alone has no scale, and is left out.
    assert not any(map(math.isnan, normalized_interval([0.1, 0.2], [0.1, 0.1], [0.1, 0.3])))
