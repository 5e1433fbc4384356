"""The part of `bcos-transformers evaluate` that measures how faithful explanations are."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text as RichText

from bcos_transformers.cli.output import printable
from bcos_transformers.extras import require

FaithfulnessOption = Annotated[
    Path | None,
    typer.Option(
        "--faithfulness", metavar="DIR", help="Also measure faithfulness; results go there.", show_default=False
    ),
]
AgainstOption = Annotated[
    list[str] | None,
    typer.Option(
        "--against", metavar="MODEL", help="Another classifier of the same labels; repeatable.", show_default=False
    ),
]
MethodsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--methods", metavar="METHOD", help="Only these methods; repeatable. Default: all.", show_default=False
    ),
]
RationaleOption = Annotated[
    str | None,
    typer.Option(
        "--rationale-column", metavar="NAME", help="Words that people marked, in a .jsonl file.", show_default=False
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Faithfulness of N texts, chosen at random.", show_default=False),
]
COLUMNS = {
    "model": "model",
    "method": "method",
    "comprehensiveness ↑": "comprehensiveness",
    "sufficiency ↓": "sufficiency",
    "SeqPG ↑": "seqpg",
    "AUPRC ↑": "auprc",
    "cost": "cost",
}


def check_usage(
    faithfulness: Path | None, options: Mapping[str, Any], pair_column: str | None, stride: int | None
) -> None:
    """Refuses options that do not go together.

    Raises:
        typer.BadParameter: see above.
    """
    if faithfulness is None:
        for name, value in options.items():
            if value is not None:
                raise typer.BadParameter(f"{name} needs --faithfulness DIR.")
    elif pair_column is not None or stride is not None:
        raise typer.BadParameter("--faithfulness reads single texts as a whole: leave out --pair-column and --stride.")
    elif faithfulness.exists() and not faithfulness.is_dir():
        raise typer.BadParameter(f"--faithfulness needs a directory; {faithfulness} is a file.")


def measure_faithfulness(
    models: Mapping[str, Any],
    texts: Sequence[str],
    labels: Sequence[int],
    rationales: Sequence[Any] | None,
    output: Path,
    methods: Sequence[str] | None,
    limit: int | None,
    max_length: int,
) -> Any:
    """Runs the benchmark and writes its report; see `FaithfulnessBenchmark`."""
    require("captum", "eval")
    from bcos_transformers.evaluation.benchmark import BenchmarkSettings, FaithfulnessBenchmark
    from bcos_transformers.evaluation.benchmark_data import make_example
    from bcos_transformers.evaluation.report import write_report

    marks = [None] * len(texts) if rationales is None else rationales
    examples = [make_example(*row) for row in zip(texts, labels, marks, strict=True)]
    settings = BenchmarkSettings(limit=limit, max_length=max_length)
    cells = FaithfulnessBenchmark(models, examples, output, methods, settings).run()
    return write_report(cells, output)


def json_rows(frame: Any) -> list[dict[str, Any]]:
    """The data frame for a JSON document: what is not defined is null."""
    rows = frame.to_dict("records")
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]


def faithfulness_table(frame: Any) -> Table:
    """The main columns for people."""
    shown = {title: name for title, name in COLUMNS.items() if frame[name].notna().any()}
    table = Table(caption="× 100, but for the cost, which is in forward passes", caption_justify="left")
    for title in shown:
        table.add_column(title, justify="left" if title in ("model", "method") else "right")
    for row in frame.to_dict("records"):
        table.add_row(*(RichText(_cell(name, row[name])) for name in shown.values()))
    return table


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return printable(value.replace("_", " ") if name == "method" else value)
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.1f}" if name == "cost" else f"{100 * value:.1f}"
