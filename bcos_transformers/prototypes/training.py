"""What the training of prototypes with the stock `Trainer` needs around it."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bcos_transformers.modeling.modeling_proto import ProtoForSequenceClassification
from bcos_transformers.prototypes.texts import TrainingText, TrainingTexts, check_model


def regression_bins(targets: Iterable[float], count: int) -> dict[str, list[float]]:
    """Quantile bins of training targets, which play the part of the classes of a regression.

    Boundaries lie midway between two targets, as near to the quantiles as equal targets permit, so that every bin has a
    target and rounding does not move one to another bin. Targets that are equal in float32, in which bins are told apart,
    count as equal.

    Args:
        targets: those of the training set.
        count: how many bins.

    Returns:
        Fields for `ProtoConfig` or `from_pretrained_proto`: `regression_boundaries` (count − 1, ascending) and
        `regression_values` (the mean target of each bin).

    Raises:
        ValueError: targets that are not finite in float32, or fewer distinct ones than bins.

    Example:
        >>> regression_bins([1, 2, 3, 4], 2)
        {'regression_boundaries': [2.5], 'regression_values': [1.5, 3.5]}
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"`count` must be an integer of at least 1, got {count!r}.")
    values = sorted(float(target) for target in targets)
    rounded = _float32(values)
    if not all(map(math.isfinite, rounded)):
        raise ValueError(
            "Targets must be finite numbers in float32, but some are NaN, infinite or larger than 3.4e38."
        )
    gaps = [i for i in range(1, len(values)) if rounded[i - 1] < rounded[i]]
    if not values or len(gaps) + 1 < count:
        raise ValueError(
            f"{count} bins need as many distinct targets, but there are {len(gaps) + 1 if values else 0} of them in "
            "float32: give a smaller `count`."
        )
    cuts: list[int] = []  # places in `gaps`
    for i in range(1, count):
        allowed = range(cuts[-1] + 1 if cuts else 0, len(gaps) - (count - 1 - i))
        cuts.append(min(allowed, key=lambda place: abs(gaps[place] - i * len(values) / count)))
    edges = [0, *(gaps[place] for place in cuts), len(values)]
    bins = [values[low:high] for low, high in zip(edges, edges[1:], strict=False)]
    boundaries = []
    for low, high in zip(bins, bins[1:], strict=False):
        middle = low[-1] + (high[0] - low[-1]) / 2
        below, between = _float32([low[-1], middle])
        boundaries.append(middle if below < between else high[0])
    return {"regression_boundaries": boundaries, "regression_values": [math.fsum(one) / len(one) for one in bins]}


def _float32(values: list[float]) -> list[float]:
    return torch.tensor(values, dtype=torch.float64).float().tolist()


@torch.no_grad()
def initialize_prototypes(
    model: ProtoForSequenceClassification,
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    text_column: str = "text",
    label_column: str = "label",
    max_length: int | None = None,
    batch_size: int = 32,
) -> None:
    """Sets the prototypes to embeddings of random training texts of their class, for training to begin with.

    No two prototypes of a class begin at the same text. Random numbers of other code are not touched, and nothing is
    changed if it fails.

    Args:
        model: its `prototypes` are set; `config.prototypes` is emptied, since training will move them.
        dataset: the training set: a `datasets.Dataset`, a list of dicts, or anything with a length and rows by index.
        tokenizer: the model's.
        seed: which texts.
        text_column: where the texts are.
        label_column: where the class indices are; for a regression, the values.
        max_length: tokens a text may have; at most what model and tokenizer permit, which is the default.
        batch_size: texts of a forward pass.

    Raises:
        TypeError: a model without prototypes, or a data set without a length.
        ValueError: a missing column, labels outside the range, a class or bin without texts or with fewer distinct texts
            than prototypes, or embeddings that are not finite.
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
    chosen = _random_texts(texts, seed)
    found = []
    for begin in range(0, len(chosen), batch_size):
        found.append(texts.embed(chosen[begin : begin + batch_size]))
    embeddings = torch.cat(found)
    if not torch.isfinite(embeddings).all():
        raise ValueError("Embeddings of training texts are NaN or infinite: the encoder's weights are damaged.")
    model.prototypes.copy_(embeddings)
    model.config.prototypes = None


def _random_texts(texts: TrainingTexts, seed: int) -> list[TrainingText]:
    """Distinct texts, as many of each class as it has prototypes, in the order of classes."""
    config = texts.model.config
    groups = texts.labels()
    chosen: list[dict[bytes, TrainingText]] = [{} for _ in range(config.num_classes)]
    missing = config.num_prototypes
    for index in torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist():
        of_class = chosen[groups[index]]
        if len(of_class) == config.prototypes_per_class:
            continue
        (text,) = texts.take([index])
        missing -= text.key not in of_class
        of_class.setdefault(text.key, text)
        if not missing:
            break
    return [text for of_class in chosen for text in of_class.values()]


def prototype_parameter_groups(
    model: ProtoForSequenceClassification,
    learning_rate: float,
    prototype_learning_rate: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer, in which what is new has a learning rate of its own.

    Args:
        model: parameters that are not trained are left out.
        learning_rate: of the encoder.
        prototype_learning_rate: of prototypes, token attention and last layer; None is `learning_rate`.
        weight_decay: of all weights but biases, those of normalization layers, and prototypes, which are points and
            would be drawn to the origin.

    Returns:
        Groups for `torch.optim.AdamW` or another optimizer.

    Raises:
        TypeError: a model without prototypes.
        ValueError: a negative number, or nothing to be trained.

    Example:
        >>> optimizer = torch.optim.AdamW(prototype_parameter_groups(model, 5e-5, 1e-3, weight_decay=0.01))
        >>> Trainer(model, args, train_dataset=data, optimizers=(optimizer, None)).train()
    """
    check_model(model)
    rates = (learning_rate, learning_rate if prototype_learning_rate is None else prototype_learning_rate)
    names = ("learning_rate", "prototype_learning_rate", "weight_decay")
    for name, value in zip(names, (*rates, weight_decay), strict=True):
        if not 0 <= value < math.inf:
            raise ValueError(f"`{name}` must be a number of at least 0, got {value!r}.")
    norms = {name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner, _, kind = name.rpartition(".")
            decays = kind != "bias" and name != "prototypes" and owner not in norms
            groups.setdefault((not name.startswith("backbone."), decays), []).append(parameter)
    if not groups:
        raise ValueError("No parameter of the model is to be trained: `requires_grad` is False for all of them.")
    return [
        {"params": parameters, "lr": rates[new], "weight_decay": weight_decay if decays else 0.0}
        for (new, decays), parameters in groups.items()
    ]


def train_last_layer_only(model: ProtoForSequenceClassification) -> None:
    """Leaves only the last layer to be trained, which is a convex problem: similarities no longer change.

    Gradients of everything else are dropped, so that an optimizer that knows the parameters leaves them where they are,
    weight decay included. `model.requires_grad_(True)` undoes it.

    Raises:
        TypeError: a model without prototypes.
    """
    check_model(model)
    for name, parameter in model.named_parameters():
        last = name.startswith("classifier.")
        parameter.requires_grad_(last)
        if not last:
            parameter.grad = None
    if model.training:
        model.train()  # without the encoder, whose dropout would go on changing similarities
