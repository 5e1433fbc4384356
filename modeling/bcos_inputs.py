"""Checks of what `explain` is given: wrong input gets a sentence that says what to do instead."""

import inspect
from typing import Any

import torch
from torch import nn

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
    _check_cache(inputs)
    if model.config._attn_implementation == "flex_attention" and model.device.type == "cpu":
        raise ValueError(
            "PyTorch has no gradient of flex attention on CPUs, and an explanation needs one: "
            "model.set_attn_implementation('sdpa') gives the same logits."
        )
    tokens = _check_tokens(model, inputs)
    mask = _check_mask(model, inputs, tokens)
    _check_last_token(model, inputs, mask)
    for name in ("token_type_ids", "position_ids"):
        given = inputs.get(name)
        if given is not None and tuple(given.shape) not in (tokens, (1, tokens[1])):
            raise ValueError(f"`{name}` must have the shape of the tokens, {tokens}, got {tuple(given.shape)}.")
    kinds = getattr(model.config, "type_vocab_size", None) or model.get_input_embeddings().weight.shape[0]
    for name, bound in (("token_type_ids", kinds), ("position_ids", position_limit(model))):
        given = inputs.get(name)
        if given is not None and (given.min() < 0 or bound is not None and given.max() >= bound):
            raise ValueError(
                f"`{name}` must lie in [0, {bound or '∞'}), got values from {given.min().item()} to {given.max().item()}."
            )
    gaps = not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any()
    if model.explanation_task == "causal-lm" and "position_ids" not in inputs and gaps:
        inputs["position_ids"] = positions_of_real_tokens(mask)
    # Tensors made under `torch.inference_mode()` cannot take part in a gradient; their copies can.
    inputs = {n: v.clone() if torch.is_tensor(v) and v.is_inference() else v for n, v in inputs.items()}
    return inputs, mask


def positions_of_real_tokens(mask: torch.Tensor) -> torch.Tensor:
    """Position ids `(batch, tokens)` that count real tokens only, as `generate` derives them for left padding."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def _check_cache(inputs: dict[str, Any]) -> None:
    if inputs.get("past_key_values") is not None:
        raise ValueError(
            "`past_key_values` hides the tokens that it was computed from, so they would get no contributions. "
            "Explain the whole text instead."
        )
    kept = inputs.pop("logits_to_keep", 0)
    if torch.is_tensor(kept) or kept != 0:
        raise ValueError("`logits_to_keep` is not supported: say with `position=` which logit to explain.")


def position_limit(model) -> int | None:
    """How many position embeddings the model has, or None if it has none to run out of (rotary positions)."""
    found = [module for module in model.modules() if getattr(module, "part", None) == "position"]
    return found[0].weight.shape[0] if found else None


def token_limit(model) -> int | None:
    """How many tokens a text may have, or None where positions do not run out."""
    limit = position_limit(model)
    if limit is None:
        return _conventional_limit(model)
    if model.derives_positions_from_ids:
        limit -= model.config.pad_token_id + 1  # positions begin after that of padding
    return limit


def _conventional_limit(model) -> int | None:
    """The limit of a conventional encoder, which a model with prototypes may have, by its table of positions."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] == "position_embeddings":
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


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
    if ids is None and (model.pools_last_token or (model.derives_positions_from_ids and "position_ids" not in inputs)):
        wanted = "finds the last token" if model.pools_last_token else "derives the positions of tokens"
        raise ValueError(f"{type(model).__name__} {wanted} from `input_ids`: give those instead of `inputs_embeds`.")
    limit = token_limit(model)
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


def _check_last_token(model, inputs: dict[str, Any], mask: torch.Tensor) -> None:
    """Decoders classify from the last token whose id is not that of padding: it must be a real one."""
    padding = model.config.pad_token_id
    if not model.pools_last_token:
        return
    if padding is None:
        if len(mask) > 1:
            raise ValueError(
                "A batch of several texts needs a padding token: set model.config.pad_token_id to the id that the "
                "tokenizer pads with."
            )
        last = torch.full((1,), mask.shape[1] - 1, device=mask.device)
    else:
        columns = torch.arange(mask.shape[1], device=mask.device)
        last = (columns * (inputs["input_ids"] != padding).to(mask.device)).argmax(-1)
    wrong = (~mask.gather(1, last[:, None]).squeeze(1)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{type(model).__name__} classifies from the last token that is not model.config.pad_token_id "
            f"({padding}), but in rows {wrong} the attention mask calls that token padding. Pad with this id, or set "
            "model.config.pad_token_id to the one the tokenizer uses."
        )


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
    if model.pools_first_token and not mask[:, 0].all():
        rows = (~mask[:, 0]).nonzero().flatten().tolist()
        raise ValueError(
            f"Rows {rows} are left-padded, but {type(model).__name__} classifies from the first position, which is "
            "padding there. Pad on the right: tokenizer.padding_side = 'right'."
        )
    return mask
