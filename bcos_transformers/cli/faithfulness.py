"""The part of `bcos-transformers evaluate` that measures how faithful explanations are."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text as RichText

from bcos_transformers.cli.models import naming_what_is_missing, read_config
from bcos_transformers.cli.output import note, printable
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
PairsOption = Annotated[
    int | None,
    typer.Option(
        "--pairs",
        metavar="N",
        min=0,
        help="Pairs of texts for SeqPG; 0 leaves it out, as for models of different tokenizers. Default: 100.",
        show_default=False,
    ),
]
COLUMNS = {
    "comp. ↑": "comprehensiveness",
    "suff. ↓": "sufficiency",
    "SeqPG ↑": "seqpg",
    "AUPRC ↑": "auprc",
    "cost": "cost",
}

CAPTION = "comp.: comprehensiveness, suff.: sufficiency; × 100\ncost: in forward passes"


def check_usage(
    model: str, faithfulness: Path | None, options: Mapping[str, Any], pair_column: str | None, stride: int | None
) -> None:
    """Refuses options that do not go together, and methods that there are not.

    Raises:
        typer.BadParameter: see above.
    """
    if faithfulness is None:
        for name, value in options.items():
            if value is not None:
                raise typer.BadParameter(f"{name} needs --faithfulness DIR.")
        return
    if pair_column is not None or stride is not None:
        raise typer.BadParameter("--faithfulness reads single texts as a whole: leave out --pair-column and --stride.")
    if faithfulness.exists() and not faithfulness.is_dir():
        raise typer.BadParameter(f"--faithfulness needs a directory; {faithfulness} is a file.")
    if model in (options["--against"] or ()):
        raise typer.BadParameter(f"--against needs another model than {model}.")
    from bcos_transformers.evaluation.benchmark_settings import check_methods

    try:
        check_methods(options["--methods"] or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def prepare_faithfulness(
    models: Mapping[str, Any],
    rows: Any,
    labels: Sequence[int],
    rationales: Sequence[Any] | None,
    output: Path,
    methods: Sequence[str] | None,
    limit: int | None,
    pairs: int | None,
    max_length: int,
) -> Any:
    """A `FaithfulnessBenchmark` that can run: everything that could be wrong with what was given is found here.

    Args:
        models: as the benchmark takes them; the first one is loaded.
        rows: texts and where each of them stands.
        labels: their class indices.
        rationales: of each text, or None.
        output: the folder of results.
        methods: names of methods; None is all.
        limit: texts at most.
        pairs: of the pointing game; None is the usual number.
        max_length: tokens of a text.

    Raises:
        ImportError: something of the extra `eval` is not installed.
        OSError: a model is not there, or the folder cannot be made.
        ValueError: see `FaithfulnessBenchmark.check`, or a rationale that does not fit its text.
    """
    require("captum", "eval")
    from bcos_transformers.evaluation.benchmark import BenchmarkSettings, FaithfulnessBenchmark
    from bcos_transformers.evaluation.benchmark_data import make_example

    for name, given in models.items():
        if isinstance(given, str):
            with naming_what_is_missing(name):
                read_config(name)
    examples = []
    for text, place, label, marks in zip(
        rows.texts, rows.places, labels, rationales or [None] * len(labels), strict=True
    ):
        try:
            examples.append(make_example(text, label, marks))
        except ValueError as error:
            raise ValueError(f"In {place}: {error}") from None
    _, tokenizer = next(iter(models.values()))
    replacement = "mask"
    if tokenizer.mask_token_id is None:
        replacement = "attention"
        note("The tokenizer has no mask token, so tokens are hidden by taking them out of the attention mask.")
    settings = BenchmarkSettings(
        max_length=max_length, limit=limit, replacement=replacement, **({} if pairs is None else {"pairs": pairs})
    )
    benchmark = FaithfulnessBenchmark(models, examples, output, methods, settings)
    benchmark.check()
    output.mkdir(parents=True, exist_ok=True)
    return benchmark


def measure_faithfulness(benchmark: Any, output: Path) -> Any:
    """Runs what is missing and writes the report.

    Returns:
        The table, a pandas data frame.

    Raises:
        ValueError: no method could be measured.
    """
    from bcos_transformers.evaluation.report import failures, write_report

    try:
        frame = write_report(benchmark.run(), output)
    except KeyboardInterrupt:
        note(f"Interrupted. The same command goes on from here; what is finished is in {output}.")
        raise
    if frame["error"].notna().all():
        raise ValueError(f"No method could be measured. {failures(frame)[0]}")
    return frame


def json_rows(frame: Any) -> list[dict[str, Any]]:
    """The data frame for a JSON document: what is not defined is null."""
    rows = frame.to_dict("records")
    return [{k: None if _missing(v) else v for k, v in row.items()} for row in rows]


def faithfulness_table(frame: Any) -> Table:
    """The main columns for people; models are named where there are several."""
    shown = {title: name for title, name in COLUMNS.items() if frame[name].notna().any()}
    names = _short_names(list(dict.fromkeys(frame["model"])))
    table = Table(box=SIMPLE_HEAD, caption=CAPTION, caption_justify="left", show_edge=False)
    table.add_column("method", overflow="fold")
    for title in shown:
        table.add_column(title, justify="right", no_wrap=True)
    last = None
    for row in frame.to_dict("records"):
        if len(names) > 1 and row["model"] != last:
            last = row["model"]
            table.add_row(RichText(printable(names[last]), style="bold"))
        cells = ["–" if _missing(row[name]) else _number(name, row[name]) for name in shown.values()]
        if cells and not _missing(row["error"]):
            cells[0] = "failed"
        method = ("  " if len(names) > 1 else "") + row["method"].replace("_", " ")
        table.add_row(*map(RichText, (method, *cells)))
    return table


def _short_names(models: list[str]) -> dict[str, str]:
    """The last part of each path where these differ, else the whole names."""
    short = {model: Path(model).name or model for model in models}
    return short if len(set(short.values())) == len(models) else {model: model for model in models}


def _number(name: str, value: float) -> str:
    return f"{value:.1f}" if name == "cost" else f"{100 * value:.1f}"


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
