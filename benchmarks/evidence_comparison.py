"""B-cos explanations beside all others: the strongest of them, and the differences on the same texts."""

import math

import pandas

from bcos_transformers.evaluation.benchmark import SEARCH
from bcos_transformers.evaluation.comparison import AREAS, paired_differences
from bcos_transformers.evaluation.report import table

MEASURES = {  # title, and 1 where higher is better
    "comprehensiveness": ("comprehensiveness ↑", 1),
    "sufficiency": ("sufficiency ↓", -1),
    "seqpg": ("SeqPG ↑", 1),
    "normalized_comprehensiveness": ("comp. norm. ↑", 1),
    "normalized_sufficiency": ("suff. norm. ↑", 1),
}
FEW = 20  # below so many texts or pairs the intervals are too narrow to be taken at their word
CAVEAT = (
    "Differences are between scores of the same texts and pairs, positive where the B-cos explanation is better, with their 95 % "
    "bootstrap interval (a text is drawn for all seeds at once). The intervals are about other texts, not about other training "
    f"seeds; nothing is corrected for the number of comparisons; those of fewer than {FEW} texts are too narrow. Raw areas of "
    "*different* models show how sure these are as much as how faithful a method is: between models compare the normalized ones."
)


def summary_table(cells: dict[str, list[list[dict]]]) -> list[str]:
    """B-cos explanations beside the strongest post-hoc method on either model.

    Args:
        cells: of each data set, the cells of each seed.
    """
    lines = [
        "| data | measure | B-cos against the strongest post-hoc method on the same model | … on the conventional model |",
        "|---|---|---|---|",
    ]
    for task, runs in cells.items():
        runs = _with_bcos(runs)
        if not runs:
            lines.append(f"| {task} | | not run | |")
            continue
        differences, values = _differences(runs), [table(run).set_index(["model", "method"]) for run in runs]
        for name, (title, sign) in MEASURES.items():
            found = [_strongest(differences, values, name, sign, model) for model in ("B-cos", "conventional")]
            lines.append(f"| {task} | {title} | {' | '.join(found)} |")
    return lines


def differences_section(task: str, runs: list[list[dict]]) -> list[str]:
    """The B-cos explanation minus every other one on the same texts and pairs, of one data set."""
    runs = _with_bcos(runs)
    differences = _differences(runs)
    if differences.empty:
        return []
    titles = " | ".join(title[: -len(" ↑")] for title, _ in MEASURES.values())
    lines = [
        "",
        f"### {task}: how far the B-cos explanation is ahead",
        "",
        "Positive: the B-cos explanation is better. Bold: the interval leaves out 0 (never raw areas of another model). Normalized "
        "scores are of the seeds with a search.",
        "",
        f"| model | method | seeds | {titles} |",
        "|---|---|---|" + "---:|" * len(MEASURES),
    ]
    for _, line in differences[differences["method"] != SEARCH].iterrows():
        numbers = [_in_words(line, name, sign, bold=True) for name, (_, sign) in MEASURES.items()]
        lines.append(f"| {line['model']} | {_method(line)} | {line['runs']} | {' | '.join(numbers)} |")
    return lines


def _with_bcos(runs: list[list[dict]]) -> list[list[dict]]:
    return [
        cells
        for cells in runs
        if any((cell["model"], cell["method"]) == ("B-cos", "bcos") and "error" not in cell for cell in cells)
    ]


def _differences(runs: list[list[dict]]) -> pandas.DataFrame:
    return paired_differences(runs, "B-cos").sort_values("model", kind="stable") if runs else pandas.DataFrame()


def _strongest(differences: pandas.DataFrame, values: list[pandas.DataFrame], name: str, sign: int, model: str) -> str:
    """The post-hoc method of a model that the B-cos explanation is least ahead of, over the seeds that it was measured for."""
    rivals = differences[(differences["model"] == model) & ~differences["method"].isin([SEARCH, "random"])]
    rivals = rivals.dropna(subset=name)
    if rivals.empty:
        return "not run"
    rival = rivals.loc[(sign * rivals[name]).idxmin()]
    there = (model, rival["method"])
    those = [value for value in values if there in value.index and not math.isnan(value.loc[there, name])]
    own, other = (
        100 * sum(value.loc[key, name] for value in those) / len(those) for key in (("B-cos", "bcos"), there)
    )
    seeds = "1 seed" if len(those) == 1 else f"{len(those)} seeds"
    return f"{_minus(own)} against {_minus(other)} ({_method(rival)}, {seeds}): {_in_words(rival, name, sign)}"


def _in_words(line: pandas.Series, name: str, sign: int, bold: bool = False) -> str:
    if math.isnan(line[name]):
        return "–"
    ends = sorted(100 * sign * line[f"{name}_{end}"] for end in ("low", "high"))
    text = f"{_signed(100 * sign * line[name])} [{_signed(ends[0])}, {_signed(ends[1])}]"
    certain = ends[0] > 0 or ends[1] < 0
    enough = line["pairs" if name == "seqpg" else "texts"] >= FEW
    comparable = line["model"] == "B-cos" or name not in AREAS  # raw areas do not compare models
    return f"**{text}**" if bold and certain and enough and comparable else text


def _method(line: pandas.Series) -> str:
    return line["method"].replace("_", " ")


def _signed(value: float) -> str:
    digits = 1 if abs(value) >= 0.05 else 2  # so that the sign of a small number has a meaning
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def _minus(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "−")
