"""Paired differences and normalized scores, against numbers by hand and a slow loop."""

import math
import random

import pytest
import torch
from test_report import cell, failed

from bcos_transformers.evaluation.comparison import (
    all_differences,
    normalized,
    normalized_interval,
    paired_differences,
)


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


def test_runs_on_the_same_texts_are_no_more_certain_than_one():
    """A text is drawn for all runs at once, so measuring it again with another seed does not make two texts of it."""
    generator = random.Random(1)
    one = [cell("A", name, [generator.random() for _ in range(15)]) for name in ("bcos", "lime")]
    names = ("comprehensiveness_low", "comprehensiveness", "comprehensiveness_high")
    alone, thrice = (paired_differences(runs, "A").iloc[0] for runs in ([one], [one, one, one]))
    assert alone[list(names)].tolist() == pytest.approx(thrice[list(names)].tolist(), abs=1e-12)
    assert (alone["texts"], thrice["texts"], thrice["runs"]) == (15, 15, 3)
    apart = [
        [{**c, "records": [{**r, "index": r["index"] + 15 * k} for r in c["records"]]} for c in one] for k in range(3)
    ]
    found = paired_differences(apart, "A").iloc[0]
    assert found["texts"] == 45
    assert found[names[2]] - found[names[0]] < 0.75 * (alone[names[2]] - alone[names[0]])


def test_the_interval_over_runs_that_share_texts_against_a_loop():
    generator = random.Random(2)
    texts = [list(range(10)), list(range(5, 15))]
    values = [{i: (generator.random(), generator.random()) for i in run} for run in texts]
    runs = []
    for run in values:
        cells = [cell("A", name, [pair[k] for pair in run.values()]) for k, name in enumerate(("bcos", "lime"))]
        for one in cells:
            one["records"] = [{**record, "index": i} for record, i in zip(one["records"], run, strict=True)]
        runs.append(cells)
    found = paired_differences(runs, "A").iloc[0]
    means = []
    for _ in range(4000):
        drawn = [generator.randrange(15) for _ in range(15)]
        each = [[run[i][0] - run[i][1] for i in drawn if i in run] for run in values]
        if all(each):
            means.append(sum(sum(run) / len(run) for run in each) / 2)
    expected = torch.tensor(means).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert found[["comprehensiveness_low", "comprehensiveness_high"]].tolist() == pytest.approx(expected, abs=0.03)


def test_normalized_differences_by_hand():
    both = [
        cell("A", "bcos", [0.5, 0.3]),
        cell("A", "random", [0.1, 0.1]),
        cell("A", "search", [0.5, 0.5], cost=None, seconds=None),
        cell("B", "occlusion", [0.25, 0.25]),
        cell("B", "random", [0.2, 0.2]),
        cell("B", "search", [0.3, 0.3], cost=None, seconds=None),
    ]
    frame = paired_differences([both], "A").set_index(["model", "method"])
    line = frame.loc["B", "occlusion"]
    assert line["comprehensiveness"] == pytest.approx(0.15)
    assert line["normalized_comprehensiveness"] == pytest.approx(
        (0.4 - 0.1) / (0.5 - 0.1) - (0.25 - 0.2) / (0.3 - 0.2)
    )
    assert line["normalized_comprehensiveness_low"] < line["normalized_comprehensiveness"]
    assert math.isnan(line["normalized_sufficiency"])  # all are the same, so there is no scale
    assert frame.loc["A", "random"]["normalized_comprehensiveness"] == pytest.approx(0.75)
    without = paired_differences([[one for one in both if one["model"] == "A" or one["method"] != "search"]], "A")
    assert without.set_index(["model", "method"]).loc["B", "occlusion"].isna()["normalized_comprehensiveness"]


def test_a_run_without_pairs_does_not_cost_the_others_theirs():
    without = [cell("A", "bcos", [0.6], seqpg=[]), cell("A", "occlusion", [0.5], seqpg=[])]
    line = paired_differences([cells(), without], "A").iloc[0]
    assert (line["seqpg"], line["pairs"], line["runs"]) == (pytest.approx(0.125), 2, 2)


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


def test_normalized_scores_by_hand():
    value, chance, best = (torch.tensor(numbers) for numbers in ([0.5, -0.1, 0.5], [0.1, 0.3, 0.2], [0.9, -0.1, 0.2]))
    found = normalized(value, chance, best).tolist()
    assert found[:2] == pytest.approx([0.5, 1.0])  # of sufficiency, lower is better
    assert math.isnan(found[2])


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
