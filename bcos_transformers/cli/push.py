"""`bcos-transformers push`: a saved model to the Hub, in one commit."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from bcos_transformers.cli.files import decode
from bcos_transformers.cli.models import load_model, load_tokenizer
from bcos_transformers.cli.output import JsonOption, console, emit, facts_table

FACTS = "card_facts.json"


def push(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL_DIR", help="Directory of a B-cos model, or of one with prototypes.", show_default=False
        ),
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Where to: owner/name.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to commit to, made if need be.", show_default="main")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the commit in a pull request.")] = False,
    message: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Message of the commit.", show_default=False)
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Text that is explained in the card; may be given again.", show_default=False
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON object of what was measured, for the card.",
            show_default=f"{FACTS} of MODEL_DIR, if it is there",
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN", help="Access token; better kept in HF_TOKEN or `hf auth login`.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Push a saved model to the Hub: weights, code, tokenizer, pipeline and a card, in one commit or not at all.

    Prototypes are training texts, and they go along.
    """
    from bcos_transformers.hub import push_to_hub

    if not model.is_dir():
        raise FileNotFoundError(f"There is no directory {str(model)!r}.")
    place = facts or (model / FACTS if (model / FACTS).is_file() else None)
    known = read_facts(place, repo_id) if place else None
    commit = push_to_hub(
        load_model(str(model), prototypes=True),
        load_tokenizer(str(model)),
        repo_id,
        facts=known,
        example_texts=example or None,
        private=private or None,
        token=token,
        revision=revision,
        commit_message=message,
        create_pr=create_pr,
    )
    result = {"commit_url": commit.commit_url, "revision": commit.oid, "pull_request": commit.pr_url}
    if as_json:
        emit({"repo_id": repo_id, **result})
    else:
        console().print(
            facts_table(
                {"pushed": result["commit_url"], "revision": commit.oid, "pull request": result["pull_request"]}
            )
        )


def read_facts(path: Path, name: str) -> object:
    """The `CardFacts` of a JSON file.

    Raises:
        ValueError: it is not a JSON object of their fields.
        OSError: it cannot be read.
    """
    from bcos_transformers.model_card import CardFacts

    try:
        values = json.loads(decode(path.read_bytes(), str(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    known = {field.name for field in fields(CardFacts)}
    unknown = sorted(set(values) - known) if isinstance(values, dict) else [type(values).__name__]
    if unknown:
        raise ValueError(
            f"{path} must be an object with fields of CardFacts ({', '.join(sorted(known))}), got {unknown}."
        )
    return CardFacts(**{**values, "name": name})
