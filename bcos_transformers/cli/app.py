"""The commands put together, and what a mistake looks like."""

import inspect
from typing import Annotated, Any

import typer
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from typer.core import TyperGroup

from bcos_transformers import __version__
from bcos_transformers.cli.convert import convert
from bcos_transformers.cli.doctor import doctor
from bcos_transformers.cli.evaluate import evaluate
from bcos_transformers.cli.explain import explain
from bcos_transformers.cli.finetune import finetune
from bcos_transformers.cli.info import info
from bcos_transformers.cli.output import fail, log_as_notes
from bcos_transformers.cli.push import push

# Where the Hub cannot be reached, its HTTP library's error is the base of those that the Hub answers with.
USER_ERRORS = (
    *(OSError, ValueError, TypeError, ImportError, KeyError),
    *(SafetensorError, StrictDataclassError, HfHubHTTPError.__bases__[0]),
)
EXIT_CODES = "Exit codes: 0 done · 1 a mistake in what was given, or a failed check · 2 wrong usage"


class Commands(TyperGroup):
    """Turns errors that speak to the user into one sentence; `--debug` lets them through."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            with log_as_notes():
                return super().invoke(ctx)
        except BrokenPipeError:  # `… | head`: nobody reads on
            raise
        except USER_ERRORS as error:
            if ctx.params.get("debug"):
                raise
            fail(error)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog=EXIT_CODES,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bcos-transformers {__version__}")
        raise typer.Exit


def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """B-cos language models: predictions that split exactly into signed contributions of the words.

    Convert a pretrained model, fine-tune it, and read why it decides as it does. Every command has --json, which puts one
    JSON document on standard output and nothing else; progress, notes and errors go to standard error.
    """


def _paragraphs(function: Any) -> str:
    """The docstring with each paragraph on one line: typer would keep its line breaks."""
    return "\n\n".join(" ".join(text.split()) for text in inspect.getdoc(function).split("\n\n"))


app.callback(help=_paragraphs(_common))(_common)


def _add(function: Any, panel: str, *examples: str) -> None:
    """Registers a command with examples under its help; the blank lines keep them on lines of their own."""
    lines = "\n\n".join(["[bold]Examples[/bold]", *(f"[dim]$[/dim] {line}" for line in examples)])
    app.command(function.__name__, help=_paragraphs(function), rich_help_panel=panel, epilog=lines)(function)


_add(
    explain,
    "Read a model",
    'bcos-transformers explain runs/reviews "a gripping, funny film"',
    'bcos-transformers explain runs/reviews "a dull film" --target all --format table',
    "bcos-transformers explain runs/reviews --file reviews.csv --column text --output explanations.html",
    "cat texts.txt | bcos-transformers explain runs/reviews - --json",
)
_add(
    info,
    "Read a model",
    "bcos-transformers info runs/reviews",
    "bcos-transformers info runs/reviews --against google-bert/bert-base-uncased --json",
)
_add(
    evaluate,
    "Read a model",
    "bcos-transformers evaluate runs/reviews --file test.csv --text-column review --label-column stars",
)
_add(
    convert,
    "Make a model",
    "bcos-transformers convert google-bert/bert-base-uncased bcos-bert --task sequence-classification --num-labels 2",
    "bcos-transformers convert openai-community/gpt2 bcos-gpt2 --task causal-lm --b 1.25",
)
_add(
    finetune,
    "Make a model",
    "bcos-transformers finetune --output runs/reviews",
    "bcos-transformers finetune google-bert/bert-base-uncased --train-file train.csv --test-file test.csv --output runs/mine",
)
_add(
    push,
    "Make a model",
    'bcos-transformers push runs/reviews org/bcos-reviews --private --example "a gripping, funny film"',
)
_add(doctor, "This installation", "bcos-transformers doctor", "bcos-transformers doctor --json")
