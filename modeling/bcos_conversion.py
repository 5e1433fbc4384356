"""The swap in place that makes a transformers model a B-cos network, and the check that it is one."""

import re
from collections.abc import Callable
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
    BcosQueryKeyValueConv1D,
    BcosQueryKeyValueLinear,
    BcosRMSNorm,
    BcosValueLinear,
    FrozenActivation,
    GatedActivation,
)
from .bcos_peft import is_bcos_lora, refuse_virtual_tokens, tuner_layer_faults
from .bcos_roles import ROLES, ArchitectureRoles, ends_with

BCOS_LAYERS = (BcosLinear, BcosConv1D)
NORMS = (BcosLayerNorm, BcosRMSNorm)
# What a projection of each role becomes: for `nn.Linear` and for transformers' `Conv1D`.
PROJECTIONS: dict[str, dict[type, type]] = {
    "bcos": {nn.Linear: BcosLinear, Conv1D: BcosConv1D},
    "query_key": {nn.Linear: BcosQueryKeyLinear},
    "linear": {nn.Linear: BcosValueLinear},
    "query_key_value": {nn.Linear: BcosQueryKeyValueLinear, Conv1D: BcosQueryKeyValueConv1D},
}
INSIDE_LORA = re.compile(r"\.lora_(?:A|B|dropout|magnitude_vector)(?:\.|$)")
CONVERTED = tuple(new for kinds in PROJECTIONS.values() for new in kinds.values())


