"""From the benchmark's cells to a table, a figure, and records of every text."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bcos_transformers.evaluation.benchmark import SEARCH
from bcos_transformers.evaluation.bootstrap import bootstrap_interval
from bcos_transformers.evaluation.perturbation import normalized
from bcos_transformers.extras import require

MEANS = ("comprehensiveness", "sufficiency", "log_odds", "aopc_comprehensiveness", "aopc_sufficiency")
AGREEMENT = ("f1", "auprc", "mrr", "phrases")
HUNDREDFOLD = ("accuracy", "comprehensiveness", "sufficiency", "seqpg", *AGREEMENT)


def table(cells: Sequence[dict[str, Any]]) -> Any:
    """One line for every cell, as a pandas data frame.

    Columns: model, method, texts, accuracy; means of the perturbation metrics, of SeqPG and of agreement with rationales,
    each with `…_low` and `…_high` (95 % bootstrap interval over texts); `normalized_…`; `residual` (the largest
    |explained − Σ scores| over the largest |score|); `cost` in forward passes; `seconds` a text.

    Raises:
        ImportError: pandas is not installed.
    """
    pandas = require("pandas", "eval")
    bounds = {model: _bounds([c for c in cells if c["model"] == model]) for model in {c["model"] for c in cells}}
    lines = [_line(cell, bounds[cell["model"]]) for cell in cells]
    return pandas.DataFrame(lines)


def write_report(cells: Sequence[dict[str, Any]], output: str | Path, caption: str = "") -> Any:
    """Writes `table.csv`, `table.md`, `table.tex`, `records.jsonl` and, with matplotlib, `faithfulness.png`.

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
    frame.to_csv(output / "table.csv", index=False)
    (output / "table.md").write_text(markdown(frame) + (f"\n{caption}\n" if caption else ""), encoding="utf-8")
    (output / "table.tex").write_text(latex(frame, caption), encoding="utf-8")
    with (output / "records.jsonl").open("w", encoding="utf-8") as file:
        for cell in cells:
            for record in cell["records"]:
                file.write(json.dumps({"model": cell["model"], "method": cell["method"], **record}) + "\n")
    figure(frame, output / "faithfulness.png")
    return frame


def markdown(frame: Any) -> str:
    """The main columns for people; areas, SeqPG and agreement times 100."""
    rows = _shown(frame)
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
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
    comment = "".join(f"% {line}\n" for line in caption.splitlines())
    return comment + "\n".join(lines) + "\n"


def figure(frame: Any, path: str | Path) -> None:
    """Comprehensiveness against the cost of an explanation, one colour a model.

    Raises:
        ImportError: matplotlib is not installed.
    """
    require("matplotlib", "viz")
    from matplotlib.figure import Figure

    shown = frame[frame["method"] != SEARCH]
    picture = Figure(figsize=(8, 4.5), layout="constrained")
    axes = picture.subplots()
    for model, lines in shown.groupby("model", sort=False):
        cost = lines["cost"].fillna(0.0).clip(lower=0.5)
        errors = [
            100 * (lines["comprehensiveness"] - lines["comprehensiveness_low"]),
            100 * (lines["comprehensiveness_high"] - lines["comprehensiveness"]),
        ]
        axes.errorbar(cost, 100 * lines["comprehensiveness"], yerr=errors, fmt="o", capsize=2, label=model, alpha=0.85)
        for x, y, method in zip(cost, 100 * lines["comprehensiveness"], lines["method"], strict=True):
            bold = "bold" if method == "bcos" else "normal"
            axes.annotate(
                method.replace("_", " "), (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7, weight=bold
            )
    axes.set_xscale("log")
    axes.set_xlabel("cost of an explanation, in forward passes")
    axes.set_ylabel("comprehensiveness × 100 (higher is better)")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=150)


def _bounds(cells: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]] | None:
    """Mean of a random ranking, and of the best ranking of each text that any method or the search found."""
    random = next((cell for cell in cells if cell["method"] == "random"), None)
    search = next((cell for cell in cells if cell["method"] == SEARCH), None)
    if random is None or search is None:
        return None
    result = {}
    for name, better in (("comprehensiveness", max), ("sufficiency", min)):
        every = zip(*([record[name] for record in cell["records"]] for cell in cells), strict=True)
        best = [better(values) for values in every]
        chance = [record[name] for record in random["records"]]
        result[name] = (sum(chance) / len(chance), sum(best) / len(best))
    return result


def _line(cell: dict[str, Any], bounds: dict[str, tuple[float, float]] | None) -> dict[str, Any]:
    records = cell["records"]
    line = {name: cell[name] for name in ("model", "method", "texts", "accuracy")}
    for name in (*MEANS, *AGREEMENT):
        _add_mean(line, name, [record[name] for record in records if name in record])
    _add_mean(line, "seqpg", cell["seqpg"] or [])
    for name in ("comprehensiveness", "sufficiency"):
        line[f"normalized_{name}"] = normalized(line[name], *bounds[name]) if bounds else math.nan
    line["residual"] = max(cell["residuals"]) if cell["residuals"] else math.nan
    line["cost"], line["seconds"] = cell["cost"], cell["seconds"]
    return line


def _add_mean(line: dict[str, Any], name: str, values: list[float]) -> None:
    values = [value for value in values if not math.isnan(value)]
    mean = low = high = math.nan
    if values:
        mean, low, high = bootstrap_interval([values])
    line |= {name: mean, f"{name}_low": low, f"{name}_high": high}


def _shown(frame: Any) -> list[dict[str, str]]:
    columns = {
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
    kept = {title: name for title, name in columns.items() if frame[name].notna().any()}
    rows = []
    for line in frame.to_dict("records"):
        row = {"model": str(line["model"]), "method": line["method"].replace("_", " ")}
        for title, name in kept.items():
            row[title] = _interval(line, name)
        row["residual ↓"] = "–" if _missing(line["residual"]) else f"{line['residual']:.0e}"
        row["cost"] = "–" if _missing(line["cost"]) else f"{line['cost']:.1f}"
        row["ms/text"] = "–" if _missing(line["seconds"]) else f"{1000 * line['seconds']:.0f}"
        rows.append(row)
    return rows


def _interval(line: dict[str, Any], name: str) -> str:
    if _missing(line[name]):
        return "–"
    if f"{name}_low" not in line:
        return f"{100 * line[name]:.0f}"
    return f"{100 * line[name]:.1f} ± {50 * (line[f'{name}_high'] - line[f'{name}_low']):.1f}"


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _escaped(text: str) -> str:
    signs = {"\\": r"\textbackslash{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "–": "--"}
    for sign in "&%$#_{}":
        signs[sign] = "\\" + sign
    return "".join(signs.get(character, character) for character in text)
