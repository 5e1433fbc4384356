"""`bcos-transformers convert`: a conventional checkpoint in, a saved B-cos model out."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bcos_transformers.cli.files import check_folder_target, new_folder
from bcos_transformers.cli.models import RevisionOption, load_tokenizer, naming_what_is_missing, refuse_prototypes
from bcos_transformers.cli.output import JsonOption, console, emit, facts_table, note, quiet_transformers
from bcos_transformers.conversion import ConversionReport, from_pretrained_bcos
from bcos_transformers.registration import TASKS

Task = StrEnum("Task", {name.replace("-", "_"): name for name in TASKS})
Dtype = StrEnum("Dtype", {name: name for name in ("float64", "float32", "bfloat16", "float16")})
Loss = StrEnum("Loss", {name: name for name in ("bce", "ce")})
NOT_CONVERTED = (
    "Conventional models are converted; prototypes over a B-cos encoder are made with "
    "bcos_transformers.from_pretrained_proto(ENCODER, bcos=True)."
)
BOption = Annotated[
    float | None, typer.Option("--b", metavar="B", help="Alignment pressure, at least 1.", show_default="1.5")
]


def convert(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Conventional model: directory or Hub id.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory to save to.", show_default=False)],
    task: Annotated[
        Task | None,
        typer.Option(
            metavar="TASK",
            help=f"What the model is for: {', '.join(Task)}.",
            show_default="what the checkpoint's own class is for",
        ),
    ] = None,
    b: BOption = None,
    num_labels: Annotated[
        int | None, typer.Option(metavar="N", help="How many classes a classifier has.", min=1)
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name of a class; once for each, in order.", show_default=False),
    ] = None,
    no_normalize_weights: Annotated[
        bool, typer.Option("--no-normalize-weights", help="Leave weight rows as long as they are.")
    ] = False,
    qk_bias: Annotated[bool, typer.Option("--qk-bias", help="Keep the biases of queries and keys.")] = False,
    bcos_lm_head: Annotated[
        bool, typer.Option("--bcos-lm-head", help="Make the head of a language model a B-cos layer.")
    ] = False,
    classifier_loss: Annotated[Loss | None, typer.Option(help="Loss of a classifier.", show_default="bce")] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(metavar="DTYPE", help=f"Number format: {', '.join(Dtype)}.", show_default="the checkpoint's"),
    ] = None,
    revision: RevisionOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is in OUTPUT already.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a conventional model to a B-cos model, with its code and tokenizer, ready to be fine-tuned.

    Right after conversion the model predicts badly, for it has lost its biases: fine-tune it before you use it. OUTPUT
    appears when all of it is written.
    """
    if label and num_labels not in (None, len(label)):
        raise typer.BadParameter(f"--num-labels says {num_labels}, but --label names {len(label)}.")
    if label and len(set(label)) < len(label):
        raise typer.BadParameter(f"--label names a class twice: {', '.join(label)}.")
    check_folder_target(output, force)
    if output.resolve() == Path(name).resolve():
        raise ValueError("OUTPUT is the model itself; save the B-cos model to another directory.")
    refuse_prototypes(name, revision, NOT_CONVERTED)
    fields = {
        "b": b,
        "num_labels": num_labels if not label else None,
        "id2label": dict(enumerate(label)) if label else None,
        "normalize_weights": False if no_normalize_weights else None,
        "qk_bias": qk_bias or None,
        "bcos_lm_head": bcos_lm_head or None,
        "classifier_loss": classifier_loss and classifier_loss.value,
        "dtype": dtype and dtype.value,
        "revision": revision,
    }
    given = {field: value for field, value in fields.items() if value is not None}
    with naming_what_is_missing(name), quiet_transformers():
        model = from_pretrained_bcos(name, task=task and task.value, **given)
    try:
        tokenizer = load_tokenizer(name, revision)
    except ValueError as error:
        tokenizer = None
        note(f"Saved without a tokenizer. {error}")
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    report = model.conversion_report
    if as_json:
        emit({"output": str(output), "tokenizer": tokenizer is not None, "b": model.config.b, **asdict(report)})
    else:
        console().print(facts_table({**report_rows(report), "B": f"{model.config.b:g}", "saved to": output}))


def report_rows(report: ConversionReport) -> dict[str, str | None]:
    """A conversion report in rows for people."""
    return {
        "converted": f"{report.source} → {report.model_class}",
        "layers": ", ".join(f"{count} {kind}" for kind, count in sorted(report.layers.items())),
        "dropped biases": dropped_biases(report),
        "newly initialised": ", ".join(report.new_parameters) or "nothing",
        "not used": ", ".join(report.unused) or "nothing",
    }


def dropped_biases(report: ConversionReport) -> str:
    """What conversion dropped, in words."""
    if report.relative_bias_norm is None:
        return "unknown: the checkpoint's files could not be read again"
    if not report.dropped_biases:
        return "none"
    return f"{len(report.dropped_biases)}, with {report.relative_bias_norm:.1%} of the norm of their layers' weights"
