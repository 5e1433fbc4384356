"""B-cos explanations beside all others: the best of them, and the differences on the same texts."""

import math

import pandas

from bcos_transformers.evaluation.benchmark import SEARCH
from bcos_transformers.evaluation.comparison import paired_differences
from bcos_transformers.evaluation.report import table

MEASURES = (
    ("comprehensiveness", "comprehensiveness ↑", 1),
    ("sufficiency", "sufficiency ↓", -1),
    ("seqpg", "SeqPG ↑", 1),
)


def summary_table(cells: dict[str, list[list[dict]]]) -> list[str]:
    """B-cos explanations beside the strongest post-hoc method on either model.

    Args:
        cells: of each data set, the cells of each seed.
    """
    lines = [
        "| data | measure | B-cos | strongest post-hoc on the same model | strongest post-hoc on the conventional model |",
        "|---|---|---|---|---|",
    ]
    for task, runs in cells.items():
        differences = _differences(runs)
        if differences.empty:
            lines.append(f"| {task} | | not run | | |")
            continue
        means = pandas.concat([table(run) for run in _with_bcos(runs)]).groupby(["model", "method"])
        for name, title, sign in MEASURES:
            row = f"| {task} | {title} | {100 * means[name].mean()['B-cos', 'bcos']:.1f} |"
            for model in ("B-cos", "conventional"):
                rivals = differences[differences["model"] == model].dropna(subset=name)
                rivals = rivals[~rivals["method"].isin([SEARCH, "random"])]
                if rivals.empty:
                    row += " not run |"
                    continue
                rival = rivals.loc[(sign * rivals[name]).idxmin()]
                value = 100 * means[name].mean()[model, rival["method"]]
                row += f" {value:.1f} {_name(rival)}: {_in_words(rival, name, sign)} |"
            lines.append(row)
    return lines


def differences_section(task: str, runs: list[list[dict]]) -> list[str]:
    """The B-cos explanation minus every other one on the same texts and pairs, of one data set."""
    differences = _differences(runs)
    if differences.empty:
        return []
    lines = [
        "",
        f"### {task}: how far the B-cos explanation is ahead",
        "",
        "Positive: the B-cos explanation is better; bold where the interval leaves out 0.",
        "",
        "| model | method | seeds | " + " | ".join(title.split()[0] for _, title, _ in MEASURES) + " |",
        "|---|---|---|---:|---:|---:|",
    ]
    for _, line in differences[differences["method"] != SEARCH].iterrows():
        numbers = [_in_words(line, name, sign, bold=True) for name, _, sign in MEASURES]
        lines.append(
            f"| {line['model']} | {line['method'].replace('_', ' ')} | {line['runs']} | {' | '.join(numbers)} |"
        )
    return lines


def _with_bcos(runs: list[list[dict]]) -> list[list[dict]]:
    return [cells for cells in runs if any(cell["method"] == "bcos" for cell in cells)]


def _differences(runs: list[list[dict]]) -> pandas.DataFrame:
    runs = _with_bcos(runs)
    return paired_differences(runs, "B-cos").sort_values("model", kind="stable") if runs else pandas.DataFrame()


def _name(line: pandas.Series) -> str:
    seeds = "1 seed" if line["runs"] == 1 else f"{line['runs']} seeds"
    return f"({line['method'].replace('_', ' ')}, {seeds})"


def _in_words(line: pandas.Series, name: str, sign: int, bold: bool = False) -> str:
    if math.isnan(line[name]):
        return "–"
    ends = sorted(100 * sign * line[f"{name}_{end}"] for end in ("low", "high"))
    text = f"{_signed(100 * sign * line[name])} [{_signed(ends[0])}, {_signed(ends[1])}]"
    return f"**{text}**" if bold and (ends[0] > 0 or ends[1] < 0) else text


def _signed(value: float) -> str:
    digits = 1 if abs(value) >= 0.05 else 2  # so that the sign of a small number has a meaning
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")
