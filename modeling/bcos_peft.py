"""LoRA inside B-cos layers, so that a model with an active adapter stays dynamic linear.

peft adds a low-rank update to the *output* of a layer. Outside the cosine of a B-cos layer that would no longer be one,
and explanations would miss it; here the update goes into the weight: the layer computes B-cos of `W + s·BA`. On queries
and keys it acts before they are frozen, on values plainly. Merging an adapter therefore changes nothing but rounding.
"""

import copy
import dataclasses
import functools
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .bcos_functions import bcos_of_product
from .bcos_layers import (
    BcosConv1D,
    BcosEmbedding,
    BcosLinear,
    BcosQueryKeyLinear,
    BcosQueryKeyValueConv1D,
    BcosQueryKeyValueLinear,
    BcosValueLinear,
)

try:
    from peft.tuners import lora
    from peft.tuners.tuners_utils import BaseTunerLayer
except ImportError:  # an extra: without peft there are no adapters to care for
    lora = None

BASE_NOT_SAVED = (
    "This adapter's base model has not been saved. Save the B-cos base model first, with `save_pretrained(directory)` "
    "before `get_peft_model`, or afterwards with `peft_model.get_base_model().save_pretrained(directory)`: an adapter alone is reloaded on top of that."
)


def tuner_layer_faults(model: nn.Module) -> list[str]:
    """Names the layers of adapters in `model` that are not dynamic linear."""
    faults = []
    for name, module in model.named_modules():
        children = module._modules  # faster than `getattr`, and this runs in every explanation
        if "base_layer" in children and not is_bcos_lora(module):
            package = type(module).__module__.partition(".")[0]
            inner = type(module.base_layer).__name__
            faults.append(
                f"`{name}` ({package}'s {type(module).__name__}): an adapter around {inner}, working outside of it"
            )
        original, copies = children.get("original_module"), children.get("modules_to_save")
        if original is not None and copies is not None:
            other = {type(copy).__name__ for copy in copies.values() if type(copy) is not type(original)}
            if other:
                faults.append(f"`{name}`: {', '.join(sorted(other))} stands in for {type(original).__name__}")
    return faults


def refuse_virtual_tokens(model: nn.Module) -> None:
    """Refuses a `PeftModel` that puts learned vectors in front of the input, which are no tokens of the text.

    Raises:
        ValueError: prompt tuning, prefix tuning or p-tuning.
    """
    active = getattr(model, "active_peft_config", None)
    if getattr(active, "is_prompt_learning", False):
        raise ValueError(
            f"{active.peft_type.value} adds learned vectors that are no tokens of the text, so its logits do not split over the "
            "text. Use LoRA, whose explanations are exact."
        )


def is_bcos_lora(module: nn.Module) -> bool:
    """Whether `module` is one of our LoRA layers."""
    return getattr(module, "is_bcos_lora", False)


def has_adapters(model: nn.Module) -> bool:
    """Whether a layer of `model` carries adapters of any kind."""
    return any("base_layer" in module._modules for module in model.modules())


