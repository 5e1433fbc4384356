"""`bcos-transformers info`: what a saved model is, and whether it is dynamic linear."""

from collections import Counter
from typing import Annotated, Any

import typer
from rich.text import Text
from transformers import PreTrainedModel

from bcos_transformers.cli.convert import dropped_biases
from bcos_transformers.cli.info_prototypes import describe_prototypes, prototype_rows
from bcos_transformers.cli.models import (
    AnyModelArgument,
    RevisionOption,
    has_prototypes,
    load_model,
    naming_what_is_missing,
)
from bcos_transformers.cli.output import JsonOption, console, emit, facts_table, quiet_transformers
from bcos_transformers.conversion import ConversionReport, from_pretrained_bcos
from bcos_transformers.modeling.bcos_conversion import assert_dynamic_linear
from bcos_transformers.modeling.bcos_inputs import token_limit

SHOWN_LABELS = 12


def info(
    model: AnyModelArgument,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="CONVENTIONAL",
            help="The model that it was converted from: reports the biases that were dropped.",
            show_default=False,
        ),
    ] = None,
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's class, B, size, layers and labels, and check that it is dynamic linear (exit code 1 if not).

    Of a model with prototypes: its encoder, how many prototypes each class has, the distance, whether they are training
    texts, and whether their shares split over words. The check is of its encoder, if that is a B-cos one.
    """
    if has_prototypes(model, revision):
        if against is not None:
            raise typer.BadParameter("--against is for B-cos models; this one has prototypes: leave it out.")
        loaded = load_model(model, revision, prototypes=True)
        fault = _fault(loaded.backbone) if loaded.config.is_bcos else None
        facts = describe_prototypes(loaded, fault)
        rows = {**prototype_rows(facts), **_common_rows(facts)}
        if loaded.config.is_bcos:
            rows["encoder dynamic linear"] = _verdict(facts)
    else:
        loaded = load_model(model, revision)
        report = None if against is None else _report(loaded, against)
        fault = _fault(loaded)
        facts = describe(loaded, report, fault)
        rows = _rows(facts, report)
    if as_json:
        emit({"model": model, **facts})
    else:
        console().print(facts_table({"model": model, **rows}))
    if fault:
        raise typer.Exit(1)


def describe(model: PreTrainedModel, report: ConversionReport | None, fault: str | None) -> dict[str, Any]:
    """What there is to know, as plain values."""
    config = model.config
    layers = Counter(type(m).__name__ for m in model.modules() if type(m).__module__.endswith(".bcos_layers"))
    classifies = model.explanation_task in ("sequence-classification", "token-classification")
    return {
        "class": type(model).__name__,
        "task": model.explanation_task or "base",
        "b": config.b,
        "b_per_layer": config.b_per_layer,
        "normalize_weights": config.normalize_weights,
        "classifier_loss": config.classifier_loss if classifies else None,
        "qk_bias": config.qk_bias,
        "bcos_lm_head": config.bcos_lm_head,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "layers": dict(sorted(layers.items())),
        "labels": {str(i): name for i, name in config.id2label.items()} if classifies else None,
        "max_tokens": token_limit(model),
        "converted_from": getattr(config, "converted_from", None),
        "dropped_biases": None if report is None else report.dropped_biases,
        "relative_bias_norm": None if report is None else report.relative_bias_norm,
        "dynamic_linear": fault is None,
        "fault": fault,
    }


def _rows(facts: dict[str, Any], report: ConversionReport | None) -> dict[str, Any]:
    per_layer = facts["b_per_layer"]
    switches = [name for name in ("normalize_weights", "qk_bias", "bcos_lm_head") if facts[name]]
    return {
        "class": facts["class"],
        "task": facts["task"],
        "B": f"{facts['b']:g}"
        if per_layer is None
        else f"{facts['b']:g}; by layer {', '.join(f'{b:g}' for b in per_layer)}",
        "switched on": ", ".join(switches) or "none",
        "classifier loss": facts["classifier_loss"],
        "layers": ", ".join(f"{count} {kind}" for kind, count in facts["layers"].items()),
        **_common_rows(facts),
        "converted from": facts["converted_from"],
        "dropped biases": "not kept with a saved model; --against CONVENTIONAL finds out"
        if report is None
        else dropped_biases(report),
        "dynamic linear": _verdict(facts),
    }


def _common_rows(facts: dict[str, Any]) -> dict[str, Any]:
    """What models of every kind have."""
    labels = list((facts["labels"] or {}).values())
    more = f", … ({len(labels)} in all)" if len(labels) > SHOWN_LABELS else ""
    return {
        "parameters": f"{facts['parameters']:,} ({facts['dtype']})",
        "labels": ", ".join(labels[:SHOWN_LABELS]) + more if labels else None,
        "max tokens": f"{facts['max_tokens']:,}" if facts["max_tokens"] is not None else "no limit",
    }


def _verdict(facts: dict[str, Any]) -> Text:
    return Text(f"NO: {facts['fault']}", style="bold red") if facts["fault"] else Text("yes", style="green")


def _fault(model: PreTrainedModel) -> str | None:
    try:
        assert_dynamic_linear(model)
    except ValueError as error:
        return str(error)
    return None


def _report(model: PreTrainedModel, against: str) -> ConversionReport:
    """What conversion of `against` into this class drops."""
    fields = {"qk_bias": model.config.qk_bias}
    with naming_what_is_missing(against), quiet_transformers():
        report = from_pretrained_bcos(against, task=model.explanation_task or "base", **fields).conversion_report
    if report.model_class != type(model).__name__:
        raise ValueError(
            f"{against!r} becomes a {report.model_class}, but the model is a {type(model).__name__}: it was converted from "
            "something else."
        )
    return report
