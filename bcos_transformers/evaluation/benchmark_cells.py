"""The benchmark's results on disk: one JSON file for every model and method, whole or not there."""

import json
import logging
import os
import uuid
import zlib
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LONGEST_NAME = 60  # characters of a model's name in a file's name


class CellStore:
    """Reads and writes JSON documents that say which fingerprint they were made for.

    Args:
        folder: where they are; it is made when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, model: str, method: str) -> Path:
        """The file of a cell; different models have different ones."""
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in model)
        if safe != model or len(safe) > LONGEST_NAME:
            # Names may be paths, of which the end tells most.
            safe = f"{safe[-LONGEST_NAME:]}-{zlib.crc32(model.encode()):08x}"
        return self.folder / f"{safe}--{method}.json"

    def read(self, path: Path, fingerprint: str) -> dict[str, Any] | None:
        """The document, or None if it is not there, is damaged, or was made for another fingerprint."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            logger.warning("%s is damaged, so what it held is computed again.", path)
            return None
        return document if isinstance(document, dict) and document.get("fingerprint") == fingerprint else None

    def write(self, path: Path, document: dict[str, Any]) -> None:
        """Writes a document, replacing one that is there.

        Raises:
            ValueError: a number that is not finite, which JSON does not have.
        """
        write_whole(path, json.dumps(document, allow_nan=False))


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that is there, whole, when this returns, and otherwise untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
