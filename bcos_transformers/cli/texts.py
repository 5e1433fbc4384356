"""The texts that a command is given: as arguments, on standard input or in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bcos_transformers.cli.files import TABLES, read_lines, read_table, stdin_bytes
from bcos_transformers.cli.output import note

Text = str | tuple[str, str]
DEFAULT_COLUMN = "text"
STDIN = "-"

PairColumnOption = Annotated[
    str | None,
    typer.Option(
        "--pair-column", metavar="NAME", help="Column of the second text, for models of pairs.", show_default=False
    ),
]


def read_texts(
    given: Sequence[str], pair: Sequence[str], file: Path | None, column: str | None, pair_column: str | None
) -> tuple[list[Text], str]:
    """The texts, or pairs of them, and what to call where they come from.

    Raises:
        typer.BadParameter: options that contradict each other.
        ValueError: what is there cannot be read, or is no Unicode.
        OSError: the file cannot be read.
    """
    _check_usage(given, pair, file, column, pair_column)
    if file is not None and file.suffix.lower() != ".txt":
        column = column or DEFAULT_COLUMN
        columns = [column] if pair_column is None else [column, pair_column]
        rows = read_table(file, columns)
        texts = [tuple(row.values[name] for name in columns) if pair_column else row.values[column] for row in rows]
        return check_unicode(texts, [row.place for row in rows]), str(file)
    if file is not None or not given or STDIN in given:
        name = "standard input" if file is None else str(file)
        texts, empty = read_lines(stdin_bytes() if file is None else file.read_bytes(), name)
        if empty:
            note(f"Left out {empty} empty line{'s' if empty > 1 else ''} of {name}.")
        return texts, name
    texts = list(zip(given, pair, strict=True)) if pair else list(given)
    return check_unicode(texts, [f"text {i}" for i in range(1, len(texts) + 1)]), "the command line"


def check_unicode(texts: list[Text], places: Sequence[str]) -> list[Text]:
    """Refuses texts with half characters, as from arguments in another encoding or from broken JSON escapes."""
    for text, place in zip(texts, places, strict=True):
        try:
            "".join(text).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The {place} is not valid Unicode: its character {error.start + 1} is half of one, or a byte that is not "
                "UTF-8."
            ) from None
    return texts


def _check_usage(given, pair, file, column, pair_column) -> None:
    if file is None:
        for name, value in (("--column", column), ("--pair-column", pair_column)):
            if value is not None:
                raise typer.BadParameter(f"{name} names a column of a --file.")
    elif given:
        raise typer.BadParameter("Give texts or a --file, not both.")
    elif file.suffix.lower() == ".txt":
        if column is not None or pair_column is not None:
            raise typer.BadParameter(f"A .txt file has a text a line and no columns; those of {', '.join(TABLES)} do.")
    elif file.suffix.lower() not in TABLES:
        raise typer.BadParameter(f"--file reads .txt, {', '.join(TABLES)}; got {file.name!r}.")
    if STDIN in given and len(given) > 1:
        raise typer.BadParameter("`-` reads standard input and stands alone.")
    if pair and (STDIN in given or len(pair) != len(given)):
        raise typer.BadParameter(f"--pair is the second text of a TEXT: {len(given)} of those, {len(pair)} of these.")
