"""From a model's output to the quantities that an explanation splits, task by task."""

import numbers
from dataclasses import dataclass
from typing import Any

import torch

from .bcos_state import EmbeddingRecorder


@dataclass
class Quantities:
    """What is explained.

    Attributes:
        logits: the model's own logits.
        values: `(batch, targets)` or, for token classification, `(batch, positions, targets)`; differentiable.
        target: shaped like `values`.
        position: see `BcosExplanation.position`.
        surrogate: the same numbers as `values` up to rounding, differentiable with less work; None if `values` is.
    """

    logits: torch.Tensor
    values: torch.Tensor
    target: torch.Tensor
    position: torch.Tensor | None = None
    surrogate: torch.Tensor | None = None


def explained_quantities(
    model,
    output,
    inputs: dict[str, Any],
    mask: torch.Tensor,
    recorder: EmbeddingRecorder,
    target: Any,
    contrast: Any,
    position: Any,
) -> Quantities:
    """Reads target, contrast and position as documented at `explain`.

    Raises:
        TypeError, ValueError: they do not fit the task or the batch.
    """
    task = model.explanation_task
    if task == "sequence-classification":
        if position is not None:
            raise ValueError("`position` has no meaning for sequence classification.")
        return _sequence_classification(model.config, output.logits, target, contrast)
    if task == "token-classification":
        return _token_classification(model.config, output.logits, mask, target, contrast, position)
    if task == "masked-lm":
        positions = _masked_position(model.config, inputs.get("input_ids"), mask, position)
        return _language_model(output.logits, positions.to(output.logits.device), recorder, target, contrast)
    if task == "causal-lm":
        positions = _real_token(-1 if position is None else position, mask)
        return _language_model(output.logits, positions.to(output.logits.device), recorder, target, contrast)
    if task == "question-answering":
        return _question_answering(output, mask, target, contrast, position)
    raise TypeError(f"Explanations of the task {task!r} are not implemented.")


def _sequence_classification(config, logits: torch.Tensor, target: Any, contrast: Any) -> Quantities:
    if target is None and (
        config.problem_type in ("regression", "multi_label_classification") or config.num_labels == 1
    ):
        target = "all"
    chosen = class_indices(target, logits, "target", index_of_label(config))
    values = logits.gather(-1, chosen) - _contrast(contrast, logits, index_of_label(config))
    return Quantities(logits, values, chosen)


def _token_classification(
    config, logits: torch.Tensor, mask: torch.Tensor, target: Any, contrast: Any, position: Any
) -> Quantities:
    mask = mask.to(logits.device)
    positions = _positions(position, mask)
    valid = positions >= 0
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    picked = logits[rows, positions.clamp_min(0)]  # (batch, positions, labels)
    chosen = class_indices(target, picked, "target", index_of_label(config))
    values = picked.gather(-1, chosen) - _contrast(contrast, picked, index_of_label(config))
    values = values.masked_fill(~valid[..., None], 0.0)
    return Quantities(logits, values, chosen.masked_fill(~valid[..., None], -1), positions)


def _language_model(
    logits: torch.Tensor, positions: torch.Tensor, recorder: EmbeddingRecorder, target: Any, contrast: Any
) -> Quantities:
    """Logits of tokens at one position a row, `positions` `(batch,)`."""
    rows = torch.arange(len(logits), device=logits.device)
    picked = logits[rows, positions]
    chosen = class_indices(target, picked, "target")
    values = picked.gather(-1, chosen) - _contrast(contrast, picked)
    surrogate = None
    if recorder.output_layer is not None:
        hidden = recorder.output_input
        hidden = hidden[rows.to(hidden.device), positions.to(hidden.device)]
        surrogate = _surrogate(recorder.output_layer, hidden, chosen, foil_indices(contrast, picked))
    return Quantities(logits, values, chosen, positions, surrogate)


