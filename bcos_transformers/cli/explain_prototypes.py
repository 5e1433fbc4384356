"""The part of `bcos-transformers explain` that is for models with prototypes."""

from collections.abc import Sequence

import typer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers.cli.output import note
from bcos_transformers.prototypes import ProtoExplainer

SHOWN = 5  # prototypes of an explanation, where --top does not say


def check_prototype_options(
    pair: Sequence[str], pair_column: str | None, target: Sequence[str], granularity: str, stride: int | None
) -> None:
    """Refuses options that mean nothing for a model with prototypes.

    Raises:
        typer.BadParameter: one of them was given.
    """
    if pair or pair_column is not None:
        name = "--pair" if pair else "--pair-column"
        raise typer.BadParameter(
            f"{name} is not for a model with prototypes, which are single texts: leave it out, and give each text alone."
        )
    if len(target) > 1 or "all" in target:
        raise typer.BadParameter(
            "A model with prototypes explains one --target at a time: run the command once for each class."
        )
    if granularity != "word":
        raise typer.BadParameter(
            f"--granularity {granularity} is not for a model with prototypes, whose shares split over words or not at "
            "all: leave it out."
        )
    if stride is not None:
        raise typer.BadParameter(
            "--stride is not for a model with prototypes, which compares a text as a whole: leave it out; --max-length "
            "says where longer texts are cut."
        )


def prototype_explainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    batch_size: int,
    top: int | None,
) -> ProtoExplainer:
    """The explainer as the options say; notes that there is no text to show where prototypes are not projected."""
    if model.config.prototypes is None:
        note(
            "The prototypes are not projected onto training texts yet, so they have no texts to show: "
            "bcos_transformers.project_prototypes does that."
        )
    return ProtoExplainer(model, tokenizer, max_length=max_length, batch_size=batch_size, top_k=top or SHOWN)
