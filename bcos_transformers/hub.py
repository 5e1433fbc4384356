"""Pushes a whole B-cos model, or one with prototypes, to the Hub in one commit, and keeps the commits of a `Trainer` loadable."""

import logging
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainerCallback

from bcos_transformers.explanations import BcosExplainer
from bcos_transformers.hub_folder import (
    build_folder,
    check_pushable,
    draw,
    with_example,
    with_prototype_example,
    write_code,
    write_prototypes,
)
from bcos_transformers.model_card import CardFacts, is_proto, task_of

logger = logging.getLogger(__name__)

# What an earlier push may have left, and what would be loaded in the place of, or shown beside, the new files.
OURS = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|pytorch_model(-\d{5}-of-\d{5})?\.bin|pytorch_model\.bin\.index\.json"
    r"|explanation(_\d+)?\.png|prototypes\.jsonl|\.eval_results/bcos_\w+\.yaml"
)


def push_to_hub(
    model: Any,
    tokenizer: Any,
    repo_id: str,
    *,
    facts: CardFacts | None = None,
    example_texts: str | Sequence[Any] | None = None,
    explanations: Any = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
) -> CommitInfo:
    """Uploads a model, its code, tokenizer, pipeline, prototypes and a card in one commit: all of it is there, or none.

    Weights and other files of an earlier push that this one has no successor for go in the same commit. Model and
    tokenizer are left as they were; an empty `model.name_or_path` becomes the repository's id.

    Args:
        model: a B-cos model, or one with prototypes, without adapters. The prototypes' texts go along: they are training
            texts, and a public repository shows them to everybody.
        tokenizer: its tokenizer.
        repo_id: `"owner/name"`, or `"name"` for a repository of one's own. It is created if it does not exist.
        facts: what was measured, for the card; `name` is replaced by the repository's id.
        example_texts: a text or several that the model explains for the card's pictures (the first three). With
            prototypes there are no pictures of them; the first is the example of the card's code.
        explanations: `TextExplanation` objects, with prototypes `PrototypeExplanation` objects, to draw instead.
        private: whether a new repository is private; None leaves it to the account's or organization's default.
        token: access token with write permission; by default the one of `hf auth login` or of `HF_TOKEN`.
        revision: branch to commit to, created if need be; by default `main`.
        commit_message: of the commit.
        commit_description: of the commit.
        create_pr: propose the commit in a pull request instead.
        max_shard_size: largest size of one file of weights, in bytes or as `"5GB"`.

    Returns:
        The commit; `.oid` is what to pin as `revision` when the model is loaded.

    Raises:
        ImportError: a package that the card or its pictures need is missing; the message says which extra brings it.
        TypeError: not a B-cos model (the message says how to convert it), or another argument of the wrong kind.
        ValueError: the tokenizer belongs to another model, the model carries adapters, the facts or the card are invalid,
            or a private push would go to a public repository.
        LocalTokenNotFoundError: there is no access token.
        HfHubHTTPError: the Hub refused, or broke off; a note says what is visible there.

        All but the last are raised before a repository is created.

    Example:
        >>> commit = push_to_hub(model, tokenizer, "org/bcos-bert-sst2", example_texts="a gripping, funny film")
        >>> AutoModelForSequenceClassification.from_pretrained("org/bcos-bert-sst2", revision=commit.oid)
    """
    check_pushable(model, tokenizer)
    if not isinstance(facts, CardFacts | None):
        raise TypeError(f"`facts` are CardFacts, got {type(facts).__name__}.")
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(f"`revision` is a branch to commit to; {revision} is a commit, which cannot change any more.")
    api, repo_id = _api_and_repo(repo_id, token)
    _refuse_public(api, repo_id, private)
    facts = replace(facts or CardFacts(repo_id), name=repo_id)
    if example_texts is not None and explanations is None and is_proto(model):
        facts = with_prototype_example(facts, model, tokenizer, example_texts)
        example_texts = None
    explained = _explained(model, tokenizer, explanations, example_texts)
    pictures = draw(explained)
    facts = with_example(facts, explained)
    with tempfile.TemporaryDirectory() as folder:
        ModelCard(build_folder(Path(folder), model, tokenizer, facts, pictures, max_shard_size)).validate()
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr and not revision.startswith("refs/pr/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = _commit_folder(
            api,
            repo_id,
            Path(folder),
            revision=revision,
            commit_message=commit_message or f"Upload {type(model).__name__} with its code, tokenizer and card",
            commit_description=commit_description,
            create_pr=create_pr,
        )
    if revision in (None, "main") and not create_pr:
        model._remember_where_saved(repo_id)
    logger.info("Pushed to %s", commit.commit_url)
    return commit


