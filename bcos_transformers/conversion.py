"""`from_pretrained_bcos`: a conventional checkpoint in, a B-cos model out, with a report of what changed."""

import difflib
import logging
import math
import os
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel

from bcos_transformers.checkpoints import Checkpoint, find_checkpoint
from bcos_transformers.modeling.bcos_model import BcosModelMixin
from bcos_transformers.modeling.bcos_roles import ROLES
from bcos_transformers.registration import ARCHITECTURES, TASKS

logger = logging.getLogger(__name__)

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
LOADING_ARGUMENTS = {
    *HUB_ARGUMENTS,
    *("attn_implementation", "device_map", "dtype", "torch_dtype", "key_mapping", "max_memory", "offload_buffers"),
    *("offload_folder", "ignore_mismatched_sizes", "use_safetensors", "variant", "weights_only", "disable_mmap"),
    *("low_cpu_mem_usage", "output_loading_info", "tqdm_class", "use_kernels", "kernel_config", "generation_config"),
    *("trust_remote_code", "distributed_config", "device_mesh", "tp_plan", "tp_size"),
}
QUANTIZATION_ARGUMENTS = ("quantization_config", "load_in_8bit", "load_in_4bit", "gguf_file")
NOT_CARRIED_OVER = ("model_type", "architectures", "auto_map", "transformers_version", "_name_or_path")


@dataclass
class ConversionReport:
    """What `from_pretrained_bcos` did; kept as `model.conversion_report`.

    Attributes:
        source: the conventional checkpoint, as given.
        model_class: name of the B-cos class.
        layers: how many modules of each B-cos kind the model has.
        dropped_biases: norm of each bias of the checkpoint that the model does without.
        relative_bias_norm: norm of all dropped biases over the norm of the weights of their layers; None where the
            checkpoint's files could not be read again.
        new_parameters: parameters that the checkpoint does not have and that were newly initialised.
        unused: tensors of the checkpoint that the model has no place for, biases aside.
    """

    source: str
    model_class: str
    layers: dict[str, int] = field(default_factory=dict)
    dropped_biases: dict[str, float] = field(default_factory=dict)
    relative_bias_norm: float | None = None
    new_parameters: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        layers = ", ".join(f"{count} {kind}" for kind, count in sorted(self.layers.items()))
        biases = f"{len(self.dropped_biases)} biases dropped"
        if self.relative_bias_norm is None:
            biases = "biases dropped (their norms are unknown)"
        elif self.dropped_biases:
            biases += f" (their norm is {self.relative_bias_norm:.1%} of that of their layers' weights)"
        new = f"newly initialised: {', '.join(self.new_parameters) or 'nothing'}"
        unused = f"not used: {', '.join(self.unused) or 'nothing'}"
        return f"{self.source} converted to {self.model_class}: {layers}; {biases}; {new}; {unused}."


def from_pretrained_bcos(name_or_path: str | os.PathLike, task: str | None = None, **kwargs: Any) -> PreTrainedModel:
    """Loads a conventional checkpoint as a B-cos model, ready to be fine-tuned with the stock `Trainer`.

    Args:
        name_or_path: directory or Hub id of a conventional model of a supported architecture.
        task: one of `"sequence-classification"`, `"token-classification"`, `"question-answering"`, `"masked-lm"`,
            `"causal-lm"`, `"base"`; None takes the task of the checkpoint's own class.
        **kwargs: B-cos and other configuration fields (`b=1.5`, `num_labels=3`, …), and loading options of
            `from_pretrained` (`dtype`, `device_map`, `revision`, `token`, …).

    Returns:
        The model in evaluation mode, with a `ConversionReport` as `model.conversion_report`.

    Raises:
        TypeError: an argument that is neither a configuration field nor a loading option.
        ValueError: before any weight is loaded: an unsupported architecture or task, a model that is B-cos already,
            or an invalid configuration; after loading: weights that are not finite.

    Example:
        >>> model = from_pretrained_bcos("google-bert/bert-base-uncased", task="sequence-classification", num_labels=2)
    """
    source = _source_config(name_or_path, kwargs)
    models = ARCHITECTURES[source["model_type"]].models
    if task is None:
        task = _task_of(source, models)
    if task not in models:
        raise ValueError(
            f"No B-cos {source['model_type']} for the task {task!r}. Tasks of this architecture: {', '.join(models)}"
            + ("." if task in TASKS else f"; all tasks: {', '.join(TASKS)}.")
        )
    return _convert(models[task], name_or_path, source, kwargs)


