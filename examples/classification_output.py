"""What the classification examples end with: a page of explanations, and a push to the Hub."""

from pathlib import Path
from typing import Any

from rich.console import Console

from bcos_transformers import push_to_hub
from bcos_transformers.explanations.html import render_html
from bcos_transformers.model_card import CardFacts
from classification_arguments import FinetuningArguments


def write_page(output: Path, explanations: list) -> Path:
    """Writes the explanations into the model's folder as a page; where it is."""
    page = output / "explanations.html"
    page.write_text(render_html(explanations, title=f"Explanations of {output.name}"), encoding="utf-8")
    return page


def push(
    model: Any,
    tokenizer: Any,
    repo_id: str,
    args: FinetuningArguments,
    facts: CardFacts,
    explanations: list,
    console: Console,
) -> None:
    """Pushes the whole model with its card in one commit, as the arguments say."""
    commit = push_to_hub(
        model,
        tokenizer,
        repo_id,
        facts=facts,
        explanations=explanations,
        private=args.hub_private_repo,
        token=args.hub_token,
        revision=args.hub_revision,
    )
    console.print(f"Pushed: {commit.commit_url}", highlight=False)
