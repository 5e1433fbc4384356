"""Checks of what `explain` is given: wrong input gets a sentence that says what to do instead."""

import inspect
from typing import Any

import torch

LABEL_ARGUMENTS = ("labels", "start_positions", "end_positions")


def check_inputs(model, inputs: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
    """Validates the model inputs of an explanation.

    Args:
        model: a B-cos model with `config` and `forward`.
        inputs: keyword arguments for the forward pass; labels are dropped, since they do not change the logits.

    Returns:
        The inputs for the forward pass, and the mask of real tokens as booleans `(batch, tokens)`.

    Raises:
        TypeError: an unknown argument, or something that is not a tensor.
        ValueError: wrong shapes, ids outside the vocabulary, too many tokens, or padding where the model reads.
    """
    inputs = {name: value for name, value in inputs.items() if value is not None and name not in LABEL_ARGUMENTS}
    known = inspect.signature(model.forward).parameters
    for name, value in inputs.items():
        if name not in known:
            raise TypeError(f"{type(model).__name__}.explain got an unexpected argument {name!r}.")
        if name.endswith(("_ids", "_mask", "_embeds")) and not torch.is_tensor(value):
            raise TypeError(
                f"`{name}` must be a tensor (tokenizer(..., return_tensors='pt')), got {type(value).__name__}."
            )
    tokens = _check_tokens(model, inputs)
    mask = _check_mask(model, inputs, tokens)
    for name in ("token_type_ids", "position_ids"):
        given = inputs.get(name)
        if given is not None and tuple(given.shape) not in (tokens, (1, tokens[1])):
            raise ValueError(f"`{name}` must have the shape of the tokens, {tokens}, got {tuple(given.shape)}.")
    for name, field in (("token_type_ids", "type_vocab_size"), ("position_ids", "max_position_embeddings")):
        given, limit = inputs.get(name), getattr(model.config, field, None)
        if given is not None and limit and (given.min() < 0 or given.max() >= limit):
            raise ValueError(f"`{name}` must lie in [0, {limit}), got values up to {given.max().item()}.")
    # Tensors made under `torch.inference_mode()` cannot take part in a gradient; their copies can.
    inputs = {n: v.clone() if torch.is_tensor(v) and v.is_inference() else v for n, v in inputs.items()}
    return inputs, mask


def _check_tokens(model, inputs: dict[str, Any]) -> tuple[int, int]:
    ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    if (ids is None) == (embeds is None):
        raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
    given, name, dims = (
        (ids, "input_ids", "(batch, tokens)")
        if embeds is None
        else (embeds, "inputs_embeds", "(batch, tokens, hidden)")
    )
    if given.dim() != dims.count(",") + 1:
        hint = " Add the batch dimension with `.unsqueeze(0)`." if given.dim() == dims.count(",") else ""
        raise ValueError(f"`{name}` must have the shape {dims}, got {tuple(given.shape)}.{hint}")
    batch, tokens = given.shape[:2]
    if batch == 0 or tokens == 0:
        raise ValueError(f"`{name}` is empty: its shape is {tuple(given.shape)}.")
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"{tokens} tokens, but {type(model).__name__} takes at most {limit}. Truncate the text on purpose "
            f"(tokenizer(..., truncation=True, max_length={limit})) or explain it in windows."
        )
    if ids is not None:
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"`input_ids` must be integers, got {ids.dtype}.")
        low, high = ids.min().item(), ids.max().item()
        vocabulary = model.get_input_embeddings().weight.shape[0]
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"`input_ids` must lie in [0, {vocabulary}), got values from {low} to {high}. "
                "Does the tokenizer belong to this model?"
            )
    return batch, tokens


def _check_mask(model, inputs: dict[str, Any], tokens: tuple[int, int]) -> torch.Tensor:
    given = inputs.get("attention_mask")
    if given is None:
        source = inputs.get("input_ids", inputs.get("inputs_embeds"))
        if "input_ids" in inputs:
            model.warn_if_padding_and_no_attention_mask(source, None)
        return torch.ones(tokens, dtype=torch.bool, device=source.device)
    if tuple(given.shape) != tokens:
        raise ValueError(f"`attention_mask` must have the shape of the tokens, {tokens}, got {tuple(given.shape)}.")
    mask = given.bool()
    if not torch.equal(mask.to(given.dtype), given):
        raise ValueError("`attention_mask` must hold only 0 (padding) and 1 (real token).")
    empty = (~mask.any(-1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"Rows {empty} have no real token: their `attention_mask` is 0 everywhere.")
    if getattr(model, "pools_first_token", False) and not mask[:, 0].all():
        rows = (~mask[:, 0]).nonzero().flatten().tolist()
        raise ValueError(
            f"Rows {rows} are left-padded, but {type(model).__name__} classifies from the first position, which is "
            "padding there. Pad on the right: tokenizer.padding_side = 'right'."
        )
    return mask
