"""Evaluation mode for the time of an explanation, shared by concurrent explanations of one model."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_LOCK = threading.Lock()
_RUNNING: "weakref.WeakKeyDictionary[nn.Module, _Running]" = weakref.WeakKeyDictionary()


class _Running:
    """How many explanations of a model are running, and which modules they have to set back to training mode."""

    def __init__(self) -> None:
        self.count = 0
        self.was_training: list[nn.Module] = []


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switches `model` to evaluation mode and, when the last concurrent explanation ends, back.

    A model in evaluation mode is not touched. Every module gets back the mode it had.
    """
    with _LOCK:
        running = _RUNNING.setdefault(model, _Running())
        running.count += 1
        training = [module for module in model.modules() if module.training]
        for module in training:
            module.training = False
        running.was_training.extend(training)
    try:
        yield
    finally:
        with _LOCK:
            running.count -= 1
            if running.count == 0:
                for module in running.was_training:
                    module.training = True
                del _RUNNING[model]
