"""Loads a saved B-cos model, or one with prototypes, for the task that it was saved for."""

import os
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from bcos_transformers.modeling.modeling_proto import ProtoForSequenceClassification
from bcos_transformers.registration import ARCHITECTURES, PUBLIC_CLASSES

LOADABLE = {**PUBLIC_CLASSES, ProtoForSequenceClassification.__name__: ProtoForSequenceClassification}


def load_bcos_model(name_or_path: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """Loads a B-cos model, or one with prototypes, by the class that its configuration names, in evaluation mode.

    Args:
        name_or_path: directory or Hub id.
        **options: of `from_pretrained` (`revision`, `token`, `dtype`, `device_map`, …).

    Raises:
        OSError: there is no such model.
        ValueError: it is neither; the message says how to convert it.
    """
    hub = {name: options[name] for name in ("revision", "token", "cache_dir") if name in options}
    config = AutoConfig.from_pretrained(name_or_path, **hub)
    names = [name for name in config.architectures or [] if name in LOADABLE]
    if not names:
        kind = config.model_type
        convertible = (
            f"Convert it: bcos_transformers.from_pretrained_bcos({str(name_or_path)!r}, task=…), then fine-tune it."
            if kind in ARCHITECTURES
            else f"Its architecture cannot be converted; those that can: {', '.join(sorted(ARCHITECTURES))}."
        )
        raise ValueError(f"{str(name_or_path)!r} is not a B-cos model but a conventional one ({kind}). {convertible}")
    return LOADABLE[names[0]].from_pretrained(name_or_path, **options).eval()
