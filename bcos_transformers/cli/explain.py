"""`bcos-transformers explain`: texts in, words and their contributions out."""

import json
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from bcos_transformers.cli.explain_prototypes import check_prototype_options, prototype_explainer
from bcos_transformers.cli.files import check_file_target, new_file
from bcos_transformers.cli.models import (
    AnyModelArgument,
    RevisionOption,
    has_prototypes,
    load_model,
    load_tokenizer,
)
from bcos_transformers.cli.output import JsonOption, console, emit, facts_table, note, printable, terminal_json
from bcos_transformers.cli.score_table import score_tables
from bcos_transformers.cli.texts import DEFAULT_COLUMN, PairColumnOption, read_texts
from bcos_transformers.explanations import BcosExplainer, TextExplanation, save_explanations
from bcos_transformers.explanations.files import Explanation
from bcos_transformers.explanations.html import render_html
from bcos_transformers.extras import require
from bcos_transformers.modeling.bcos_targets import index_of_label
from bcos_transformers.modeling.bcos_text_units import GRANULARITIES
from bcos_transformers.prototypes import ProtoExplainer

Granularity = StrEnum("Granularity", {name: name for name in GRANULARITIES})
Format = StrEnum("Format", {name: name for name in ("terminal", "table", "json", "jsonl", "html")})
SUFFIXES = (".html", ".json", ".jsonl", ".parquet")

