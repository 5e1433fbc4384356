"""Many explanations in one file: JSON lines or parquet."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bcos_transformers.explanations.text_explanation import TextExplanation
from bcos_transformers.extras import require
from bcos_transformers.prototypes.text_explanation import FORMAT, PrototypeExplanation

Explanation = TextExplanation | PrototypeExplanation


def save_explanations(explanations: Iterable[Explanation], path: str | os.PathLike) -> None:
    """Writes explanations to one file, all of them or none.

    Args:
        explanations: the explained texts, those explained by prototypes among them or not.
        path: a `.jsonl` file, one explanation a line; or a `.parquet` file with the columns `text`, `label`, `logit`,
            `probability`, `words` and `scores` for other tools, and `explanation` for `load_explanations`.
            `scores` are missing where shares of prototypes do not split over words.

    Raises:
        ImportError: parquet needs pandas and pyarrow.
        TypeError: something else than an explanation; those of token classification come in a list a text.
        ValueError: another kind of file.
        OSError: the file cannot be written.
    """
    path, explanations = Path(path), list(explanations)
    for explanation in explanations:
        if not isinstance(explanation, Explanation):
            raise TypeError(f"Expected explanations, got {type(explanation).__name__}; flatten lists of them first.")
    kind = _kind(path)
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        if kind == ".jsonl":
            with open(name, "w", encoding="utf-8") as file:
                file.writelines(explanation.to_json() + "\n" for explanation in explanations)
        else:
            pandas = require("pandas", "viz")
            require("pyarrow", "viz")
            columns = ["text", "label", "logit", "probability", "words", "scores", "explanation"]
            pandas.DataFrame([_row(e) for e in explanations], columns=columns).to_parquet(name, engine="pyarrow")
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def load_explanations(path: str | os.PathLike) -> list[Explanation]:
    """Reads what `save_explanations` wrote.

    Raises:
        ImportError: parquet needs pandas and pyarrow.
        ValueError: another kind of file, or a line that is not an explanation; the message says which.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if _kind(path) == ".jsonl":
        with path.open(encoding="utf-8") as file:
            rows = [line for line in file if line.strip()]
    else:
        require("pyarrow", "viz")
        rows = require("pandas", "viz").read_parquet(path, engine="pyarrow")["explanation"].tolist()
    explanations = []
    for number, row in enumerate(rows, 1):
        try:
            explanations.append(_read(row))
        except (ValueError, TypeError) as error:
            raise ValueError(f"Entry {number} of {path} is not an explanation: {error}") from error
    return explanations


def _kind(path: Path) -> str:
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"Explanations are kept in .jsonl or .parquet files, got {path.name!r}.")
    return path.suffix


def _read(row: str) -> Explanation:
    values = json.loads(row)
    by_prototypes = isinstance(values, dict) and values.get("format") == FORMAT
    return (PrototypeExplanation if by_prototypes else TextExplanation).from_dict(values)


def _row(explanation: Explanation) -> dict:
    """Plain columns of the first target, and everything as JSON."""
    several = isinstance(explanation, TextExplanation)
    one = explanation.for_target(explanation.targets[0]) if several else explanation
    return {
        **{name: getattr(one, name) for name in ("text", "label", "logit", "probability", "words", "scores")},
        "explanation": json.dumps(explanation.to_dict(), ensure_ascii=False),
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
