"""Helpers for the stock `Trainer`; none of them is needed to train a B-cos model."""

import json
import logging
import os

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from bcos_transformers.modeling.bcos_conversion import set_b

logger = logging.getLogger(__name__)


class BcosAnnealingCallback(TrainerCallback, ExportableState):
    """Raises B linearly from 1 to its target over the first part of training.

    The target is the `b` (and `b_per_layer`) that the model has when training begins. The current value is in
    `model.config`, so every checkpoint says which B its weights belong to; the target is in the trainer's state, so
    that resuming from a checkpoint goes on from there, whichever B the model was built with.

    Args:
        fraction: share of all training steps over which B rises, in (0, 1].

    Raises:
        ValueError: `fraction` outside (0, 1].

    Example:
        >>> Trainer(model, args, train_dataset=data, callbacks=[BcosAnnealingCallback(fraction=0.5)]).train()
    """

    def __init__(self, fraction: float = 0.5) -> None:
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"`fraction` must lie in (0, 1], got {fraction!r}.")
        self.fraction = fraction
        self.target_b: float | None = None
        self.target_b_per_layer: list[float] | None = None

    def state(self) -> dict:
        return {
            "args": {"fraction": self.fraction},
            "attributes": {"target_b": self.target_b, "target_b_per_layer": self.target_b_per_layer},
        }

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        config = model.config
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step > 0 else None
        if isinstance(saved, list):
            saved = saved[0] if saved else None
        attributes = (saved or {}).get("attributes", {})
        if attributes.get("target_b") is not None:
            self.target_b, self.target_b_per_layer = attributes["target_b"], attributes["target_b_per_layer"]
        else:
            self.target_b, self.target_b_per_layer = config.b, config.b_per_layer
        self._set(model, state)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self._set(model, state)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        # Before a checkpoint is written: its configuration shall hold the B that the next step starts with.
        self._set(model, state)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        path = os.path.join(best, "config.json") if best else ""
        if not os.path.isfile(path):
            return
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        set_b(model, config["b"], config.get("b_per_layer"))
        logger.info("The best checkpoint was trained up to B = %g, which the model now has.", config["b"])

    def _set(self, model, state) -> None:
        share = min(1.0, state.global_step / max(1.0, self.fraction * state.max_steps))
        per_layer = self.target_b_per_layer
        set_b(
            model,
            1.0 + share * (self.target_b - 1.0),
            None if per_layer is None else [1.0 + share * (b - 1.0) for b in per_layer],
        )