StrideOption = Annotated[
    int | None,
    typer.Option(
        "--stride",
        metavar="N",
        min=0,
        help="Read longer texts in windows that share so many tokens, instead of cutting them (classifiers).",
        show_default=False,
    ),
]
MaxLengthOption = Annotated[
    int | None,
    typer.Option(
        "--max-length", metavar="N", min=1, help="Tokens a text may have.", show_default="what the model reads"
    ),
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Texts a batch.")]


def explain(
    model: AnyModelArgument,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Texts; without any, or as `-`, standard input is read, a text a line.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of texts: .txt (one a line), .csv, .tsv, .jsonl or .parquet.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of the text in a --file.", show_default=DEFAULT_COLUMN),
    ] = None,
    pair_column: PairColumnOption = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Second text of a pair (a context, say); once for each TEXT.", show_default=False
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET",
            help="What to explain: a label by name or index, a token by text or id, or all; may be given again.",
            show_default="what the model predicts",
        ),
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="Explain the target rather than this one: a label, a token or mean.",
            show_default=False,
        ),
    ] = None,
    granularity: Annotated[
        Granularity, typer.Option(metavar="UNIT", help=f"What gets a score: {', '.join(GRANULARITIES)}.")
    ] = Granularity.word,
    top: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="K", help="Name the K largest contributions; with prototypes, show K.", show_default=False
        ),
    ] = None,
    format: Annotated[  # noqa: A002
        Format | None,
        typer.Option(metavar="FORMAT", help=f"How it is shown: {', '.join(Format)}.", show_default="terminal"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"File to write instead: {', '.join(SUFFIXES)}.", show_default=False),
    ] = None,
    stride: StrideOption = None,
    max_length: MaxLengthOption = None,
    batch_size: BatchSizeOption = 32,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain predictions: which words speak for a class or a next token, which against it, and how much.

    The contributions of the words and of the special tokens add up to the logit; the residual is rounding. Of a model with
    prototypes: which training texts a text looks like, and what each of them adds to the logit.
    """
    form = _check_form(format, output, as_json)
    by_prototypes = has_prototypes(model, revision)
    if by_prototypes:
        check_prototype_options(pair or [], pair_column, target or [], granularity.value, stride)
    else:
        _check_top(top, form, output)
    given, source = read_texts(texts or [], pair or [], file, column, pair_column)
    loaded = load_model(model, revision, prototypes=True)
    tokenizer = load_tokenizer(model, revision)
    if by_prototypes:
        explainer = prototype_explainer(loaded, tokenizer, max_length, batch_size, top)
        top = None  # an explanation holds no others
    else:
        explainer = BcosExplainer(
            loaded,
            tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            stride=stride,
            granularity=granularity.value,
        )
    options = {"target": _targets(target or [], explainer), "contrast": _one_target(contrast, explainer)}
    if not given:
        note(f"There is nothing to explain: no text in {source}.")
        explainer([], **options)  # checks them all the same
    explained = iter(explainer(given, **options)) if by_prototypes else explainer.iterate(given, **options)
    if output is None:
        _show(explained, form, top, title=f"Explanations of {Path(model).name}")
        return
    rows = list(explained)
    flat = list(_flat(rows))
    _write(rows, flat, output, title=f"Explanations of {Path(model).name}")
    facts = {"output": str(output), "texts": len(rows), "explanations": len(flat)}
    facts["truncated"] = sum(any(e.truncated for e in _flat([row])) for row in rows)
    if as_json:
        emit(facts)
    else:
        console().print(facts_table({"explained": _counted(facts), "saved to": output}))


def _check_form(form: Format | None, output: Path | None, as_json: bool) -> Format:
    """How to show the explanations; refuses what contradicts itself, and files that cannot be written."""
    if output is None:
        if as_json and form not in (None, Format.json):
            raise typer.BadParameter(f"--json and --format {form.value} contradict each other.")
        form = Format.json if as_json else form or Format.terminal
    else:
        kind = output.suffix.lower()
        if kind not in SUFFIXES:
            raise typer.BadParameter(f"--output writes {', '.join(SUFFIXES)}; got {output.name!r}.")
        if form is not None and f".{form.value}" != kind:
            raise typer.BadParameter(f"--output {output.name} is not a file of --format {form.value}.")
        check_file_target(output)
        if kind == ".parquet":
            require("pyarrow", "viz")
    if form == Format.html or output is not None and output.suffix.lower() == ".html":
        require("jinja2", "viz")
    return form


def _check_top(top: int | None, form: Format, output: Path | None) -> None:
    shortened = output is None and form in (Format.terminal, Format.table, Format.json)
    if top is not None and not shortened:
        raise typer.BadParameter("--top is for terminal, table and json; files hold every word.")


def _targets(given: list[str], explainer: BcosExplainer | ProtoExplainer) -> Any:
    """The targets as explainers take them."""
    if len(given) > 1 and "all" in given:
        raise typer.BadParameter("--target all stands alone.")
    read = [_one_target(target, explainer) for target in given]
    return read if len(read) > 1 else read[0] if read else None


def _one_target(name: str | None, explainer: BcosExplainer | ProtoExplainer) -> int | str | None:
    """An index where it is a number, unless a label has this number as its name."""
    task, config = explainer.model.explanation_task, explainer.model.config
    labels = index_of_label(config) if task.endswith("-classification") else {}
    return int(name) if name is not None and name.isdecimal() and name not in labels else name


def _flat(rows: Iterable[Any]) -> Iterator[Explanation]:
    """Token classification has a list of explanations a text."""
    for row in rows:
        yield from row if isinstance(row, list) else [row]


def _show(rows: Iterator[Any], form: Format, top: int | None, title: str) -> None:
    if form == Format.json:
        emit([_document(row, top) for row in rows])
    elif form == Format.jsonl:
        for explanation in _flat(rows):
            sys.stdout.write(terminal_json(explanation.to_dict()) + "\n")
    elif form == Format.html:
        page = render_html(list(_flat(rows)), title=title)
        sys.stdout.write(printable(page) if sys.stdout.isatty() else page)
    else:
        screen = console()
        for number, explanation in enumerate(_flat(rows)):
            if number and form == Format.terminal:
                screen.print()
            if form == Format.table:
                for table in score_tables(explanation, top):
                    screen.print(table)
            else:
                screen.print(explanation.to_terminal())
                if top is not None:
                    screen.print(_top_lines(explanation, top))


def _document(row: Any, top: int | None) -> Any:
    if isinstance(row, list):
        return [_document(explanation, top) for explanation in row]
    if top is None:
        return row.to_dict()
    named = {target: [word._asdict() for word in row.for_target(target).top(top)] for target in row.targets}
    return {**row.to_dict(), "top": named if isinstance(row.target, list) else named[row.target]}


def _top_lines(explanation: TextExplanation, top: int) -> Text:
    lines = []
    for single in map(explanation.for_target, explanation.targets):
        name = f" for {single.label}" if isinstance(explanation.target, list) else ""
        words = " · ".join(f"{' '.join(word.word.split())} {word.score:+.4f}" for word in single.top(top))
        lines.append(f"  largest{name}: {words}")
    return Text(printable("\n".join(lines)), style="dim")


def _write(rows: list[Any], flat: list[Explanation], output: Path, title: str) -> None:
    kind = output.suffix.lower()
    if kind == ".html":
        with new_file(output) as file:
            file.write(render_html(flat, title=title))
    elif kind == ".json":
        with new_file(output) as file:
            json.dump([_document(row, None) for row in rows], file, ensure_ascii=False, indent=2)
            file.write("\n")
    else:
        save_explanations(flat, output)


def _counted(facts: dict[str, Any]) -> str:
    words = f"{facts['texts']:,} text{'' if facts['texts'] == 1 else 's'}"
    if facts["explanations"] != facts["texts"]:
        words += f" ({facts['explanations']:,} words)"
    return words + (f", {facts['truncated']:,} of them cut" if facts["truncated"] else "")