def make_bcos(model: nn.Module, config) -> None:
    """Swaps the layers of `model` for B-cos layers in place. Idempotent; parameters are kept, biases aside.

    Args:
        model: a transformers model of an architecture in `ROLES`, on any device, the meta device included.
        config: its `BcosConfigMixin` configuration.

    Raises:
        ValueError: the result would not be dynamic linear, or an activation cannot be written as `x · gate(x)`.
    """
    roles = ROLES[config.model_type]
    inside_gates = _inside_gates(model)
    for name, module in list(model.named_modules()):
        role = roles.role_of(name)
        done = isinstance(module, nn.Identity) or is_bcos_lora(module) or id(module) in inside_gates
        if role is None or done:
            continue
        layer = _layer_of(name, roles)
        new = _replacement(role, module, config, config.b_of_layer(layer), roles.part_of(name))
        if role in ("bcos", "norm", "gate"):
            last = layer is not None and layer == config.num_hidden_layers - 1
            new.tokenwise_in_last_layer = last and not roles.works_before_attention(name)
        if role == "lm_head":
            new.is_output_layer = True
        if new is not module:
            new.train(module.training)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
    for ending in roles.biases:
        owner, _, attribute = ending.rpartition(".")
        for name, module in model.named_modules():
            if ends_with(name, owner):
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
        if isinstance(module, BCOS_LAYERS):
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
    refuse_virtual_tokens(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in ROLES:
        raise ValueError(
            f"{type(model).__name__} (model_type={model_type!r}) is not a B-cos model; "
            f"convert it with `from_pretrained_bcos`. B-cos architectures: {', '.join(sorted(ROLES))}."
        )
    roles = ROLES[model_type]
    faults = []
    inside_gates = _inside_gates(model)
    for name, module in model.named_modules():
        if id(module) in inside_gates or INSIDE_LORA.search(name):
            continue
        fault = _fault(roles.role_of(name.removesuffix(".base_layer")), module, model.config)
        if fault:
            faults.append(f"`{name}` ({type(module).__name__}): {fault}")
    faults += tuner_layer_faults(model)
    if faults:
        raise ValueError(f"{type(model).__name__} is not dynamic linear. " + "; ".join(faults) + ".")


def _inside_gates(model: nn.Module) -> set[int]:
    """Identities of the functions inside activations that explanation mode freezes."""
    gates = [module for module in model.modules() if isinstance(module, (GatedActivation, FrozenActivation))]
    return {id(child) for gate in gates for child in gate.modules() if child is not gate}


def _fault(role: str | None, module: nn.Module, config) -> str | None:
    """What makes `module` break dynamic linearity, or None."""
    keeps_bias = role in ("query_key", "query_key_value") and config.qk_bias
    if getattr(module, "bias", None) is not None and not keeps_bias:
        return "has a bias"
    if isinstance(module, (nn.Linear, Conv1D)):
        return None if type(module) in CONVERTED else "a linear layer that was not converted"
    if isinstance(module, nn.Embedding):
        return None if isinstance(module, BcosEmbedding) else "an embedding that explanations cannot record"
    if isinstance(module, (GatedActivation, FrozenActivation)):
        nested = any(isinstance(child, GatedActivation | FrozenActivation) for child in module.children())
        return "an activation whose gate would freeze twice" if nested else None
    if "Norm" in type(module).__name__ and not isinstance(module, NORMS):
        return "a normalisation that was not converted"
    if role == "gate" and not isinstance(module, GatedActivation):
        return "an activation whose gate does not freeze"
    if role == "mlp_gate" and not isinstance(module, FrozenActivation):
        return "the activation of a gated MLP, which does not freeze"
    if role == "identity" and not isinstance(module, nn.Identity):
        return "a nonlinearity that was not taken out"
    if role is None and isinstance(module, _activation_types()):
        return "an activation without a role"
    return None


@cache
def _activation_types() -> tuple[type, ...]:
    known = {cls for cls in map(_activation_class, ACT2CLS.values()) if isinstance(cls, type)}
    return tuple(known | {nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softmax})


def _replacement(role: str, module: nn.Module, config, b: float, part: str | None) -> nn.Module:
    """The module that takes the place of `module`: itself where it already fits, or fits no rule of its role."""
    if role == "lm_head":
        role = "bcos" if config.bcos_lm_head else "linear"
    if role in PROJECTIONS:
        return _projection(role, module, config, b)
    if role == "norm":
        return _norm(module)
    if role == "gate":
        if isinstance(module, GatedActivation):
            return module
        return GatedActivation(module, _gate_at_zero(module), follows_bcos_layer=True)
    if role == "mlp_gate":
        return module if isinstance(module, FrozenActivation) else FrozenActivation(module)
    if role == "identity":
        return nn.Identity()
    if isinstance(module, BcosEmbedding) or not isinstance(module, nn.Embedding):
        return module
    new = BcosEmbedding(module.num_embeddings, module.embedding_dim, module.padding_idx, device="meta")
    new.weight, new.part = module.weight, part
    return new


def _projection(role: str, module: nn.Module, config, b: float) -> nn.Module:
    keeps_bias = role in ("query_key", "query_key_value") and config.qk_bias
    if isinstance(module, (nn.Linear, Conv1D)) and not keeps_bias:
        module.register_parameter("bias", None)
    kind = next((PROJECTIONS[role][old] for old in PROJECTIONS[role] if isinstance(module, old)), None)
    # A head that is a module of its own may bear the name of a layer: its layers have roles themselves.
    if kind is None or type(module) is kind:
        return module
    options = {"b": b, "normalize_weights": config.normalize_weights} if role == "bcos" else {}
    if isinstance(module, Conv1D):
        new = kind(module.nf, module.nx, **options)
    else:
        options |= {} if role == "bcos" else {"bias": False}
        new = kind(module.in_features, module.out_features, device="meta", **options)
    new.weight, new.bias = module.weight, module.bias
    return new


def _norm(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.LayerNorm) and not isinstance(module, BcosLayerNorm):
        new = BcosLayerNorm(module.normalized_shape, eps=module.eps, bias=False, device="meta")
    elif hasattr(module, "variance_epsilon") and not isinstance(module, BcosRMSNorm):
        new = BcosRMSNorm(module.weight.shape[-1], eps=module.variance_epsilon, device="meta")
    else:
        return module
    new.weight = module.weight
    return new


def _gate_at_zero(activation: Callable) -> float:
    names = [name for name, entry in ACT2CLS.items() if type(activation) is _activation_class(entry)]
    for name in names:
        if name in GATE_AT_ZERO:
            return GATE_AT_ZERO[name]
    raise ValueError(
        f"The activation {(names or ['unknown'])[0]!r} ({type(activation).__name__}) cannot be written as "
        f"x · gate(x); supported: {', '.join(sorted(GATE_AT_ZERO))}."
    )


def _activation_class(entry: type | tuple) -> type:
    return entry[0] if isinstance(entry, tuple) else entry


def _layer_of(name: str, roles: ArchitectureRoles) -> int | None:
    """Index of the encoder or decoder layer that the module called `name` lies in, or None."""
    found = re.search(roles.layer_pattern, name)
    return int(found.group(1)) if found else None
