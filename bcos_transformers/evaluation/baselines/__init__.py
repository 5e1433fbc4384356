"""Post-hoc attribution methods to compare B-cos explanations with, on the same texts, targets and tokens.

The algorithms are captum's. What is here gives them the embeddings of a sequence classifier, keeps special tokens and padding
out of what they vary, and makes what is random depend on the text alone.
"""

import inspect
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers.evaluation.baselines.attention import Attention, AttentionRollout
from bcos_transformers.evaluation.baselines.base import Attribution, AttributionMethod
from bcos_transformers.evaluation.baselines.cost import CostMeter
from bcos_transformers.evaluation.baselines.direct import Bcos, Random
from bcos_transformers.evaluation.baselines.gradients import (
    DeepLift,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SequentialIntegratedGradients,
)
from bcos_transformers.evaluation.baselines.perturbations import KernelShap, Lime, Occlusion, ShapleyValueSampling

METHODS: dict[str, type[AttributionMethod]] = {
    method.name: method
    for method in (
        Saliency,
        InputXGradient,
        IntegratedGradients,
        SequentialIntegratedGradients,
        DeepLift,
        GradientShap,
        ShapleyValueSampling,
        KernelShap,
        Lime,
        Occlusion,
        Attention,
        AttentionRollout,
        Random,
        Bcos,
    )
}

__all__ = ["METHODS", "Attribution", "AttributionMethod", "CostMeter", "build_method"]


def build_method(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> AttributionMethod:
    """An attribution method by name.

    Args:
        name: one of `METHODS`.
        model: a sequence classifier, B-cos or conventional.
        tokenizer: its tokenizer.
        **options: of the method's class.

    Raises:
        ValueError: an unknown name.
        TypeError: an option that the method does not have.
    """
    if name not in METHODS:
        raise ValueError(f"Unknown attribution method {name!r}; there are {', '.join(METHODS)}.")
    method = METHODS[name]
    known = [
        parameter.name
        for parameter in inspect.signature(method).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise TypeError(f"{name} has no option {', '.join(map(repr, unknown))}; it has {', '.join(known)}.")
    return method(model, tokenizer, **options)
