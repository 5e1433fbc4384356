"""Models and tokenizers by name, with sentences for what is not there or is of another kind."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bcos_transformers.loading import load_bcos_model
from bcos_transformers.modeling.bcos_roles import ROLES
from bcos_transformers.modeling.bcos_text_units import check_knows_words
from bcos_transformers.modeling.configuration_proto import ProtoConfig
from bcos_transformers.registration import ARCHITECTURES

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Directory or Hub id of a B-cos model.", show_default=False)
]
AnyModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Directory or Hub id of a B-cos model, or of one with prototypes.", show_default=False
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit on the Hub.", show_default=False)
]


@contextmanager
def naming_what_is_missing(name: str) -> Iterator[None]:
    """Turns the several paragraphs that transformers has for a missing model into a sentence."""
    if os.path.isdir(name) and not (Path(name) / "config.json").is_file():
        if (Path(name) / "adapter_config.json").is_file():
            raise ValueError(
                f"{name!r} holds an adapter, not a whole model: merge it into its base (peft: merge_and_unload) and save "
                "the result."
            )
        raise ValueError(f"The directory {name!r} holds no model: it has no config.json.")
    if os.path.isfile(name):
        raise ValueError(f"{name!r} is a file; a model is a directory or a Hub id (owner/name).")
    local = name.startswith((".", "/", "~", "\\")) or name.count("/") > 1 or not name.strip()
    if local and not os.path.isdir(name):
        raise FileNotFoundError(f"There is no directory {name!r}. From the Hub, give the id as owner/name.")
    try:
        yield
    except OSError as error:
        if os.path.isdir(name):
            raise
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"Found no model {name!r}: there is no such directory here, and the Hub did not give one of that id "
            f"({reason}). Models of the Hub are named owner/name; private ones need `hf auth login` or HF_TOKEN."
        ) from error


def read_config(name: str, revision: str | None = None) -> PretrainedConfig:
    """The configuration of a model of either kind.

    Raises:
        OSError, ValueError: there is none.
    """
    with naming_what_is_missing(name):
        return AutoConfig.from_pretrained(name, revision=revision)


def has_prototypes(name: str, revision: str | None = None) -> bool:
    """Whether a saved model classifies by prototypes.

    Raises:
        OSError, ValueError: there is none.
    """
    return read_config(name, revision).model_type == ProtoConfig.model_type


def refuse_prototypes(name: str, revision: str | None, advice: str) -> None:
    """Refuses a model that classifies by prototypes where only others are of use.

    Args:
        name: directory or Hub id.
        revision: on the Hub.
        advice: a sentence: what to do instead.

    Raises:
        OSError: there is no such model.
        ValueError: it has prototypes.
    """
    if has_prototypes(name, revision):
        raise ValueError(f"{name!r} is a model with prototypes ({ProtoConfig.model_type}). {advice}")


def load_model(name: str, revision: str | None = None, prototypes: bool = False, **options: Any) -> PreTrainedModel:
    """A saved B-cos model.

    Args:
        name: directory or Hub id.
        revision: on the Hub.
        prototypes: take a model with prototypes as well.
        **options: of `from_pretrained`.

    Raises:
        OSError: there is no such model.
        ValueError: it is a conventional one, the message says how to convert it; or one with prototypes.
    """
    kind = read_config(name, revision).model_type
    if kind == ProtoConfig.model_type and not prototypes:
        raise ValueError(
            f"{name!r} is a model with prototypes ({kind}), and this command is for B-cos models: "
            f"`bcos-transformers explain {name} …` and `bcos-transformers info {name}` read it."
        )
    if kind not in ROLES and kind != ProtoConfig.model_type:
        advice = (
            f"Convert it, `bcos-transformers convert {name} OUTPUT --task …`, and fine-tune it, or do both at once with "
            f"`bcos-transformers finetune {name} …`."
            if kind in ARCHITECTURES
            else f"Its architecture cannot be converted; those that can: {', '.join(sorted(ARCHITECTURES))}."
        )
        raise ValueError(f"{name!r} is not a B-cos model but a conventional one ({kind}). {advice}")
    with naming_what_is_missing(name):
        return load_bcos_model(name, revision=revision, **options)


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that is saved with a model.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        check_knows_words(tokenizer)
        return tokenizer
    except Exception as error:  # the tokenizers library raises nothing more particular
        raise ValueError(
            f"The tokenizer of {name!r} is missing or cannot be read ({type(error).__name__}: {error}). Save it beside the "
            "model: tokenizer.save_pretrained(directory)."
        ) from error
