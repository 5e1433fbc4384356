"""What the command line writes: results on standard output, everything else on standard error."""

import json
import logging
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils import logging as transformers_logging

JsonOption = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, and nothing else there.")
]


def own_the_process() -> None:
    """Settings for a process that is nothing but this command line."""
    transformers_logging.disable_progress_bar()  # a bar for the seconds that reading weights takes
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # terminals that cannot show a character


def console(stderr: bool = False) -> Console:
    """A console on the stream as it is now."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False)


def emit(document: Any) -> None:
    """Writes one JSON document to standard output."""
    sys.stdout.write(terminal_json(document, indent=2) + "\n")


def terminal_json(document: Any, indent: int | None = None) -> str:
    """JSON in which everything is escaped that the output cannot show or a terminal might obey."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(document, ensure_ascii=not unicode, indent=indent)
    return "".join(c if _harmless(c) else json.dumps(c)[1:-1] for c in text)


def note(message: str) -> None:
    """Says something about the work on standard error."""
    console(stderr=True).print(Text(printable(message), style="dim"))


def fail(error: BaseException) -> None:
    """Says on standard error what went wrong, in one line."""
    console(stderr=True).print(Text("Error: ", style="bold red") + Text(sentence(error), style="red"))


def sentence(error: BaseException) -> str:
    """The message of an error on one line, with its notes."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.strerror}: {error.filename}"
    elif isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
    else:
        text = str(error)
    text = " ".join([text, *getattr(error, "__notes__", [])])
    return printable(" ".join(text.split())) or type(error).__name__


def printable(text: str) -> str:
    """Without control characters, which could move the cursor or change the terminal's colours or its reading order."""
    return "".join(c if _harmless(c) else "\ufffd" for c in text)


def _harmless(character: str) -> bool:
    """Whether a terminal shows it, spaces of every kind and the joiners of emoji and scripts included."""
    return character.isprintable() or character in "\n\t\u200c\u200d" or unicodedata.category(character) == "Zs"


def facts_table(rows: dict[str, Any]) -> Table:
    """Names and values in two columns; values that are None are left out."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, value if isinstance(value, Text) else Text(printable(str(value))))
    return table


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' list of newly initialised weights, where we report them ourselves."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@contextmanager
def log_as_notes() -> Iterator[None]:
    """Shows this package's warnings as notes, with options named as they are on the command line."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(record.getMessage().replace("`stride=`", "--stride"))

    handler, logger = Notes(logging.WARNING), logging.getLogger("bcos_transformers")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
