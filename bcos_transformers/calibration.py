"""A data-dependent start for fine-tuning: the outputs of B-cos layers get back the scale that alignment took."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from bcos_transformers.modeling.bcos_layers import BcosConv1D, BcosLinear


@torch.no_grad()
def match_output_scales(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Scales the weights of every B-cos layer in place, so that its outputs are as large as those of a linear layer.

    A B-cos layer multiplies each output by `|cos(x, w)|^(B-1)`, which at B = 1.5 is about a fifth in a converted model,
    layer after layer. Where weights are not normalized, their scale is free: here it is set so that the root mean square
    of `w·x · |cos|^(B-1)` on the given texts equals that of `w·x`. Layers are done in the order of the forward pass, each
    on what the scaled layers before it give; one that is called several times per pass is measured at its first call.
    No labels are needed, and a few batches are enough. Once is enough, too: a second call would scale again.

    Args:
        model: a converted model with `normalize_weights=False`, whose weights this call changes.
        batches: inputs of the model, `labels` left out.

    Returns:
        The factor of each layer that the batches reach, by name.

    Raises:
        ValueError: no B-cos model, weights are normalized (their scale has no effect), or there is no batch.
    """
    if not hasattr(model.config, "normalize_weights"):
        raise ValueError(
            f"A B-cos model is needed, got {type(model).__name__}: convert it with `from_pretrained_bcos`."
        )
    if model.config.normalize_weights:
        raise ValueError("With normalize_weights=True the scale of weights has no effect: convert with False.")
    batches = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    if not batches:
        raise ValueError("At least one batch of inputs is needed, got none.")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (BcosLinear, BcosConv1D)) and m.b > 1}
    factors: dict[str, float] = {}
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for name in _order(model, layers, batches):
            factors[name] = _match(model, layers[name], batches)
    finally:
        for module in training:
            module.training = True
    return factors


def _order(model, layers: dict[str, Any], batches: list[dict[str, Any]]) -> list[str]:
    order: list[str] = []
    handles = [layer.register_forward_hook(lambda *_, name=name: order.append(name)) for name, layer in layers.items()]
    try:
        for batch in batches:  # all of them: one that the model refuses does so before any weight is changed
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))


def _match(model, layer, batches: list[dict[str, Any]]) -> float:
    squares = torch.zeros(2, dtype=torch.float64)

    def measure(module, args, output):
        weight = module.weight.t() if isinstance(module, BcosConv1D) else module.weight
        squares[0] += F.linear(args[0], weight).double().square().sum().cpu()
        squares[1] += output.double().square().sum().cpu()
        raise _Measured

    handle = layer.register_forward_hook(measure)
    try:
        for batch in batches:
            try:
                model(**batch)
            except _Measured:
                continue
    finally:
        handle.remove()
    factor = float((squares[0] / squares[1]).sqrt()) if squares[1] > 0 else 1.0
    layer.weight.mul_(factor)
    return factor


class _Measured(Exception):  # noqa: N818 - no error: the rest of the forward pass is not needed
    pass