def _from_pretrained_bcos_class(cls, name_or_path: str | os.PathLike, **kwargs: Any) -> PreTrainedModel:
    """Loads a conventional checkpoint of this architecture as a B-cos model; see `from_pretrained_bcos`."""
    if "task" in kwargs:
        raise TypeError(
            f"{cls.__name__} has its task already; use bcos_transformers.from_pretrained_bcos to name one."
        )
    source = _source_config(name_or_path, kwargs)
    if "bcos-" + source["model_type"] != cls.config_class.model_type:
        raise ValueError(
            f"{str(name_or_path)!r} is a {source['model_type']} checkpoint, which {cls.__name__} cannot hold; "
            "bcos_transformers.from_pretrained_bcos picks the class that fits."
        )
    return _convert(cls, name_or_path, source, kwargs)


BcosModelMixin.from_pretrained_bcos = classmethod(_from_pretrained_bcos_class)


def _source_config(name_or_path: str | os.PathLike, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's configuration, if it is one that can be converted."""
    quantized = [name for name in QUANTIZATION_ARGUMENTS if kwargs.get(name)]
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
    source, _ = PretrainedConfig.get_config_dict(name_or_path, **hub)
    if quantized or source.get("quantization_config"):
        raise ValueError(
            f"Quantized weights cannot be converted (given: {', '.join(quantized) or 'a quantized checkpoint'}): "
            "B-cos layers need the norms of the weights. Convert the model in its full precision."
        )
    supported = ", ".join(sorted(ARCHITECTURES))
    model_type = source.get("model_type")
    if not model_type:
        raise ValueError(f"config.json of {str(name_or_path)!r} names no `model_type`. Supported: {supported}.")
    if model_type in ROLES:
        raise ValueError(
            f"{str(name_or_path)!r} is a B-cos model already ({model_type}). Load it with from_pretrained of its class "
            "or of an Auto class."
        )
    if model_type not in ARCHITECTURES:
        raise ValueError(f"The architecture {model_type!r} of {str(name_or_path)!r} is not supported: {supported}.")
    return source


def _task_of(source: dict[str, Any], models: dict[str, type[PreTrainedModel]]) -> str:
    """The task of the class that saved the checkpoint."""
    architectures = source.get("architectures") or []
    for task, model in models.items():
        if model.__name__.removeprefix("Bcos") in architectures:
            return task
    raise ValueError(f"Say which task the model is for: task= one of {', '.join(models)} (saved as {architectures}).")


def _convert(
    cls: type[PreTrainedModel], name_or_path: str | os.PathLike, source: dict[str, Any], kwargs: dict[str, Any]
) -> PreTrainedModel:
    overrides = {name: value for name, value in kwargs.items() if name not in LOADING_ARGUMENTS}
    loading = {name: value for name, value in kwargs.items() if name in LOADING_ARGUMENTS}
    hub = {name: value for name, value in loading.items() if name in HUB_ARGUMENTS and value is not None}
    wants_info = loading.pop("output_loading_info", False)
    config = _bcos_config(cls.config_class, name_or_path, source, overrides)
    if cls.explanation_task == "masked-lm" and config.mask_token_id is None:
        config.mask_token_id = _mask_token_id(name_or_path, hub)
    model, info = cls.from_pretrained(name_or_path, config=config, output_loading_info=True, **loading)
    files = {name: loading[name] for name in ("variant", "use_safetensors") if name in loading}
    hub.pop("force_download", None)  # has just been done
    checkpoint = find_checkpoint(str(name_or_path), **files, **hub)
    _refuse_non_finite(model, checkpoint, name_or_path)
    # What is saved from here on is another model: no path may lead back to the conventional weights.
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._name_or_path = module.name_or_path = ""
    model.conversion_report = _report(model, name_or_path, info, checkpoint)
    logger.info("%s", model.conversion_report)
    return (model, info) if wants_info else model


def _bcos_config(config_class, name_or_path, source: dict[str, Any], overrides: dict[str, Any]) -> PretrainedConfig:
    known = {f.name for f in fields(config_class)} | set(source) | set(config_class.attribute_map) | {"num_labels"}
    for name in overrides:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known | LOADING_ARGUMENTS), n=1) or [
                known_name for known_name in known if known_name.lower() == name.lower()
            ]
            if name in ("rope_theta", "rope_scaling"):
                close = ["rope_parameters"]  # its successor in transformers 5
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(
                f"{name!r} is neither a field of {config_class.__name__} nor a loading option of from_pretrained.{hint}"
            )
    values = {name: value for name, value in source.items() if name not in NOT_CARRIED_OVER}
    count = overrides.get("num_labels")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise ValueError(f"`num_labels` must be a positive integer, got {count!r}.")
    same_labels = count is not None and len(values.get("id2label") or {}) == count
    if (count is not None and not same_labels) or {"id2label", "label2id"} & overrides.keys():
        values = {name: value for name, value in values.items() if name not in ("id2label", "label2id", "num_labels")}
    if "id2label" in overrides and "label2id" not in overrides:
        overrides = {**overrides, "label2id": {label: int(i) for i, label in overrides["id2label"].items()}}
    if "label2id" in overrides and "id2label" not in overrides:
        overrides = {**overrides, "id2label": {int(i): label for label, i in overrides["label2id"].items()}}
    if not os.path.isdir(name_or_path):
        values["converted_from"] = str(name_or_path)
    return config_class(**{**values, **overrides})


