"""Model cards: what a B-cos model is, how to load it, what was measured, and what it cannot do."""

from dataclasses import dataclass, field
from pathlib import Path

from bcos_transformers.extras import require


@dataclass
class CardFacts:
    """What the card says beyond the model's own configuration. Only measured numbers belong here.

    Attributes:
        name: repository or model name.
        dataset: what it was fine-tuned on, in words.
        results: accuracy and the like by name, as fractions, measured on `evaluated_on`.
        evaluated_on: which data the results are from.
        conventional_results: the same for the conventional model fine-tuned alike, if there is one.
        setup: machine, seed, epochs and learning rate, in words.
        largest_residual: largest |logit − Σ contributions| / max |contribution| that was seen.
        conversion: the conversion report in words, if the model was converted in this run.
        licence: Hub name of the licence; it depends on the base model and the data.
        language: language code.
    """

    name: str
    dataset: str
    results: dict[str, float]
    evaluated_on: str
    conventional_results: dict[str, float] = field(default_factory=dict)
    setup: str = ""
    largest_residual: float | None = None
    conversion: str = ""
    licence: str | None = None
    language: str | None = None


def render_model_card(model, facts: CardFacts) -> str:
    """The card as Markdown with its metadata block.

    Args:
        model: the B-cos model.
        facts: what was measured.

    Raises:
        ImportError: jinja2 is not installed.
    """
    jinja2 = require("jinja2", "demo")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown, and no text of users in it
    )
    return environment.get_template("model_card.md.jinja").render(model=model, config=model.config, facts=facts)
