"""Differences between explanation methods on the same texts: smaller, and more certain, than those between their means."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from bcos_transformers.evaluation.benchmark_settings import SEARCH
from bcos_transformers.evaluation.bootstrap import bootstrap_interval, resamples_of
from bcos_transformers.evaluation.perturbation import normalized
from bcos_transformers.extras import require

COMPARED = ("comprehensiveness", "sufficiency", "seqpg")
COLUMNS = ["model", "method", "runs", *(f"{name}{end}" for name in COMPARED for end in ("", "_low", "_high"))]


def paired_differences(runs: Sequence[Sequence[dict[str, Any]]], model: str, method: str = "bcos") -> Any:
    """One method minus every other one, text by text, as a pandas data frame.

    Methods applied to other models are compared too: there the difference is that of method and model together.

    Args:
        runs: the cells of one or more benchmarks (seeds, say); a method is compared over those that have it.
        model: the model of `method`.
        method: what the others are subtracted from.

    Returns:
        A line for each other cell: `model`, `method`, `runs` (how many), and of comprehensiveness, sufficiency and SeqPG (for the latter
        pair by pair) the mean difference, with `…_low` and `…_high` (95 % bootstrap interval, texts drawn anew within
        each run). NaN where there is none.

    Raises:
        ValueError: no run has a cell of `model` and `method`.
        ImportError: pandas is not installed.
    """
    pandas = require("pandas", "eval")
    by_name = [{(c["model"], c["method"]): c for c in cells if "error" not in c} for cells in runs]
    by_name = [cells for cells in by_name if (model, method) in cells]
    if not by_name:
        raise ValueError(f"No cell of {method} on {model} is there to compare others with.")
    lines = []
    for key in dict.fromkeys(key for cells in by_name for key in cells if key != (model, method)):
        those = [cells for cells in by_name if key in cells]
        line: dict[str, Any] = {"model": key[0], "method": key[1], "runs": len(those)}
        for name in COMPARED:
            groups = [_differences(cells[model, method], cells[key], name) for cells in those]
            found = bootstrap_interval(groups) if all(groups) else (math.nan,) * 3
            line |= dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
        lines.append(line)
    return pandas.DataFrame(lines, columns=COLUMNS)


def all_differences(cells: Sequence[dict[str, Any]]) -> Any:
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


def _differences(one: dict[str, Any], other: dict[str, Any], name: str) -> list[float]:
    if name == "seqpg":
        here, there = (dict(enumerate(cell["seqpg"] or [])) for cell in (one, other))
    else:
        here, there = ({record["index"]: record[name] for record in cell["records"]} for cell in (one, other))
    return [here[i] - there[i] for i in here if i in there]


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
    center = normalized(*columns.mean(-1).tolist())
    drawn = resamples_of(columns.shape[1], resamples, torch.Generator().manual_seed(seed))
    value, random, reached = columns[:, drawn].mean(-1)
    spread = ((value - random) / (reached - random))[reached != random]
    if math.isnan(center) or not len(spread):
        return math.nan, math.nan, math.nan
    low, high = spread.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return center, low, high


def bounds(cells: Sequence[dict[str, Any]]) -> dict[str, tuple[list[float], list[float]]] | None:
    """Scores of each text by a random ranking, and by the best one that any method or the search found; cells of one model.

    None without the cells of both random scores and search.
    """
    cells = [cell for cell in cells if "error" not in cell]
    random = next((cell for cell in cells if cell["method"] == "random"), None)
    if random is None or not any(cell["method"] == SEARCH for cell in cells):
        return None
    result = {}
    for name, better in (("comprehensiveness", max), ("sufficiency", min)):
        every = zip(*([record[name] for record in cell["records"]] for cell in cells), strict=True)
        result[name] = ([record[name] for record in random["records"]], [better(values) for values in every])
    return result
