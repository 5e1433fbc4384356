"""Files that the command line reads and writes."""

import csv
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import IO, Any

from bcos_transformers.extras import require

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


def decode(data: bytes, name: str) -> str:
    """Text of a file, whatever its line ends.

    Raises:
        ValueError: it is not UTF-8; the message says where.
    """
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise ValueError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}, byte {column} of the line. Convert it "
            "first, e.g. `iconv -f latin1 -t utf-8`."
        ) from None


def read_lines(data: bytes, name: str) -> tuple[list[str], int]:
    """One text a line; returns the texts and how many empty lines were left out."""
    lines = decode(data, name).removesuffix("\n").split("\n")
    texts = [line for line in lines if line.strip()]
    return texts, len(lines) - len(texts) if any(lines) else 0


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        values: text by column.
        place: where it stands, in words.
    """

    values: dict[str, str]
    place: str


def read_table(path: Path, columns: list[str]) -> list[Row]:
    """These columns of a csv, tsv, jsonl or parquet file, as text.

    Raises:
        ValueError: another kind of file, a column that is not there, or an entry that is empty or no text.
        OSError: the file cannot be read.
    """
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise ValueError(f"{path} is none of {', '.join(TABLES)}.")
    data = path.read_bytes()
    if kind == ".parquet":
        rows = _parquet_rows(data, path)
    elif kind == ".jsonl":
        rows = _json_lines(decode(data, str(path)), path)
    else:
        rows = _separated(decode(data, str(path)), "\t" if kind == ".tsv" else ",", path)
    return [Row({column: _entry(row, column, place) for column in columns}, place) for place, row in rows]


def read_rationales(path: Path, column: str) -> list[Any]:
    """A column of rationales of a jsonl file: lists of 0 and 1 for each word, or of character spans.

    Raises:
        ValueError: another kind of file, no such column, or an entry that is no list.
        OSError: the file cannot be read.
    """
    if path.suffix.lower() != ".jsonl":
        raise ValueError(f"Rationales are lists, which {path} cannot hold; give a .jsonl file.")
    rationales = []
    for place, row in _json_lines(decode(path.read_bytes(), str(path)), path):
        value = row.get(column)
        if column not in row or not isinstance(value, (list, type(None))):
            raise ValueError(f"{column!r} of {place} must be a list of marks or character spans, got {value!r:.60}.")
        rationales.append(value)
    return rationales


def _json_lines(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise ValueError(f"Line {number} of {path} is not a JSON object but {type(row).__name__}.")
        yield f"line {number} of {path}", row


def _separated(text: str, separator: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    limit = csv.field_size_limit(max(len(text), 1))  # documents may be longer than what the csv module permits
    try:
        reader = csv.DictReader(StringIO(text, newline=""), delimiter=separator, strict=True)
        line = 1
        for row in reader:
            begin, line = line + 1, reader.line_num
            if None in row or None in row.values():
                raise ValueError(
                    f"Line {begin} of {path} does not have the {len(reader.fieldnames)} fields that the first line names: "
                    f"{', '.join(reader.fieldnames)}. Texts with a separator in them need quotes."
                )
            yield f"line {begin} of {path}", row
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read, near line {reader.line_num}: {error}.") from error
    finally:
        csv.field_size_limit(limit)


def _parquet_rows(data: bytes, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    require("pyarrow", "viz")
    try:
        rows = require("pandas", "viz").read_parquet(BytesIO(data), engine="pyarrow").to_dict("records")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a parquet file: {error}") from error
    yield from ((f"row {number} of {path}", row) for number, row in enumerate(rows, 1))


def _entry(row: dict[str, Any], column: str, place: str) -> str:
    if column not in row:
        raise ValueError(f"There is no column {column!r} in {place}; there are: {', '.join(map(str, row))}.")
    value = row[column]
    if hasattr(value, "item"):  # numbers of numpy, in parquet files
        value = value.item()
    if not isinstance(value, (str, int)) or not str(value).strip():
        raise ValueError(f"The column {column!r} has no text in {place}: {value!r:.60}.")
    return str(value)


def stdin_bytes() -> bytes:
    """Everything on standard input."""
    return sys.stdin.buffer.read()


def check_file_target(path: Path) -> None:
    """Refuses a path that could not be written later, before any work is done.

    Raises:
        OSError: it cannot be written; the message says why.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; name a file in it.")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file; leave --output out to write to standard output.")
    _check_parent(path)


def _check_parent(path: Path) -> None:
    parent = path.absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no directory {str(parent)!r}.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}.") from error


@contextmanager
def new_file(path: Path) -> Iterator[IO[str]]:
    """A file that is there, whole, when the block ends without an error, and else untouched."""
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            yield file
        os.chmod(name, _permissions(0o666))
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def check_folder_target(path: Path, force: bool) -> None:
    """Refuses a directory that must not be replaced, before any work is done.

    Raises:
        OSError: it is a file, holds something already, or cannot be made.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"A model is saved to a directory, but {str(path)!r} is a file.")
    if path.is_dir() and any(path.iterdir()):
        if not force:
            raise FileExistsError(f"The directory {str(path)!r} is not empty; --force replaces a model that is there.")
        if not (path / "config.json").is_file():
            raise FileExistsError(f"The directory {str(path)!r} holds something that is no model; it is not replaced.")
    if path.resolve() == Path.cwd():
        raise OSError("The model needs a directory of its own, not the one that this runs in.")
    ancestor = path.absolute().parent
    while not ancestor.exists():
        ancestor = ancestor.parent
    _check_parent(ancestor / path.name)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A directory that is there, whole, when the block ends without an error; what was there before goes only then."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        made = working / "new"
        made.mkdir()
        yield made
        if path.exists():
            path.rename(working / "old")
        try:
            made.rename(path)
        except OSError:
            if (working / "old").exists():
                (working / "old").rename(path)
            raise
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _permissions(wanted: int) -> int:
    mask = os.umask(0)
    os.umask(mask)
    return wanted & ~mask
