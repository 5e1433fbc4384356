"""Differences between explanation methods on the same texts: smaller, and more certain, than those between their means."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bcos_transformers.evaluation.benchmark_settings import SEARCH
from bcos_transformers.evaluation.bootstrap import interval_of, resampled_weights
from bcos_transformers.extras import require

AREAS = ("comprehensiveness", "sufficiency")
COMPARED = (*AREAS, "seqpg", *(f"normalized_{name}" for name in AREAS))
COLUMNS = [
    *("model", "method", "runs", "texts", "pairs"),
    *(f"{name}{end}" for name in COMPARED for end in ("", "_low", "_high")),
]

Cell = dict[str, Any]
Bounds = dict[str, tuple[list[float], list[float]]]


def paired_differences(runs: Sequence[Sequence[Cell]], model: str, method: str = "bcos") -> Any:
    """One method minus every other one, text by text, as a pandas data frame.

    Methods applied to other models are compared too: there the difference is that of method and model together, and as raw
    comprehensiveness and sufficiency depend on how sure a model is, only the normalized ones say which is more faithful.

    The intervals are about texts: what other texts of the same kind would give with these very models. What training with
    another seed would change is not in them, and nothing is corrected for the number of comparisons. Of few texts (10, say) they
    are too narrow.

    Args:
        runs: the cells of one or more benchmarks of the same data set (seeds, say), whose records' `index` tells which text
            is which; a method is compared over those that have it.
        model: the model of `method`.
        method: what the others are subtracted from.

    Returns:
        A line for each other cell: `model`, `method`, `runs` (how many), `texts` and `pairs` (how many different ones), and of
        comprehensiveness and sufficiency, raw and normalized (needs the cells of random scores and search), and of
        SeqPG the mean difference over runs, with `…_low` and `…_high`: 95 % bootstrap interval, a text being drawn for all
        runs at once. NaN where there is none.

    Raises:
        ValueError: no run has a cell of `model` and `method`.
        ImportError: pandas is not installed.
    """
    pandas = require("pandas", "eval")
    by_name = [{(c["model"], c["method"]): c for c in cells if "error" not in c} for cells in runs]
    by_name = [cells for cells in by_name if (model, method) in cells]
    if not by_name:
        raise ValueError(f"No cell of {method} on {model} is there to compare others with.")
    ends = [_bounds_by_model(cells) for cells in by_name]
    lines = []
    for key in dict.fromkeys(key for cells in by_name for key in cells if key != (model, method)):
        those = [(cells, scales) for cells, scales in zip(by_name, ends, strict=True) if key in cells]
        areas = [_areas(cells[model, method], cells[key], scales) for cells, scales in those]
        points = [_points(cells[model, method], cells[key], run) for run, (cells, _) in enumerate(those)]
        line: dict[str, Any] = {"model": key[0], "method": key[1], "runs": len(those)}
        line["texts"] = len({one for run in areas for one in run["comprehensiveness"].ids})
        line["pairs"] = sum(len(run.ids) for run in points)
        for name in AREAS:
            line |= named(name, _interval([run[name] for run in areas], _Paired.raw))
            line |= named(f"normalized_{name}", _interval([run[name] for run in areas], _Paired.normalized))
        line |= named("seqpg", _interval(points, _Paired.raw))
        lines.append(line)
    return pandas.DataFrame(lines, columns=COLUMNS)


def all_differences(cells: Sequence[Cell]) -> Any:
    """`paired_differences` of the exact explanations of every B-cos model in one benchmark; the column `bcos` names it.

    Without lines where there is no cell of `"bcos"`, or nothing else.

    Raises:
        ImportError: pandas is not installed.
    """
    pandas = require("pandas", "eval")
    exact = dict.fromkeys(cell["model"] for cell in cells if cell["method"] == "bcos" and "error" not in cell)
    lines = [
        {"bcos": model, **line} for model in exact for line in paired_differences([cells], model).to_dict("records")
    ]
    return pandas.DataFrame(lines, columns=["bcos", *COLUMNS])


def normalized(value: torch.Tensor, random: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Where scores lie between a random ranking (0) and the best one that was found (1) on the same texts and model.

    Raw scores depend on how sharp a model's probabilities are; these can be compared between models. NaN where random
    and best do not differ.
    """
    return torch.where(best == random, math.nan, (value - random) / (best - random))


