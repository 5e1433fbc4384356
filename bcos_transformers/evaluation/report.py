"""From the benchmark's cells to a table, a figure, and records of every text."""

import json
import logging
import math
import re
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from bcos_transformers.evaluation.baselines import METHODS
from bcos_transformers.evaluation.benchmark_cells import write_whole
from bcos_transformers.evaluation.benchmark_settings import SEARCH
from bcos_transformers.evaluation.bootstrap import bootstrap_interval
from bcos_transformers.evaluation.comparison import all_differences, bounds, named, normalized_interval
from bcos_transformers.extras import require

logger = logging.getLogger(__name__)

MEANS = ("comprehensiveness", "sufficiency", "log_odds", "aopc_comprehensiveness", "aopc_sufficiency")
AGREEMENT = ("f1", "auprc", "mrr", "phrases")
SHOWN = {
    "comp. ↑": "comprehensiveness",
    "suff. ↓": "sufficiency",
    "comp. norm. ↑": "normalized_comprehensiveness",
    "suff. norm. ↑": "normalized_sufficiency",
    "SeqPG ↑": "seqpg",
    "F1 ↑": "f1",
    "AUPRC ↑": "auprc",
    "MRR ↑": "mrr",
    "phrases ↑": "phrases",
}
LEAST_COST = 0.5  # in the figure: random scores cost nothing, which has no logarithm
SIGNED = {"SeqPG ↑", "phrases ↑"}  # measures that ask for the sign of scores
LATEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$"},
    **{"–": "--", "\n": " ", "×": r"$\times$"},
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}


def table(cells: Sequence[dict[str, Any]]) -> Any:
    """One line for every cell, as a pandas data frame.

    Columns: model, method, texts, accuracy; means of the perturbation metrics, of SeqPG and of agreement with rationales,
    and `normalized_…`, each with `…_low` and `…_high` (95 % bootstrap interval over texts); `residual` (the largest
    |explained − Σ scores| over the largest |score|); `cost` in forward passes; `seconds` a text; `error`, why a cell has
    no numbers.

    Raises:
        ImportError: pandas is not installed.
    """
    pandas = require("pandas", "eval")
    ends = {model: bounds([c for c in cells if c["model"] == model]) for model in {c["model"] for c in cells}}
    lines = [_line(cell, ends[cell["model"]]) for cell in cells]
    return pandas.DataFrame(lines)


