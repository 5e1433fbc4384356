"""Projection in the middle, or at the end, of a training with the stock `Trainer`."""

import inspect
import logging
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import ExportableState

from bcos_transformers.prototypes.projection import project_onto, project_prototypes
from bcos_transformers.prototypes.texts import TrainingTexts, check_model
from bcos_transformers.prototypes.training import train_last_layer_only

logger = logging.getLogger(__name__)

OPTIONS = [name for name, p in inspect.signature(project_prototypes).parameters.items() if p.kind is p.KEYWORD_ONLY]


class ProtoProjectionCallback(TrainerCallback, ExportableState):
    """Projects the prototypes onto training texts once a share of the training is done; the rest trains the last layer.

    With `project_at=1.0` prototypes are projected after the last step; the last layer can then be trained by a second
    `Trainer` of the same model, which this callback leaves ready for that (see `train_last_layer_only`). Checkpoints from the
    projection on hold projected prototypes and their list; a training resumed from one goes on with the last layer.
    When training ends, prototypes are training texts in any case: after an early stop, and where the best checkpoint
    (`load_best_model_at_end`) is older than the projection, they are projected then. Every process of a distributed
    training does the whole search, with the same result.

    Args:
        dataset: the training set with its texts: a `datasets.Dataset`, a list of dicts, or anything with a length and rows
            by index.
        tokenizer: the model's.
        project_at: share of all training steps after which prototypes are projected, in (0, 1].
        **projection_options: `text_column`, `label_column`, `max_length`, `batch_size` of `project_prototypes`.

    Attributes:
        prototypes: what `project_prototypes` returned; None before.
        projected_at: the step at which it was; None before.

    Raises:
        TypeError: an unknown option; when training begins: a model without prototypes.
        ValueError: `project_at` outside (0, 1]; when training begins: whatever `project_prototypes` would refuse, or a way of
            training that cannot freeze parameters midway or that bypasses the model's loss.

    Example:
        >>> callback = ProtoProjectionCallback(rows, tokenizer, project_at=0.8)
        >>> Trainer(model, args, train_dataset=tokenized, processing_class=tokenizer, callbacks=[callback]).train()
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        project_at: float = 1.0,
        **projection_options: Any,
    ) -> None:
        if dataset is None or tokenizer is None:
            raise ValueError(
                "`dataset` and `tokenizer` are needed. If this was called by a Trainer with "
                "`restore_callback_states_from_checkpoint=True`, leave that out: this callback restores its state without."
            )
        if not isinstance(project_at, int | float) or not 0.0 < project_at <= 1.0:
            raise ValueError(f"`project_at` must lie in (0, 1], got {project_at!r}.")
        for name in projection_options:
            if name not in OPTIONS:
                raise TypeError(f"{name!r} is no option of project_prototypes, which has {', '.join(OPTIONS)}.")
        self.dataset, self.tokenizer, self.project_at = dataset, tokenizer, project_at
        self.projection_options = projection_options
        self.prototypes: list[dict[str, Any]] | None = None
        self.projected_at: int | None = None
        self._projected: torch.Tensor | None = None

    def state(self) -> dict:
        return {
            "args": {"dataset": None, "tokenizer": None, "project_at": self.project_at},
            "attributes": {"prototypes": self.prototypes, "projected_at": self.projected_at},
        }

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._texts(model).check()
        if args.label_smoothing_factor:
            raise ValueError(
                f"With label_smoothing_factor={args.label_smoothing_factor} the Trainer computes a loss of its own, without "
                "cohesion and separation. Leave it at 0."
            )
        _check_parallelism(args, model, last_layer_follows=self._step(state) < state.max_steps)
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step > 0 else None
        if isinstance(saved, list):
            saved = saved[0] if saved else None
        attributes = (saved or {}).get("attributes", {})
        self.prototypes, self.projected_at = attributes.get("prototypes"), attributes.get("projected_at")
        if self.prototypes is not None:
            model.config.prototypes = self.prototypes
            self._freeze(model)
        elif model.prototypes.requires_grad:
            model.config.prototypes = None  # of an earlier projection: they are about to move
        elif model.config.prototypes is not None:  # a second training, of the last layer: they stay what they are
            self.prototypes, self.projected_at = model.config.prototypes, state.global_step
            self._projected = model.prototypes.detach().clone()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        # Before the Trainer evaluates and saves.
        if self.prototypes is None and state.global_step >= self._step(state):
            self._project(model, state)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.prototypes is not None:
            if torch.equal(model.prototypes.detach(), self._projected.to(model.prototypes)):
                return
            logger.warning(
                "The prototypes are not those that were projected at step %d%s. They are projected again; the last layer has "
                "not been trained since: train it with train_last_layer_only(model) and a second Trainer.",
                self.projected_at,
                f": the best checkpoint, {state.best_model_checkpoint}, is older"
                if args.load_best_model_at_end
                else "",
            )
        self._project(model, state)

    def _step(self, state) -> int:
        return max(1, round(self.project_at * state.max_steps))

    def _texts(self, model) -> TrainingTexts:
        return TrainingTexts(model, self.dataset, self.tokenizer, **self.projection_options)

    def _project(self, model, state) -> None:
        self.prototypes, self.projected_at = project_onto(self._texts(model)), state.global_step
        self._freeze(model)

    def _freeze(self, model) -> None:
        train_last_layer_only(model)
        self._projected = model.prototypes.detach().clone()


def _check_parallelism(args, model, last_layer_follows: bool) -> None:
    check_model(model)
    if args.deepspeed or args.fsdp:
        raise ValueError(
            "DeepSpeed and FSDP split the prototypes between processes, so they cannot be projected while training. Train "
            "without this callback, then call `project_prototypes`."
        )
    unused = args.ddp_find_unused_parameters
    if unused is None:
        unused = not (model.is_activation_checkpointing or args.activation_checkpointing)
    if last_layer_follows and args.world_size > 1 and not unused:
        raise ValueError(
            "Distributed training waits for gradients of all parameters, also of those that are frozen after the projection. "
            "Set `ddp_find_unused_parameters=True` without activation checkpointing, or `project_at=1.0` and train the last "
            "layer with a second Trainer."
        )