class BcosHubCallback(TrainerCallback):
    """Keeps every commit of a `Trainer` that pushes while it trains loadable with `trust_remote_code=True`.

    With `hub_strategy="every_save"` (and `"checkpoint"`, `"all_checkpoints"`) the Trainer uploads a configuration whose
    `auto_map` names the model's code, but the code itself only when training has ended. This callback writes the code into
    `args.output_dir` when training begins, so that each upload has it, and the list of prototypes, if there are any, before
    each upload. It should stand after a `ProtoProjectionCallback`: before it, the upload of the step that projects has the
    previous list.

    Raises:
        TypeError: the model is neither a B-cos model nor one with prototypes.

    Example:
        >>> args = TrainingArguments("out", push_to_hub=True, hub_strategy="every_save")
        >>> Trainer(model, args, train_dataset=data, callbacks=[BcosHubCallback()]).train()
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not hasattr(model, "explain"):
            raise TypeError(
                f"BcosHubCallback writes the code of B-cos models; {type(model).__name__} is none. Convert it with "
                "bcos_transformers.from_pretrained_bcos, or leave the callback out."
            )
        # Of a PeftModel the Trainer uploads the adapter, whose base model brings the code.
        if state.is_world_process_zero and not hasattr(model, "peft_config"):
            write_code(model, args.output_dir)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if control.should_save and state.is_world_process_zero and not hasattr(model, "peft_config"):
            write_prototypes(model, args.output_dir)

    on_epoch_end = on_step_end


def _api_and_repo(repo_id: str, token: str | bool | None) -> tuple[HfApi, str]:
    """The Hub with a token to write, and the repository's id with its owner."""
    if not isinstance(repo_id, str):
        raise TypeError(f"`repo_id` is a string such as 'owner/name', got {type(repo_id).__name__}.")
    validate_repo_id(repo_id)
    token = token if isinstance(token, str) else None if token is False else get_token()
    if not token:
        raise LocalTokenNotFoundError(
            "Pushing needs an access token with write permission: run `hf auth login`, set the environment variable "
            "HF_TOKEN, or pass `token=`."
        )
    api = HfApi(token=token)
    return api, repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"


def _refuse_public(api: HfApi, repo_id: str, private: bool | None) -> None:
    """Refuses to push to a public repository what shall be private: `private` is for new repositories only."""
    if not private:
        return
    try:
        is_private = api.model_info(repo_id).private
    except RepositoryNotFoundError:
        return
    if not is_private:
        raise ValueError(
            f"{repo_id} exists and is public, so private=True would not keep this push from anybody. Hide the repository "
            f"first, HfApi().update_repo_settings({repo_id!r}, private=True), or push to another one."
        )


def _explained(model: Any, tokenizer: Any, explanations: Any, example_texts: Any) -> list[Any]:
    """The explanations for the card, one a text."""
    if explanations is not None and example_texts is not None:
        raise ValueError("Give `explanations` or `example_texts`, not both.")
    if example_texts is not None:
        if task_of(model) == "base":
            raise ValueError("A base model has no logit, so `example_texts` cannot be explained: leave them out.")
        texts = example_texts if isinstance(example_texts, list) else [example_texts]
        explanations = BcosExplainer(model, tokenizer)(texts)
    explanations = [] if explanations is None else explanations
    explanations = list(explanations) if isinstance(explanations, list | tuple) else [explanations]
    # Token classification has a list of explanations a text.
    return [e[0] if isinstance(e, list) else e for e in explanations if not isinstance(e, list) or e]


def _commit_folder(api: HfApi, repo_id: str, folder: Path, *, revision: str | None, **options: Any) -> CommitInfo:
    """One commit that makes the repository hold the files of `folder`, beside others that are none of ours."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    info = api.model_info(repo_id, revision=revision)
    there = {file.rfilename for file in info.siblings or []}
    operations = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=folder / file) for file in files]
    operations += [CommitOperationDelete(file) for file in sorted(there - set(files)) if OURS.fullmatch(file)]
    try:
        # Not upload_folder, which may take several commits. The parent is named lest another push comes in between.
        return api.create_commit(repo_id, operations, revision=revision, parent_commit=info.sha, **options)
    except Exception as error:
        error.add_note(_what_is_visible(api, repo_id, revision, info.sha))
        raise


def _what_is_visible(api: HfApi, repo_id: str, revision: str | None, before: str | None) -> str:
    where = f"{repo_id} (branch {revision or 'main'})"
    try:
        now = api.model_info(repo_id, revision=revision).sha
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        return (
            f"Whether anything was committed to {where} is unknown, the Hub cannot be asked: {type(error).__name__}."
        )
    if now == before:
        return f"Nothing was committed: {where} is as it was before, at {now}."
    return f"{where} was at {before} and is at {now} now: that is this push, or somebody else's."


__all__ = ["BcosHubCallback", "push_to_hub"]