def write_report(cells: Sequence[dict[str, Any]], output: str | Path, caption: str = "") -> Any:
    """Writes `table.csv`, `table.md`, `table.tex`, `differences.csv`, `records.jsonl`, and with matplotlib `faithfulness.png`.

    `differences.csv` is `all_differences`: how far the exact explanations of each B-cos model are ahead of the others.
    Each file replaces the one that was there when it is complete.

    Returns:
        The data frame.

    Raises:
        ValueError: there is no cell.
        ImportError: pandas is not installed.
    """
    if not cells:
        raise ValueError("No cell of the benchmark is finished, so there is nothing to report.")
    output = Path(output)
    frame = table(cells)
    numbers = StringIO()
    frame.to_csv(numbers, index=False)
    records = (
        {"model": cell["model"], "method": cell["method"], **record} for cell in cells for record in cell["records"]
    )
    write_whole(output / "table.csv", numbers.getvalue())
    write_whole(output / "table.md", markdown(frame) + (f"\n{caption}\n" if caption else ""))
    write_whole(output / "table.tex", latex(frame, caption))
    write_whole(output / "records.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    write_whole(output / "differences.csv", all_differences(cells).to_csv(index=False))
    try:
        figure(frame, output / "faithfulness.png")
    except ImportError as error:
        logger.warning("There is no figure. %s", error)
    return frame


def markdown(frame: Any) -> str:
    """The main columns for people; areas, SeqPG and agreement times 100. Why cells failed stands below."""
    rows = [{k: _in_markdown(v) for k, v in row.items()} for row in _shown(frame)]
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    lines += [line for message in failures(frame) for line in ("", _in_markdown(message))]
    return "\n".join(lines) + "\n"


def latex(frame: Any, caption: str = "") -> str:
    """The same table in LaTeX (booktabs)."""
    rows = [{_escaped(k): _escaped(v) for k, v in row.items()} for row in _shown(frame)]
    header = list(rows[0])
    lines = [
        r"\begin{tabular}{ll" + "r" * (len(header) - 2) + "}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row.values()) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    comments = [line for text in (caption, *failures(frame)) for line in text.splitlines()]
    return "".join(f"% {line}\n" for line in comments) + "\n".join(lines) + "\n"


def failures(frame: Any) -> list[str]:
    """Why cells failed, a sentence for each."""
    lines = frame[frame["error"].notna()].to_dict("records")
    return [f"{_method(line)} failed on {line['model']}: {line['error']}" for line in lines]


def figure(frame: Any, path: str | Path) -> None:
    """Comprehensiveness against the cost of an explanation, one colour a model.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require("matplotlib", "viz")
    from matplotlib.figure import Figure

    shown = frame[(frame["method"] != SEARCH) & frame["comprehensiveness"].notna()]
    picture = Figure(figsize=(8, 4.5), layout="constrained")
    axes = picture.subplots()
    for model, lines in shown.groupby("model", sort=False):
        cost = lines["cost"].astype(float).clip(lower=LEAST_COST)
        middle = 100 * lines["comprehensiveness"]
        # Bars must not be negative, not even by rounding.
        errors = [
            (middle - 100 * lines["comprehensiveness_low"]).clip(lower=0),
            (100 * lines["comprehensiveness_high"] - middle).clip(lower=0),
        ]
        name = str(model).replace("$", r"\$")
        name = f" {name}" if name.startswith("_") else name  # matplotlib leaves such labels out
        axes.errorbar(cost, middle, yerr=errors, fmt="o", capsize=2, alpha=0.85, label=name)
    for method, lines in shown.groupby("method", sort=False):
        # A method costs about the same on every model, so its name stands once, at its highest point.
        top = lines.loc[lines["comprehensiveness"].idxmax()]
        axes.annotate(
            _method(top),
            (max(float(top["cost"]), LEAST_COST), 100 * top["comprehensiveness"]),
            **{"xytext": (5, 3), "textcoords": "offset points", "fontsize": 7},
            weight="bold" if method == "bcos" else "normal",
        )
    axes.set_xscale("log")
    axes.margins(x=0.12)  # for the names of the dearest methods
    axes.set_xlabel("cost of an explanation, in forward passes (less than one is drawn at 0.5)")
    axes.set_ylabel("comprehensiveness × 100 (higher is better)")
    if len(shown):
        axes.legend(frameon=False, loc="best")
    axes.spines[["top", "right"]].set_visible(False)
    picture_bytes = BytesIO()
    picture.savefig(picture_bytes, dpi=150, format="png")
    write_whole(Path(path), picture_bytes.getvalue())


def _line(cell: dict[str, Any], ends: dict[str, tuple[list[float], list[float]]] | None) -> dict[str, Any]:
    records = cell["records"]
    line = {name: cell[name] for name in ("model", "method", "texts", "accuracy")}
    for name in (*MEANS, *AGREEMENT):
        _add_mean(line, name, [record.get(name) for record in records])
    _add_mean(line, "seqpg", cell["seqpg"] or [])
    for name in ("comprehensiveness", "sufficiency"):
        found = (math.nan,) * 3
        if ends and records:
            found = normalized_interval([record[name] for record in records], *ends[name])
        line |= named(f"normalized_{name}", found)
    line["residual"] = max(cell["residuals"]) if cell["residuals"] else math.nan
    line["cost"], line["seconds"], line["error"] = cell["cost"], cell["seconds"], cell.get("error")
    return line


def _add_mean(line: dict[str, Any], name: str, values: list[float | None]) -> None:
    known = [value for value in values if not _missing(value)]
    line |= named(name, bootstrap_interval([known]) if known else (math.nan,) * 3)


def _shown(frame: Any) -> list[dict[str, str]]:
    kept = {title: name for title, name in SHOWN.items() if frame[name].notna().any()}
    rows = []
    for line in frame.to_dict("records"):
        numbers = {title: _interval(line, name) for title, name in kept.items()}
        if line["method"] in METHODS and not METHODS[line["method"]].signed:
            for title in SIGNED & kept.keys():
                numbers[title] += " (no sign)" * (numbers[title] != "–")
        numbers["residual ↓"] = "–" if _missing(line["residual"]) else f"{line['residual']:.0e}"
        numbers["cost"] = "–" if _missing(line["cost"]) else f"{line['cost']:.1f}"
        numbers["ms/text"] = "–" if _missing(line["seconds"]) else f"{1000 * line['seconds']:.0f}"
        if not _missing(line["error"]):
            numbers[next(iter(numbers))] = "failed"
        rows.append({"model": str(line["model"]), "method": _method(line), **numbers})
    return rows


def _method(line: Any) -> str:
    return line["method"].replace("_", " ")


def _interval(line: dict[str, Any], name: str) -> str:
    if _missing(line[name]):
        return "–"
    return f"{_number(100 * line[name])} ± {50 * (line[f'{name}_high'] - line[f'{name}_low']):.1f}"


def _number(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # no -0


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _in_markdown(text: str) -> str:
    return " ".join(text.replace("|", r"\|").replace("<", "&lt;").split())


def _escaped(text: str) -> str:
    if re.match(r"-\d", text):
        return f"$-${_escaped(text[1:])}"  # a minus, no hyphen
    return "".join(LATEX.get(character, character) for character in text)
