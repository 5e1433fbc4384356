"""The losses of B-cos models, computed around the parent's forward pass so that the stock Trainer needs nothing else.

Unlike some transformers classes they honour `num_items_in_batch`, so gradient accumulation over n batches gives the
gradient of one batch n times as large.
"""

import functools
import inspect
import logging
from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers.utils import can_return_tuple

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100


def sequence_loss(
    logits: torch.Tensor, labels: torch.Tensor, config, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Loss of a sequence classifier.

    Regression is mean squared error and multi-label classification binary cross-entropy, chosen by
    `config.problem_type` or, where that is None, by the labels as in transformers (which also records it in the
    configuration). With one label per text: `single_label_loss`.

    Args:
        logits: `(batch, num_labels)`.
        labels: `(batch,)` class indices; regression `(batch,)` or `(batch, num_labels)`; multi-label
            `(batch, num_labels)`.
        config: the model's configuration.
        num_items_in_batch: what the sum of the losses is divided by; the number of labels here if None.
    """
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif not labels.is_floating_point():
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    if config.problem_type == "single_label_classification":
        return single_label_loss(logits, labels, config, num_items_in_batch)
    logits = _wide(logits)
    labels = labels.to(logits.device, logits.dtype)
    if config.problem_type == "regression":
        losses = F.mse_loss(logits, labels.view_as(logits), reduction="none")
    else:
        losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return _average(losses, losses.numel(), num_items_in_batch)


def single_label_loss(
    logits: torch.Tensor, labels: torch.Tensor, config, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Loss of a classifier with one label per item, texts or tokens; labels of -100 are ignored.

    Binary cross-entropy on one-hot targets, averaged over the classes (arXiv 2502.12992, section 3.2), or cross-entropy
    with `config.classifier_loss="ce"`.

    Args:
        logits: `(..., num_labels)`.
        labels: `(...)` class indices.
        config: the model's configuration.
        num_items_in_batch: what the sum of the losses is divided by; the number of labels here if None.
    """
    if config.classifier_loss == "ce":
        return cross_entropy(logits, labels, num_items_in_batch)
    logits = _wide(logits).reshape(-1, logits.shape[-1])
    labels = labels.to(logits.device).flatten()
    valid = labels != IGNORE_INDEX
    one_hot = F.one_hot(labels.masked_fill(~valid, 0), config.num_labels).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").mean(-1)
    return _average(losses * valid, valid.sum(), num_items_in_batch)


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy over the last dimension of `logits`, ignoring labels of -100."""
    logits, labels = _wide(logits).flatten(0, -2), labels.to(logits.device).flatten()
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    return _average(losses, (labels != IGNORE_INDEX).sum(), num_items_in_batch)


def with_sequence_loss(parent_forward: Callable) -> Callable:
    """The forward pass of a conventional sequence classifier with `sequence_loss` as its loss."""
    return _with_loss(parent_forward, lambda model, *args: sequence_loss(*args[:2], model.config, args[2]))


def with_token_loss(parent_forward: Callable) -> Callable:
    """The forward pass of a conventional token classifier with `single_label_loss` as its loss."""
    return _with_loss(parent_forward, lambda model, *args: single_label_loss(*args[:2], model.config, args[2]))


def with_language_model_loss(parent_forward: Callable) -> Callable:
    """The forward pass of a conventional masked language model with `cross_entropy` as its loss."""
    return _with_loss(parent_forward, lambda model, *args: cross_entropy(*args))


def with_next_token_loss(parent_forward: Callable) -> Callable:
    """The forward pass of a conventional causal language model; every token is the label of the one before it."""
    return _with_loss(parent_forward, lambda model, logits, labels, n: cross_entropy(logits[:, :-1], labels[:, 1:], n))


def _with_loss(parent_forward: Callable, compute_loss: Callable) -> Callable:
    label_position = list(inspect.signature(parent_forward).parameters).index("labels") - 1  # without self

    @can_return_tuple
    @functools.wraps(parent_forward)
    def forward(self, *args, labels=None, num_items_in_batch=None, **kwargs):
        if len(args) > label_position:
            labels, args = args[label_position], (*args[:label_position], None, *args[label_position + 1 :])
        output = parent_forward(self, *args, return_dict=True, **kwargs)
        if labels is not None:
            loss = compute_loss(self, output.logits, labels, num_items_in_batch)
            return type(output)(**{**output, "loss": loss})
        if self.training and num_items_in_batch is not None:
            _warn_of_bypassed_loss(self)
        return output

    return forward


def _warn_of_bypassed_loss(model) -> None:
    # The Trainer counts labels (`num_items_in_batch`) but keeps them to itself when it computes the loss on its own.
    if not getattr(model, "_warned_of_bypassed_loss", False):
        model._warned_of_bypassed_loss = True
        logger.warning(
            "The Trainer computes the loss itself (label_smoothing_factor or compute_loss_func is set), which bypasses "
            "the loss of %s (classifier_loss=%r). Set label_smoothing_factor=0 to train with the model's own loss.",
            type(model).__name__,
            model.config.classifier_loss,
        )


def _average(losses: torch.Tensor, count, num_items_in_batch) -> torch.Tensor:
    divisor = count if num_items_in_batch is None else num_items_in_batch
    if torch.is_tensor(divisor):
        divisor = divisor.to(losses.device)
    return losses.sum() / divisor


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
