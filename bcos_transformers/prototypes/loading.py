"""`from_pretrained_proto`: the encoder of a checkpoint, with new prototypes."""

import difflib
import inspect
import os
from typing import Any

import torch
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bcos_transformers.conversion import (
    HUB_ARGUMENTS,
    LOADING_ARGUMENTS,
    QUANTIZATION_ARGUMENTS,
    from_pretrained_bcos,
)
from bcos_transformers.modeling.configuration_proto import BCOS_BACKBONES, ProtoConfig
from bcos_transformers.modeling.modeling_proto import ProtoForSequenceClassification, check_reads_texts
from bcos_transformers.registration import ARCHITECTURES

LABEL_FIELDS = ("num_labels", "id2label", "label2id", "problem_type")
# They come from the checkpoint, or from projection.
NOT_FIELDS = ("backbone_config", "prototypes", "output_loading_info")


def from_pretrained_proto(
    name_or_path: str | os.PathLike,
    *,
    num_prototypes: int = 12,
    num_labels: int | None = None,
    bcos: bool | None = None,
    **fields: Any,
) -> ProtoForSequenceClassification:
    """Loads the encoder of a checkpoint and puts new prototypes over it, to be trained with the stock `Trainer`.

    Of a fine-tuned classifier the encoder and, where their number fits, the names of the labels are taken; its head is left
    out. A model that has prototypes already is loaded with `ProtoForSequenceClassification.from_pretrained`.

    Args:
        name_or_path: directory or Hub id of any encoder.
        num_prototypes: N, a multiple of the number of classes (regression: of bins).
        num_labels: classes; 1 is a regression. None is what `id2label` says, or the fine-tuned classifier, or 2.
        bcos: True makes a conventional encoder a B-cos one with `from_pretrained_bcos`; None and False leave it as it is.
            A B-cos encoder stays one, for which False is an error.
        **fields: fields of `ProtoConfig` (`distance="cosine"`, …); of the encoder's configuration, B-cos fields among them
            (`b=1.25`, …); and loading options of `from_pretrained` (`dtype`, `revision`, `token`, …).

    Returns:
        The model in evaluation mode. Prototypes are random until `initialize_prototypes` sets them to embeddings of texts.
        With `bcos=True`, `model.conversion_report` says what changed in the encoder.

    Raises:
        TypeError: an argument that is none of the above.
        ValueError: before any weight is loaded: a checkpoint that is no encoder, or has prototypes already, or is B-cos
            (with `bcos=False`) or of an architecture without B-cos encoder (with `bcos=True`), quantization, or fields that
            are invalid.

    Example:
        >>> model = from_pretrained_proto("sentence-transformers/all-MiniLM-L6-v2", num_prototypes=20, num_labels=2)
    """
    loading = {name: fields.pop(name) for name in list(fields) if name in LOADING_ARGUMENTS - {*NOT_FIELDS}}
    hub = {name: loading[name] for name in HUB_ARGUMENTS if loading.get(name) is not None}
    source, _ = PretrainedConfig.get_config_dict(name_or_path, **hub)
    quantized = [name for name in QUANTIZATION_ARGUMENTS if (fields | loading).get(name)]
    kind = _kind(name_or_path, source, bcos, quantized)
    converts = bool(bcos) and kind not in BCOS_BACKBONES
    own = set(inspect.get_annotations(ProtoConfig)) - {*NOT_FIELDS, *_class_variables()} | {*LABEL_FIELDS}
    proto = {name: value for name, value in fields.items() if name in own}
    encoder_fields = {name: value for name, value in fields.items() if name not in own}
    config_class = ARCHITECTURES[kind].config if converts else BCOS_BACKBONES.get(kind) or CONFIG_MAPPING[kind]
    _check_names(encoder_fields, config_class, own, source)
    proto |= {"num_prototypes": num_prototypes, **_labels(source, num_labels, proto)}

    config = AutoConfig.from_pretrained(name_or_path, **hub, **({} if converts else encoder_fields))
    ProtoConfig(backbone_config=config, **proto)  # refuses what is invalid before weights are loaded
    if type(config) in MODEL_MAPPING:
        encoder_class = MODEL_MAPPING[type(config)]
        check_reads_texts(encoder_class[0] if isinstance(encoder_class, tuple) else encoder_class)
    if converts:
        encoder = from_pretrained_bcos(name_or_path, task="base", **encoder_fields, **loading)
    else:
        encoder = AutoModel.from_pretrained(name_or_path, config=config, **loading)
    return _with_prototypes(encoder, proto)


