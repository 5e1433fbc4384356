"""Projection: every prototype becomes the embedding of the nearest training text of its class."""

import logging
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from bcos_transformers.modeling.modeling_proto import ProtoForSequenceClassification
from bcos_transformers.modeling.proto_losses import distances_and_similarities
from bcos_transformers.prototypes.texts import TrainingText, TrainingTexts

logger = logging.getLogger(__name__)


def project_prototypes(
    model: ProtoForSequenceClassification,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_column: str = "text",
    label_column: str = "label",
    max_length: int | None = None,
    batch_size: int = 32,
) -> list[dict[str, Any]]:
    """Replaces every prototype by the embedding of the nearest training text of its own class (regression: bin).

    The search is exact and streams over the data set: memory holds a chunk of it, the nearest candidates of each
    prototype, and 16 bytes a text to tell which ones are the same. No two prototypes of a class become the same text,
    where texts of the same tokens are one: the smallest distance of all is served first, equal ones in the order of
    prototypes, then of rows. Nothing is changed if it fails. Training that goes on must leave prototypes, token attention and
    encoder as they are, see `train_last_layer_only`: else they are those texts no longer.

    Args:
        model: its `prototypes` and `config.prototypes` are set.
        dataset: the training set: a `datasets.Dataset`, a list of dicts, or anything with a length and rows by index.
        tokenizer: the model's.
        text_column: where the texts are.
        label_column: where the class indices are; for a regression, the values.
        max_length: tokens a text may have; at most what model and tokenizer permit, which is the default. Give the value
            that the model is trained and used with.
        batch_size: texts of a forward pass.

    Returns:
        What is now in `config.prototypes`: for each prototype `text`, `label` (its name; the value of a regression),
        `index` (row of the data set) and `distance` (from the prototype as it was before to the text).

    Raises:
        TypeError: a model without prototypes, or a data set without a length.
        ValueError: a missing column, labels outside the range, a class or bin without texts or with fewer distinct texts
            than prototypes, or distances that are not finite.

    Example:
        >>> project_prototypes(model, train_rows, tokenizer)[0]
        {'text': 'a gripping, funny film', 'label': 'positive', 'index': 4711, 'distance': 1.32}
    """
    texts = TrainingTexts(
        model,
        dataset,
        tokenizer,
        text_column=text_column,
        label_column=label_column,
        max_length=max_length,
        batch_size=batch_size,
    )
    texts.check()
    return project_onto(texts)


@torch.no_grad()
def project_onto(texts: TrainingTexts) -> list[dict[str, Any]]:
    """Projection onto texts that have been checked; see `project_prototypes`."""
    model, config = texts.model, texts.model.config
    chosen = texts.take(_assign(*_nearest(texts), config.prototypes_per_class))
    embeddings = texts.embed_each(chosen)
    distances = _distances(texts, chosen, embeddings).diagonal()
    prototypes = [
        {
            "text": text.text,
            "label": text.label if config.is_regression else config.id2label[text.label],
            "index": text.index,
            "distance": distance,
        }
        for text, distance in zip(chosen, distances.tolist(), strict=True)
    ]
    model.prototypes.copy_(embeddings)
    config.prototypes = prototypes
    logger.info("%d prototypes are now training texts; they moved by %.3g on average.", len(chosen), distances.mean())
    return prototypes


def _nearest(texts: TrainingTexts) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest distinct texts of its class for each prototype: distances and rows, `(prototypes, candidates)`.

    There are as many candidates as prototypes of a class. That is enough: the others of the class can take all but one of
    them away, so that none is ever left without.
    """
    model, config = texts.model, texts.model.config
    kept = config.prototypes_per_class
    groups = model.prototype_classes.cpu()
    nearest = torch.full((config.num_prototypes, kept), torch.inf, dtype=torch.float64)
    rows = torch.full((config.num_prototypes, kept), -1)
    seen: set[bytes] = set()
    with tqdm(total=len(texts), desc="Projection", unit="text", disable=None, leave=False) as bar:
        for chunk in texts.chunks():
            distinct: list[TrainingText] = []
            for text in chunk:
                if text.key not in seen:
                    seen.add(text.key)
                    distinct.append(text)
            bar.update(len(chunk) - len(distinct))
            distinct.sort(key=lambda text: len(text.input_ids))
            for begin in range(0, len(distinct), texts.batch_size):
                batch = distinct[begin : begin + texts.batch_size]
                found = _distances(texts, batch, texts.embed(batch)).T.double().cpu()
                own = groups[:, None] == torch.tensor([text.group for text in batch])
                found = found.masked_fill(~own, torch.inf)
                indices = torch.tensor([text.index for text in batch]).expand_as(found)
                nearest, rows = _smallest(torch.cat([nearest, found], 1), torch.cat([rows, indices], 1), kept)
                bar.update(len(batch))
    return nearest, rows


def _smallest(distances: torch.Tensor, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` smallest distances of each line, the earlier row first where they are equal."""
    rows, order = rows.sort(dim=1)
    distances, by_distance = distances.gather(1, order).sort(dim=1, stable=True)
    return distances[:, :count], rows.gather(1, by_distance)[:, :count]


def _assign(distances: torch.Tensor, rows: torch.Tensor, per_class: int) -> list[int]:
    """A row for each prototype: of all candidates of a class, the smallest distance is served first."""
    chosen = [-1] * len(rows)
    for first in range(0, len(rows), per_class):
        members = range(first, first + per_class)
        pairs = sorted(
            (distance, prototype, row)
            for prototype in members
            for distance, row in zip(distances[prototype].tolist(), rows[prototype].tolist(), strict=True)
        )
        taken: set[int] = set()
        for _, prototype, row in pairs:
            if chosen[prototype] < 0 and row not in taken:
                chosen[prototype] = row
                taken.add(row)
    return chosen


def _distances(texts: TrainingTexts, batch: list[TrainingText], embeddings: torch.Tensor) -> torch.Tensor:
    """`(batch, prototypes)`, by the model's own measure."""
    model, config = texts.model, texts.model.config
    distances, _ = distances_and_similarities(embeddings, model.prototypes, config.distance, config.epsilon)
    finite = torch.isfinite(distances)
    if not finite.all():
        text = batch[int((~finite).any(1).nonzero()[0])]
        raise ValueError(
            f"The distance of the text of row {text.index} ({text.text[:60]!r}) to prototypes "
            f"{(~finite).any(0).nonzero().flatten().tolist()[:10]} is not finite. Known causes: weights that are NaN (a "
            "learning rate that is too high), or float16 overflow."
        )
    return distances