def _surrogate(layer, hidden: torch.Tensor, chosen: torch.Tensor, foil: torch.Tensor | None | str) -> torch.Tensor:
    """Single outputs of a language model's output layer, `(..., n)`, from its input `(..., hidden)`.

    The gradient of one of many thousand logits is one row of the output layer's dynamic matrix: there is no need to
    multiply the others by zero.
    """
    rows = layer.frozen_rows(hidden, chosen.to(hidden.device))
    if foil is not None:
        rows = rows - layer.frozen_rows(hidden, None if isinstance(foil, str) else foil.to(hidden.device))
    return (rows.to(hidden.dtype) * hidden.unsqueeze(-2)).sum(-1)


def _masked_position(config, ids: torch.Tensor | None, mask: torch.Tensor, position: Any) -> torch.Tensor:
    return _mask_token_position(config, ids, mask) if position is None else _one_position(position, mask)


def _mask_token_position(config, ids: torch.Tensor | None, mask: torch.Tensor) -> torch.Tensor:
    if ids is None or config.mask_token_id is None:
        raise ValueError(
            "The position to explain is unknown: pass `position=`, or set `model.config.mask_token_id` to the id of the "
            "tokenizer's mask token so that it can be found."
        )
    found = (ids.to(mask.device) == config.mask_token_id) & mask
    counts = found.sum(-1)
    if not (counts == 1).all():
        raise ValueError(
            f"Each text must have exactly one mask token (id {config.mask_token_id}), found {counts.tolist()}; "
            "pass `position=` to say which position to explain."
        )
    return found.int().argmax(-1)


def generated_token_quantities(
    logits: torch.Tensor,
    sequences: torch.Tensor,
    mask: torch.Tensor,
    start: int,
    recorder: EmbeddingRecorder,
    contrast: Any,
) -> Quantities:
    """The logits of the tokens from `start` on, each read from the position before its token."""
    chosen = sequences[:, start:].to(logits.device)
    ended = ~mask[:, start:].to(logits.device)
    picked = logits[:, start - 1 : -1]  # (batch, new tokens, vocabulary)
    if isinstance(contrast, (list, tuple)):
        contrast = torch.as_tensor(contrast)
    if torch.is_tensor(contrast) and contrast.dim() == 2 and contrast.shape == chosen.shape:
        foil = _usable(contrast.to(logits.device))[..., None]
        class_indices(contrast, logits[:, 0], "contrast")
        values = picked.gather(-1, chosen[..., None]) - picked.gather(-1, foil)
    else:
        foil = foil_indices(contrast, picked)
        values = picked.gather(-1, chosen[..., None]) - _contrast(contrast, picked)
    values = values.squeeze(-1).masked_fill(ended, 0.0)
    surrogate = None
    if recorder.output_layer is not None:
        hidden = recorder.output_input[:, start - 1 : -1]
        surrogate = _surrogate(recorder.output_layer, hidden, chosen[..., None], foil).squeeze(-1)
        surrogate = surrogate.masked_fill(ended.to(surrogate.device), 0.0)
    return Quantities(logits, values, chosen.masked_fill(ended, -1), surrogate=surrogate)


def _real_token(position: Any, mask: torch.Tensor) -> torch.Tensor:
    """Absolute position `(batch,)` of a token that is named by counting real tokens from either end."""
    given = _given_position(position, mask, "position")
    counts = mask.sum(-1)
    counted = torch.where(given < 0, counts + given, given)
    outside = ((counted < 0) | (counted >= counts)).nonzero().flatten().tolist()
    if outside:
        row = outside[0]
        raise ValueError(
            f"`position` {int(given[row])} is outside row {row}, which has {int(counts[row])} real tokens."
        )
    return ((mask.cumsum(-1) == counted[:, None] + 1) & mask).int().argmax(-1)


