"""Which module of an architecture plays which role, and the swap in place that makes it a B-cos network."""

import logging
import re
from dataclasses import dataclass
from functools import cache

from torch import nn
from transformers.activations import ACT2CLS
from transformers.pytorch_utils import Conv1D

from .bcos_layers import (
    GATE_AT_ZERO,
    BcosConv1D,
    BcosEmbedding,
    BcosLayerNorm,
    BcosLinear,
    BcosQueryKeyLinear,
    BcosRMSNorm,
    BcosValueLinear,
    GatedActivation,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArchitectureRoles:
    """How to read the module tree of one architecture. Names are matched from their end, dot by dot.

    Attributes:
        bcos: linear layers that become B-cos layers.
        query_key: projections whose outputs explanation mode freezes.
        linear: layers that are linear already and only lose their bias.
        lm_head: output layer of a language model: linear, or B-cos with `bcos_lm_head`.
        norm: `LayerNorm` modules.
        gate: activations of the form `x · gate(x)` that follow a B-cos layer.
        identity: nonlinearities of poolers and heads that are taken out.
        embeddings: embedding modules and the part of the input that each contributes.
        biases: parameters outside the roles above that are biases and go.
        layer_pattern: regular expression whose first group is the index of the layer in a module's name.
    """

    bcos: tuple[str, ...]
    query_key: tuple[str, ...]
    linear: tuple[str, ...]
    norm: tuple[str, ...]
    gate: tuple[str, ...]
    embeddings: tuple[tuple[str, str], ...]
    lm_head: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    layer_pattern: str = r"(?:^|\.)layer\.(\d+)\."

    def role_of(self, name: str) -> str | None:
        """The role of the module called `name`, or None."""
        for role in ("bcos", "query_key", "linear", "lm_head", "norm", "gate", "identity"):
            if any(_ends_with(name, ending) for ending in getattr(self, role)):
                return role
        return "embedding" if self.part_of(name) else None

    def part_of(self, name: str) -> str | None:
        """The part of the input that the embedding called `name` contributes, or None."""
        return next((part for ending, part in self.embeddings if _ends_with(name, ending)), None)


BERT_ROLES = ArchitectureRoles(
    bcos=(
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
        "pooler.dense",
        "transform.dense",
        "classifier",
        "qa_outputs",
    ),
    query_key=("attention.self.query", "attention.self.key"),
    linear=("attention.self.value",),
    lm_head=("cls.predictions.decoder",),
    norm=("LayerNorm",),
    gate=("intermediate_act_fn", "transform_act_fn"),
    identity=("pooler.activation",),
    embeddings=(
        ("embeddings.word_embeddings", "word"),
        ("embeddings.position_embeddings", "position"),
        ("embeddings.token_type_embeddings", "token_type"),
    ),
    biases=("cls.predictions.bias",),
)

ROLES: dict[str, ArchitectureRoles] = {"bcos-bert": BERT_ROLES}


def make_bcos(model: nn.Module, config) -> None:
    """Swaps the layers of `model` for B-cos layers in place. Idempotent; parameters are kept, biases aside.

    Args:
        model: a transformers model of an architecture in `ROLES`, on any device, the meta device included.
        config: its `BcosConfigMixin` configuration.

    Raises:
        ValueError: the result would not be dynamic linear, or an activation cannot be written as `x · gate(x)`.
    """
    roles = ROLES[config.model_type]
    for name, module in list(model.named_modules()):
        role = roles.role_of(name)
        if role is None or isinstance(module, nn.Identity):
            continue
        layer = _layer_of(name, roles)
        new = _replacement(role, module, config, config.b_of_layer(layer), roles.part_of(name))
        if role in ("bcos", "norm", "gate"):
            new.tokenwise_in_last_layer = layer == config.num_hidden_layers - 1
        if new is not module:
            new.train(module.training)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
    for ending in roles.biases:
        owner, _, attribute = ending.rpartition(".")
        for name, module in model.named_modules():
            if _ends_with(name, owner):
                module.register_parameter(attribute, None)
    assert_dynamic_linear(model)


def set_b(model: nn.Module, b: float, b_per_layer: list[float] | None = None) -> None:
    """Sets B in the configuration and in every B-cos layer of `model`, e.g. to anneal it.

    Args:
        model: a B-cos model.
        b: new `config.b`.
        b_per_layer: new `config.b_per_layer`, one per layer, or None.

    Raises:
        ValueError: an invalid value; the model is left as it was.
    """
    config = model.config
    before = (config.b, config.b_per_layer)
    try:
        config.b, config.b_per_layer = b, b_per_layer
        config.check_bcos_fields()
    except ValueError:
        config.b, config.b_per_layer = before
        raise
    roles = ROLES[config.model_type]
    for name, module in model.named_modules():
        if isinstance(module, (BcosLinear, BcosConv1D)):
            module.b = config.b_of_layer(_layer_of(name, roles))


def only_last_layer_is_marked(model: nn.Module) -> bool:
    """Whether `tokenwise_in_last_layer` is true of the last layer alone, as after construction.

    Layers that a user appends or removes bring their old marks along.
    """
    roles = ROLES[model.config.model_type]
    layers, marked = set(), set()
    for name, module in model.named_modules():
        layer = _layer_of(name, roles)
        if layer is not None:
            layers.add(layer)
            if getattr(module, "tokenwise_in_last_layer", False):
                marked.add(layer)
    return marked == {max(layers, default=-1)}


def assert_dynamic_linear(model: nn.Module) -> None:
    """Checks that every module of a B-cos model is dynamic linear.

    Args:
        model: a B-cos model; its configuration names the architecture.

    Raises:
        ValueError: a module was left unconverted, a bias was left behind, or the model is not a B-cos model. The
            message names the modules.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in ROLES:
        raise ValueError(
            f"{type(model).__name__} (model_type={model_type!r}) is not a B-cos model; "
            f"convert it with `from_pretrained_bcos`. B-cos architectures: {', '.join(sorted(ROLES))}."
        )
    roles = ROLES[model_type]
    faults = []
    inside_gates = {
        id(child) for gate in model.modules() if isinstance(gate, GatedActivation) for child in gate.children()
    }
    for name, module in model.named_modules():
        if id(module) in inside_gates:
            continue
        fault = _fault(roles.role_of(name), module, model.config)
        if fault:
            faults.append(f"`{name}` ({type(module).__name__}): {fault}")
    if faults:
        raise ValueError(f"{type(model).__name__} is not dynamic linear. " + "; ".join(faults) + ".")


def _fault(role: str | None, module: nn.Module, config) -> str | None:
    """What makes `module` break dynamic linearity, or None."""
    if getattr(module, "bias", None) is not None and not (role == "query_key" and config.qk_bias):
        return "has a bias"
    if isinstance(module, (nn.Linear, Conv1D)):
        converted = (BcosLinear, BcosConv1D, BcosQueryKeyLinear, BcosValueLinear)
        return None if type(module) in converted else "a linear layer that was not converted"
    if isinstance(module, nn.Embedding):
        return None if isinstance(module, BcosEmbedding) else "an embedding that explanations cannot record"
    if "Norm" in type(module).__name__ and not isinstance(module, (BcosLayerNorm, BcosRMSNorm)):
        return "a normalisation that was not converted"
    if role == "gate" and not isinstance(module, GatedActivation):
        return "an activation whose gate does not freeze"
    if role == "identity" and not isinstance(module, nn.Identity):
        return "a nonlinearity that was not taken out"
    if role is None and isinstance(module, _activation_types()):
        return "an activation without a role"
    return None


@cache
def _activation_types() -> tuple[type, ...]:
    entries = (entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values())
    known = {entry for entry in entries if isinstance(entry, type)}
    return tuple(known | {nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softmax})


def _replacement(role: str, module: nn.Module, config, b: float, part: str | None) -> nn.Module:
    """The module that takes the place of `module`: itself where it already fits."""
    if role == "lm_head":
        role = "bcos" if config.bcos_lm_head else "linear"
    if role == "bcos":
        if isinstance(module, (BcosLinear, BcosConv1D)):
            return module
        if isinstance(module, Conv1D):
            new = BcosConv1D(module.nf, module.nx, b, config.normalize_weights)
        else:
            new = BcosLinear(module.in_features, module.out_features, b, config.normalize_weights, device="meta")
        new.weight = module.weight
        return new
    if role == "query_key":
        if not config.qk_bias:
            module.register_parameter("bias", None)
        if isinstance(module, BcosQueryKeyLinear):
            return module
        new = BcosQueryKeyLinear(module.in_features, module.out_features, bias=False, device="meta")
        new.weight, new.bias = module.weight, module.bias
        return new
    if role == "linear":
        if isinstance(module, BcosValueLinear):
            return module
        new = BcosValueLinear(module.in_features, module.out_features, bias=False, device="meta")
        new.weight = module.weight
        return new
    if role == "norm":
        if isinstance(module, (BcosLayerNorm, BcosRMSNorm)):
            return module
        new = BcosLayerNorm(module.normalized_shape, eps=module.eps, bias=False, device="meta")
        new.weight = module.weight
        return new
    if role == "gate":
        return (
            module
            if isinstance(module, GatedActivation)
            else GatedActivation(module, _gate_at_zero(module, config), True)
        )
    if role == "identity":
        return nn.Identity()
    if isinstance(module, BcosEmbedding):
        return module
    new = BcosEmbedding(module.num_embeddings, module.embedding_dim, module.padding_idx, device="meta")
    new.weight, new.part = module.weight, part
    return new


def _gate_at_zero(module: nn.Module, config) -> float:
    name = config.hidden_act
    if name not in GATE_AT_ZERO:
        raise ValueError(
            f"The activation {name!r} ({type(module).__name__}) cannot be written as x · gate(x); "
            f"supported: {', '.join(sorted(GATE_AT_ZERO))}."
        )
    return GATE_AT_ZERO[name]


def _layer_of(name: str, roles: ArchitectureRoles) -> int | None:
    """Index of the encoder or decoder layer that the module called `name` lies in, or None."""
    found = re.search(roles.layer_pattern, name)
    return int(found.group(1)) if found else None


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)