def state_dict_without_adapters(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of `model` as if it had never been given adapters, under their own names.

    Raises:
        ValueError: an adapter is merged into the weights at the moment, or sits where it cannot be left out.
    """
    merged = [name for name, module in model.named_modules() if getattr(module, "merged_adapters", None)]
    if merged:
        raise ValueError(
            f"An adapter is merged into the base weights of {', '.join(f'`{name}`' for name in merged[:3])}"
            f"{', …' if merged[3:] else ''}: call `unmerge_adapter()` to save the base, or `merge_and_unload()` to save "
            "the merged model."
        )
    # Every adapter layer holds the original module as `base_layer` or, in `modules_to_save`, as `original_module`; the
    # wrapper of trained tokens holds it as both, and only the former has the weights.
    foreign = tuple(
        f"{name}.{child}."
        for name, module in model.named_modules()
        for child, _ in module.named_children()
        if any(
            hasattr(module, inner) and child not in (inner, "token_adapter")
            for inner in ("base_layer", "original_module")
        )
    )
    state = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(foreign):
            for inner in (".token_adapter.base_layer.", ".base_layer.", ".original_module."):
                name = name.replace(inner, ".")
            state.setdefault(name, tensor)
    with torch.device("meta"):
        wanted = type(model)(model.config).state_dict().keys()
    if state.keys() != wanted:
        wrong = sorted(state.keys() ^ wanted)
        raise ValueError(
            f"The base model cannot be told from its adapters: {', '.join(wrong[:3])}{', …' if wrong[3:] else ''}. Remove them "
            "with `unload()`, and save it then."
        )
    return state


if lora is not None:

    class BcosLoraLinear(lora.Linear):
        """peft's LoRA layer, with the update inside of the layer that it adapts.

        Raises:
            ValueError: a variant of LoRA whose update is not `s·BA`, such as DoRA.
        """

        is_bcos_lora = True

        def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any, **kwargs: Any) -> None:
            refuse_unsupported(base_layer, config, **kwargs)
            config = copy.copy(config)
            target = base_layer.get_base_layer() if isinstance(base_layer, BaseTunerLayer) else base_layer
            config.fan_in_fan_out = isinstance(target, Conv1D)
            kwargs["is_target_conv_1d_layer"] = config.fan_in_fan_out
            super().__init__(base_layer, adapter_name, config=config, **kwargs)

        def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
            """Adds an adapter; see peft."""
            refuse_unsupported(self.get_base_layer(), config, **kwargs)
            super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if kwargs.get("adapter_names") is not None:
                raise ValueError("B-cos layers cannot mix adapters within a batch (`adapter_names`): one batch each.")
            if self.disable_adapters and self.merged:
                self.unmerge()
            active = [name for name in self.active_adapters if name in self.lora_A]
            if self.disable_adapters or self.merged or not active:
                return self.base_layer(x)
            weight = self.base_layer.weight
            for name in active:
                weight = (weight + self.get_delta_weight(name)).to(weight.dtype)
            dropping = [n for n in active if self.training and getattr(self.lora_dropout[n], "p", 0.0) > 0.0]
            if not dropping:
                return self.base_layer.apply_weight(x, weight)
            return self._forward_with_dropout(x, weight, active)

        def _forward_with_dropout(self, x: torch.Tensor, weight: torch.Tensor, active: list[str]) -> torch.Tensor:
            """As peft: dropout applies to what the low-rank path reads. The norm of the weight is that of `W + s·BA`."""
            base = self.base_layer
            rows, base_rows = (w.t() if self.fan_in_fan_out else w for w in (weight, base.weight))
            product = nn.functional.linear(x, base_rows.to(x.dtype))
            for name in active:
                low_rank = self.lora_B[name](
                    self.lora_A[name](
                        self.lora_dropout[name](self._cast_input_dtype(x, self.lora_A[name].weight.dtype))
                    )
                )
                product = product + (low_rank * self.scaling[name]).to(product.dtype)
            if isinstance(base, (BcosLinear, BcosConv1D)):
                return bcos_of_product(x, product, rows, base.b, base.normalize_weights)
            return product if base.bias is None else product + base.used_bias()

    def refuse_unsupported(base_layer: nn.Module, config: Any, **kwargs: Any) -> None:
        """Raises a ValueError that says which variant of LoRA cannot be used on `base_layer`."""
        variants = [f.name for f in dataclasses.fields(config) if f.metadata.get("is_lora_variant")]
        variants += ["lora_bias", "use_qalora", "alora_invocation_tokens"]
        given = sorted({name for name in variants if getattr(config, name, None)})
        given += [f"init_lora_weights={config.init_lora_weights!r}"] if config.init_lora_weights in ("mica",) else []
        if given:
            raise ValueError(
                f"B-cos layers take plain LoRA only, whose update W + s·BA keeps them dynamic linear; got "
                f"{', '.join(given)}. Leave it out of the LoraConfig."
            )
        if kwargs.get("parameter_name") or kwargs.get("tied_adapter"):
            raise ValueError(
                "B-cos layers take LoRA on modules (`target_modules`), not on parameters or tied weights."
            )
        weight = base_layer.get_base_layer().weight if hasattr(base_layer, "get_base_layer") else base_layer.weight
        if not weight.is_floating_point():
            raise ValueError(
                f"The weights of this {type(base_layer).__name__} are quantized ({weight.dtype}), and the norms that "
                "B-cos layers need are not at hand: load the base model in float32, bfloat16 or float16."
            )

    def _refuse_embedding(base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> nn.Module:
        raise ValueError(
            "LoRA on embeddings is not supported: they are the input that explanations split. Leave them out of "
            "`target_modules`, or train them whole by `modules_to_save`."
        )

    LORA_LAYERS: dict[type, Any] = {
        BcosLinear: BcosLoraLinear,
        BcosConv1D: BcosLoraLinear,
        BcosQueryKeyLinear: BcosLoraLinear,
        BcosValueLinear: BcosLoraLinear,
        BcosQueryKeyValueLinear: BcosLoraLinear,
        BcosQueryKeyValueConv1D: BcosLoraLinear,
        BcosEmbedding: _refuse_embedding,
    }

    # Heads that peft's task classes train whole (`modules_to_save`), where they say so only after the dispatch. peft
    # matches ends of names, so that "classifier" means DistilBERT's "pre_classifier" too.
    HEADS_TRAINED_WHOLE = {"TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}

    def _install() -> None:
        """Lets peft's LoRA dispatch know our layer classes; every other class goes where it went before.

        peft has no lasting registry of custom layers (`LoraConfig._register_custom_module` is per configuration). The
        code of several models from the Hub may be loaded at once: they share one wrapper and one table.
        """
        dispatch = lora.LoraModel._create_new_module
        if hasattr(dispatch, "bcos_layers"):
            dispatch.bcos_layers.update(LORA_LAYERS)
            return

        @functools.wraps(dispatch)
        def create(lora_config: Any, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
            base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
            layer = create.bcos_layers.get(type(base))
            if layer is None:
                return dispatch(lora_config, adapter_name, target, **kwargs)
            whole = (*(lora_config.modules_to_save or ()), *HEADS_TRAINED_WHOLE.get(lora_config.task_type, ()))
            if kwargs.get("target_name", "").endswith(whole):
                return target
            kwargs.pop("device_map", None)
            return layer(target, adapter_name, config=lora_config, **kwargs)

        create.bcos_layers = dict(LORA_LAYERS)
        lora.LoraModel._create_new_module = staticmethod(create)

    _install()