def _question_answering(output, mask: torch.Tensor, target: Any, contrast: Any, position: Any) -> Quantities:
    start, end = output.start_logits, output.end_logits
    mask = mask.to(start.device)
    kinds = ("start", "end", "span")
    wanted = kinds if target == "all" else (target or "span",) if target is None or isinstance(target, str) else target
    if not isinstance(wanted, (list, tuple)) or not wanted or any(kind not in kinds for kind in wanted):
        raise ValueError(f"`target` must be one of {kinds}, a list of them, or 'all', got {target!r}.")
    values, where = [], []
    for kind in wanted:
        first, last = _span(start, end, mask, kind, position)
        value = _at(start, first) + _at(end, last)
        if isinstance(contrast, str) and contrast == "mean":
            value = value - sum(_mean(x, mask) for x, p in ((start, first), (end, last)) if p is not None)
        elif contrast is not None:
            foil_first, foil_last = _span(start, end, mask, kind, contrast, "contrast")
            value = value - _at(start, foil_first) - _at(end, foil_last)
        values.append(value)
        unused = torch.full_like(mask[:, 0], -1, dtype=torch.long)
        where.append(torch.stack([unused if p is None else p for p in (first, last)], dim=-1))
    codes = torch.tensor([kinds.index(kind) for kind in wanted], device=start.device)
    return Quantities(
        torch.stack((start, end), dim=-1),
        torch.stack(values, dim=1),
        codes.expand(len(start), -1).clone(),
        torch.stack(where, dim=1),
    )


def _span(start, end, mask, kind: str, position: Any, name: str = "position"):
    """Start and end position `(batch,)` of the quantity; None where it plays no part."""
    if position is None:
        if kind != "span":
            best = (start if kind == "start" else end).detach().masked_fill(~mask, float("-inf")).argmax(-1)
            return (best, None) if kind == "start" else (None, best)
        scores = start.detach()[:, :, None] + end.detach()[:, None, :]
        allowed = torch.ones_like(scores, dtype=torch.bool).triu() & mask[:, :, None] & mask[:, None, :]
        best = scores.masked_fill(~allowed, float("-inf")).flatten(1).argmax(-1)
        return best // mask.shape[1], best % mask.shape[1]
    pair = position if isinstance(position, (tuple, list)) else None
    if pair is not None and len(pair) != 2 or (kind == "span" and pair is None):
        wanted = "a pair (start, end), since the target is a span" if kind == "span" else "one position, or a pair"
        raise ValueError(f"`{name}` must be {wanted}; got {position!r}.")
    first, last = pair or (position, position)
    first = None if kind == "end" else _one_position(first, mask, name)
    last = None if kind == "start" else _one_position(last, mask, name)
    if first is not None and last is not None and (first > last).any():
        raise ValueError(f"`{name}`: the span {position!r} ends before it starts.")
    return first, last


def _at(logits: torch.Tensor, position: torch.Tensor | None) -> torch.Tensor:
    if position is None:
        return logits.new_zeros(len(logits))
    return logits.gather(1, position[:, None]).squeeze(1)


