"""Reads single tensors of a checkpoint, to report what a conversion leaves out."""

import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.hub import get_checkpoint_shard_files


class Checkpoint:
    """The weight files of a checkpoint, read tensor by tensor.

    Args:
        files: paths of safetensors or PyTorch files.
    """

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self._states: dict[str, dict[str, torch.Tensor]] = {}
        self._file_of = {name: file for file in files for name in self._names(file)}

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor called `name`, on the CPU."""
        file = self._file_of[name]
        if file.endswith(".safetensors"):
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name)
        return self._state(file)[name]

    def _names(self, file: str) -> list[str]:
        if file.endswith(".safetensors"):
            with safe_open(file, framework="pt") as opened:
                return list(opened.keys())
        return list(self._state(file))

    def _state(self, file: str) -> dict[str, torch.Tensor]:
        if file not in self._states:
            self._states[file] = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        return self._states[file]


def find_checkpoint(
    name_or_path: str, variant: str | None = None, use_safetensors: bool | None = None, **hub: Any
) -> Checkpoint | None:
    """Finds the weight files that `from_pretrained` has loaded, in its order of preference.

    Args:
        name_or_path: directory or Hub id.
        variant: as in `from_pretrained`.
        use_safetensors: as in `from_pretrained`.
        **hub: `revision`, `token`, `cache_dir`, `subfolder`, …

    Returns:
        The checkpoint, or None where its files are of another kind.
    """
    names = [(SAFE_WEIGHTS_NAME, False), (SAFE_WEIGHTS_INDEX_NAME, True)] if use_safetensors is not False else []
    names += [(WEIGHTS_NAME, False), (WEIGHTS_INDEX_NAME, True)] if not use_safetensors else []
    for filename, is_index in names:
        if variant is not None:
            stem, _, ending = filename.partition(".")
            filename = f"{stem}.{variant}.{ending}" if not is_index else _variant_of_index(filename, variant)
        path = cached_file(name_or_path, filename, _raise_exceptions_for_missing_entries=False, **hub)
        if path is None:
            continue
        if not is_index:
            return Checkpoint([path])
        shards, _ = get_checkpoint_shard_files(name_or_path, path, **hub)
        return Checkpoint(list(shards))
    return None


def _variant_of_index(filename: str, variant: str) -> str:
    stem = filename.removesuffix(".index.json")
    return f"{stem}.index.{variant}.json"