def normalized_interval(
    values: Sequence[float],
    chance: Sequence[float],
    best: Sequence[float],
    seed: int = 0,
    resamples: int = 2000,
) -> tuple[float, float, float]:
    """Where scores lie between those of random rankings (0) and of the best ones (1), and its 95 % bootstrap interval.

    Args:
        values: score of each text.
        chance: of a random ranking of each.
        best: of the best ranking of each.
        seed: of the bootstrap.
        resamples: of the bootstrap; those where random and best do not differ are left out.
    """
    columns = torch.tensor([list(values), list(chance), list(best)], dtype=torch.float64)
    (weights,) = resampled_weights([range(len(values))], resamples, seed)
    return interval_of(normalized(*columns.mean(-1)), normalized(*(columns @ weights.T)))


def bounds(cells: Sequence[Cell]) -> Bounds | None:
    """Scores of each text by a random ranking, and by the best one that any method or the search found; cells of one model.

    None without the cells of both random scores and search.
    """
    cells = [cell for cell in cells if "error" not in cell]
    random = next((cell for cell in cells if cell["method"] == "random"), None)
    if random is None or not any(cell["method"] == SEARCH for cell in cells):
        return None
    result = {}
    for name, better in zip(AREAS, (max, min), strict=True):
        every = zip(*([record[name] for record in cell["records"]] for cell in cells), strict=True)
        result[name] = ([record[name] for record in random["records"]], [better(values) for values in every])
    return result


def named(name: str, interval: tuple[float, float, float]) -> dict[str, float]:
    """A mean and the ends of its interval as columns of a table."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))


@dataclass
class _Paired:
    """Scores of the same texts by two methods; `scales` are random and best scores of each, for either method's model."""

    ids: list[Hashable]
    scores: torch.Tensor  # (2, texts)
    scales: torch.Tensor | None = None  # (2, 2, texts): model; random, best

    def raw(self, weights: torch.Tensor) -> torch.Tensor:
        """Weighted mean differences `(resamples,)`."""
        return weights @ (self.scores[0] - self.scores[1])

    def normalized(self, weights: torch.Tensor) -> torch.Tensor | None:
        """Differences of the weighted means, each between those of its model's random and best rankings."""
        if self.scales is None:
            return None
        here, there = (
            normalized(weights @ self.scores[i], weights @ self.scales[i, 0], weights @ self.scales[i, 1])
            for i in (0, 1)
        )
        return here - there


def _interval(
    runs: Sequence[_Paired], statistic: Callable[[_Paired, torch.Tensor], torch.Tensor | None]
) -> tuple[float, float, float]:
    """Mean over the runs that have the statistic, and its interval."""
    runs = [run for run in runs if run.ids and statistic(run, _uniform(run)) is not None]
    if not runs:
        return math.nan, math.nan, math.nan
    center = torch.stack([statistic(run, _uniform(run))[0] for run in runs]).mean()
    weights = resampled_weights([run.ids for run in runs])
    drawn = torch.stack([statistic(run, weight) for run, weight in zip(runs, weights, strict=True)]).mean(0)
    return interval_of(center, drawn)


def _uniform(run: _Paired) -> torch.Tensor:
    return torch.full((1, len(run.ids)), 1 / len(run.ids), dtype=torch.float64)


def _bounds_by_model(cells: dict[tuple[str, str], Cell]) -> dict[str, Bounds | None]:
    models = {model for model, _ in cells}
    return {model: bounds([cell for (of, _), cell in cells.items() if of == model]) for model in models}


def _areas(one: Cell, other: Cell, ends: dict[str, Bounds | None]) -> dict[str, _Paired]:
    """Comprehensiveness and sufficiency of the texts that both cells have."""
    places = [{record["index"]: i for i, record in enumerate(cell["records"])} for cell in (one, other)]
    ids = [index for index in places[0] if index in places[1]]
    chosen = [[place[index] for index in ids] for place in places]
    result = {}
    for name in AREAS:
        scores = [[cell["records"][i][name] for i in rows] for cell, rows in zip((one, other), chosen, strict=True)]
        scales = [ends[cell["model"]] for cell in (one, other)]
        wide = None
        if None not in scales:
            wide = torch.tensor(
                [[[end[i] for i in rows] for end in scale[name]] for scale, rows in zip(scales, chosen, strict=True)],
                dtype=torch.float64,
            )
        result[name] = _Paired(ids, torch.tensor(scores, dtype=torch.float64), wide)
    return result


def _points(one: Cell, other: Cell, run: int) -> _Paired:
    """SeqPG of the pairs that both cells have; every run has pairs of its own."""
    here, there = (cell["seqpg"] or [] for cell in (one, other))
    count = min(len(here), len(there))
    return _Paired([(run, i) for i in range(count)], torch.tensor([here[:count], there[:count]], dtype=torch.float64))