def _mean(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (logits * mask).sum(-1) / mask.sum(-1)


def _positions(position: Any, mask: torch.Tensor) -> torch.Tensor:
    """Absolute positions `(batch, positions)`; -1 fills up the rows that have fewer."""
    if position is not None:
        wanted = position if isinstance(position, (list, tuple)) else [position]
        if not wanted:
            raise ValueError("`position` is an empty list.")
        return torch.stack([_one_position(p, mask) for p in wanted], dim=1)
    counts = mask.sum(-1)
    order = mask.int().argsort(dim=-1, descending=True, stable=True)  # real tokens first, in their order
    columns = torch.arange(int(counts.max()), device=mask.device)
    return order[:, : len(columns)].masked_fill(columns >= counts[:, None], -1)


def _one_position(position: Any, mask: torch.Tensor, name: str = "position") -> torch.Tensor:
    """One absolute position a row, `(batch,)`; negative ones count back from the last real token."""
    given = _given_position(position, mask, name)
    tokens = mask.shape[1]
    last = tokens - 1 - mask.flip(1).int().argmax(-1)
    absolute = torch.where(given < 0, last + 1 + given, given)
    inside = (absolute >= 0) & (absolute < tokens)
    real = inside & mask.gather(1, absolute.clamp(0, tokens - 1)[:, None]).squeeze(1)
    if not real.all():
        row = int((~real).nonzero()[0])
        raise ValueError(
            f"`{name}` {int(given[row])} is not a real token of row {row}, which has {int(mask[row].sum())}."
        )
    return absolute


def _given_position(position: Any, mask: torch.Tensor, name: str) -> torch.Tensor:
    """The user's position as one integer a row, `(batch,)`, unchecked."""
    if torch.is_tensor(position) and not position.is_floating_point() and position.dim() <= 1:
        given = _usable(position.to(mask.device, torch.long))
    elif isinstance(position, numbers.Integral) and not isinstance(position, bool):
        given = torch.tensor(int(position), device=mask.device)
    else:
        raise TypeError(f"`{name}` must be an int or a tensor (batch,), got {position!r}.")
    if given.dim() == 1 and len(given) != len(mask):
        raise ValueError(f"`{name}` must have one value a row, {len(mask)}, got {len(given)}.")
    return given.expand(len(mask))


def _usable(indices: torch.Tensor) -> torch.Tensor:
    """Tensors made under `torch.inference_mode()` cannot take part in a gradient; their copies can."""
    return indices.clone() if indices.is_inference() else indices


def index_of_label(config) -> dict[str, int]:
    """The index of each label; transformers leaves `label2id` empty where only `id2label` was given."""
    return config.label2id or {str(label): int(i) for i, label in (config.id2label or {}).items()}


def class_indices(
    target: Any, logits: torch.Tensor, name: str, label2id: dict[str, int] | None = None
) -> torch.Tensor:
    """Indices into the last dimension of `logits` `(batch, [positions,] n)`, shaped `(batch, [positions,] targets)`."""
    n, batch = logits.shape[-1], logits.shape[0]
    if target is None:
        return logits.detach().argmax(-1, keepdim=True)
    if isinstance(target, str) and target == "all":
        given = torch.arange(n, device=logits.device).expand(batch, -1)
    elif isinstance(target, str):
        if target not in (label2id or {}):
            raise ValueError(f"`{name}` {target!r} is not a label of this model: {sorted(label2id or {})}.")
        given = torch.full((batch, 1), int(label2id[target]), device=logits.device)
    elif isinstance(target, numbers.Integral) and not isinstance(target, bool):
        given = torch.full((batch, 1), int(target), device=logits.device)
    elif isinstance(target, (torch.Tensor, list, tuple)):
        given = torch.as_tensor(target, device=logits.device)
        if given.is_floating_point() or given.dtype == torch.bool:
            raise TypeError(f"`{name}` must hold integers, got {given.dtype}.")
        given = _usable(given.long())
        given = given.reshape(-1, 1) if given.dim() <= 1 else given
        if given.dim() == 2 and given.numel() == 1:
            given = given.expand(batch, 1)
        if given.dim() != 2 or len(given) != batch or given.shape[1] == 0:
            raise ValueError(
                f"`{name}` must have the shape (batch,) or (batch, targets) with batch {batch}, "
                f"got {tuple(torch.as_tensor(target).shape)}."
            )
    else:
        raise TypeError(
            f"`{name}` must be None, an int, a label name, 'all' or a tensor, got {type(target).__name__}."
        )
    if given.min() < 0 or given.max() >= n:
        raise ValueError(f"`{name}` must lie in [0, {n}), got values from {int(given.min())} to {int(given.max())}.")
    return given if logits.dim() == 2 else given[:, None, :].expand(-1, logits.shape[1], -1)


def _contrast(contrast: Any, logits: torch.Tensor, label2id: dict[str, int] | None = None) -> torch.Tensor | float:
    """What is subtracted from the explained logits, `(batch, [positions,] 1)`, or 0."""
    foil = foil_indices(contrast, logits, label2id)
    if foil is None:
        return 0.0
    return logits.mean(-1, keepdim=True) if isinstance(foil, str) else logits.gather(-1, foil)


def foil_indices(
    contrast: Any, logits: torch.Tensor, label2id: dict[str, int] | None = None
) -> torch.Tensor | str | None:
    """None, `"mean"`, or the indices of the foils, `(batch, [positions,] 1)`."""
    if contrast is None or isinstance(contrast, str) and contrast == "mean":
        return contrast
    foil = class_indices(contrast, logits, "contrast", label2id)
    if isinstance(contrast, str) and contrast == "all" or foil.shape[-1] != 1:
        raise ValueError("`contrast` must be 'mean' or one foil a row.")
    return foil