def _kind(name_or_path: Any, source: dict[str, Any], bcos: bool | None, quantized: list[str]) -> str:
    """The checkpoint's `model_type`, if it can carry prototypes."""
    name, kind = repr(str(name_or_path)), source.get("model_type")
    if quantized or source.get("quantization_config"):
        raise ValueError(
            f"Quantized weights cannot be trained (given: {', '.join(quantized) or 'a quantized checkpoint'}): load the "
            "encoder in its full precision."
        )
    if kind == ProtoConfig.model_type:
        raise ValueError(
            f"{name} has prototypes already: load it with ProtoForSequenceClassification.from_pretrained."
        )
    is_bcos = str(kind).startswith("bcos-")
    if (is_bcos and kind not in BCOS_BACKBONES) or (bcos and not is_bcos and f"bcos-{kind}" not in BCOS_BACKBONES):
        encoders = ", ".join(name.removeprefix("bcos-") for name in sorted(BCOS_BACKBONES))
        raise ValueError(f"Prototypes over B-cos models need an encoder ({encoders}), but {name} is {kind!r}.")
    if not is_bcos and kind not in CONFIG_MAPPING:
        raise ValueError(f"{name} has the `model_type` {kind!r}, which is no architecture of transformers.")
    if is_bcos and bcos is False:
        raise ValueError(f"{name} is a B-cos model, which cannot be made conventional: leave `bcos=False` out.")
    return kind


def _class_variables() -> set[str]:
    return {name for name, kind in inspect.get_annotations(ProtoConfig).items() if "ClassVar" in str(kind)}


def _check_names(fields: dict[str, Any], config_class: type, own: set[str], source: dict[str, Any]) -> None:
    known = {*inspect.signature(config_class).parameters, *source, *getattr(config_class, "attribute_map", {})}
    known -= {*NOT_FIELDS, "kwargs"}
    for name in fields:
        if name in known:
            continue
        close = difflib.get_close_matches(name, sorted(known | own | LOADING_ARGUMENTS), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if name in NOT_FIELDS:
            hint = " It is not given, but comes with the checkpoint or with projection."
        elif name in inspect.signature(BCOS_BACKBONES["bcos-bert"]).parameters:
            hint = " It is a field of B-cos encoders: give bcos=True."
        raise TypeError(
            f"{name!r} is neither a field of ProtoConfig, nor of {config_class.__name__}, nor a loading option of "
            f"from_pretrained.{hint}"
        )


def _labels(source: dict[str, Any], num_labels: int | None, given: dict[str, Any]) -> dict[str, Any]:
    """Number and names of the labels: as given, or those of a fine-tuned classifier."""
    if num_labels is not None and (not isinstance(num_labels, int) or isinstance(num_labels, bool) or num_labels < 1):
        raise ValueError(f"`num_labels` must be a positive integer, got {num_labels!r}.")
    names = given.get("id2label")
    if names is None and given.get("label2id") is not None:
        names = {i: label for label, i in given["label2id"].items()}
    fine_tuned = any("ForSequenceClassification" in name for name in source.get("architectures") or [])
    if names is None and fine_tuned and source.get("id2label") and num_labels in (None, len(source["id2label"])):
        names = source["id2label"]
    if names is None:
        return {} if num_labels is None else {"num_labels": num_labels}
    names = {int(i): label for i, label in names.items()}
    if num_labels not in (None, len(names)):
        raise ValueError(f"`num_labels` is {num_labels}, but {len(names)} labels have names: {names}.")
    return {"num_labels": len(names), "id2label": names, "label2id": {label: i for i, label in names.items()}}


def _with_prototypes(encoder: PreTrainedModel, fields: dict[str, Any]) -> ProtoForSequenceClassification:
    # What is saved from here on is another model: no path may lead back to the checkpoint.
    encoder.config._name_or_path = encoder.name_or_path = ""
    encoder.config.architectures = None
    config = ProtoConfig(backbone_config=encoder.config, **fields)
    with torch.device("meta"):  # a second encoder, which is not needed, costs nothing there
        model = ProtoForSequenceClassification(config)
    if isinstance(getattr(encoder, "pooler", None), torch.nn.Module):
        encoder.pooler = torch.nn.Identity()
    model.backbone, model.config.backbone_config = encoder, encoder.config
    for new in (model.token_attention, model.classifier):
        new.to_empty(device=encoder.device).to(encoder.dtype)
    empty = torch.empty(config.num_prototypes, config.hidden_size, device=encoder.device, dtype=encoder.dtype)
    model.prototypes = torch.nn.Parameter(empty)
    for module in (model.token_attention, model):
        model._init_weights(module)
    if config.freeze_backbone:
        encoder.requires_grad_(False)
    if hasattr(encoder, "conversion_report"):
        model.conversion_report = encoder.conversion_report
    return model.eval()
