"""What the alignment pressure B does to accuracy and to how faithful explanations are.

    python benchmarks/pressure_faithfulness.py --data ../shared/data --runs runs/evidence --tasks sst2 ag_news

The recipe of `benchmarks/evidence.py` with other B, seed 0, its texts and pairs; trains and measures what is missing (about 15
minutes a line on one core). `--only report` writes the table of what is there.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import transformers

from bcos_transformers.evaluation.comparison import AREAS
from bcos_transformers.evaluation.report import table
from evidence_settings import SEEDS, benchmark_of
from finetuning import run
from recipe_search import RECIPE

PRESSURES = (1.1, 1.25, 1.5)
METHODS = ("bcos", "integrated_gradients", "random")
SHOWN = (*AREAS, "seqpg")


def lines_of(task: str, b: float, args: argparse.Namespace) -> str:
    """A line of the table: both accuracies, and the areas of each method."""
    recipe = dataclasses.replace(RECIPE, b=b)
    setting = dataclasses.replace(recipe, task=task)
    file = args.runs / setting.key / "result.json"
    if args.only != "report":
        run(setting, args.data, args.runs)
    if not file.exists():
        return f"| {task} | {b:g} |" + " not run |" * (1 + len(METHODS))
    benchmark = benchmark_of(task, 0, argparse.Namespace(**{**vars(args), "recipe": recipe, "full": False}))
    if args.only != "report":
        (benchmark.output / "cells").mkdir(parents=True, exist_ok=True)
        for method in METHODS:
            benchmark.cell("B-cos", method)
    found = [cell for cell in benchmark.finished() if cell["model"] == "B-cos" and "error" not in cell]
    means = table(found).set_index("method") if found else {}
    result = json.loads(file.read_text())
    row = f"| {task} | {b:g} | {result['validation_accuracy']:.1f} / {result['test_accuracy']:.1f} |"
    for method in METHODS:
        there = len(found) and method in means.index
        row += (
            " " + (" / ".join(f"{100 * means.loc[method, name]:.1f}" for name in SHOWN) if there else "not run") + " |"
        )
    return row


def main() -> None:
    """Does what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--output", type=Path, default=Path("docs/pressure-faithfulness.md"))
    parser.add_argument("--tasks", nargs="+", choices=SEEDS, default=["sst2", "ag_news"])
    parser.add_argument("--only", choices=("report",))
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    lines = [
        "# Alignment pressure and faithfulness",
        "",
        "`python benchmarks/pressure_faithfulness.py --data ../shared/data`",
        "",
        "The recipe of [recipe.md](recipe.md) with other B, seed 0, texts and pairs as in [evidence.md](evidence.md). Accuracies in "
        "percent; comprehensiveness ↑ / sufficiency ↓ / SeqPG ↑, × 100, of three explanations of the same model.",
        "",
        "| data | B | validation / test accuracy | B-cos | integrated gradients | random |",
        "|---|---|---|---|---|---|",
    ]
    lines += [lines_of(task, b, args) for task in args.tasks for b in PRESSURES]
    args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