def _mask_token_id(name_or_path: str | os.PathLike, hub: dict[str, Any]) -> int | None:
    try:
        return AutoTokenizer.from_pretrained(name_or_path, **hub).mask_token_id
    except (OSError, ValueError, ImportError, KeyError) as error:
        logger.info("No tokenizer beside %s (%s): set model.config.mask_token_id yourself.", name_or_path, error)
        return None


def _refuse_non_finite(model: PreTrainedModel, checkpoint: Checkpoint | None, name_or_path) -> None:
    bad = []
    stored = {}
    for name in checkpoint or ():
        owner, _, kind = name.rpartition(".")
        for place in _places(owner, model.base_model_prefix):
            stored[f"{place}.{ {'gamma': 'weight', 'beta': 'bias'}.get(kind, kind) }"] = name
    for name, tensor in model.named_parameters():
        if tensor.is_meta:  # offloaded to disk
            if name not in stored:
                continue
            tensor = checkpoint.tensor(stored[name])
        if not torch.isfinite(tensor).all():
            bad.append(name)
    if bad:
        raise ValueError(
            f"Weights of {str(name_or_path)!r} are NaN or infinite as {model.dtype}: {', '.join(bad)}. The checkpoint "
            "is damaged, or its values do not fit this dtype."
        )


def _report(
    model: PreTrainedModel, name_or_path, info: dict[str, Any], checkpoint: Checkpoint | None
) -> ConversionReport:
    layers = Counter(type(m).__name__ for m in model.modules() if type(m).__module__.endswith(".bcos_layers"))
    report = ConversionReport(
        source=str(name_or_path),
        model_class=type(model).__name__,
        layers=dict(layers),
        new_parameters=sorted(info["missing_keys"]),
        unused=sorted(info["unexpected_keys"]),
    )
    if checkpoint is None:
        return report
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    bias_square = weight_square = 0.0
    for name in checkpoint:
        owner, _, kind = name.rpartition(".")
        places = _places(owner, model.base_model_prefix)
        if kind not in ("bias", "beta") or not any(place in modules for place in places):
            continue
        if any(f"{place}.bias" in parameters for place in places):
            continue
        bias = checkpoint.tensor(name)
        if bias.dim() != 1:  # old GPT-2 checkpoints call their causal mask a bias
            continue
        norm = bias.double().norm().item()
        report.dropped_biases[name] = norm
        bias_square += norm**2
        weight = f"{owner}.{'weight' if kind == 'bias' else 'gamma'}"
        if weight in checkpoint:
            weight_square += checkpoint.tensor(weight).double().norm().item() ** 2
    report.relative_bias_norm = math.sqrt(bias_square / weight_square) if weight_square else 0.0
    return report


def _places(owner: str, prefix: str) -> tuple[str, str, str]:
    """Names that the module called `owner` in the checkpoint may have in the model."""
    return owner, f"{prefix}.{owner}", owner.removeprefix(f"{prefix}.")
